//! Which groups a run has, how fast they go, and how their members behave.

use std::time::Duration;

use quorate_group::GroupTiming;
use quorate_types::Assignor;
use rand::Rng;
use rand::rngs::StdRng;

use crate::sim::plan::SESSION;
use crate::sim::schedule::ms;

/// One in so many runs has groups, and in one in so many of these they are deleted; the others stay as they would be without this room, with the seeds
/// that find the rarest of the faults that are planted elsewhere.
const ONE_IN: u64 = 4;

/// One group.
#[derive(Debug, Clone)]
pub(in crate::sim) struct GroupPlan {
    pub(super) members: usize,
    pub(super) assignor: Assignor,
    /// How often a member is a static one.
    pub(super) statics: f64,
    pub(super) session: Duration,
    pub(super) rebalance: Duration,
}

#[derive(Debug, Clone)]
pub(in crate::sim) struct GroupsPlan {
    pub(super) groups: Vec<GroupPlan>,
    pub(super) timing: GroupTiming,
    /// A message of a member or to it gets lost, takes long, comes twice so often.
    pub(super) lost: f64,
    pub(super) slow: f64,
    pub(super) twice: f64,
    /// A member gives up slowly so often.
    pub(super) slow_to_give_up: f64,
    /// A member leaves, or reads other topics, so often, each turn.
    pub(super) leaves: f64,
    pub(super) changes_topics: f64,
    /// Groups lose all their members at a time and are deleted.
    pub(super) deletes: bool,
    /// The longest pause between two faults of groups.
    pub(super) fault_gap: Duration,
    /// Members' clocks run apart by up to so many parts in a thousand.
    pub(super) drift: i64,
}

impl GroupsPlan {
    /// Whether the run of a seed has groups.
    pub(super) fn has_groups(seed: u64) -> bool {
        seed % ONE_IN == 2
    }

    pub(super) fn draw(seed: u64, rng: &mut StdRng) -> Self {
        let groups = if rng.random_bool(0.7) { 1 } else { 2 };
        let groups = (0..groups).map(|_| GroupPlan {
            members: rng.random_range(2..=4),
            assignor: Assignor::ALL[rng.random_range(0..2)],
            statics: [0.0, 0.3, 1.0][rng.random_range(0..3)],
            session: ms(rng.random_range(60..200)),
            rebalance: ms(rng.random_range(20..200)),
        });
        let groups = groups.collect();
        let pick = |rng: &mut StdRng, of: [f64; 3]| of[rng.random_range(0..3)];
        let timing = GroupTiming {
            heartbeat_interval: ms(rng.random_range(10..25)),
            contact: SESSION,
            ..GroupTiming::default()
        };
        Self {
            groups,
            timing,
            lost: pick(rng, [0.0, 0.02, 0.15]),
            slow: pick(rng, [0.0, 0.05, 0.3]),
            twice: pick(rng, [0.0, 0.1, 0.3]),
            slow_to_give_up: pick(rng, [0.1, 0.5, 0.9]),
            leaves: pick(rng, [0.0, 0.02, 0.06]),
            changes_topics: pick(rng, [0.0, 0.03, 0.15]),
            fault_gap: ms([25, 60, 150][rng.random_range(0..3)]),
            drift: [0, 30, 60][rng.random_range(0..3)],
            deletes: (seed / ONE_IN).is_multiple_of(ONE_IN),
        }
    }
}
