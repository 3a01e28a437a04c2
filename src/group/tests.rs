//! One coordinator or two over an image: members join, leave, die, and are revoked what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{
    Command, CreateTopic, Envelope, LogId, MemberProfile, MetadataImage, Origin, Outcome,
    RegisterBroker,
};
use quorate_types::{
    Assignor, BootId, DirectoryId, Endpoint, ErrorCode, GroupEpoch, GroupId, Incarnation,
    InstanceId, MemberId, NodeId, PartitionId, RaftIndex, Term, Timestamp, TopicId, TopicName,
    TopicPartition,
};

use crate::{
    Action, Answer, Context, Coordinator, GroupError, GroupTiming, Heartbeat, Leave, ProposalId,
    ProposalResult, RequestId,
};

const TOPIC: TopicId = TopicId::from_bytes([1; 16]);
const SESSION: Duration = Duration::from_secs(10);

pub(crate) fn group() -> GroupId {
    GroupId::new("g").unwrap()
}

pub(crate) fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

pub(crate) fn profile() -> MemberProfile {
    MemberProfile {
        instance: None,
        client_id: String::new(),
        client_host: String::new(),
        topics: [TopicName::new("t").unwrap()].into(),
        session_timeout_ms: SESSION.as_millis() as u32,
        rebalance_timeout_ms: 20_000,
        assignor: Assignor::Uniform,
    }
}

/// A member as its program would be.
#[derive(Default)]
struct Program {
    epoch: GroupEpoch,
    owned: BTreeSet<TopicPartition>,
    /// Does not give up what it is asked for.
    keeps: bool,
}

pub(crate) struct World {
    pub(crate) image: Arc<MetadataImage>,
    /// Bytes of the largest entry so far.
    pub(crate) largest: usize,
    now: Duration,
    contact: Duration,
    coordinators: BTreeMap<NodeId, Coordinator>,
    /// What is proposed waits here, by whom, while set.
    pub(crate) held: Option<Vec<(NodeId, Action)>>,
    pub(crate) answers: BTreeMap<RequestId, Result<Answer, GroupError>>,
    requests: u64,
    programs: BTreeMap<MemberId, Program>,
}

impl World {
    pub(crate) fn new(partitions: u32, timing: GroupTiming) -> Self {
        let now = Duration::from_secs(100);
        let coordinator = |id| {
            let node = NodeId::new(id);
            (node, Coordinator::new(node, timing, now))
        };
        let mut world = Self {
            image: Arc::new(MetadataImage::new()),
            largest: 0,
            now,
            contact: now,
            coordinators: (1..=2).map(coordinator).collect(),
            held: None,
            answers: BTreeMap::new(),
            requests: 0,
            programs: BTreeMap::new(),
        };
        for id in 1..=2 {
            world.start_broker(id, 1);
        }
        world.create("t", TOPIC, partitions);
        world
    }

    pub(crate) fn create(&mut self, name: &str, topic_id: TopicId, partitions: u32) {
        self.apply(Command::CreateTopic(CreateTopic {
            name: TopicName::new(name).unwrap(),
            topic_id,
            partitions,
            replication_factor: 1,
            seed: 0,
            config: BTreeMap::new(),
        }));
    }

    fn start_broker(&mut self, id: u32, start: u64) {
        let endpoint = Endpoint {
            host: "h".into(),
            port: 1,
        };
        let registered = self.apply(Command::RegisterBroker(RegisterBroker {
            node: NodeId::new(id),
            directory: DirectoryId::from_bytes([id as u8; 16]),
            incarnation: Incarnation { start, random: 1 },
            boot: BootId::from_bytes([1; 16]),
            clean_epoch: None,
            damaged: Vec::new(),
            client: endpoint.clone(),
            internal: endpoint,
            rack: None,
            min_level: 1,
            max_level: 1,
        }));
        let Outcome::Registered { epoch } = registered else {
            panic!("{registered:?}")
        };
        self.apply(Command::UnfenceBroker {
            node: NodeId::new(id),
            epoch,
        });
    }

