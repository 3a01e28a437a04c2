//! The words everything else is written in: offsets, epochs, identifiers, error codes.
//!
//! Invariant: a value of one of these types is valid by construction; there is no arithmetic
//! across types and no sentinel (`-1`, "unknown") among them. Offsets are exclusive ends unless a
//! name ends in `_inclusive`.

mod compression;
mod error_code;
mod faults;
mod groups;
mod ids;
mod modes;
mod names;
mod numbers;

pub use compression::{Compression, UnknownCompression};
pub use error_code::ErrorCode;
pub use faults::{Faults, NoFaults};
pub use groups::{Assignor, GroupId, InstanceId, InvalidName, MemberId};
pub use ids::{
    BootId, ClusterId, DirectoryId, Endpoint, Incarnation, InvalidEndpoint, NodeId, TopicId,
};
pub use modes::{Acks, Durability, TimestampType};
pub use names::{InvalidTopicName, TopicName};
pub use numbers::{
    BrokerEpoch, CommitSeq, CoordinatorEpoch, GroupEpoch, GroupShard, LeaderEpoch, NegativeNumber,
    Offset, PartitionEpoch, PartitionId, ProducerEpoch, ProducerId, RaftIndex, Sequence,
    SubscriptionId, Term, Timestamp,
};

/// One partition of one incarnation of a topic: a deleted and re-created topic has another id.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct TopicPartition {
    /// The topic's id, never reused.
    pub topic_id: TopicId,
    /// The partition's number in the topic.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names partition `partition` of `topic_id`.
    pub const fn new(topic_id: TopicId, partition: PartitionId) -> Self {
        Self {
            topic_id,
            partition,
        }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic_id, self.partition)
    }
}
