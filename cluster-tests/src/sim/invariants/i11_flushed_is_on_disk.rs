//! I11: what a replica says is flushed is what a power loss at that moment would leave, by the
//! files themselves.
//!
//! Not verified: disks that lie about a sync.

use super::Checker;
use crate::sim::sight::Sight;

pub(super) struct FlushedIsOnDisk;

impl Checker for FlushedIsOnDisk {
    fn name(&self) -> &'static str {
        "I11 flushed is on the disk"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        if seen.flushed > seen.log_end {
            return Err(format!(
                "node {node}: flushed to {}, the log ends at {}",
                seen.flushed, seen.log_end
            ));
        }
        match seen.durable {
            Some(durable) if durable < seen.flushed => Err(format!(
                "node {node}: flushed to {}, the disk has up to {durable}",
                seen.flushed
            )),
            _ => Ok(()),
        }
    }
}
