//! The 61 bytes before a batch's records (KIP-98's message format, magic 2).

use quorate_types::{
    Compression, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, TimestampType,
};

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;

/// Bytes before those that the length field counts.
pub(crate) const LENGTH_END: usize = 12;
pub(crate) const BASE_OFFSET_AT: usize = 0;
const LENGTH_AT: usize = 8;
pub(crate) const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
pub(crate) const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
pub(crate) const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const RECORD_COUNT_AT: usize = 57;

pub(crate) const LOG_APPEND_TIME_BIT: i16 = 1 << 3;
const TRANSACTIONAL_BIT: i16 = 1 << 4;
const CONTROL_BIT: i16 = 1 << 5;

/// What is wrong with bytes that should be a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("batch is cut off: {have} bytes of {need}")]
    Truncated {
        /// Bytes there.
        have: usize,
        /// Bytes needed, as far as known.
        need: usize,
    },
    /// There are bytes after the batch.
    #[error("{extra} bytes follow the batch")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// The length field is impossible.
    #[error("batch length {0} is impossible: a batch has at least 49 bytes after its length field")]
    Length(i32),
    /// Another format than v2.
    #[error("batch format (magic) is {0}, only 2 is taken")]
    Magic(i8),
    /// The checksum does not fit.
    #[error("CRC-32C is {computed:08x}, the batch says {stored:08x}")]
    Crc {
        /// In the batch.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// The codec is none of Kafka's.
    #[error(
        "compression codec {0} is unknown: 0 (none), 1 (gzip), 2 (snappy), 3 (lz4) and 4 (zstd) are taken"
    )]
    Compression(i16),
    /// The record count does not fit the last offset delta, or there is no record.
    #[error("batch has {count} records and last offset delta {last_delta}: they must differ by 1")]
    RecordCount {
        /// Records by the header.
        count: i32,
        /// Last offset delta by the header.
        last_delta: i32,
    },
    /// A number is negative that must not be.
    #[error("batch field {0} is negative: it must be 0 or more")]
    Negative(&'static str),
    /// The records inside cannot be read.
    #[error("records are malformed: {0}")]
    Records(&'static str),
    /// It does not follow the one before: its base offset stands outside the CRC.
    #[error("batch begins at offset {got} where {expected} was to follow")]
    OutOfPlace {
        /// The offset that comes next.
        expected: Offset,
        /// Its base offset.
        got: Offset,
    },
    /// The records are larger than allowed when decompressed.
    #[error("records are more than {limit} bytes when decompressed")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
}

/// Who produced a batch, and which of its batches this is (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerTag {
    /// The producer.
    pub id: ProducerId,
    /// Its instance.
    pub epoch: ProducerEpoch,
    /// Sequence of the batch's first record.
    pub base_sequence: Sequence,
}

