//! I6: leader epochs never fall along a log, and its offsets leave no hole.
//!
//! Not verified: the epoch cache apart from what R4 makes of it.

use quorate_replication::Status;

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
        let first = seen.known.saturating_sub(1);
        for pair in seen.batches[first..].windows(2) {
            let [last, batch] = pair else { continue };
            if last.epoch > batch.epoch || last.end != batch.base {
                return Err(format!("node {node}: {batch:?} after {last:?}"));
            }
        }
        let end = seen.batches.last().map_or(seen.log_start, |last| last.end);
        if end == seen.log_end || seen.status == Status::Damaged {
            Ok(())
        } else {
            Err(format!(
                "node {node}: holds up to {end}, says {}",
                seen.log_end
            ))
        }
    }
}
