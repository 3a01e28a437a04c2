//! The scheduler: one queue of what will happen, in simulated time; every choice from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_log::{FlushDone, FlushTicket};
use quorate_metadata::{Command, CreateTopic, Envelope, Outcome};
use quorate_replication::{
    Event, Faults, FollowerMessage, LeaderMessage, RequestId, StreamId, Timing,
};
use quorate_types::{Incarnation, NodeId, PartitionId, TopicId, TopicName, TopicPartition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::Clients;
use super::controller::Controller;
use super::disk::SimDisk;
use super::faults::{FAULTS, Fault};
use super::invariants::{self, Checker};
use super::network::Network;
use super::process::Node;
use super::quorum::Quorum;
use super::sight::{Acked, Consumed, Seen, Sight};
use super::trace::Trace;

pub(super) const PARTITION: TopicPartition =
    TopicPartition::new(TopicId::from_bytes([5; 16]), PartitionId::new(0));
/// Where the partition's log is on each disk.
pub(super) const FOLDER: &str = "logs/t-0";
/// A silent broker is fenced after so long.
pub(super) const SESSION: Duration = ms(900);
/// Faults go on for so long.
const FAULTY: Duration = ms(12_000);
/// Then everything must be well within so long (I9).
const SETTLE: Duration = ms(40_000);

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What will happen.
pub(super) enum Scheduled {
    Start {
        node: NodeId,
    },
    Register {
        node: NodeId,
        life: u64,
    },
    Tick {
        node: NodeId,
        life: u64,
    },
    Nudge {
        node: NodeId,
        life: u64,
    },
    Settle {
        node: NodeId,
        life: u64,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
    FlushRuns {
        node: NodeId,
        life: u64,
        ticket: FlushTicket<SimDisk>,
    },
    FlushDone {
        node: NodeId,
        life: u64,
        done: FlushDone,
    },
    Open {
        follower: NodeId,
        life: u64,
        leader: NodeId,
    },
    Up {
        stream: StreamId,
        message: FollowerMessage,
    },
    Down {
        stream: StreamId,
        message: LeaderMessage,
    },
    Break {
        stream: StreamId,
    },
    UpEnds {
        stream: StreamId,
    },
    RoomAgain {
        stream: StreamId,
    },
    PowerFails {
        node: NodeId,
    },
    ProposalArrives(Envelope),
    ProposalAnswered {
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        outcome: Outcome,
    },
    ProposalTimeout {
        node: NodeId,
        life: u64,
        sequence: u64,
    },
    ImageArrives {
        node: NodeId,
        index: usize,
    },
    ControllerTurn,
    FaultTurn,
    DurabilityTurn,
    PowerFailsEverywhere,
    ProducerTurn {
        client: usize,
    },
    ConsumerTurn,
    RequestArrives {
        id: RequestId,
    },
    RequestTimeout {
        id: RequestId,
    },
    Answer {
        id: RequestId,
        ok: bool,
    },
    Retry {
        client: usize,
        mark: u64,
    },
}

pub(super) struct World<F: Faults> {
    pub(super) rng: StdRng,
    pub(super) now: Duration,
    queue: BTreeMap<(Duration, u64), Scheduled>,
    queued: u64,
    pub(super) nodes: BTreeMap<NodeId, Node<F>>,
    pub(super) quorum: Quorum,
    pub(super) network: Network,
    pub(super) controller: Controller,
    pub(super) clients: Clients,
    pub(super) timing: Timing,
    pub(super) segment_bytes: u64,
    /// The topic's `durability` is `page-cache`.
    /// What is acknowledged may be in page caches only.
    pub(super) page_cache: bool,
    pub(super) enabled: Vec<Fault>,
    pub(super) fault_gap: u64,
    /// The longest pause of a producer, in ms.
    pub(super) pace: u64,
    /// How often a message takes long.
    slowness: f64,
    /// How often a replica settles later than at once.
    pub(super) gathering: f64,
    lagging: Option<NodeId>,
    pub(super) congested: BTreeSet<StreamId>,
    /// Faults are over.
    pub(super) settling: bool,
    pub(super) seen: BTreeMap<NodeId, Seen>,
    pub(super) acked: Vec<Acked>,
    checkers: Vec<Box<dyn Checker>>,
    violation: Option<String>,
    pub(super) whole_trace: bool,
    trace: Trace,
    pub(super) steps: u64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The invariant that broke, and how.
    pub violation: Option<String>,
    /// A hash over everything that happened.
    pub hash: u64,
    /// The last of what happened.
    pub tail: String,
    /// Events handled.
    pub steps: u64,
    /// Batches acknowledged with `acks=all`.
    pub acked: usize,
    /// Leader epochs begun.
    pub elections: u32,
}

impl<F: Faults> World<F> {
    pub(super) fn new(seed: u64, whole_trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut enabled: Vec<Fault> = FAULTS
            .into_iter()
            .filter(|_| rng.random_bool(0.45))
            .collect();
        let page_cache = rng.random_bool(0.4);
        if page_cache {
            // Either may take with it what was acknowledged from the page cache.
            let beyond = [Fault::PowerLossOfAll, Fault::FailSync];
            enabled.retain(|fault| !beyond.contains(fault));
            enabled.extend([Fault::PowerLoss, Fault::StallDisk]);
        }
        if enabled.is_empty() {
            enabled.push(Fault::Kill);
        }
        let timing = Timing {
            replica_lag_time_max: ms(rng.random_range(600..2_500)),
            session_timeout: SESSION,
            heartbeat_interval: ms(100),
            retry_max: ms(300),
            proposal_retry: ms(50),
            window_bytes: rng.random_range(200..4_000),
            push_bytes: rng.random_range(100..1_500),
            checkpoint_interval: ms(rng.random_range(50..500)),
            ..Timing::default()
        };
        let lagging = rng
            .random_bool(0.3)
            .then(|| NodeId::new(rng.random_range(1..=3)));
        Self {
            fault_gap: rng.random_range(60..900),
            pace: [60, 60, 500][rng.random_range(0..3)],
            slowness: [0.0, 0.005, 0.03][rng.random_range(0..3)],
            gathering: [0.0, 0.2, 0.7][rng.random_range(0..3)],
            segment_bytes: rng.random_range(400..6_000),
            page_cache,
            rng,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            nodes: (1..=3).map(|id| (NodeId::new(id), Node::new())).collect(),
            quorum: Quorum::new(),
            network: Network::default(),
            controller: Controller::default(),
            clients: Clients::new(),
            timing,
            enabled,
            lagging,
            congested: BTreeSet::new(),
            settling: false,
            seen: BTreeMap::new(),
            acked: Vec::new(),
            checkers: invariants::all(),
            violation: None,
            whole_trace,
            trace: Trace::new(whole_trace),
            steps: 0,
        }
    }

    /// Runs to the end, or to the first violation.
    pub(super) fn run(&mut self) {
        self.note(&format!("faults {:?}, {:?}", self.enabled, self.timing));
        for node in self.node_ids() {
            self.start(node);
        }
        self.at(ms(1), Scheduled::ControllerTurn);
        self.until(ms(60_000), |world| world.all_active());
        if self.violation.is_none() && !self.all_active() {
            self.violate("three brokers never came up".to_owned());
        }
        let minimum = if self.rng.random_bool(0.8) { "2" } else { "1" };
        let durability = if self.page_cache {
            "page-cache"
        } else {
            "fsync"
        };
        let config = [("min.insync.replicas", minimum), ("durability", durability)];
        let config = config
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let seed = self.rng.random();
        self.apply_now(Command::CreateTopic(CreateTopic {
            name: TopicName::new("t").expect("a good name"),
            topic_id: PARTITION.topic_id,
            partitions: 1,
            replication_factor: 3,
            seed,
            config,
        }));
        for client in 0..self.clients.producers.len() {
            self.at(ms(1), Scheduled::ProducerTurn { client });
        }
        self.at(ms(1), Scheduled::ConsumerTurn);
        self.at(ms(200), Scheduled::FaultTurn);
        if self.page_cache && self.rng.random_bool(0.5) {
            self.durability_later();
        }
        let end = self.now + FAULTY;
        self.until(end, |_| false);
        if self.violation.is_none() {
            self.settle();
        }
    }

    /// What it came to.
    pub(super) fn report(self) -> Run {
        let elections = self
            .quorum
            .registration()
            .map_or(0, |r| r.leader_epoch.get());
        Run {
            violation: self.violation,
            hash: self.trace.hash(),
            tail: self.trace.tail(),
            steps: self.steps,
            acked: self.acked.len(),
            elections,
        }
    }

    fn all_active(&self) -> bool {
        let brokers = self.quorum.latest().brokers();
        let active = quorate_metadata::BrokerState::Active;
        brokers.len() == 3 && brokers.values().all(|broker| broker.state == active)
    }

    fn until(&mut self, end: Duration, reached: impl Fn(&Self) -> bool) {
        while self.violation.is_none() && !reached(self) {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return;
            };
            if at > end {
                self.queue.insert((at, 0), event);
                return;
            }
            self.now = at;
            self.steps += 1;
            self.handle(event);
        }
    }

    /// I9: once faults stop, everybody is in sync again, the producers get their answers, and the
    /// logs are equal.
    fn settle(&mut self) {
        self.settling = true;
        self.note("faults are over");
        self.controller.cut_off.clear();
        self.network.apart.clear();
        for node in self.node_ids() {
            self.node_mut(node).stalled_until = self.now;
            self.release_streams_of(node);
            // An operator starts a node again whose disk has failed.
            if self.node(node).disk_failed {
                self.kill(node);
                self.node(node).disk.fail_syncs(0);
            }
            self.at(ms(10), Scheduled::Start { node });
        }
        let end = self.now + SETTLE;
        let quiet = self.now + ms(6_000);
        self.until(quiet, |_| false);
        self.clients.stopped = true;
        self.until(end, |world| world.unsettled().is_none());
        if self.violation.is_none()
            && let Some(why) = self.unsettled()
        {
            self.violate(format!("I9 all is well once faults stop: {why}"));
        }
    }

    /// What is not well yet.
    fn unsettled(&self) -> Option<String> {
        let Some(registration) = self.quorum.registration() else {
            return Some("no topic".to_owned());
        };
        // I9 speaks of partitions with a live member. From the page cache the last one can be lost,
        // from the disk never.
        if self.page_cache && registration.isr.is_empty() {
            return None;
        }
        if registration.isr.len() != 3 || registration.leader.is_none() {
            return Some(format!("{registration:?}"));
        }
        if !self.clients.at_rest() {
            return Some("a producer still waits for its answer".to_owned());
        }
        let mut logs = self.seen.values();
        let first = logs.next()?;
        let level = |seen: &Seen| {
            seen.batches == first.batches
                && seen.high_watermark == seen.log_end
                && seen.flushed == seen.log_end
        };
        if self.seen.len() == 3 && level(first) && logs.all(level) {
            return None;
        }
        let ends = self
            .seen
            .iter()
            .map(|(node, seen)| (node.get(), seen.log_end, seen.flushed, seen.high_watermark));
        Some(format!("logs differ: {:?}", ends.collect::<Vec<_>>()))
    }

    /// Schedules something.
    pub(super) fn at(&mut self, wait: Duration, event: Scheduled) {
        self.queued += 1;
        self.queue.insert((self.now + wait, self.queued), event);
    }

    /// Ends the flush that a node has under way.
    pub(super) fn take_flush(&mut self, of: NodeId) -> Option<FlushDone> {
        let (at, _) = self.queue.iter().find(|(_, event)| {
            matches!(event, Scheduled::FlushRuns { node, .. } | Scheduled::FlushDone { node, .. }
                if *node == of)
        })?;
        let at = *at;
        match self.queue.remove(&at)? {
            Scheduled::FlushRuns { ticket, .. } => Some(ticket.run()),
            Scheduled::FlushDone { done, .. } => Some(done),
            _ => None,
        }
    }

    /// How long a call takes.
    pub(super) fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(50..2_000))
    }

    /// How long a message on a stream takes; rarely, very long.
    pub(super) fn stream_delay(&mut self) -> Duration {
        let slow = !self.settling && self.rng.random_bool(self.slowness);
        if slow {
            ms(self.rng.random_range(10..1_500))
        } else {
            self.delay()
        }
    }

    pub(super) fn image_lag(&mut self, node: NodeId) -> Duration {
        let slow = !self.settling
            && (self.lagging == Some(node) && self.rng.random_bool(0.5)
                || self.rng.random_bool(0.03));
        if slow {
            ms(self.rng.random_range(5..800))
        } else {
            self.delay()
        }
    }

    pub(super) fn note(&mut self, what: &str) {
        self.trace.note(self.now, what);
    }

    pub(super) fn violate(&mut self, what: String) {
        self.note(&format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    /// Lets every checker look.
    pub(super) fn look(&mut self, changed: Option<NodeId>, consumed: Option<Consumed>) {
        if let Some(node) = changed {
            self.see(node);
        }
        let registration = self.quorum.registration().cloned();
        let sight = Sight {
            changed,
            page_cache: self.page_cache,
            replicas: &self.seen,
            committed: registration.as_ref(),
            acked: &self.acked,
            consumed,
        };
        let mut found = None;
        for checker in &mut self.checkers {
            if let Err(why) = checker.check(&sight) {
                found.get_or_insert(format!("{}: {why}", checker.name()));
            }
        }
        if let Some(what) = found {
            self.violate(what);
        }
    }

    /// Whose process an event is for, and of which life.
    fn addressee(&self, event: &Scheduled) -> Option<(NodeId, Option<u64>)> {
        match event {
            Scheduled::Register { node, life }
            | Scheduled::Tick { node, life }
            | Scheduled::Nudge { node, life }
            | Scheduled::Settle { node, life }
            | Scheduled::FlushRuns { node, life, .. }
            | Scheduled::FlushDone { node, life, .. }
            | Scheduled::ProposalTimeout { node, life, .. } => Some((*node, Some(*life))),
            Scheduled::Open { follower, life, .. } => Some((*follower, Some(*life))),
            Scheduled::ImageArrives { node, .. } | Scheduled::ProposalAnswered { node, .. } => {
                Some((*node, None))
            }
            Scheduled::Up { stream, .. }
            | Scheduled::UpEnds { stream }
            | Scheduled::RoomAgain { stream } => {
                let state = self.network.streams.get(stream)?;
                Some((state.leader, None))
            }
            Scheduled::Down { stream, .. } | Scheduled::Break { stream } => {
                let state = self.network.streams.get(stream)?;
                Some((state.follower, None))
            }
            Scheduled::RequestArrives { id } => {
                let request = self.clients.requests.get(id)?;
                Some((request.node, None))
            }
            _ => None,
        }
    }

    pub(super) fn handle(&mut self, event: Scheduled) {
        if let Some((node, life)) = self.addressee(&event) {
            let now = self.life(node);
            if life.is_some_and(|life| life != now) {
                return;
            }
            if let Some(process) = self.process_mut(node)
                && process.paused
            {
                process.stash.push_back(event);
                return;
            }
        }
        match event {
            Scheduled::Start { node } => self.start(node),
            Scheduled::Register { node, .. } => self.register(node),
            Scheduled::Tick { node, .. } => self.tick(node),
            Scheduled::Nudge { node, .. } => self.step(node, Event::Tick),
            Scheduled::Settle { node, .. } => self.settle_replica(node),
            Scheduled::Resume { node, life } => {
                if self.life(node) == life {
                    self.resume(node);
                }
            }
            Scheduled::FlushRuns { node, life, ticket } => {
                let done = ticket.run();
                let wait = self.delay();
                self.at(wait, Scheduled::FlushDone { node, life, done });
            }
            Scheduled::FlushDone { node, done, .. } => self.step(node, Event::Flushed(done)),
            Scheduled::Open {
                follower, leader, ..
            } => self.open_stream(follower, leader),
            Scheduled::Up { stream, message } => self.up(stream, message),
            Scheduled::Down { stream, message } => self.down(stream, message),
            Scheduled::Break { stream } => self.break_stream(stream),
            Scheduled::UpEnds { stream } => self.up_ends(stream),
            Scheduled::RoomAgain { stream } => self.room_again(stream),
            Scheduled::PowerFails { node } => {
                if !self.settling {
                    self.power_fails(node);
                }
            }
            Scheduled::ProposalArrives(envelope) => self.proposal_arrives(envelope),
            Scheduled::ProposalAnswered {
                node,
                incarnation,
                sequence,
                outcome,
            } => self.proposal_answered(node, incarnation, sequence, outcome),
            Scheduled::ProposalTimeout { node, sequence, .. } => {
                self.proposal_timed_out(node, sequence);
            }
            Scheduled::ImageArrives { node, index } => self.image_arrives(node, index),
            Scheduled::ControllerTurn => self.controller_turn(),
            Scheduled::DurabilityTurn => self.durability_turn(),
            Scheduled::PowerFailsEverywhere => self.power_fails_everywhere(),
            Scheduled::FaultTurn => self.fault_turn(),
            Scheduled::ProducerTurn { client } => self.producer_turn(client),
            Scheduled::ConsumerTurn => self.consumer_turn(),
            Scheduled::RequestArrives { id } => self.request_arrives(id),
            Scheduled::RequestTimeout { id } => self.request_timed_out(id),
            Scheduled::Answer { id, ok } => self.answer_arrives(id, ok),
            Scheduled::Retry { client, mark } => self.send_op(client, mark),
        }
    }
}
