//! I7: no sequence of a producer is twice in a log.
//!
//! Not verified: producers whose state was forgotten (more than a run has), and batches that retention
//! has given up since: a replica that began anew at the log's start (R15) does not know of them.

use std::collections::BTreeMap;

use quorate_types::NodeId;

use super::Checker;
use crate::sim::sight::Sight;

/// Producer id, epoch, first sequence.
type Place = (u64, u16, u32);

#[derive(Default)]
pub(super) struct SequencesOnce {
    logs: BTreeMap<NodeId, Looked>,
}

/// What was seen of a log.
#[derive(Default)]
struct Looked {
    /// Of which life and generation.
    of: (u64, u64),
    /// Batches.
    batches: usize,
    /// And where it begins.
    has: BTreeMap<Place, u64>,
}

impl Checker for SequencesOnce {
    fn name(&self) -> &'static str {
        "I7 no sequence twice in a log"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let of = (seen.life, seen.generation);
        let looked = self.logs.entry(node).or_default();
        if looked.of != of {
            // Then all of its batches are new.
            *looked = Looked {
                of,
                ..Looked::default()
            };
        }
        let new = seen.batches.get(looked.batches..).unwrap_or_default();
        looked.batches = seen.batches.len();
        for batch in new {
            if let Some(producer) = batch.producer
                && let Some(first) = looked.has.insert(producer, batch.base)
                && first >= seen.log_start
            {
                return Err(format!("node {node} has it again: {batch:?}"));
            }
        }
        Ok(())
    }
}