    fn fence_coordinator(&mut self) -> NodeId {
        let node = self.image.coordinator(&group()).coordinator.unwrap();
        let epoch = self.image.broker(node).unwrap().epoch;
        self.apply(Command::FenceBroker {
            node,
            epoch,
            cause: "test".into(),
        });
        node
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let index = self.image.applied().index.next();
        let envelope = Envelope {
            origin: Origin {
                node: NodeId::new(9),
                directory: DirectoryId::from_bytes([9; 16]),
                incarnation: Incarnation {
                    start: 1,
                    random: 1,
                },
            },
            sequence: index.get(),
            required_term: None,
            time: Timestamp::from_millis(self.now.as_millis() as i64),
            commands: vec![command],
        };
        self.largest = self.largest.max(envelope.encode().len());
        let term = Term::new(1);
        let mut image = MetadataImage::clone(&self.image);
        let outcome = image
            .apply(&envelope, LogId { term, index })
            .outcomes
            .remove(0);
        self.image = Arc::new(image);
        self.check_owners();
        for node in self.coordinators.keys().copied().collect::<Vec<_>>() {
            self.with(node, |coordinator, cx, out| coordinator.take_image(cx, out));
        }
        outcome
    }

    /// No program has what another has: whoever owns it in the image is the only one that may.
    fn check_owners(&self) {
        let mut seen = BTreeSet::new();
        for program in self.programs.values() {
            for partition in &program.owned {
                assert!(seen.insert(*partition), "{partition} has two owners");
            }
        }
    }

    fn with(
        &mut self,
        node: NodeId,
        act: impl FnOnce(&mut Coordinator, &Context<'_>, &mut Vec<Action>),
    ) {
        let image = Arc::clone(&self.image);
        let cx = Context {
            now: self.now,
            wall: Timestamp::from_millis(self.now.as_millis() as i64),
            controller_contact: self.contact,
            image: &image,
        };
        let mut out = Vec::new();
        act(self.coordinators.get_mut(&node).unwrap(), &cx, &mut out);
        for action in out {
            self.carry_out(node, action);
        }
    }

    pub(crate) fn carry_out(&mut self, node: NodeId, action: Action) {
        match action {
            Action::Answer { request, result } => {
                assert!(self.answers.insert(request, result).is_none(), "once");
            }
            Action::Propose { id, change } => {
                if let Some(held) = &mut self.held {
                    held.push((node, Action::Propose { id, change }));
                    return;
                }
                let changes = vec![change];
                let outcome = self.apply(Command::AlterGroups { changes });
                self.tell(node, id, outcome);
            }
        }
    }

    fn tell(&mut self, node: NodeId, id: ProposalId, outcome: Outcome) {
        let Outcome::Judged { refused } = outcome else {
            panic!("{outcome:?}")
        };
        let result = match refused.first() {
            Some(item) => ProposalResult::Refused(item.code),
            None => ProposalResult::Applied,
        };
        self.with(node, |coordinator, cx, out| {
            coordinator.proposed(cx, id, result, out);
        });
    }

    fn coordinator(&self) -> NodeId {
        self.image.coordinator(&group()).coordinator.unwrap()
    }

    pub(crate) fn send(&mut self, beat: Heartbeat) -> RequestId {
        self.send_to(self.coordinator(), beat)
    }

    fn send_to(&mut self, node: NodeId, beat: Heartbeat) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.with(node, |coordinator, cx, out| {
            coordinator.heartbeat(cx, request, beat, out);
        });
        request
    }

    pub(crate) fn beat_of(&self, name: &str) -> Heartbeat {
        let program = self.programs.get(&member(name));
        Heartbeat {
            group: group(),
            member: member(name),
            epoch: program.map(|program| program.epoch).unwrap_or_default(),
            owned: program
                .map(|program| program.owned.clone())
                .unwrap_or_default(),
            profile: Some(profile()),
            leave: Leave::No,
            wait: Duration::ZERO,
        }
    }

    /// One heartbeat of a member, whose program does what the answer says.
    pub(crate) fn beat(&mut self, name: &str) -> Result<Answer, GroupError> {
        let request = self.send(self.beat_of(name));
        let result = self.answers.remove(&request).expect("answered at once");
        match &result {
            Ok(answer) => {
                let program = self.programs.entry(member(name)).or_default();
                program.epoch = answer.epoch;
                let assigned = answer.assigned.iter().copied();
                if program.keeps {
                    program.owned.extend(assigned);
                } else {
                    program.owned = assigned.collect();
                }
            }
            Err(_) => {
                self.programs.remove(&member(name));
            }
        }
        self.check_owners();
        result
    }

