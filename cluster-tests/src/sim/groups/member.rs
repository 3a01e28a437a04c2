//! A member as its program: what it has, since when nobody has answered it, how far it has read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_group::Answer;
use quorate_metadata::MemberProfile;
use quorate_types::{
    Assignor, GroupEpoch, InstanceId, MemberId, NodeId, TopicName, TopicPartition,
};
use rand::Rng;
use rand::rngs::StdRng;

use super::plan::{GroupPlan, GroupsPlan};
use crate::sim::clock::NodeClock;
use crate::sim::schedule::ms;

/// A member takes its session for so much shorter: its own clock may be slow where the coordinator's
/// is fast. The real client must do the same; a part in 500 would do for real clocks, the simulated
/// ones run apart by up to 12 parts in a hundred.
const MARGIN: u32 = 8;

/// A partition in a program's hands.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::sim) struct Holding {
    /// The next to be read; none: what is committed is not known yet.
    pub(super) position: Option<u64>,
    /// It is being given up; the number tells this time from others.
    pub(super) giving_up: Option<u64>,
}

/// A place that one program after another takes.
pub(in crate::sim) struct Seat {
    pub(in crate::sim) group: usize,
    number: usize,
    instance: Option<InstanceId>,
    session: Duration,
    pub(super) profile: MemberProfile,
    pub(in crate::sim) clock: NodeClock,
    /// Heartbeats wait for news.
    pub(super) waits: bool,
    /// Programs so far.
    pub(super) life: u64,
    pub(in crate::sim) up: bool,
    /// It never starts again.
    pub(super) ended: bool,
    pub(super) paused_until: Duration,
    names: u64,
    pub(in crate::sim) id: MemberId,
    pub(super) epoch: GroupEpoch,
    pub(super) owned: BTreeMap<TopicPartition, Holding>,
    /// How far this program has read what it had before.
    pub(super) read: BTreeMap<TopicPartition, u64>,
    /// By its clock: then it owns nothing any more.
    lease: Duration,
    pub(super) seq: u64,
    pub(super) to: NodeId,
    pub(super) unanswered: u32,
    /// Counts the times that something was to be given up.
    pub(super) mark: u64,
    /// The newest fetch of offsets.
    pub(super) fetching: Option<super::AskId>,
}

impl Seat {
    /// The seats of all groups, empty.
    pub(super) fn all(plan: &GroupsPlan, rng: &mut StdRng) -> Vec<Self> {
        let groups = plan.groups.iter().enumerate();
        groups
            .flat_map(|(group, of)| (0..of.members).map(move |number| (group, of, number)))
            .map(|(group, of, number)| Self::new(group, of, number, plan.drift, rng))
            .collect()
    }

    fn new(group: usize, of: &GroupPlan, number: usize, drift: i64, rng: &mut StdRng) -> Self {
        let is_static = rng.random_bool(of.statics);
        let instance = is_static.then(|| format!("i{number}"));
        let instance = instance.map(|name| InstanceId::new(&name).expect("a good name"));
        let began = ms(rng.random_range(1_000..100_000));
        let clock = NodeClock::new(rng.random_range(-drift..=drift), began);
        let profile = MemberProfile {
            instance: instance.clone(),
            client_id: String::new(),
            client_host: String::new(),
            topics: BTreeSet::new(),
            session_timeout_ms: of.session.as_millis() as u32,
            rebalance_timeout_ms: of.rebalance.as_millis() as u32,
            assignor: of.assignor,
        };
        Self {
            group,
            number,
            instance,
            session: of.session - of.session / MARGIN,
            profile,
            clock,
            waits: rng.random_bool(0.5),
            life: 0,
            up: false,
            ended: false,
            paused_until: Duration::ZERO,
            names: 0,
            id: MemberId::new("nobody").expect("a good name"),
            epoch: GroupEpoch::ZERO,
            owned: BTreeMap::new(),
            read: BTreeMap::new(),
            lease: Duration::ZERO,
            seq: 0,
            to: NodeId::new(1),
            unanswered: 0,
            mark: 0,
            fetching: None,
        }
    }

    /// A program starts, and knows nothing of those before.
    pub(super) fn start(&mut self, topics: BTreeSet<TopicName>) {
        self.life += 1;
        self.up = true;
        self.seq = 0;
        self.paused_until = Duration::ZERO;
        self.profile.topics = topics;
        self.join_anew();
    }

