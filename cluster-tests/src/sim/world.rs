//! The scheduler: what will happen happens in simulated time; every choice comes from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_replication::StreamId;
use quorate_types::{NodeId, TopicPartition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::Clients;
use super::clock::NodeClock;
use super::cores::{Act, Cores};
use super::counts::Counts;
use super::groups::Groups;
use super::invariants::{self, EntryChecker};
use super::network::Network;
use super::node::Node;
use super::plan::Plan;
use super::quorum::{Quorum, is_of_groups};
use super::schedule::{Schedule, Scheduled, ms, us};
use super::sight::Deed;
use super::streams::Streams;
use super::topics::SimTopic;
use super::trace::{Trace, note};
use super::watched::Watched;

/// What contradicts an invariant, and in which partition.
pub(super) type Violation = (Option<TopicPartition>, String);

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) now: Duration,
    schedule: Schedule,
    pub(super) plan: Plan,
    pub(super) cores: Cores,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) quorum: Quorum,
    pub(super) network: Network,
    pub(super) streams: Streams,
    pub(super) connections: u64,
    pub(super) clients: Clients,
    pub(super) topics: Vec<SimTopic>,
    pub(super) topics_made: u16,
    pub(super) partitions: BTreeMap<TopicPartition, Watched>,
    /// Replicas that are known for damaged, and may be found so by a start.
    pub(super) marked: BTreeSet<(NodeId, TopicPartition)>,
    /// Consumer groups, in some runs.
    pub(super) groups: Option<Box<Groups>>,
    /// Faults are over.
    pub(super) settling: bool,
    pub(super) actions: Vec<Act>,
    /// Actions that replicas have decided on so far.
    pub(super) acts: u64,
    /// What happened in the present step and the checkers have not seen.
    pub(super) deeds: Vec<Deed>,
    pub(super) entry_checkers: Vec<Box<dyn EntryChecker>>,
    pub(super) violation: Option<Violation>,
    pub(super) trace: Trace,
    pub(super) counts: Counts,
    /// The present event led to something.
    busy: bool,
    next_fault: u64,
}

impl World {
    pub(super) fn new(seed: u64, cores: Cores, traced: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Plan::draw(&mut rng);
        let groups = Groups::draw(seed);
        if groups.is_some() {
            plan.make_room_for_groups();
        }
        let nodes = (1..=plan.nodes).map(NodeId::new);
        let nodes = nodes.map(|id| {
            let began = ms(rng.random_range(0..100_000));
            let fast = rng.random_range(-plan.drift..=plan.drift);
            (id, Node::new(id, NodeClock::new(fast, began)))
        });
        let nodes = nodes.collect();
        Self {
            plan,
            rng,
            cores,
            nodes,
            now: Duration::ZERO,
            schedule: Schedule::default(),
            quorum: Quorum::new(),
            network: Network::default(),
            streams: Streams::default(),
            connections: 0,
            clients: Clients::default(),
            topics: Vec::new(),
            topics_made: 0,
            partitions: BTreeMap::new(),
            marked: BTreeSet::new(),
            groups,
            settling: false,
            actions: Vec::new(),
            acts: 0,
            deeds: Vec::new(),
            entry_checkers: invariants::entries(),
            violation: None,
            trace: Trace::new(traced),
            counts: Counts::default(),
            busy: false,
            next_fault: 0,
        }
    }

    /// Runs to the end, or to the first violation; faults strike for so many steps.
    pub(super) fn run(&mut self, steps: u64) {
        note!(self, None, "{:?}", self.plan);
        self.bring_up();
        let begun = self.counts.steps;
        let steps = steps * self.plan.longer;
        self.next_fault = begun + 5;
        while self.violation.is_none() && self.counts.steps < begun + steps {
            if self.counts.steps >= self.next_fault {
                let gap = self.plan.fault_gap;
                self.next_fault = self.counts.steps + self.rng.random_range(3..=gap);
                self.fault_strikes();
            }
            if !self.next(Duration::MAX) {
                break;
            }
        }
        self.counts.faulty = self.counts.steps - begun;
        self.settle();
    }

