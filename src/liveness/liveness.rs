//! The state machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{Broker, BrokerState, Command, MetadataImage, Registration};
use quorate_types::{BrokerEpoch, Endpoint, Incarnation, NodeId, RaftIndex, TopicPartition};

/// Pause before a fencing that was not decided is proposed again.
const AGAIN: Duration = Duration::from_millis(50);

/// One connection that carries heartbeats, never reused by a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Times of liveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessTiming {
    /// A broker that is silent for so long is fenced.
    pub session_timeout: Duration,
    /// Pause between two probes of one address; short, since a container's address goes soon after
    /// its process, and then nobody refuses any more.
    pub probe_interval: Duration,
    /// A new controller waits so long for a broker's stream before it probes.
    pub first_contact: Duration,
    /// Preferred leaders are looked at so often.
    pub rebalance_interval: Duration,
    /// Leaderships given back each time.
    pub rebalance_batch: usize,
}

impl LivenessTiming {
    /// The usual times for a session time-out.
    pub fn new(session_timeout: Duration) -> Self {
        Self {
            session_timeout,
            probe_interval: Duration::from_millis(10),
            first_contact: Duration::from_millis(100),
            rebalance_interval: Duration::from_secs(5),
            rebalance_batch: 16,
        }
    }
}

/// One sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whose.
    pub node: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Its registration, once it knows it.
    pub broker_epoch: Option<BrokerEpoch>,
    /// Metadata index that it has applied.
    pub applied: RaftIndex,
    /// It wishes to stop.
    pub wants_shutdown: bool,
    /// Its logs are recovered.
    pub ready: bool,
}

/// What a broker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeartbeatAnswer {
    /// It leads nothing any more, and the others know.
    pub may_stop: bool,
}

/// A question whether somebody answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whose address.
    pub node: NodeId,
    /// The registration that is asked about.
    pub epoch: BrokerEpoch,
    /// The address.
    pub endpoint: Endpoint,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// The connection was refused: no process listens.
    Refused,
    /// No answer in time, or none that makes sense: says nothing.
    Silent,
    /// That life of that node answered.
    Alive {
        /// Which node.
        node: NodeId,
        /// Which life.
        incarnation: Incarnation,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Propose under the controller's term; `node` is handed back when it has ended.
    Propose {
        /// Whom it is about; none for preferred leaders.
        node: Option<NodeId>,
        /// What.
        command: Command,
    },
    /// Probe, and bring the result back.
    Probe(Probe),
}

/// How far the suspicion against a broker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    None,
    /// To be probed at that time; refused so often before.
    Probing {
        at: Duration,
        refused: u8,
        asked: bool,
        /// So many more times that it is not refused.
        left: u8,
    },
}

impl Suspicion {
    fn begins(at: Duration) -> Self {
        Self::Probing {
            at,
            refused: 0,
            asked: false,
            left: PROBES,
        }
    }
}

/// A process that is being ended breaks its connections before it closes its door: it is probed so
/// often in all where no connection is refused.
const PROBES: u8 = 10;

#[derive(Debug, Clone)]
struct Session {
    epoch: BrokerEpoch,
    heard: Duration,
    connection: Option<ConnectionId>,
    applied: RaftIndex,
    suspicion: Suspicion,
    /// A proposal about it is under way.
    proposing: bool,
    /// A call back before unfencing is under way.
    calling_back: bool,
    /// A fencing was proposed and is not in the image yet; not before then it is proposed again.
    fencing: bool,
    fence_again: Duration,
    /// How often it was fenced, and until when it stays so.
    fenced: u32,
    fenced_until: Duration,
    /// The index at which its shutdown was applied.
    shutdown_at: Option<RaftIndex>,
}

impl Session {
    fn new(epoch: BrokerEpoch, now: Duration) -> Self {
        Self {
            epoch,
            heard: now,
            connection: None,
            applied: RaftIndex::ZERO,
            suspicion: Suspicion::None,
            proposing: false,
            calling_back: false,
            fencing: false,
            fence_again: Duration::ZERO,
            fenced: 0,
            fenced_until: Duration::ZERO,
            shutdown_at: None,
        }
    }
}