    pub(crate) fn settle(&mut self, names: &[&str]) {
        for _ in 0..6 {
            self.pass(Duration::from_millis(100));
            for name in names {
                self.beat(name).unwrap();
            }
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(50).min(end - self.now);
            self.contact = self.now;
            for node in self.coordinators.keys().copied().collect::<Vec<_>>() {
                self.with(node, |coordinator, cx, out| coordinator.tick(cx, out));
            }
        }
    }

    pub(crate) fn owned(&self, names: &[&str]) -> Vec<usize> {
        let of = |name: &&str| self.programs[&member(name)].owned.len();
        names.iter().map(of).collect()
    }

    pub(crate) fn members(&self) -> usize {
        self.image
            .group(&group())
            .map_or(0, |group| group.members.len())
    }
}

#[test]
fn members_share_the_partitions_and_move_them_one_by_one() {
    let mut world = World::new(6, GroupTiming::default());
    world.beat("a").unwrap();
    assert_eq!(world.owned(&["a"]), [6]);
    world.beat("b").unwrap();
    // What is to move is still the other's.
    assert_eq!(world.owned(&["b"]), [0]);
    world.settle(&["a", "b"]);
    assert_eq!(world.owned(&["a", "b"]), [3, 3]);
    let before = world.programs[&member("a")].owned.clone();
    world.beat("c").unwrap();
    world.settle(&["a", "b", "c"]);
    assert_eq!(world.owned(&["a", "b", "c"]), [2, 2, 2]);
    assert!(before.is_superset(&world.programs[&member("a")].owned));
    for (name, more) in [("d", 6), ("e", 6), ("f", 6), ("g", 6)] {
        world.beat(name).unwrap();
        let _ = more;
    }
    world.settle(&["a", "b", "c", "d", "e", "f", "g"]);
    let all = world.owned(&["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(all.iter().sum::<usize>(), 6);
    assert_eq!(all.iter().filter(|owned| **owned == 0).count(), 1, "waits");
}

#[test]
fn a_session_without_a_word_ends_and_others_take_over() {
    let mut world = World::new(4, GroupTiming::default());
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    world.settle(&["a", "b"]);
    for _ in 0..9 {
        world.pass(Duration::from_secs(1));
        world.beat("b").unwrap();
    }
    assert_eq!(world.owned(&["b"]), [2]);
    // Its program has noticed by its own clock.
    world.programs.remove(&member("a"));
    world.pass(Duration::from_secs(2));
    world.settle(&["b"]);
    assert_eq!(world.owned(&["b"]), [4]);
    let beat = Heartbeat {
        epoch: GroupEpoch::new(1),
        ..world.beat_of("a")
    };
    let request = world.send(beat);
    assert_eq!(
        world.answers.remove(&request),
        Some(Err(GroupError::UnknownMember(member("a"))))
    );
}

#[test]
fn who_does_not_give_up_in_time_is_no_member_any_more() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.programs.get_mut(&member("a")).unwrap().keeps = true;
    world.beat("b").unwrap();
    for _ in 0..19 {
        world.pass(Duration::from_secs(1));
        world.beat("a").unwrap();
        world.beat("b").unwrap();
        assert_eq!(world.owned(&["a", "b"]), [2, 0]);
    }
    world.pass(Duration::from_secs(2));
    let unheard = world.send(world.beat_of("a"));
    let gone = world.answers.remove(&unheard);
    assert_eq!(gone, Some(Err(GroupError::UnknownMember(member("a")))));
    // Its program has not heard so: the answer that it had a second before holds for a session.
    for _ in 0..7 {
        world.pass(Duration::from_secs(1));
        world.beat("b").unwrap();
        assert_eq!(world.owned(&["a", "b"]), [2, 0]);
    }
    world.programs.remove(&member("a"));
    world.pass(Duration::from_secs(2));
    world.settle(&["b"]);
    assert_eq!(world.owned(&["b"]), [2]);
}

#[test]
fn who_joins_and_is_silent_has_its_session_and_no_more() {
    let mut world = World::new(2, GroupTiming::default());
    let mut beat = world.beat_of("a");
    beat.profile.as_mut().unwrap().session_timeout_ms = 1_000;
    world.send(beat);
    assert_eq!(world.members(), 1);
    world.pass(Duration::from_millis(1_200));
    assert_eq!(world.members(), 0);
}

#[test]
fn a_member_whose_end_is_proposed_is_promised_nothing_any_more() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    world.settle(&["a", "b"]);
    let late = world.beat_of("a");
    for _ in 0..9 {
        world.pass(Duration::from_secs(1));
        world.beat("b").unwrap();
    }
    world.held = Some(Vec::new());
    world.pass(Duration::from_secs(2));
    assert_eq!(world.held.as_ref().map(Vec::len), Some(1));
    let request = world.send(late);
    let told = world.answers.remove(&request);
    assert_eq!(told, Some(Err(GroupError::UnknownMember(member("a")))));
}

