//! I8: a replica that could be elected (a member of the committed ISR) holds every acknowledged
//! batch.
//!
//! Not verified: members whose process is down; they are looked at when it is back, by what its
//! disk has kept. With `durability = page-cache`, processes that have not registered: what their
//! machine lost is told at the registration (R9).

use std::collections::BTreeMap;

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct ElectableHoldAcked {
    looked_up: BTreeMap<NodeId, (u64, u64, usize)>,
}

impl Checker for ElectableHoldAcked {
    fn name(&self) -> &'static str {
        "I8 whoever could be elected holds what was acknowledged"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some(committed) = sight.committed else {
            return Ok(());
        };
        for (node, seen) in sight.replicas {
            let unsaid = sight.page_cache && !seen.registered;
            if !committed.isr.contains(node) || unsaid {
                self.looked_up.remove(node);
                continue;
            }
            let (life, generation, count) = self.looked_up.get(node).copied().unwrap_or_default();
            let same = (life, generation) == (seen.life, seen.generation);
            let from = if same { count } else { 0 };
            if let Some(acked) = sight.acked[from..].iter().find(|acked| !seen.holds(acked)) {
                return Err(format!(
                    "node {node} is in the ISR {:?} without {acked:?}; its log ends at {}",
                    committed.isr, seen.log_end
                ));
            }
            self.looked_up
                .insert(*node, (seen.life, seen.generation, sight.acked.len()));
        }
        Ok(())
    }
}
