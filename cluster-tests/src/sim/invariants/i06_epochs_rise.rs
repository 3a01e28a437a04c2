//! I6: leader epochs never fall along a log, and its offsets leave no hole.
//!
//! Not verified: the epoch cache apart from what R4 makes of it.

use super::Checker;
use crate::sim::sight::Sight;

pub(super) struct EpochsRise;

impl Checker for EpochsRise {
    fn name(&self) -> &'static str {
        "I6 epochs never fall along a log"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let mut before = seen.batches.range(..seen.new_from).next_back();
        for (base, batch) in seen.batches.range(seen.new_from..) {
            if let Some((_, last)) = before
                && (last.epoch > batch.epoch || last.end != *base)
            {
                return Err(format!("node {node}: {batch:?} after {last:?}"));
            }
            before = Some((base, batch));
        }
        let end = before.map_or(0, |(_, last)| last.end);
        if end == seen.log_end {
            Ok(())
        } else {
            Err(format!(
                "node {node}: holds up to {end}, says {}",
                seen.log_end
            ))
        }
    }
}
