//! I8: a replica that could be elected (a member of the committed ISR or ELR) holds every acknowledged
//! batch; on its disk, where the registration says that what is acknowledged is there.
//!
//! Not verified: members whose process is down; they are looked at when it is back, by what its
//! disk has kept. Processes that have not registered, and whose machine lost its page cache, or
//! which found damage: what they lost is told at the registration (R9). What was acknowledged before
//! an unclean election and its leader does not hold.

use std::collections::BTreeMap;

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::{Acked, Sight};

/// Life, generation, history.
type When = (u64, u64, u64);

#[derive(Default)]
pub(super) struct ElectableHoldAcked {
    /// Of which life, generation and history, and how many of the acknowledged were looked up: held,
    /// and on the disk.
    looked_up: BTreeMap<NodeId, (When, usize, usize)>,
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
            let electable = committed.isr.contains(node) || committed.elr.contains(node);
            let unsaid = seen.unsaid.damage || sight.page_cache && seen.unsaid.cache;
            if !electable || unsaid {
                self.looked_up.remove(node);
                continue;
            }
            let now = (seen.life, seen.generation, sight.history);
            let fresh = (now, 0, 0);
            let known = self.looked_up.get(node).copied();
            let known = known.filter(|(then, ..)| *then == now).unwrap_or(fresh);
            let (_, held, mut on_disk) = known;
            if let Some(acked) = sight.acked[held..].iter().find(|acked| !seen.holds(acked)) {
                return Err(format!(
                    "node {node} is in {:?}/{:?} without {acked:?}; its log ends at {}",
                    committed.isr, committed.elr, seen.log_end
                ));
            }
            if sight.page_cache {
                on_disk = 0;
            } else {
                let mut unsure = sight.acked[on_disk..].iter();
                // Its leader synced what it holds of the time before; the count waits for a flush.
                let before = |acked: &Acked| {
                    sight
                        .unclean
                        .is_some_and(|unclean| acked.epoch < unclean.epoch)
                };
                let unsynced = |acked: &&Acked| seen.flushed < acked.end && !before(acked);
                if let Some(acked) = unsure.find(unsynced) {
                    return Err(format!(
                        "node {node} is in {:?}/{:?}, its disk has up to {}: {acked:?}",
                        committed.isr, committed.elr, seen.flushed
                    ));
                }
                on_disk = sight.acked.len();
            }
            self.looked_up
                .insert(*node, (now, sight.acked.len(), on_disk));
        }
        Ok(())
    }
}
