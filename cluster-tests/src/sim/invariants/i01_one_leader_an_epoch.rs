//! I1: at most one leader per leader epoch, and (R1) one process of it.
//!
//! Not verified: what a leader believes between two of its steps.

use std::collections::BTreeMap;

use quorate_types::{LeaderEpoch, NodeId};

use super::Checker;
use crate::sim::sight::Sight;

#[derive(Default)]
pub(super) struct OneLeaderAnEpoch {
    leaders: BTreeMap<LeaderEpoch, (NodeId, u64)>,
}

impl Checker for OneLeaderAnEpoch {
    fn name(&self) -> &'static str {
        "I1 one leader an epoch"
    }

    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String> {
        let Some((node, seen)) = sight.stepped() else {
            return Ok(());
        };
        let Some(epoch) = seen.leads_at() else {
            return Ok(());
        };
        let (first, life) = *self.leaders.entry(epoch).or_insert((node, seen.life));
        if (first, life) == (node, seen.life) {
            return Ok(());
        }
        let now = seen.life;
        Err(format!(
            "epoch {epoch}: node {node} in life {now} leads after node {first} in life {life}"
        ))
    }
}