#[test]
fn an_older_word_gives_nothing_up() {
    let mut world = World::new(2, GroupTiming::default());
    let late = world.beat_of("a");
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    // As it was sent when it owned nothing.
    world.send(late);
    let group = world.image.group(&group()).unwrap();
    assert_eq!(
        group
            .owners
            .values()
            .filter(|owner| **owner == member("a"))
            .count(),
        2
    );
}

#[test]
fn who_leaves_is_told_when_its_partitions_are_free() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    world.settle(&["a", "b"]);
    world.held = Some(Vec::new());
    let leave = Heartbeat {
        leave: Leave::ForGood,
        ..world.beat_of("a")
    };
    let request = world.send(leave);
    assert!(!world.answers.contains_key(&request), "not applied yet");
    world.programs.remove(&member("a"));
    for (node, action) in world.held.take().unwrap() {
        world.carry_out(node, action);
    }
    assert!(world.answers.remove(&request).unwrap().is_ok());
    world.settle(&["b"]);
    assert_eq!(world.owned(&["b"]), [2]);
    assert_eq!(world.members(), 1);
}

#[test]
fn a_static_member_comes_back_to_what_it_had() {
    let mut world = World::new(4, GroupTiming::default());
    let named = |world: &World, name: &str, instance: &str| {
        let mut beat = world.beat_of(name);
        let instance = InstanceId::new(instance).unwrap();
        beat.profile.as_mut().unwrap().instance = Some(instance);
        beat
    };
    let request = world.send(named(&world, "a", "one"));
    let had = world.answers.remove(&request).unwrap().unwrap();
    let twin = world.send(named(&world, "x", "one"));
    let refused = world.answers.remove(&twin).unwrap();
    assert_eq!(refused, Err(GroupError::UnreleasedInstance));
    let request = world.send(named(&world, "b", "two"));
    assert!(world.answers.remove(&request).unwrap().is_ok());
    let leave = Heartbeat {
        leave: Leave::ForNow,
        epoch: had.epoch,
        ..named(&world, "a", "one")
    };
    world.send(leave);
    assert_eq!(world.members(), 2, "it keeps its place");
    let kept: Vec<_> = {
        let group = world.image.group(&group()).unwrap();
        group.members[&member("a")].assigned().collect()
    };
    let request = world.send(named(&world, "a2", "one"));
    let back = world.answers.remove(&request).unwrap().unwrap();
    assert_eq!(back.assigned, kept);
    assert_eq!(world.members(), 2);
}

#[test]
fn a_coordinator_that_takes_over_gives_everybody_a_whole_session() {
    let mut world = World::new(4, GroupTiming::default());
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    world.settle(&["a", "b"]);
    let waiting = Heartbeat {
        wait: Duration::from_secs(60),
        ..world.beat_of("a")
    };
    let request = world.send(waiting);
    world.pass(Duration::from_secs(3));
    let former = world.fence_coordinator();
    let told = world.answers.remove(&request).unwrap();
    assert!(
        matches!(told, Err(GroupError::NotCoordinator { .. })),
        "{told:?}"
    );
    let request = world.send_to(former, world.beat_of("a"));
    let elsewhere = world.answers.remove(&request).unwrap().unwrap_err();
    assert_eq!(elsewhere.code(), ErrorCode::NotCoordinator);
    world.pass(Duration::from_secs(9));
    assert_eq!(world.members(), 2);
    // Nothing has moved.
    world.settle(&["a", "b"]);
    assert_eq!(world.owned(&["a", "b"]), [2, 2]);
    world.pass(Duration::from_secs(11));
    assert_eq!(world.members(), 0);
}

#[test]
fn a_coordinator_that_takes_over_counts_in_what_the_former_one_may_still_promise() {
    let mut world = World::new(4, GroupTiming::default());
    world.beat("a").unwrap();
    world.settle(&["a"]);
    world.fence_coordinator();
    // The former one, whose image is behind, answers for as long as it was in contact: 3 s.
    world.pass(Duration::from_secs(12));
    assert_eq!(world.members(), 1);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.members(), 0);
}

