//! What goes into a step and what comes out.

use std::time::Duration;

use quorate_log::{Dir, FlushDone, FlushTicket};
use quorate_metadata::Command;
use quorate_record::Batch;
use quorate_types::{
    Acks, ErrorCode, LeaderEpoch, NodeId, Offset, ProducerEpoch, Sequence, Timestamp,
};

use crate::messages::{FollowerMessage, LeaderMessage};
use crate::view::PartitionView;

/// A follower's stream at its leader, never reused by a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A produce request, never reused by a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A proposal of one replica, never reused by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProposalId(pub u64);

/// The protocol's times and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// `replica.lag.time.max`: a follower that has not caught up for so long leaves the ISR; a
    /// leader whose own flush takes so long resigns.
    pub replica_lag_time_max: Duration,
    /// Without a word from the controller for so long, `acks=0/1` are refused.
    pub session_timeout: Duration,
    /// An idle leader sends its followers a sign of life so often.
    pub heartbeat_interval: Duration,
    /// A follower tries again after so long at first …
    pub retry_min: Duration,
    /// … and at most.
    pub retry_max: Duration,
    /// A proposal whose outcome is unknown is sent again after so long.
    pub proposal_retry: Duration,
    /// Bytes that may be under way to one follower of one partition.
    pub window_bytes: u64,
    /// Bytes of one message to a follower, unless one batch has more.
    pub push_bytes: usize,
    /// High watermark and recovery point are noted so often.
    pub checkpoint_interval: Duration,
    /// `producer-id-expiration` (KIP-854): who has appended nothing for so long, and up to a 24th
    /// more, is forgotten (R11).
    pub producer_id_expiration: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            replica_lag_time_max: Duration::from_secs(10),
            session_timeout: Duration::from_secs(3),
            heartbeat_interval: Duration::from_millis(500),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            proposal_retry: Duration::from_millis(100),
            window_bytes: 4 << 20,
            push_bytes: 256 << 10,
            checkpoint_interval: Duration::from_millis(500),
            producer_id_expiration: Duration::from_secs(24 * 3_600),
        }
    }
}

/// How much a follower's stream can still take.
pub trait StreamRoom {
    /// Bytes that may be queued; 0 for a stream that is full or gone.
    fn room(&self, stream: StreamId) -> usize;
}

/// The world at the moment of a step.
pub struct Context<'a> {
    /// Monotonic time.
    pub now: Duration,
    /// Wall-clock time, for records only.
    pub wall: Timestamp,
    /// When the last heartbeat that the controller answered was sent.
    pub controller_contact: Duration,
    /// Room on the followers' streams.
    pub streams: &'a dyn StreamRoom,
}

