//! What followers and leaders say to each other.

use bytes::Bytes;
use quorate_types::{BrokerEpoch, ErrorCode, LeaderEpoch, Offset, SubscriptionId, TopicPartition};

/// Asks for everything from an offset on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Which partition.
    pub partition: TopicPartition,
    /// A fresh id: everything of older ones is void.
    pub subscription: SubscriptionId,
    /// The epoch that the follower follows.
    pub leader_epoch: LeaderEpoch,
    /// The follower's registration.
    pub broker_epoch: BrokerEpoch,
    /// Its log's end.
    pub fetch_offset: Offset,
    /// The epoch of its last record; none where it has no record.
    pub last_fetched_epoch: Option<LeaderEpoch>,
}

/// How far a follower is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Which partition.
    pub partition: TopicPartition,
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// Its log's end.
    pub leo: Offset,
    /// What of it is on its disk.
    pub flushed_leo: Offset,
}

/// Ends a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
}

/// Follower to leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowerMessage {
    /// See [`Subscribe`].
    Subscribe(Subscribe),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Unsubscribe`].
    Unsubscribe(Unsubscribe),
}

/// The histories agree; data follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// First offset of the leader's log.
    pub log_start: Offset,
}

/// Records, as they lie in the leader's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// The leader's log start.
    pub log_start: Offset,
    /// Whole batches.
    pub bytes: Bytes,
}

/// A sign of life, with what batches would tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// The leader's log start.
    pub log_start: Offset,
}

/// The histories part (R4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diverged {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// The leader's largest epoch that is not above the asked one; none where all are.
    pub epoch: Option<LeaderEpoch>,
    /// Where that epoch ends in the leader's log.
    pub end_offset: Offset,
}

/// What the follower asks for is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfRange {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// Where the leader's log begins.
    pub log_start: Offset,
}

/// The subscription cannot be; try again later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionError {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// Why.
    pub code: ErrorCode,
}

/// Leader to follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderMessage {
    /// See [`Accepted`].
    Accepted(Accepted),
    /// See [`Batches`].
    Batches(Batches),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// See [`Diverged`].
    Diverged(Diverged),
    /// See [`OutOfRange`].
    OutOfRange(OutOfRange),
    /// See [`SubscriptionError`].
    Error(SubscriptionError),
}

impl FollowerMessage {
    /// Which partition it is about.
    pub fn partition(&self) -> TopicPartition {
        match self {
            Self::Subscribe(message) => message.partition,
            Self::Ack(message) => message.partition,
            Self::Unsubscribe(message) => message.partition,
        }
    }
}

impl LeaderMessage {
    /// Which partition it is about.
    pub fn partition(&self) -> TopicPartition {
        match self {
            Self::Accepted(message) => message.partition,
            Self::Batches(message) => message.partition,
            Self::Heartbeat(message) => message.partition,
            Self::Diverged(message) => message.partition,
            Self::OutOfRange(message) => message.partition,
            Self::Error(message) => message.partition,
        }
    }

    /// Which subscription it is of.
    pub fn subscription(&self) -> SubscriptionId {
        match self {
            Self::Accepted(message) => message.subscription,
            Self::Batches(message) => message.subscription,
            Self::Heartbeat(message) => message.subscription,
            Self::Diverged(message) => message.subscription,
            Self::OutOfRange(message) => message.subscription,
            Self::Error(message) => message.subscription,
        }
    }
}
