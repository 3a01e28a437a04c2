//! R1: a request that names a leader epoch is answered with success only by the leader at that very
//! epoch, and no replica holds a batch of a later epoch than the one it follows at appended.
//!
//! Not verified: batches that a replica had before it took its present role.

use quorate_replication::Status;

use super::Checker;
use crate::sim::sight::{Deed, Sight};

pub(super) struct ByEpoch;

impl Checker for ByEpoch {
    fn name(&self) -> &'static str {
        "R1 only at the epoch that was asked for"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        if let Deed::Answered(answered) = &sight.deed
            && let Some(asked) = answered.asked_epoch
            && asked != answered.acked.epoch
        {
            return Err(format!(
                "node {} took at epoch {} what was asked of epoch {asked}",
                answered.node, answered.acked.epoch
            ));
        }
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let Status::Follower { epoch, .. } = seen.status else {
            return Ok(());
        };
        // A log that is looked at as a whole holds what other roles brought.
        if seen.known == 0 {
            return Ok(());
        }
        match seen.new_batches().iter().find(|batch| batch.epoch > epoch) {
            Some(batch) => Err(format!("node {node} follows at epoch {epoch}: {batch:?}")),
            None => Ok(()),
        }
    }
}