#[test]
fn a_former_coordinator_changes_nothing_and_one_that_is_cut_off_answers_nothing() {
    let mut world = World::new(4, GroupTiming::default());
    world.beat("a").unwrap();
    world.held = Some(Vec::new());
    let request = world.send(world.beat_of("b"));
    let held = world.held.take().unwrap();
    world.fence_coordinator();
    assert!(world.answers.remove(&request).unwrap().is_err());
    for (node, action) in held {
        world.carry_out(node, action);
    }
    assert_eq!(world.members(), 1);
    // Silence of the controller: it may have been replaced, and ends nobody's session.
    for _ in 0..300 {
        world.now += Duration::from_millis(50);
        for node in world.coordinators.keys().copied().collect::<Vec<_>>() {
            world.with(node, |coordinator, cx, out| coordinator.tick(cx, out));
        }
    }
    let request = world.send(world.beat_of("a"));
    let cut_off = world.answers.remove(&request).unwrap();
    assert_eq!(cut_off, Err(GroupError::CutOff));
    assert_eq!(world.members(), 1);
}

#[test]
fn a_node_that_has_just_started_answers_nothing_before_it_has_heard_the_controller() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    let node = world.coordinator();
    let started = Duration::from_millis(1);
    let mut coordinator = Coordinator::new(node, GroupTiming::default(), started);
    let cx = |now, contact| Context {
        now: Duration::from_millis(now),
        wall: Timestamp::from_millis(0),
        controller_contact: Duration::from_millis(contact),
        image: &world.image,
    };
    let mut out = Vec::new();
    coordinator.take_image(&cx(1, 0), &mut out);
    assert_eq!(
        coordinator.check(&cx(2, 0), &group()),
        Err(GroupError::CutOff)
    );
    assert!(coordinator.check(&cx(3, 2), &group()).is_ok());
}

#[test]
fn proposals_without_an_outcome_are_made_again() {
    let mut world = World::new(2, GroupTiming::default());
    world.held = Some(Vec::new());
    let request = world.send(world.beat_of("a"));
    let held = world.held.take().unwrap();
    let [(node, Action::Propose { id, .. })] = &held[..] else {
        panic!("{held:?}")
    };
    let (node, id) = (*node, *id);
    world.with(node, |coordinator, cx, out| {
        coordinator.proposed(cx, id, ProposalResult::Unknown, out);
    });
    world.pass(Duration::from_millis(500));
    assert!(world.answers.remove(&request).unwrap().is_ok());
    // The first one comes late, and is refused.
    for (node, action) in held {
        world.carry_out(node, action);
    }
    assert_eq!(world.members(), 1);
    // Nobody decides: whoever joins is told.
    world.held = Some(Vec::new());
    let request = world.send(world.beat_of("b"));
    world.pass(Duration::from_secs(6));
    let undecided = world.answers.remove(&request).unwrap();
    assert_eq!(undecided, Err(GroupError::Undecided));
}

#[test]
fn a_topic_that_grows_or_comes_later_is_shared_out() {
    let mut world = World::new(2, GroupTiming::default());
    let later = Heartbeat {
        profile: Some(MemberProfile {
            topics: ["t", "u"].map(|name| TopicName::new(name).unwrap()).into(),
            ..profile()
        }),
        ..world.beat_of("a")
    };
    let request = world.send(later);
    let answer = world.answers.remove(&request).unwrap().unwrap();
    assert_eq!(answer.assigned.len(), 2);
    let other = TopicId::from_bytes([2; 16]);
    world.create("u", other, 3);
    let group = world.image.group(&group()).unwrap();
    assert_eq!(group.owners.len(), 5);
    world.apply(Command::DeleteTopic { topic_id: other });
    let group = world.image.group(&crate::tests::group()).unwrap();
    assert_eq!(group.owners.len(), 2);
    let at = TopicPartition::new(TOPIC, PartitionId::new(0));
    assert_eq!(group.owners.get(&at), Some(&member("a")));
}

