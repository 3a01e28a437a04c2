//! Consumer groups under the simulator: the shipped coordinator in every broker's process, and
//! members as programs with clocks of their own. Their messages are late, lost, come twice and out of
//! order; members die, sleep, leave, come back, and give up slowly what is taken from them.
//!
//! All that members and their network draw comes from a generator of its own, and only some runs
//! have groups: the others are the same runs as without this room.

mod answers;
mod asks;
mod coordinator;
mod faults;
mod member;
mod offsets;
mod plan;
mod turns;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_group::RequestId;
use quorate_types::{GroupId, NodeId, TopicPartition};
use rand::SeedableRng;
use rand::rngs::StdRng;

pub(super) use asks::{Ask, AskId, Reply};
pub(super) use coordinator::{Host, ProposedGroups};
pub(super) use member::Seat;
pub(super) use plan::GroupsPlan;
pub(super) use words::{changes_in_words, commits_in_words, names};

use super::invariants::{CommittedOffsets, Deletions};

/// What happens in groups; none of it counts as a step, so that faults strike as often as without.
pub(super) enum GroupEvent {
    /// A member does what it does from time to time.
    Turn { seat: usize, life: u64 },
    /// A member's program starts.
    Starts { seat: usize },
    /// A member has given up a partition.
    GivenUp {
        seat: usize,
        life: u64,
        partition: TopicPartition,
        mark: u64,
    },
    /// A request reaches the node that it was sent to.
    AskArrives { ask: AskId },
    /// An answer reaches its member.
    Answered { ask: AskId, reply: Box<Reply> },
    /// A coordinator looks at the time.
    Tick { node: NodeId, life: u64 },
    /// What a coordinator wants proposed goes out, some at a time.
    Propose { node: NodeId, life: u64 },
    /// The quorum has confirmed a read.
    ReadConfirmed { node: NodeId, life: u64, ask: AskId },
    /// An operator asks for the deletion of a group, and so often again.
    Deletes { group: usize, tries: u32 },
    /// Something goes wrong with members, or on their way.
    Fault,
}

/// All that a run with groups has beside the nodes.
pub(super) struct Groups {
    pub(super) rng: StdRng,
    pub(super) plan: GroupsPlan,
    pub(super) ids: Vec<GroupId>,
    pub(super) seats: Vec<Seat>,
    pub(super) asks: BTreeMap<AskId, Ask>,
    next_ask: u64,
    next_request: u64,
    /// Members that do not reach a node, until then.
    cuts: Vec<(usize, NodeId, Duration)>,
    pub(super) offsets: CommittedOffsets,
    pub(super) deletions: Deletions,
}

impl Groups {
    /// Groups for a run of that seed, where it has any.
    pub(super) fn draw(seed: u64) -> Option<Box<Self>> {
        if !GroupsPlan::has_groups(seed) {
            return None;
        }
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6772_6f75_7073);
        let plan = GroupsPlan::draw(seed, &mut rng);
        let ids = (0..plan.groups.len()).map(|number| {
            // Names that fall to different coordinators from run to run.
            GroupId::new(&format!("group-{number}-{}", seed / 4 % 17)).expect("a good name")
        });
        let ids = ids.collect();
        let seats = Seat::all(&plan, &mut rng);
        Some(Box::new(Self {
            rng,
            plan,
            ids,
            seats,
            asks: BTreeMap::new(),
            next_ask: 0,
            next_request: 0,
            cuts: Vec::new(),
            offsets: CommittedOffsets::default(),
            deletions: Deletions::default(),
        }))
    }

    pub(super) fn name_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }
}
