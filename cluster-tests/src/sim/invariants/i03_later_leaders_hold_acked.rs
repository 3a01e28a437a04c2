//! I3: every batch acknowledged with `acks=all` is in the log of every later leader, at the offset
//! that was acknowledged.
//!
//! Not verified: that the answer reached the client; a sent answer counts. What was acknowledged
//! before an unclean election and its leader does not hold.

use std::collections::BTreeMap;

use quorate_types::{LeaderEpoch, NodeId};

use super::Checker;
use crate::sim::sight::Sight;

/// Life, generation, epoch, history.
type When = (u64, u64, LeaderEpoch, u64);

#[derive(Default)]
pub(super) struct LaterLeadersHoldAcked {
    /// Of which life, generation, epoch and history, and how many of the acknowledged were looked up.
    looked_up: BTreeMap<NodeId, (When, usize)>,
}

impl Checker for LaterLeadersHoldAcked {
    fn name(&self) -> &'static str {
        "I3 every later leader holds what was acknowledged"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        for (node, seen) in sight.replicas {
            let Some(epoch) = seen.leads_at() else {
                self.looked_up.remove(node);
                continue;
            };
            let now = (seen.life, seen.generation, epoch, sight.history);
            let from = match self.looked_up.get(node) {
                Some((then, count)) if *then == now => *count,
                _ => 0,
            };
            if from == sight.acked.len() {
                continue;
            }
            // What was acknowledged by a later leader than this one it need not have.
            if sight.unclean.is_some_and(|unclean| epoch < unclean.epoch) {
                continue;
            }
            let missing = sight.acked[from..]
                .iter()
                .find(|acked| acked.epoch <= epoch && !seen.holds(acked));
            if let Some(acked) = missing {
                return Err(format!(
                    "node {node} leads at epoch {epoch} without what was acknowledged: {acked:?}"
                ));
            }
            self.looked_up.insert(*node, (now, sight.acked.len()));
        }
        Ok(())
    }
}
