//! Records as readers see them.

use bytes::Bytes;
use quorate_types::{Offset, Timestamp};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: Offset,
    /// Its time, the producer's or the leader's.
    pub timestamp: Timestamp,
    /// What decides its partition, and later what compaction keeps the last of.
    pub key: Option<Bytes>,
    /// What it says; none is a tombstone.
    pub value: Option<Bytes>,
    /// Beside key and value.
    pub headers: Vec<RecordHeader>,
}

/// A name with an opaque value beside a record; names may repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// The name.
    pub key: String,
    /// The value.
    pub value: Option<Bytes>,
}
