//! I4: a leader's high watermark never falls within its epoch, and no consumer reads at or above
//! it.
//!
//! Not verified: the high watermark as a follower's consumer would see it; only leaders are read.

use std::collections::BTreeMap;

use quorate_types::LeaderEpoch;

use super::Checker;
use crate::sim::sight::{Deed, Sight};

#[derive(Default)]
pub(super) struct HighWatermark {
    highest: BTreeMap<LeaderEpoch, u64>,
}

impl Checker for HighWatermark {
    fn name(&self) -> &'static str {
        "I4 the high watermark never falls in an epoch and bounds every read"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        if let Deed::Consumed(consumed) = &sight.deed {
            let seen = &sight.replicas[&consumed.node];
            if consumed.end > seen.high_watermark {
                return Err(format!(
                    "node {} gave a consumer {}, its high watermark is {}",
                    consumed.node, consumed.end, seen.high_watermark
                ));
            }
        }
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let Some(epoch) = seen.leads_at() else {
            return Ok(());
        };
        let highest = self.highest.entry(epoch).or_default();
        if seen.high_watermark < *highest {
            return Err(format!(
                "node {node}, epoch {epoch}: from {highest} to {}",
                seen.high_watermark
            ));
        }
        *highest = seen.high_watermark;
        Ok(())
    }
}
