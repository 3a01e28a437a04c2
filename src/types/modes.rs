//! Choices that a producer or a topic makes.

/// When a produce is answered (R3).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub enum Acks {
    /// When the high watermark has passed the batch.
    #[default]
    All,
    /// When the leader has appended it.
    Leader,
    /// Once it is handed to the leader; no offset is told.
    None,
}

/// What "has it" means for a replica when it is counted for the high watermark.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Durability {
    /// On its disk: the flushed log end offset counts.
    #[default]
    Fsync,
    /// In its page cache: the log end offset counts (Kafka's promise).
    PageCache,
}

/// Which time a batch carries (`message.timestamp.type`).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum TimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The leader's, when it appends.
    LogAppendTime,
}
