//! I2: whatever any replica has ever held below its high watermark is what every replica holds
//! there, byte for byte. Stronger than a comparison of the living: it remembers the dead.
//!
//! Not verified: compacted segments, and what lies below a log's start (neither exists yet).

use std::collections::BTreeMap;

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct ReplicasAgree {
    committed: BTreeMap<u64, (u64, u64)>,
    /// Of which life and generation, and up to where a replica was compared.
    compared: BTreeMap<NodeId, (u64, u64, u64)>,
}

impl Checker for ReplicasAgree {
    fn name(&self) -> &'static str {
        "I2 replicas agree below their high watermarks"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let (life, generation, from) = self.compared.get(&node).copied().unwrap_or_default();
        let same = (life, generation) == (seen.life, seen.generation);
        let mut next = if same { from } else { 0 };
        for (base, batch) in seen.batches.range(next..) {
            if batch.end > seen.high_watermark {
                break;
            }
            let mine = (batch.end, batch.hash);
            let known = *self.committed.entry(*base).or_insert(mine);
            if known != mine {
                return Err(format!(
                    "offset {base}: node {node} has a batch up to {} of epoch {}, committed was another one up to {}",
                    batch.end, batch.epoch, known.0
                ));
            }
            next = batch.end;
        }
        self.compared
            .insert(node, (seen.life, seen.generation, next));
        Ok(())
    }
}
