//! I7: no sequence of a producer is twice in a log.
//!
//! Not verified: producers whose state was forgotten (more than a run has).

use std::collections::BTreeSet;

use super::Checker;
use crate::sim::sight::Sight;

pub(super) struct SequencesOnce;

impl Checker for SequencesOnce {
    fn name(&self) -> &'static str {
        "I7 no sequence twice in a log"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        if seen.new_batches().all(|batch| batch.producer.is_none()) {
            return Ok(());
        }
        let mut sequences = BTreeSet::new();
        for batch in seen.batches.values() {
            if let Some(producer) = batch.producer
                && !sequences.insert(producer)
            {
                return Err(format!("node {node} has it again: {batch:?}"));
            }
        }
        Ok(())
    }
}
