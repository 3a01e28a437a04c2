//! What a log is made of: Kafka's v2 record batch as bytes, and the small states that are derived
//! from batches (leader epochs, producers). Nothing here does I/O.
//!
//! Invariant: a [`Batch`] has been checked (length, magic, CRC, record count) and never changes but
//! by the methods that take it and give another ([`Batch::stamped`] and the like).

mod batch;
mod builder;
mod codec;
mod compression;
mod epochs;
mod header;
mod partitioner;
mod producers;
mod records;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use builder::BatchBuilder;
pub use codec::Records;
pub use epochs::LeaderEpochCache;
pub use header::{BatchError, BatchHeader, HEADER_LEN, ProducerTag};
pub use partitioner::{StickyPartitioner, murmur2, partition_for_key};
pub use producers::{ProducerState, ProducerStates, SILENT_ROUNDS, SequenceCheck, SequenceError};
pub use quorate_types::{Compression, UnknownCompression};
pub use records::{Record, RecordHeader};
