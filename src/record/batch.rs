//! A record batch: checked bytes and their header.

use bytes::{Bytes, BytesMut};
use quorate_types::{Compression, LeaderEpoch, Offset, Timestamp, TimestampType};

use crate::codec::Records;
use crate::compression::{compress, decompress};
use crate::header::{
    ATTRIBUTES_AT, BASE_OFFSET_AT, BatchError, BatchHeader, HEADER_LEN, LEADER_EPOCH_AT,
    LOG_APPEND_TIME_BIT, MAX_TIMESTAMP_AT, ProducerTag, crc_of, crc32c, seal, write_producer,
};
use crate::records::Record;

/// Records of one batch may take so much memory when decompressed: what a small hostile batch can
/// cost a reader.
const DECOMPRESSED_MAX: usize = 256 << 20;

/// One v2 record batch, checked. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    header: BatchHeader,
}

impl Batch {
    /// Checks bytes that are exactly one batch: length, magic, CRC, record count.
    ///
    /// # Errors
    /// [`BatchError`] naming what is wrong.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let size = BatchHeader::size_of(&bytes)?;
        if bytes.len() > size {
            return Err(BatchError::TrailingBytes {
                extra: bytes.len() - size,
            });
        }
        if bytes.len() < size {
            return Err(BatchError::Truncated {
                have: bytes.len(),
                need: size,
            });
        }
        let header = BatchHeader::read(&bytes)?;
        let computed = crc32c(&bytes[ATTRIBUTES_AT..]);
        if computed != header.crc {
            return Err(BatchError::Crc {
                stored: header.crc,
                computed,
            });
        }
        Ok(Self { bytes, header })
    }

    /// Checks bytes that are whole batches one after the other.
    ///
    /// # Errors
    /// [`BatchError`] of the first that is wrong.
    pub fn split(mut bytes: Bytes) -> Result<Vec<Self>, BatchError> {
        let mut batches = Vec::new();
        while !bytes.is_empty() {
            let size = BatchHeader::size_of(&bytes)?;
            if size > bytes.len() {
                return Err(BatchError::Truncated {
                    have: bytes.len(),
                    need: size,
                });
            }
            batches.push(Self::parse(bytes.split_to(size))?);
        }
        Ok(batches)
    }

    /// The offset after the last record of some whole batches, by their headers only; none where
    /// there is no batch, or something else.
    pub fn end_of(batches: &[u8]) -> Option<Offset> {
        let (mut at, mut end) = (0, None);
        while at < batches.len() {
            let header = BatchHeader::read(&batches[at..]).ok()?;
            at += header.size;
            end = Some(header.end_offset());
        }
        end
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of the whole batch.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// Offset after the last record.
    pub fn end_offset(&self) -> Offset {
        self.header.end_offset()
    }

    /// Epoch of the leader that appended it.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.header.leader_epoch
    }

    /// Whether it has a place as [`Self::stamped`] gives it. A producer's batch names no leader
    /// epoch (−1), and one of a log always does.
    pub fn is_stamped(&self) -> bool {
        let epoch = self.header.leader_epoch.to_signed().to_be_bytes();
        self.bytes[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4] == epoch
    }

    /// The batch with the place that a leader gives it (R1). Both fields are outside the CRC. The
    /// bytes are copied where others hold them too.
    #[must_use]
    pub fn stamped(self, base: Offset, epoch: LeaderEpoch) -> Self {
        let Self { bytes, mut header } = self;
        let mut bytes = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[BASE_OFFSET_AT..BASE_OFFSET_AT + 8].copy_from_slice(&base.to_signed().to_be_bytes());
        bytes[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4]
            .copy_from_slice(&epoch.to_signed().to_be_bytes());
        header.base_offset = base;
        header.leader_epoch = epoch;
        Self {
            bytes: bytes.freeze(),
            header,
        }
    }

    /// The batch under another producer or sequence, CRC anew: for one that is sent again after its
    /// producer had to begin anew.
    #[must_use]
    pub fn with_producer(self, tag: ProducerTag) -> Self {
        let Self { bytes, mut header } = self;
        let mut bytes = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        header.producer = Some(tag);
        write_producer(&mut bytes, &tag);
        seal(&mut bytes);
        header.crc = crc_of(&bytes);
        Self {
            bytes: bytes.freeze(),
            header,
        }
    }

    /// The batch with the leader's time for all its records
    /// (`message.timestamp.type=LogAppendTime`), CRC anew.
    #[must_use]
    pub fn with_log_append_time(self, at: Timestamp) -> Self {
        let Self { bytes, mut header } = self;
        let mut bytes = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&at.millis().to_be_bytes());
        // The flag's bit lies in the low byte of the attributes.
        bytes[ATTRIBUTES_AT + 1] |= LOG_APPEND_TIME_BIT as u8;
        seal(&mut bytes);
        header.max_timestamp = at;
        header.timestamp_type = TimestampType::LogAppendTime;
        header.crc = crc_of(&bytes);
        Self {
            bytes: bytes.freeze(),
            header,
        }
    }

    /// The batch with its records under another codec (a topic's `compression.type`), CRC anew; they
    /// may take `limit` bytes when decompressed. They are decoded once, so that what a reader could
    /// not decode is not stored under a valid CRC.
    ///
    /// # Errors
    /// [`BatchError`] where the records cannot be decoded or are more.
    pub fn recompressed(self, codec: Compression, limit: usize) -> Result<Self, BatchError> {
        if self.header.compression == codec {
            return Ok(self);
        }
        let body = decompress(
            self.header.compression,
            self.bytes.slice(HEADER_LEN..),
            limit,
        )?;
        for record in Records::new(&self.header, body.clone()) {
            record?;
        }
        let mut header = self.header;
        header.compression = codec;
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        header.write(&mut bytes);
        bytes.extend_from_slice(&compress(codec, &body));
        seal(&mut bytes);
        Self::parse(bytes.into())
    }

    /// Decodes the records; those of a compressed batch are decompressed, up to 256 MiB.
    ///
    /// # Errors
    /// [`BatchError::Records`] where the inside contradicts the header or itself.
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        let iter = self.iter(DECOMPRESSED_MAX)?;
        let mut records = Vec::with_capacity(iter.at_most());
        for record in iter {
            records.push(record?);
        }
        Ok(records)
    }

    /// Decodes one record after the other; those of a compressed batch are decompressed first, up
    /// to `limit` bytes.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] above the limit, [`BatchError::Records`] where they cannot be
    /// decompressed.
    pub fn iter(&self, limit: usize) -> Result<Records<'_>, BatchError> {
        let body = self.bytes.slice(HEADER_LEN..);
        let body = decompress(self.header.compression, body, limit)?;
        Ok(Records::new(&self.header, body))
    }
}