/// A batch's header, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Bytes of the whole batch.
    pub size: usize,
    /// Epoch of the leader that appended it; 0 before that.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Codec of the records.
    pub compression: Compression,
    /// Whose time the records carry.
    pub timestamp_type: TimestampType,
    /// A marker, not data.
    pub is_control: bool,
    /// Part of a transaction.
    pub is_transactional: bool,
    /// Offset of the last record minus the base offset.
    pub last_offset_delta: u32,
    /// Timestamp that the records' deltas are added to.
    pub base_timestamp: Timestamp,
    /// Highest timestamp of the records.
    pub max_timestamp: Timestamp,
    /// Present when the producer is idempotent.
    pub producer: Option<ProducerTag>,
    /// Records inside.
    pub record_count: u32,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl BatchHeader {
    /// Bytes of the whole batch that begins here, from its first 12 bytes.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] with fewer bytes, [`BatchError::Length`] for a length that no
    /// batch has.
    pub fn size_of(bytes: &[u8]) -> Result<usize, BatchError> {
        if bytes.len() < LENGTH_END {
            return Err(BatchError::Truncated {
                have: bytes.len(),
                need: HEADER_LEN,
            });
        }
        let length = i32::from_be_bytes(array(bytes, LENGTH_AT));
        match usize::try_from(length) {
            Ok(rest) if rest >= HEADER_LEN - LENGTH_END => Ok(rest + LENGTH_END),
            _ => Err(BatchError::Length(length)),
        }
    }

    /// Reads a header from the first [`HEADER_LEN`] bytes; the CRC is not checked.
    ///
    /// # Errors
    /// [`BatchError`] naming the field that no batch may have so.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let size = Self::size_of(bytes)?;
        if bytes.len() < HEADER_LEN {
            return Err(BatchError::Truncated {
                have: bytes.len(),
                need: HEADER_LEN,
            });
        }
        let magic = i8::from_be_bytes(array(bytes, MAGIC_AT));
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        let attributes = i16::from_be_bytes(array(bytes, ATTRIBUTES_AT));
        let compression = Compression::from_id(attributes & 0x7)
            .ok_or(BatchError::Compression(attributes & 0x7))?;
        let base_offset = Offset::from_signed(i64::from_be_bytes(array(bytes, BASE_OFFSET_AT)))
            .map_err(|_| BatchError::Negative("base offset"))?;
        let last_delta = i32::from_be_bytes(array(bytes, LAST_OFFSET_DELTA_AT));
        let count = i32::from_be_bytes(array(bytes, RECORD_COUNT_AT));
        let mismatch = BatchError::RecordCount { count, last_delta };
        let last_offset_delta = u32::try_from(last_delta).map_err(|_| mismatch.clone())?;
        let record_count = u32::try_from(count).map_err(|_| mismatch.clone())?;
        if last_offset_delta.checked_add(1) != Some(record_count)
            || base_offset.get() > i64::MAX as u64 - u64::from(record_count)
        {
            return Err(mismatch);
        }
        let millis = |at| Timestamp::from_millis(i64::from_be_bytes(array(bytes, at)));
        Ok(Self {
            base_offset,
            size,
            // -1 before an append: producers do not know it.
            leader_epoch: LeaderEpoch::from_signed(i32::from_be_bytes(array(
                bytes,
                LEADER_EPOCH_AT,
            )))
            .unwrap_or_default(),
            crc: crc_of(bytes),
            compression,
            timestamp_type: if attributes & LOG_APPEND_TIME_BIT != 0 {
                TimestampType::LogAppendTime
            } else {
                TimestampType::CreateTime
            },
            is_control: attributes & CONTROL_BIT != 0,
            is_transactional: attributes & TRANSACTIONAL_BIT != 0,
            last_offset_delta,
            base_timestamp: millis(BASE_TIMESTAMP_AT),
            max_timestamp: millis(MAX_TIMESTAMP_AT),
            producer: read_producer(bytes)?,
            record_count,
        })
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.record_count))
    }

    /// Writes the header; length and CRC are left to the caller.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut attributes = self.compression.id();
        if self.timestamp_type == TimestampType::LogAppendTime {
            attributes |= LOG_APPEND_TIME_BIT;
        }
        if self.is_control {
            attributes |= CONTROL_BIT;
        }
        if self.is_transactional {
            attributes |= TRANSACTIONAL_BIT;
        }
        let (id, epoch, sequence) = match self.producer {
            Some(tag) => (
                tag.id.to_signed(),
                tag.epoch.to_signed(),
                tag.base_sequence.to_signed(),
            ),
            None => (-1, -1, -1),
        };
        out.extend_from_slice(&self.base_offset.to_signed().to_be_bytes());
        out.extend_from_slice(&0_i32.to_be_bytes());
        out.extend_from_slice(&self.leader_epoch.to_signed().to_be_bytes());
        out.push(2);
        out.extend_from_slice(&self.crc.to_be_bytes());
        out.extend_from_slice(&attributes.to_be_bytes());
        out.extend_from_slice(&(self.last_offset_delta as i32).to_be_bytes());
        out.extend_from_slice(&self.base_timestamp.millis().to_be_bytes());
        out.extend_from_slice(&self.max_timestamp.millis().to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&epoch.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&(self.record_count as i32).to_be_bytes());
    }
}

fn read_producer(bytes: &[u8]) -> Result<Option<ProducerTag>, BatchError> {
    let id = i64::from_be_bytes(array(bytes, PRODUCER_ID_AT));
    if id < 0 {
        return Ok(None);
    }
    let epoch = i16::from_be_bytes(array(bytes, PRODUCER_EPOCH_AT));
    let sequence = i32::from_be_bytes(array(bytes, BASE_SEQUENCE_AT));
    Ok(Some(ProducerTag {
        id: ProducerId::new(id as u64),
        epoch: ProducerEpoch::from_signed(epoch)
            .map_err(|_| BatchError::Negative("producer epoch"))?,
        base_sequence: Sequence::from_signed(sequence)
            .map_err(|_| BatchError::Negative("base sequence"))?,
    }))
}

/// Names another producer in a batch's header.
pub(crate) fn write_producer(batch: &mut [u8], tag: &ProducerTag) {
    let mut put = |at: usize, bytes: &[u8]| batch[at..at + bytes.len()].copy_from_slice(bytes);
    put(PRODUCER_ID_AT, &tag.id.to_signed().to_be_bytes());
    put(PRODUCER_EPOCH_AT, &tag.epoch.to_signed().to_be_bytes());
    put(
        BASE_SEQUENCE_AT,
        &tag.base_sequence.to_signed().to_be_bytes(),
    );
}

/// The CRC that a batch's header says.
pub(crate) fn crc_of(batch: &[u8]) -> u32 {
    u32::from_be_bytes(array(batch, CRC_AT))
}

/// Fills in the length field and the CRC of a batch that is otherwise complete.
pub(crate) fn seal(batch: &mut [u8]) {
    let length = (batch.len() - LENGTH_END) as i32;
    batch[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