/// A batch to be appended.
#[derive(Debug)]
pub struct Produce {
    /// Named in the answer.
    pub id: RequestId,
    /// What; offset and epoch are the leader's to give.
    pub batch: Batch,
    /// When to answer (R3).
    pub acks: Acks,
    /// Until when to wait.
    pub deadline: Duration,
    /// The leader epoch that the requester believes in.
    pub current_epoch: Option<LeaderEpoch>,
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProposalResult {
    /// Applied; the image will show it.
    Applied,
    /// Applied as a refusal: it changed nothing and never will.
    Refused(ErrorCode),
    /// It may be applied at any time, or never.
    Unknown,
}

/// What a replica reacts to.
pub enum Event {
    /// A newer image.
    View(PartitionView),
    /// A client's batch.
    Produce(Produce),
    /// A follower spoke.
    FromFollower {
        /// On which stream.
        stream: StreamId,
        /// Who.
        from: NodeId,
        /// What.
        message: FollowerMessage,
    },
    /// A follower's stream ended.
    FollowerStreamClosed {
        /// Which.
        stream: StreamId,
    },
    /// A stream that was full has room again.
    RoomAgain {
        /// Which.
        stream: StreamId,
    },
    /// The leader spoke.
    FromLeader {
        /// Who.
        from: NodeId,
        /// What.
        message: LeaderMessage,
    },
    /// The stream to a leader is open.
    LeaderStreamOpened {
        /// Which leader.
        leader: NodeId,
    },
    /// The stream to a leader ended.
    LeaderStreamClosed {
        /// Which leader.
        leader: NodeId,
    },
    /// A flush has ended.
    Flushed(FlushDone),
    /// A reader found what the log cannot have written, or the disk did not give it back.
    Unreadable {
        /// The file, the position, and what is wrong.
        why: String,
    },
    /// A leader's log is to begin there, or at its high watermark where that is lower; its followers'
    /// logs follow. Ignored by others.
    DeleteBefore {
        /// The first offset to keep.
        offset: Offset,
    },
    /// A proposal has ended.
    Proposed {
        /// Which.
        id: ProposalId,
        /// How.
        result: ProposalResult,
    },
    /// Time has passed.
    Tick,
}

/// What a replica wants done, in order.
pub enum Action<D: Dir> {
    /// Send on a follower's stream; dropped where that is gone.
    ToFollower {
        /// Which stream.
        stream: StreamId,
        /// What.
        message: LeaderMessage,
    },
    /// Send to a leader. Without a stream the message is dropped and a stream opened;
    /// [`Event::LeaderStreamOpened`] tells of it.
    ToLeader {
        /// Which leader.
        leader: NodeId,
        /// What.
        message: FollowerMessage,
    },
    /// Propose to the quorum; the outcome comes back as [`Event::Proposed`].
    Propose {
        /// Named in the outcome.
        id: ProposalId,
        /// What.
        command: Command,
    },
    /// Answer a produce.
    Answer {
        /// Which.
        id: RequestId,
        /// What.
        result: Result<Produced, ProduceError>,
    },
    /// Flush; [`Event::Flushed`] brings the completion back.
    Flush(FlushTicket<D>),
    /// Role or epochs have changed.
    Status,
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the batch's first record; none with `acks=0`.
    pub base_offset: Option<Offset>,
    /// Where it was appended.
    pub leader_epoch: LeaderEpoch,
    /// The leader's time, where the topic asks for it.
    pub append_time: Option<Timestamp>,
    /// Replicas that have it.
    pub replicas: u32,
    /// Replicas that have it on their disks.
    pub fsynced: u32,
}

/// Why a batch was not acknowledged. Only [`Self::TimedOut`] and [`Self::LeadershipLost`] leave
/// open whether it was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// Another node leads; nothing was appended.
    #[error("this node does not lead the partition")]
    NotLeader,
    /// It was appended here, then the leadership went: outcome unknown.
    #[error("the leadership went while the batch waited: it may appear later")]
    LeadershipLost,
    /// The requester's epoch is over.
    #[error("leader epoch is {current}, the request's is older")]
    FencedEpoch {
        /// The epoch in force.
        current: LeaderEpoch,
    },
    /// The requester's epoch is not known here yet.
    #[error("leader epoch is {current} here, the request's is newer")]
    UnknownEpoch {
        /// The epoch in force here.
        current: LeaderEpoch,
    },
    /// Too few in-sync replicas; nothing was appended.
    #[error("{isr} in-sync replicas, {required} are needed")]
    NotEnoughReplicas {
        /// In-sync replicas.
        isr: usize,
        /// The effective minimum.
        required: usize,
    },
    /// Appended, not acknowledged in time: it may appear later, once.
    #[error("appended, but not acknowledged in time: it may appear later")]
    TimedOut,
    /// There was no room for it in time; nothing was appended.
    #[error("too many bytes wait for acknowledgement on this node")]
    Throttled,
    /// The batch is above `max.message.bytes`.
    #[error("batch of {size} bytes, the topic takes {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The topic's limit.
        limit: u32,
    },
    /// The batch may not be produced.
    #[error("{0}")]
    InvalidRecord(String),
    /// The sequence leaves a gap.
    #[error("sequence {got} does not follow: expected {expected}")]
    OutOfOrderSequence {
        /// What would follow.
        expected: Sequence,
        /// What came.
        got: Sequence,
    },
    /// The sequence is older than what is remembered.
    #[error("sequence {got} is older than the last five batches")]
    DuplicateSequence {
        /// What came.
        got: Sequence,
    },
    /// Nothing is remembered of the producer, and this is not its first batch: it was silent for
    /// too long, or what it wrote is not in the log any more. It begins anew, at its next epoch.
    #[error("nothing is known of a producer whose sequence is {got}")]
    UnknownProducer {
        /// What came.
        got: Sequence,
    },
    /// A newer instance of the producer exists.
    #[error("producer epoch is {current}")]
    StaleProducerEpoch {
        /// The newest.
        current: ProducerEpoch,
    },
    /// This node has lost touch with the controller and may have been replaced (R6).
    #[error("no word from the controller: only acks=all is taken")]
    ControllerSilent,
    /// The disk failed.
    #[error("the log failed: {0}")]
    Storage(String),
}

impl ProduceError {
    /// The code that clients see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotLeader | Self::LeadershipLost => ErrorCode::NotLeaderOrFollower,
            Self::FencedEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Self::UnknownEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
            Self::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
            Self::TimedOut => ErrorCode::RequestTimedOut,
            Self::Throttled => ErrorCode::ThrottlingQuotaExceeded,
            Self::TooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::InvalidRecord(_) => ErrorCode::InvalidRecord,
            Self::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
            Self::DuplicateSequence { .. } => ErrorCode::DuplicateSequenceNumber,
            Self::UnknownProducer { .. } => ErrorCode::UnknownProducerId,
            Self::StaleProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            Self::ControllerSilent => ErrorCode::BrokerNotAvailable,
            Self::Storage(_) => ErrorCode::KafkaStorageError,
        }
    }
}

/// What a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No role: no leader, fenced, or not seen in an image yet.
    Idle,
    /// It leads.
    Leader {
        /// At which epoch.
        epoch: LeaderEpoch,
        /// Where that epoch begins.
        epoch_start: Offset,
        /// The in-sync replicas as committed.
        isr: Vec<NodeId>,
        /// Those, and the ones that were proposed.
        maximal_isr: Vec<NodeId>,
    },
    /// It follows.
    Follower {
        /// Whom.
        leader: NodeId,
        /// At which epoch.
        epoch: LeaderEpoch,
    },
    /// It has stopped until its broker restarts.
    Damaged,
}
