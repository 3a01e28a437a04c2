//! What callers ask of a broker and what they are told.

use std::time::Duration;

use bytes::Bytes;
use quorate_record::Batch;
use quorate_replication::{ProduceError, Produced};
use quorate_types::{Acks, ErrorCode, LeaderEpoch, Offset, Timestamp, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// One batch to append to one partition.
#[derive(Debug)]
pub struct ProduceCall {
    /// Where to.
    pub partition: TopicPartition,
    /// What; its base offset and leader epoch are replaced by the leader.
    pub batch: Batch,
    /// When to answer (R3).
    pub acks: Acks,
    /// How long to wait for the acknowledgement.
    pub timeout: Duration,
    /// The leader epoch that the caller believes in (R1).
    pub current_epoch: Option<LeaderEpoch>,
}

/// What counts a produce while it waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// Its caller waits with one at a time, and whoever received it counts it.
    OneByOne,
    /// Nothing else: above the bound of what may wait it is refused at once.
    Counted,
}

/// A produce that has been handed to the leader, in order; await it for the answer.
#[derive(Debug)]
pub struct PendingProduce {
    pub(crate) answer: oneshot::Receiver<Result<Produced, ProduceError>>,
}

impl PendingProduce {
    /// Waits for the answer; bounded by the call's timeout.
    ///
    /// # Errors
    /// [`ProduceError`]; [`ProduceError::LeadershipLost`] when the broker stops meanwhile.
    pub async fn wait(self) -> Result<Produced, ProduceError> {
        self.answer
            .await
            .unwrap_or(Err(ProduceError::LeadershipLost))
    }
}

/// Who holds what a fetch gives, until the client has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// An answer of its own.
    Answer,
    /// A stream, which has a share of memory of its own: answers of up to 64 KiB take no room.
    Stream,
    /// A stream that has room for one batch and what becomes of it already: one batch is given.
    Paid,
}

/// A long poll for records of one partition.
#[derive(Debug, Clone)]
pub struct FetchCall {
    /// Where from.
    pub partition: TopicPartition,
    /// First offset wanted.
    pub offset: Offset,
    /// Most bytes to return; at least one batch is returned where there is one.
    pub max_bytes: usize,
    /// Wait until so many bytes are there …
    pub min_bytes: usize,
    /// … or so long.
    pub max_wait: Duration,
    /// The leader epoch that the caller believes in.
    pub current_epoch: Option<LeaderEpoch>,
    /// The epoch of the record before `offset` as the caller read it (KIP-320).
    pub last_fetched_epoch: Option<LeaderEpoch>,
    /// The newest leader epoch that the caller knows of: what later unclean elections have lost is to
    /// be told (R7).
    pub seen_epoch: Option<LeaderEpoch>,
    /// Who holds the answer.
    pub holder: Holder,
}

/// What a fetch found.
#[derive(Debug)]
pub struct Fetched {
    /// Whole batches, one after the other; the first may begin below the asked offset.
    pub bytes: Bytes,
    /// Records below it may be read.
    pub high_watermark: Offset,
    /// First offset of the log.
    pub log_start: Offset,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// Where the caller's history and this log part; then there are no bytes.
    pub diverging: Option<(LeaderEpoch, Offset)>,
    /// The room that the bytes take; to be held for as long as they are in memory. Small answers
    /// of streams take none.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Why a fetch or an offset query failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// This node does not lead the partition.
    #[error("this node does not lead the partition")]
    NotLeader,
    /// The caller's leader epoch is over.
    #[error("leader epoch is {current}, the request's is older")]
    FencedEpoch {
        /// The epoch in force.
        current: LeaderEpoch,
    },
    /// The caller's leader epoch is ahead of this node.
    #[error("leader epoch is {current} here, the request's is newer")]
    UnknownEpoch {
        /// The epoch in force here.
        current: LeaderEpoch,
    },
    /// The offset is not in the log.
    #[error("offset {offset} is outside the log, which holds {log_start} to {log_end}")]
    OutOfRange {
        /// What was asked.
        offset: Offset,
        /// First offset held.
        log_start: Offset,
        /// End of the log, exclusive.
        log_end: Offset,
    },
    /// An unclean election lost what the caller had read or was to read next (R7).
    #[error(
        "records of the offsets {from} to {} are lost by the unclean election at leader epoch {epoch}: \
         read on from offset {from}",
        to.get().saturating_sub(1)
    )]
    DataLoss {
        /// The leader epoch of that election.
        epoch: LeaderEpoch,
        /// The first offset that is lost, and may have been given anew.
        from: Offset,
        /// The offset after the last, as far as it is known.
        to: Offset,
    },
    /// A new leader does not know yet what is committed (R10).
    #[error("the new leader does not know the high watermark yet")]
    OffsetNotAvailable,
    /// There is no memory for the answer, as others do not take theirs.
    #[error("no memory for the answer: try again later (`fetch-bytes`)")]
    Throttled,
    /// The disk failed, or what it returned is corrupt.
    #[error("the log could not be read: {0}")]
    Storage(String),
}

impl FetchError {
    /// The code that clients see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotLeader => ErrorCode::NotLeaderOrFollower,
            Self::FencedEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Self::UnknownEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
            Self::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            Self::DataLoss { .. } => ErrorCode::DataLoss,
            Self::OffsetNotAvailable => ErrorCode::OffsetNotAvailable,
            Self::Throttled => ErrorCode::ThrottlingQuotaExceeded,
            Self::Storage(_) => ErrorCode::KafkaStorageError,
        }
    }
}

/// Which offset is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetPosition {
    /// The log start offset.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record with at least this timestamp.
    Timestamp(Timestamp),
}

/// Answer to an offset query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; none where no record is that young.
    pub offset: Option<Offset>,
    /// The record's timestamp, where one was asked for.
    pub timestamp: Option<Timestamp>,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
}