    /// It joins under a new id, and has nothing.
    pub(super) fn join_anew(&mut self) {
        self.names += 1;
        let name = format!("g{}-m{}-{}", self.group, self.number, self.names);
        self.id = MemberId::new(&name).expect("a good name");
        self.epoch = GroupEpoch::ZERO;
        self.lease = Duration::ZERO;
        self.let_go();
        self.read.clear();
    }

    pub(super) fn stop(&mut self) {
        self.up = false;
        self.owned.clear();
    }

    pub(super) fn is_static(&self) -> bool {
        self.instance.is_some()
    }

    fn let_go(&mut self) {
        for (partition, holding) in std::mem::take(&mut self.owned) {
            if let Some(position) = holding.position {
                self.read.insert(partition, position);
            }
        }
        self.fetching = None;
    }

    /// Whether it may read what it has: its program runs, or sleeps, and was answered in time.
    pub(in crate::sim) fn holds(&self, world: Duration) -> bool {
        self.up && self.clock.now(world) < self.lease
    }

    /// What it owns at this time.
    pub(in crate::sim) fn owns(&self, world: Duration) -> impl Iterator<Item = TopicPartition> {
        let holds = self.holds(world);
        self.owned.keys().copied().filter(move |_| holds)
    }

    /// Whether it owns a partition at this time.
    pub(in crate::sim) fn owns_one(&self, world: Duration, id: &TopicPartition) -> bool {
        self.owned.contains_key(id) && self.holds(world)
    }

    /// Whether no program comes any more.
    pub(in crate::sim) fn is_over(&self) -> bool {
        self.ended
    }

    /// What its program has, whether it may read it or not.
    pub(in crate::sim) fn owned_now(&self) -> &BTreeMap<TopicPartition, Holding> {
        &self.owned
    }

    pub(in crate::sim) fn assignor(&self) -> Assignor {
        self.profile.assignor
    }

    /// What it says of itself.
    pub(in crate::sim) fn topics(&self) -> &BTreeSet<TopicName> {
        &self.profile.topics
    }

    /// Whether it waits to give something up, or to know where it begins to read.
    pub(in crate::sim) fn is_busy(&self) -> bool {
        let mut holdings = self.owned.values();
        holdings.any(|holding| holding.giving_up.is_some() || holding.position.is_none())
    }

    /// Before anything else: what it held too long without an answer it does not hold any more.
    pub(super) fn look_at_clock(&mut self, world: Duration) {
        if !self.holds(world) {
            self.let_go();
        }
    }

    /// Takes an answer to what it sent at `sent`, by its clock; gives what it owns anew and what it is
    /// to give up from now on.
    pub(super) fn take(&mut self, sent: Duration, answer: &Answer) -> Taken {
        self.lease = self.lease.max(sent + self.session);
        let mut taken = Taken::default();
        if answer.epoch < self.epoch {
            return taken;
        }
        self.epoch = answer.epoch;
        let assigned: BTreeSet<TopicPartition> = answer.assigned.iter().copied().collect();
        for partition in &assigned {
            match self.owned.get_mut(partition) {
                Some(holding) => holding.giving_up = None,
                None => {
                    self.owned.insert(*partition, Holding::default());
                    taken.new.push(*partition);
                }
            }
        }
        for (partition, holding) in &mut self.owned {
            if !assigned.contains(partition) && holding.giving_up.is_none() {
                self.mark += 1;
                holding.giving_up = Some(self.mark);
                taken.give_up.push((*partition, self.mark));
            }
        }
        taken
    }

    /// Where it begins to read: never before what it has read already.
    pub(super) fn begin_at(&mut self, partition: &TopicPartition, committed: u64) {
        if let Some(holding) = self.owned.get_mut(partition)
            && holding.position.is_none()
        {
            let read = self.read.get(partition).copied().unwrap_or_default();
            holding.position = Some(committed.max(read));
        }
    }

    /// A partition is given up, where that is still wanted.
    pub(super) fn give_up(&mut self, partition: &TopicPartition, mark: u64) -> bool {
        let holding = self.owned.get(partition);
        let wanted = holding.is_some_and(|holding| holding.giving_up == Some(mark));
        if wanted
            && let Some(holding) = self.owned.remove(partition)
            && let Some(position) = holding.position
        {
            self.read.insert(*partition, position);
        }
        wanted
    }
}

/// What an answer changes.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) new: Vec<TopicPartition>,
    pub(super) give_up: Vec<(TopicPartition, u64)>,
}
