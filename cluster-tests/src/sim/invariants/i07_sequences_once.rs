//! I7: no sequence of a producer is twice in a log.
//!
//! Not verified: producers whose state was forgotten (more than a run has).

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::Sight;

/// Producer id, epoch, first sequence.
type Place = (u64, u16, u32);

#[derive(Default)]
pub(super) struct SequencesOnce {
    /// Of which life and generation, and what its log has.
    logs: BTreeMap<NodeId, (u64, u64, BTreeSet<Place>)>,
}

impl Checker for SequencesOnce {
    fn name(&self) -> &'static str {
        "I7 no sequence twice in a log"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        if seen.new_batches().is_empty() {
            return Ok(());
        }
        let (life, generation, has) = self.logs.entry(node).or_default();
        if (*life, *generation) != (seen.life, seen.generation) {
            // Then all of its batches are new.
            (*life, *generation) = (seen.life, seen.generation);
            has.clear();
            for batch in &seen.batches[..seen.known] {
                has.extend(batch.producer);
            }
        }
        for batch in seen.new_batches() {
            if let Some(producer) = batch.producer
                && !has.insert(producer)
            {
                return Err(format!("node {node} has it again: {batch:?}"));
            }
        }
        Ok(())
    }
}
