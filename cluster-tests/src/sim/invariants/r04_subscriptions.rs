//! R4: a leader accepts a subscription only where it was made at the very epoch that it leads at.
//!
//! Not verified: what the leader finds about the follower's history.

use super::Checker;
use crate::sim::sight::{Deed, Sight};

pub(super) struct Subscriptions;

impl Checker for Subscriptions {
    fn name(&self) -> &'static str {
        "R4 subscriptions are of the leader's epoch"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Deed::Accepted(accepted) = &sight.deed else {
            return Ok(());
        };
        let Some(seen) = sight.replicas.get(&accepted.node) else {
            return Ok(());
        };
        match seen.leads_at() {
            Some(epoch) if epoch != accepted.asked_epoch => Err(format!(
                "node {} leads at epoch {epoch} and accepts a subscription of epoch {}",
                accepted.node, accepted.asked_epoch
            )),
            _ => Ok(()),
        }
    }
}
