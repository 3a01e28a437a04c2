//! I5: the committed ISR is a subset of the maximal ISR of the leader that it names.
//!
//! Not verified: a leader whose image has not shown it its epoch yet.

use quorate_replication::Status;

use super::Checker;
use crate::sim::sight::Sight;

pub(super) struct CommittedIsr;

impl Checker for CommittedIsr {
    fn name(&self) -> &'static str {
        "I5 the committed ISR is within the leader's maximal ISR"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some(committed) = sight.committed else {
            return Ok(());
        };
        let Some(node) = committed.leader else {
            return Ok(());
        };
        let Some(seen) = sight.replicas.get(&node) else {
            return Ok(());
        };
        let Status::Leader {
            epoch, maximal_isr, ..
        } = &seen.status
        else {
            return Ok(());
        };
        let outside = committed
            .isr
            .iter()
            .find(|member| !maximal_isr.contains(member));
        match outside {
            Some(member) if *epoch == committed.leader_epoch => Err(format!(
                "node {member} is committed, node {node} at epoch {epoch} counts {maximal_isr:?}"
            )),
            _ => Ok(()),
        }
    }
}