    /// Lets the next thing happen, where it happens before `end`.
    pub(super) fn next(&mut self, end: Duration) -> bool {
        let Some((at, event)) = self.schedule.pop(end) else {
            return false;
        };
        self.now = at;
        self.trace.mix(at.as_nanos() as u64);
        self.busy = true;
        self.handle(event);
        self.counts.events += 1;
        self.counts.steps += u64::from(self.busy);
        true
    }

    /// Schedules something.
    pub(super) fn at(&mut self, wait: Duration, event: Scheduled) {
        self.schedule.push(self.now + wait, event);
    }

    /// How long a call takes.
    pub(super) fn delay(&mut self) -> Duration {
        us(self.rng.random_range(50..1_500))
    }

    /// How long a message on a stream takes; rarely, very long.
    pub(super) fn stream_delay(&mut self) -> Duration {
        let slowness = self.plan.slowness;
        let slow = !self.settling && slowness > 0.0 && self.rng.random_bool(slowness);
        if slow {
            us(self.rng.random_range(1_000..120_000))
        } else {
            self.delay()
        }
    }

    pub(super) fn image_lag(&mut self, node: NodeId) -> Duration {
        let often = self.plan.lagging == Some(node);
        let slow = !self.settling && self.rng.random_bool(if often { 0.5 } else { 0.03 });
        if slow {
            us(self.rng.random_range(500..80_000))
        } else {
            self.delay()
        }
    }

    pub(super) fn violate(&mut self, partition: Option<TopicPartition>, what: String) {
        note!(self, partition, "VIOLATION {what}");
        self.violation.get_or_insert((partition, what));
    }

    fn stream(&self, stream: StreamId) -> Option<(NodeId, NodeId)> {
        let state = self.streams.open.get(&stream)?;
        Some((state.follower, state.leader))
    }

    /// Whose process an event is for, and of which life.
    fn addressee(&self, event: &Scheduled) -> Option<(NodeId, Option<u64>)> {
        match event {
            Scheduled::Register { node, life }
            | Scheduled::Tick { node, life, .. }
            | Scheduled::Settle { node, life, .. }
            | Scheduled::FlushRuns { node, life, .. }
            | Scheduled::FlushEnds { node, life, .. }
            | Scheduled::ProposalTimeout { node, life, .. }
            | Scheduled::ImageArrives { node, life, .. }
            | Scheduled::TermLearned { node, life, .. }
            | Scheduled::Beat { node, life }
            | Scheduled::HeartbeatAnswered { node, life, .. }
            | Scheduled::ControllerTick { node, life, .. } => Some((*node, Some(*life))),
            Scheduled::HeartbeatArrives {
                controller, life, ..
            }
            | Scheduled::ConnectionEnds {
                controller, life, ..
            }
            | Scheduled::Probed {
                controller, life, ..
            } => Some((*controller, Some(*life))),
            Scheduled::Open { follower, life, .. } => Some((*follower, Some(*life))),
            Scheduled::ProposalAnswered { node, .. } => Some((*node, None)),
            Scheduled::Up { stream, .. }
            | Scheduled::UpEnds { stream }
            | Scheduled::RoomAgain { stream } => Some((self.stream(*stream)?.1, None)),
            Scheduled::Down { stream, .. } | Scheduled::Break { stream } => {
                Some((self.stream(*stream)?.0, None))
            }
            Scheduled::RequestArrives { id } => Some((self.addressee_of(*id)?, None)),
            Scheduled::Group(event) => self.addressee_in_groups(event),
            _ => None,
        }
    }

