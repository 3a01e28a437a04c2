//! I2: whatever any replica has ever held below its high watermark is what every replica holds
//! there, byte for byte. Stronger than a comparison of the living: it remembers the dead.
//!
//! Not verified: compacted segments (they do not exist yet), what lies below a log's start, and after
//! an unclean election batches that were appended before it.

use std::collections::BTreeMap;

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct ReplicasAgree {
    history: u64,
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
        if self.history != sight.history {
            self.history = sight.history;
            self.committed.clear();
        }
        let begin = seen.batches.partition_point(|batch| batch.base < next);
        for batch in &seen.batches[begin..] {
            if batch.end > seen.high_watermark {
                break;
            }
            let base = batch.base;
            next = batch.end;
            let before = sight.unclean.is_some_and(|u| batch.epoch < u.epoch);
            if before || batch.end <= seen.log_start {
                continue;
            }
            let mine = (batch.end, batch.hash);
            let known = *self.committed.entry(base).or_insert(mine);
            if known != mine {
                return Err(format!(
                    "offset {base}: node {node} has a batch up to {} of epoch {}, committed was another one up to {}",
                    batch.end, batch.epoch, known.0
                ));
            }
        }
        self.compared
            .insert(node, (seen.life, seen.generation, next));
        Ok(())
    }
}
