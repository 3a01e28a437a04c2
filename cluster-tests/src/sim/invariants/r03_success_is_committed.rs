//! R3: `acks=all` is answered with success only where the leader's high watermark has passed the
//! batch: at once, for a repeat, and when the leadership goes.
//!
//! Not verified: that the high watermark is right; that is what I3 and I8 are about.

use super::Checker;
use crate::sim::sight::{Deed, Sight};

pub(super) struct SuccessIsCommitted;

impl Checker for SuccessIsCommitted {
    fn name(&self) -> &'static str {
        "R3 success means committed"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Deed::Answered(answered) = &sight.deed else {
            return Ok(());
        };
        let Some(seen) = sight.replicas.get(&answered.node) else {
            return Ok(());
        };
        if answered.all && seen.high_watermark < answered.acked.end {
            return Err(format!(
                "node {} acknowledged {:?}, its high watermark is {}",
                answered.node, answered.acked, seen.high_watermark
            ));
        }
        Ok(())
    }
}