    /// Lets an event happen; one for a process that is gone does not, one for a paused one waits.
    pub(super) fn handle(&mut self, event: Scheduled) {
        if let Some((node, life)) = self.addressee(&event) {
            let now = self.life(node);
            if life.is_some_and(|life| life != now) {
                self.busy = false;
                return;
            }
            if let Some(process) = self.process_mut(node)
                && process.paused
            {
                process.stash.push_back(event);
                self.busy = false;
                return;
            }
        }
        match event {
            Scheduled::Start { node } => self.start(node),
            Scheduled::Register { node, .. } => self.register(node),
            Scheduled::Tick { node, number, .. } => {
                let current = self.process(node).map(|process| process.tick_number);
                self.busy = current == Some(number) && self.tick(node);
            }
            Scheduled::Settle { node, id, .. } => {
                let acts = self.acts;
                self.act(node, id, None);
                self.busy = self.acts != acts;
            }
            Scheduled::Resume { node, life } => {
                if self.life(node) == life {
                    self.resume(node);
                }
            }
            Scheduled::FlushRuns {
                node, id, flush, ..
            } => self.flush_runs(node, id, flush),
            Scheduled::FlushEnds {
                node, id, flush, ..
            } => self.flush_ends(node, id, flush),
            Scheduled::Open {
                follower, leader, ..
            } => self.open_stream(follower, leader),
            Scheduled::Up { stream, message } => self.up(stream, message),
            Scheduled::Down { stream, message } => self.down(stream, message),
            Scheduled::Break { stream } => self.break_stream(stream),
            Scheduled::UpEnds { stream } => self.up_ends(stream),
            Scheduled::RoomAgain { stream } => self.room_again(stream),
            Scheduled::PowerFails { node } => self.power_fails(node),
            Scheduled::PowerFailsEverywhere => self.power_fails_everywhere(),
            Scheduled::ProposalArrives(envelope) => {
                self.busy = !is_of_groups(&envelope);
                self.proposal_arrives(envelope);
            }
            Scheduled::ProposalAnswered {
                node,
                incarnation,
                sequence,
                outcome,
            } => self.proposal_answered(node, incarnation, sequence, *outcome),
            Scheduled::ProposalTimeout { node, sequence, .. } => {
                self.busy = self.proposal_timed_out(node, sequence);
            }
            Scheduled::ImageArrives { node, index, .. } => {
                self.busy = self.groups.is_none() || !self.quorum.is_of_groups(index);
                self.image_arrives(node, index);
            }
            Scheduled::Elect { term } => {
                if self.quorum.announced.term == term {
                    self.elect();
                }
            }
            Scheduled::TermLearned {
                node, announced, ..
            } => self.term_learned(node, announced),
            Scheduled::Beat { node, .. } => {
                self.beat(node);
                self.next_beat(node);
            }
            Scheduled::HeartbeatArrives {
                controller,
                connection,
                sent,
                sender_life,
                beat,
                ..
            } => self.heartbeat_arrives(controller, connection, sent, sender_life, &beat),
            Scheduled::LeadershipConfirmed {
                controller,
                term,
                to,
                life,
                sent,
                may_stop,
                applied,
            } => self.leadership_confirmed((controller, term), (to, life), sent, may_stop, applied),
            Scheduled::HeartbeatAnswered {
                node,
                sent,
                may_stop,
                applied,
                ..
            } => {
                self.groups_hear(node, sent, applied);
                self.heartbeat_answered(node, sent, may_stop);
            }
            Scheduled::ConnectionEnds {
                controller,
                connection,
                reset,
                ..
            } => self.connection_ends(controller, connection, reset),
            Scheduled::ProbeArrives {
                controller,
                life,
                term,
                probe,
            } => self.probe_arrives(controller, life, term, probe),
            Scheduled::Probed {
                controller,
                term,
                probe,
                result,
                ..
            } => self.probed(controller, term, &probe, result),
            Scheduled::ControllerTick { node, life, term } => {
                self.busy = self.controller_tick(node, life, term);
            }
            Scheduled::SettingsTurn => self.settings_turn(),
            Scheduled::ProducerTurn { client } => self.busy = self.producer_turn(client),
            Scheduled::ConsumerTurn => self.busy = self.consumer_turn(),
            Scheduled::RequestArrives { id } => self.request_arrives(id),
            Scheduled::RequestTimeout { id } => self.busy = self.request_timed_out(id),
            Scheduled::Answer { id, ok } => self.answer_arrives(id, ok),
            Scheduled::Retry { client, mark } => self.send_op(client, mark),
            Scheduled::Group(event) => {
                self.busy = false;
                self.group_event(event);
            }
        }
    }
}
