//! I3: every batch acknowledged with `acks=all` is in the log of every later leader, at the offset
//! that was acknowledged.
//!
//! Not verified: that the answer reached the client; a sent answer counts.

use std::collections::BTreeMap;

use quorate_replication::Status;
use quorate_types::{LeaderEpoch, NodeId};

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct LaterLeadersHoldAcked {
    /// Of which life, generation and epoch, and how many of the acknowledged were looked up.
    looked_up: BTreeMap<NodeId, (u64, u64, LeaderEpoch, usize)>,
}

impl Checker for LaterLeadersHoldAcked {
    fn name(&self) -> &'static str {
        "I3 every later leader holds what was acknowledged"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        for (node, seen) in sight.replicas {
            let Status::Leader { epoch, .. } = seen.status else {
                self.looked_up.remove(node);
                continue;
            };
            let now = (seen.life, seen.generation, epoch);
            let from = match self.looked_up.get(node) {
                Some((life, generation, led, count)) if (*life, *generation, *led) == now => *count,
                _ => 0,
            };
            // What was acknowledged by a later leader than this one it need not have.
            let missing = sight.acked[from..]
                .iter()
                .find(|acked| acked.epoch <= epoch && !seen.holds(acked));
            if let Some(acked) = missing {
                return Err(format!(
                    "node {node} leads at epoch {epoch} without what was acknowledged: {acked:?}"
                ));
            }
            let looked_up = (seen.life, seen.generation, epoch, sight.acked.len());
            self.looked_up.insert(*node, looked_up);
        }
        Ok(())
    }
}