/// The sessions of all brokers with this controller.
pub struct Liveness {
    timing: LivenessTiming,
    image: Arc<MetadataImage>,
    sessions: BTreeMap<NodeId, Session>,
    ticked: Duration,
    rebalanced: Duration,
    rebalancing: bool,
    /// Leaderships that were given lately; no more entries than partitions.
    given: BTreeMap<TopicPartition, Given>,
}

impl Liveness {
    /// Begins when this node becomes the active controller: everybody gets a full session, and who
    /// has not opened a stream soon is probed.
    pub fn new(timing: LivenessTiming, image: Arc<MetadataImage>, now: Duration) -> Self {
        let mut liveness = Self {
            timing,
            image: Arc::clone(&image),
            sessions: BTreeMap::new(),
            ticked: now,
            rebalanced: now,
            rebalancing: false,
            given: BTreeMap::new(),
        };
        liveness.take_image(image, now);
        for session in liveness.sessions.values_mut() {
            session.suspicion = Suspicion::begins(now + timing.first_contact);
        }
        liveness
    }

    /// Takes a newer image: a new registration is a new session.
    pub fn take_image(&mut self, image: Arc<MetadataImage>, now: Duration) {
        for broker in image.brokers().values() {
            let session = self
                .sessions
                .entry(broker.node)
                .or_insert_with(|| Session::new(broker.epoch, now));
            if session.epoch != broker.epoch {
                let (fenced, fenced_until) = (session.fenced, session.fenced_until);
                *session = Session {
                    fenced,
                    fenced_until,
                    ..Session::new(broker.epoch, now)
                };
            }
            // Counted when it is done: without a quorum it is tried many times.
            if broker.state == BrokerState::Fenced && std::mem::take(&mut session.fencing) {
                session.fenced += 1;
                // The first time costs nothing; one that comes and goes waits longer each time.
                let wait = Duration::from_secs(1) * session.fenced.saturating_sub(3).min(30);
                session.fenced_until = now + wait;
            }
            match broker.state {
                BrokerState::ShuttingDown => {
                    session.shutdown_at.get_or_insert(image.applied().index);
                }
                BrokerState::Fenced | BrokerState::Active => session.shutdown_at = None,
            }
        }
        self.image = image;
    }

