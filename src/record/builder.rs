//! Makes batches out of records.

use quorate_types::{Compression, LeaderEpoch, Offset, Timestamp, TimestampType};

use crate::batch::Batch;
use crate::codec::{field_len, varint_len, write_field, write_varint};
use crate::compression::compress;
use crate::header::{BatchHeader, HEADER_LEN, ProducerTag, seal};
use crate::records::RecordHeader;

/// Collects records and encodes them as one batch with base offset 0.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    producer: Option<ProducerTag>,
    body: Vec<u8>,
    count: u32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            producer: None,
            body: Vec::with_capacity(HEADER_LEN),
            count: 0,
            base_timestamp: Timestamp::default(),
            max_timestamp: Timestamp::default(),
        }
    }

    /// Names the producer and the sequence of the first record (KIP-98).
    #[must_use]
    pub fn producer(mut self, tag: ProducerTag) -> Self {
        self.producer = Some(tag);
        self
    }

    /// Adds a record.
    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[RecordHeader],
    ) {
        if self.count == 0 {
            self.body.resize(HEADER_LEN, 0);
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let timestamp_delta = timestamp
            .millis()
            .wrapping_sub(self.base_timestamp.millis());
        let offset_delta = i64::from(self.count);
        let headers_len: usize = headers
            .iter()
            .map(|h| field_len(Some(h.key.as_bytes())) + field_len(h.value.as_deref()))
            .sum();
        let length = 1
            + varint_len(timestamp_delta)
            + varint_len(offset_delta)
            + field_len(key)
            + field_len(value)
            + varint_len(headers.len() as i64)
            + headers_len;
        let out = &mut self.body;
        out.reserve(length + 5);
        write_varint(out, length as i64);
        out.push(0);
        write_varint(out, timestamp_delta);
        write_varint(out, offset_delta);
        write_field(out, key);
        write_field(out, value);
        write_varint(out, headers.len() as i64);
        for header in headers {
            write_field(out, Some(header.key.as_bytes()));
            write_field(out, header.value.as_deref());
        }
        self.count += 1;
    }

    /// Records so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far, uncompressed, header included.
    pub fn size_estimate(&self) -> usize {
        self.body.len().max(HEADER_LEN)
    }

    /// Encodes the batch. Panics where there is no record: a batch holds at least one.
    pub fn build(self) -> Batch {
        assert!(self.count > 0, "a batch holds at least one record");
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            size: 0,
            leader_epoch: LeaderEpoch::ZERO,
            crc: 0,
            compression: self.compression,
            timestamp_type: TimestampType::CreateTime,
            is_control: false,
            is_transactional: false,
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer: self.producer,
            record_count: self.count,
        };
        let mut head = Vec::with_capacity(HEADER_LEN);
        header.write(&mut head);
        let mut body = self.body;
        let mut bytes = if self.compression == Compression::None {
            body[..HEADER_LEN].copy_from_slice(&head);
            body
        } else {
            let packed = compress(self.compression, &body.split_off(HEADER_LEN));
            head.extend_from_slice(&packed);
            head
        };
        seal(&mut bytes);
        Batch::parse(bytes.into()).expect("a batch that was just built is well formed")
    }
}
