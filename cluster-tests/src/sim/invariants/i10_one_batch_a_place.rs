//! I10: no two batches share (epoch, offset) with different bytes, on any replica, ever: also not
//! with one that a truncation or a power loss has taken away since.
//!
//! Not verified: batches that were in a log only within one step.

use std::collections::BTreeMap;

use quorate_types::LeaderEpoch;

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct OneBatchAPlace {
    places: BTreeMap<(LeaderEpoch, u64), u64>,
}

impl Checker for OneBatchAPlace {
    fn name(&self) -> &'static str {
        "I10 one batch an (epoch, offset)"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        for batch in seen.new_batches() {
            let known = self
                .places
                .entry((batch.epoch, batch.base))
                .or_insert(batch.hash);
            if *known != batch.hash {
                return Err(format!("node {node} has another one: {batch:?}"));
            }
        }
        Ok(())
    }
}