    /// Takes a sign of life.
    pub fn heartbeat(
        &mut self,
        connection: ConnectionId,
        beat: &Heartbeat,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> HeartbeatAnswer {
        let image = Arc::clone(&self.image);
        let Some(broker) = image.broker(beat.node) else {
            return HeartbeatAnswer::default();
        };
        let Some(session) = self.sessions.get_mut(&beat.node) else {
            return HeartbeatAnswer::default();
        };
        // Another life's heartbeat, or one from before its registration is known here.
        if beat.broker_epoch != Some(broker.epoch) || beat.incarnation != broker.incarnation {
            return HeartbeatAnswer::default();
        }
        session.heard = now;
        session.connection = Some(connection);
        session.applied = beat.applied;
        session.suspicion = Suspicion::None;
        let reached = beat.applied.get() >= broker.epoch.get();
        match broker.state {
            BrokerState::Fenced
                if beat.ready
                    && reached
                    && !beat.wants_shutdown
                    && now >= session.fenced_until
                    && !session.calling_back
                    && !session.proposing =>
            {
                session.calling_back = true;
                out.push(Action::Probe(probe_of(broker)));
            }
            BrokerState::Active if beat.wants_shutdown && !session.proposing => {
                session.proposing = true;
                let (node, epoch) = (broker.node, broker.epoch);
                let command = Command::BeginControlledShutdown { node, epoch };
                out.push(Action::Propose {
                    node: Some(node),
                    command,
                });
            }
            _ => {}
        }
        HeartbeatAnswer {
            may_stop: self.may_stop(broker),
        }
    }

    fn may_stop(&self, broker: &Broker) -> bool {
        let leads = |node| {
            self.image
                .partitions()
                .values()
                .any(|reg| reg.leader == Some(node))
        };
        // A fenced one has nothing to give away.
        if broker.state == BrokerState::Fenced {
            return true;
        }
        let since = self
            .sessions
            .get(&broker.node)
            .and_then(|session| session.shutdown_at);
        let (BrokerState::ShuttingDown, Some(since)) = (broker.state, since) else {
            return false;
        };
        let others_know = self
            .image
            .brokers()
            .values()
            .filter(|other| other.node != broker.node && other.state == BrokerState::Active)
            .all(|other| {
                self.sessions
                    .get(&other.node)
                    .is_some_and(|session| session.applied >= since)
            });
        others_know && !leads(broker.node)
    }

    /// A connection has ended; by reset it is looked into at once.
    pub fn connection_ended(&mut self, connection: ConnectionId, reset: bool, now: Duration) {
        for session in self.sessions.values_mut() {
            if session.connection == Some(connection) {
                session.connection = None;
                if reset {
                    session.suspicion = Suspicion::begins(now);
                }
            }
        }
    }

    /// Takes a probe's result.
    pub fn probed(
        &mut self,
        probe: &Probe,
        result: ProbeResult,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let image = Arc::clone(&self.image);
        let Some(broker) = image.broker(probe.node).filter(|b| b.epoch == probe.epoch) else {
            return;
        };
        let interval = self.timing.probe_interval;
        let Some(session) = self.sessions.get_mut(&probe.node) else {
            return;
        };
        if std::mem::take(&mut session.calling_back) {
            let (node, incarnation) = (broker.node, broker.incarnation);
            let answered = result == ProbeResult::Alive { node, incarnation };
            if answered && broker.state == BrokerState::Fenced && !session.proposing {
                session.proposing = true;
                let command = Command::UnfenceBroker {
                    node,
                    epoch: broker.epoch,
                };
                out.push(Action::Propose {
                    node: Some(node),
                    command,
                });
            }
            return;
        }
        let Suspicion::Probing {
            refused,
            asked: true,
            left,
            ..
        } = session.suspicion
        else {
            return;
        };
        session.suspicion = match result {
            ProbeResult::Refused if refused == 0 => Suspicion::Probing {
                at: now + interval,
                refused: 1,
                asked: false,
                left,
            },
            ProbeResult::Refused => {
                let cause = "its process is gone: its address refuses connections";
                self.fence(broker, cause.to_owned(), now, out);
                return;
            }
            ProbeResult::Silent if left > 1 => Suspicion::Probing {
                at: now + interval,
                refused: 0,
                asked: false,
                left: left - 1,
            },
            // Slow is not gone: the session decides.
            ProbeResult::Silent | ProbeResult::Alive { .. } => Suspicion::None,
        };
    }

    /// That life of a node is gone: its address has refused connections twice after its stream to
    /// the quorum broke, before this controller could see it.
    pub fn gone(&mut self, node: NodeId, epoch: BrokerEpoch, now: Duration, out: &mut Vec<Action>) {
        let image = Arc::clone(&self.image);
        let back = |session: &Session| session.connection.is_some();
        if self.sessions.get(&node).is_none_or(back) {
            return;
        }
        if let Some(broker) = image.broker(node).filter(|broker| broker.epoch == epoch) {
            let cause = "its process is gone: its address refused connections";
            self.fence(broker, cause.to_owned(), now, out);
        }
    }

    fn fence(&mut self, broker: &Broker, cause: String, now: Duration, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(&broker.node) else {
            return;
        };
        if session.proposing || broker.is_gone() {
            // Looked into again, once what is proposed now is decided.
            if let Suspicion::Probing { asked, at, .. } = &mut session.suspicion {
                (*asked, *at) = (false, now + self.timing.probe_interval);
            }
            return;
        }
        session.suspicion = Suspicion::None;
        session.proposing = true;
        session.fencing = true;
        session.fence_again = now + AGAIN;
        let (node, epoch) = (broker.node, broker.epoch);
        let command = Command::FenceBroker { node, epoch, cause };
        out.push(Action::Propose {
            node: Some(node),
            command,
        });
    }

    /// A proposal has ended, whatever became of it: the image tells.
    pub fn proposed(&mut self, node: Option<NodeId>) {
        match node {
            Some(node) => {
                if let Some(session) = self.sessions.get_mut(&node) {
                    session.proposing = false;
                }
            }
            None => self.rebalancing = false,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        let image = Arc::clone(&self.image);
        // This process stood still: what it did not hear it could not hear.
        if now.saturating_sub(self.ticked) > self.timing.session_timeout / 2 {
            for session in self.sessions.values_mut() {
                session.heard = now;
            }
        }
        self.ticked = now;
        for broker in image.brokers().values().filter(|broker| !broker.is_gone()) {
            let Some(session) = self.sessions.get_mut(&broker.node) else {
                continue;
            };
            let silent = now.saturating_sub(session.heard);
            if silent > self.timing.session_timeout {
                if now < session.fence_again {
                    continue;
                }
                let cause = format!("no heartbeat for {} ms", silent.as_millis());
                self.fence(broker, cause, now, out);
                continue;
            }
            if let Suspicion::Probing {
                at,
                refused,
                asked: false,
                left,
            } = session.suspicion
                && at <= now
            {
                session.suspicion = Suspicion::Probing {
                    at,
                    refused,
                    asked: true,
                    left,
                };
                out.push(Action::Probe(probe_of(broker)));
            }
        }
        self.rebalance(now, out);
    }

    /// Gives preferred leaders some of their partitions back (`auto.leader.rebalance`), and partitions
    /// without a leader to an in-sync replica that can lead again: its disk failed while it was the
    /// last one (R13).
    fn rebalance(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.rebalancing || now.saturating_sub(self.rebalanced) < self.timing.rebalance_interval
        {
            return;
        }
        self.rebalanced = now;
        let image = Arc::clone(&self.image);
        self.given.retain(|id, _| image.partition(id).is_some());
        let active = |node: &NodeId| {
            let broker = image.broker(*node);
            broker.filter(|broker| broker.state == BrokerState::Active)
        };
        let due = |reg: &Registration| {
            let to = if reg.leader.is_none() {
                let mut members = reg.isr.iter().filter(|_| reg.fsync_established);
                members.find_map(active)
            } else {
                let preferred = reg.replicas.first().map(|replica| replica.node);
                let preferred = preferred.filter(|node| reg.leader != Some(*node));
                preferred
                    .filter(|node| reg.isr.contains(node))
                    .and_then(|node| active(&node))
            };
            to.map(|broker| broker.epoch)
        };
        let wait = self.timing.rebalance_interval;
        let (given, mut partitions) = (&mut self.given, Vec::new());
        for (id, reg) in image.partitions() {
            if partitions.len() == self.timing.rebalance_batch {
                break;
            }
            if let Some(to) = due(reg)
                && Given::again(given.get(id), to, wait, now)
            {
                let times = given
                    .get(id)
                    .map_or(0, |last| last.times_now(to, wait, now));
                let times = times + 1;
                given.insert(*id, Given { at: now, times, to });
                partitions.push(*id);
            }
        }
        if !partitions.is_empty() {
            self.rebalancing = true;
            let command = Command::ElectPreferredLeaders { partitions };
            out.push(Action::Propose {
                node: None,
                command,
            });
        }
    }
}

/// A leadership that was given to a broker, how often in a row. One that does not keep it (its disk
/// hangs, or fails) gets it back after twice as long each time: every change costs the clients a moment.
#[derive(Debug, Clone, Copy)]
struct Given {
    at: Duration,
    times: u32,
    to: BrokerEpoch,
}

impl Given {
    /// At most so many times the interval.
    const DOUBLINGS: u32 = 7;

    fn wait(&self, interval: Duration) -> Duration {
        interval * (1 << self.times.saturating_sub(1).min(Self::DOUBLINGS))
    }

    /// How often in a row it has been so far: another life of the broker begins anew, and so does
    /// one that has kept what it was given for some time.
    fn times_now(&self, to: BrokerEpoch, interval: Duration, now: Duration) -> u32 {
        let lately = now.saturating_sub(self.at) <= self.wait(interval) * 4;
        if self.to == to && lately {
            self.times
        } else {
            0
        }
    }

    /// Whether it may be given again.
    fn again(last: Option<&Self>, to: BrokerEpoch, interval: Duration, now: Duration) -> bool {
        last.is_none_or(|last| last.to != to || now.saturating_sub(last.at) >= last.wait(interval))
    }
}

fn probe_of(broker: &Broker) -> Probe {
    Probe {
        node: broker.node,
        epoch: broker.epoch,
        endpoint: broker.internal.clone(),
    }
}
