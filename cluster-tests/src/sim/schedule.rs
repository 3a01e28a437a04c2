//! What will happen, and when: one queue in simulated time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use quorate_liveness::{ConnectionId, Heartbeat, Probe, ProbeResult};
use quorate_metadata::{Envelope, Outcome};
use quorate_replication::{FollowerMessage, LeaderMessage, RequestId, StreamId};
use quorate_types::{Incarnation, NodeId, Term, TopicPartition};

use super::groups::GroupEvent;
use super::quorum::Announced;

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// What will happen. What names a life is for that process only.
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
        number: u64,
    },
    Settle {
        node: NodeId,
        life: u64,
        id: TopicPartition,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
    FlushRuns {
        node: NodeId,
        life: u64,
        id: TopicPartition,
        flush: u64,
    },
    FlushEnds {
        node: NodeId,
        life: u64,
        id: TopicPartition,
        flush: u64,
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
    PowerFailsEverywhere,
    ProposalArrives(Box<Envelope>),
    ProposalAnswered {
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        outcome: Box<Outcome>,
    },
    ProposalTimeout {
        node: NodeId,
        life: u64,
        sequence: u64,
    },
    ImageArrives {
        node: NodeId,
        life: u64,
        index: usize,
    },
    Elect {
        term: Term,
    },
    TermLearned {
        node: NodeId,
        life: u64,
        announced: Announced,
    },
    Beat {
        node: NodeId,
        life: u64,
    },
    HeartbeatArrives {
        controller: NodeId,
        life: u64,
        connection: ConnectionId,
        /// By the sender's clock.
        sent: Duration,
        sender_life: u64,
        beat: Heartbeat,
    },
    LeadershipConfirmed {
        controller: NodeId,
        term: Term,
        to: NodeId,
        life: u64,
        sent: Duration,
        may_stop: bool,
        /// How far the controller's image was.
        applied: usize,
    },
    HeartbeatAnswered {
        node: NodeId,
        life: u64,
        sent: Duration,
        may_stop: bool,
        applied: usize,
    },
    ConnectionEnds {
        controller: NodeId,
        life: u64,
        connection: ConnectionId,
        reset: bool,
    },
    ProbeArrives {
        controller: NodeId,
        life: u64,
        term: Term,
        probe: Box<Probe>,
    },
    Probed {
        controller: NodeId,
        life: u64,
        term: Term,
        probe: Box<Probe>,
        result: ProbeResult,
    },
    ControllerTick {
        node: NodeId,
        life: u64,
        term: Term,
    },
    SettingsTurn,
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
    Group(GroupEvent),
}

struct Entry {
    at: Duration,
    number: u64,
    what: Scheduled,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Entry>,
    queued: u64,
}

impl Schedule {
    pub(super) fn push(&mut self, at: Duration, what: Scheduled) {
        self.queued += 1;
        let number = self.queued;
        self.heap.push(Entry { at, number, what });
    }

    /// The next one, where it is not after `end`.
    pub(super) fn pop(&mut self, end: Duration) -> Option<(Duration, Scheduled)> {
        if self.heap.peek()?.at > end {
            return None;
        }
        self.heap.pop().map(|entry| (entry.at, entry.what))
    }
}