#[test]
fn what_is_revoked_later_is_not_to_be_given_up_sooner() {
    let mut world = World::new(6, GroupTiming::default());
    world.beat("a").unwrap();
    world.programs.get_mut(&member("a")).unwrap().keeps = true;
    world.beat("b").unwrap();
    let hold = |world: &mut World, others: &[&str]| {
        world.pass(Duration::from_secs(1));
        for name in others {
            world.beat(name).unwrap();
        }
        world.beat("a")
    };
    for _ in 0..15 {
        hold(&mut world, &["b"]).unwrap();
    }
    // More of its six are to move; then it gives up one.
    world.beat("c").unwrap();
    hold(&mut world, &["b", "c"]).unwrap();
    let known = Arc::clone(&world.image.group(&group()).unwrap().members[&member("a")]);
    let revoking: Vec<_> = known.revoking().collect();
    assert!(revoking.len() > 3, "{revoking:?}");
    let program = world.programs.get_mut(&member("a")).unwrap();
    program.owned.remove(&revoking[0]);
    for _ in 0..15 {
        hold(&mut world, &["b", "c"]).unwrap();
    }
    assert!((0..10).any(|_| hold(&mut world, &["b", "c"]).is_err()));
}

#[test]
fn who_leaves_while_the_quorum_does_not_decide_is_told_so() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.held = Some(Vec::new());
    let leave = Heartbeat {
        leave: Leave::ForGood,
        ..world.beat_of("a")
    };
    let request = world.send(leave);
    world.pass(Duration::from_secs(4));
    assert!(!world.answers.contains_key(&request));
    world.pass(Duration::from_secs(2));
    let undecided = world.answers.remove(&request);
    assert_eq!(undecided, Some(Err(GroupError::Undecided)));
}

#[test]
fn a_node_that_stood_still_ends_nobodys_session_whatever_comes_first() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.now += SESSION * 2;
    world.contact = world.now;
    // An image before time passes.
    world.create("u", TopicId::from_bytes([2; 16]), 1);
    world.pass(Duration::from_millis(100));
    world.beat("a").unwrap();
    assert_eq!(world.members(), 1);
}

#[test]
fn bounds_and_bad_words_are_told_by_name() {
    let timing = GroupTiming {
        max_members: 2,
        max_groups: 1,
        ..GroupTiming::default()
    };
    let mut world = World::new(2, timing);
    world.beat("a").unwrap();
    world.beat("b").unwrap();
    assert_eq!(world.beat("c"), Err(GroupError::GroupFull(2)));
    let stranger = Heartbeat {
        epoch: GroupEpoch::new(3),
        ..world.beat_of("x")
    };
    let request = world.send(stranger);
    let unknown = GroupError::UnknownMember(member("x"));
    assert_eq!(world.answers.remove(&request), Some(Err(unknown)));
    let ahead = Heartbeat {
        epoch: GroupEpoch::new(99),
        ..world.beat_of("a")
    };
    let request = world.send(ahead);
    let fenced = world.answers.remove(&request).unwrap().unwrap_err();
    assert_eq!(fenced.code(), ErrorCode::FencedMemberEpoch);
    let silent = Heartbeat {
        profile: None,
        ..world.beat_of("y")
    };
    let request = world.send(silent);
    let invalid = world.answers.remove(&request).unwrap().unwrap_err();
    assert_eq!(invalid.code(), ErrorCode::InvalidRequest);
    let second = GroupId::new("h").unwrap();
    let node = world.image.coordinator(&second).coordinator.unwrap();
    let beat = Heartbeat {
        group: second.clone(),
        ..world.beat_of("z")
    };
    let request = world.send_to(node, beat);
    let full = world.answers.remove(&request);
    assert_eq!(full, Some(Err(GroupError::TooManyGroups(1))));
    world.requests += 1;
    let request = RequestId(world.requests);
    let node = world.coordinator();
    world.with(node, |coordinator, cx, out| {
        coordinator.delete(cx, request, &group(), out);
    });
    let occupied = world.answers.remove(&request);
    assert_eq!(occupied, Some(Err(GroupError::NonEmpty(2))));
}

#[test]
fn a_group_without_members_goes_when_the_time_of_its_offsets_is_over() {
    let timing = GroupTiming {
        offsets_retention: Duration::from_secs(60),
        ..GroupTiming::default()
    };
    let mut world = World::new(2, timing);
    world.beat("a").unwrap();
    world.pass(Duration::from_secs(11));
    assert_eq!(world.members(), 0);
    assert!(world.image.group(&group()).is_some());
    world.pass(Duration::from_secs(45));
    assert!(world.image.group(&group()).is_some());
    world.pass(Duration::from_secs(60));
    assert!(world.image.group(&group()).is_none());
    assert!(world.image.applied().index > RaftIndex::ZERO);
}
