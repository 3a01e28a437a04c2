//! What only a hostile or broken client sends, and how its answers are read: batches that are wrong
//! in one place, by their raw bytes, and the typed error in a gRPC status.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use quorate_record::{Batch, BatchBuilder, Compression};
use quorate_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Where fields of a v2 batch stand.
pub mod at {
    /// The length of what follows it.
    pub const LENGTH: usize = 8;
    /// The format.
    pub const MAGIC: usize = 16;
    /// CRC-32C of everything behind it.
    pub const CRC: usize = 17;
    /// Codec, time, transaction and control bits; the low byte of them.
    pub const ATTRIBUTES_LOW: usize = 22;
    /// Offset of the last record minus that of the first.
    pub const LAST_OFFSET_DELTA: usize = 23;
    /// Who produced it.
    pub const PRODUCER_ID: usize = 43;
    /// Which instance of it.
    pub const PRODUCER_EPOCH: usize = 51;
    /// Which of its records comes first.
    pub const BASE_SEQUENCE: usize = 53;
    /// How many records.
    pub const COUNT: usize = 57;
    /// Where the records begin.
    pub const RECORDS: usize = 61;
}

/// A batch of such values, without keys, all of one time.
pub fn batch(compression: Compression, time_ms: i64, values: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::new(compression);
    for value in values {
        builder.push(Timestamp::from_millis(time_ms), None, Some(value), &[]);
    }
    builder.build()
}

/// The batch's bytes after a change, under a CRC that fits them again.
pub fn resealed(batch: &Batch, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.bytes().to_vec();
    change(&mut bytes);
    seal(&mut bytes);
    bytes.into()
}

/// Puts the bytes of one batch under a CRC that fits them.
///
/// # Panics
/// Where they are too few to have one.
pub fn seal(batch: &mut [u8]) {
    let crc = crc(&batch[at::CRC + 4..]);
    batch[at::CRC..at::CRC + 4].copy_from_slice(&crc.to_be_bytes());
}

/// CRC-32C.
pub fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A batch whose records cannot be decoded although its CRC is right: all bytes of them are 0xff.
pub fn garbage(time_ms: i64, values: &[&[u8]]) -> Bytes {
    resealed(&batch(Compression::None, time_ms, values), |bytes| {
        bytes[at::RECORDS..].fill(0xff);
    })
}

/// A refusal as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The reason in `google.rpc.ErrorInfo`; empty where there is none.
    pub reason: String,
    /// In words.
    pub message: String,
    /// What helps.
    pub metadata: HashMap<String, String>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let (reason, metadata) = info
            .map(|info| (info.reason, info.metadata))
            .unwrap_or_default();
        Self {
            code: status.code(),
            reason,
            message: status.message().to_owned(),
            metadata,
        }
    }
}

/// What a request must be refused with.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The gRPC code.
    pub code: Code,
    /// By Kafka's name.
    pub reason: &'static str,
    /// Words of the message: what would be right.
    pub says: &'static str,
}

impl Expected {
    /// Compares, naming the case.
    pub fn check<T: fmt::Debug>(&self, what: &str, answer: Result<T, Status>) -> Refusal {
        let refusal = match answer {
            Ok(taken) => panic!("{what}: was taken: {taken:?}"),
            Err(status) => Refusal::from(status),
        };
        let fits = refusal.code == self.code
            && refusal.reason == self.reason
            && refusal.message.contains(self.says);
        assert!(fits, "{what}: {refusal:?} instead of {self:?}");
        refusal
    }
}
