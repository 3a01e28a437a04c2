//! Records inside a batch: zigzag variable-length numbers and length-prefixed fields.

use bytes::{Buf, Bytes};
use quorate_types::{Timestamp, TimestampType};

use crate::header::{BatchError, BatchHeader};
use crate::records::{Record, RecordHeader};

pub(crate) fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that [`write_varint`] takes.
pub(crate) fn varint_len(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    (64 - zigzag.leading_zeros() as usize).max(1).div_ceil(7)
}

fn read_varint(bytes: &mut Bytes) -> Result<i64, BatchError> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            bytes.advance(index + 1);
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(BatchError::Records("a number is cut off or too long"))
}

/// A field with its length before it; −1 is none.
fn read_field(bytes: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    match read_varint(bytes)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= bytes.len() => Ok(Some(bytes.split_to(length))),
            _ => Err(BatchError::Records("a field is longer than its record")),
        },
    }
}

pub(crate) fn write_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => write_varint(out, -1),
        Some(field) => {
            write_varint(out, field.len() as i64);
            out.extend_from_slice(field);
        }
    }
}

pub(crate) fn field_len(field: Option<&[u8]>) -> usize {
    match field {
        None => 1,
        Some(field) => varint_len(field.len() as i64) + field.len(),
    }
}

/// The records of a batch one after the other; ends with the first that cannot be read.
pub struct Records<'a> {
    header: &'a BatchHeader,
    body: Bytes,
    next_delta: u32,
}

impl<'a> Records<'a> {
    pub(crate) fn new(header: &'a BatchHeader, body: Bytes) -> Self {
        Self {
            header,
            body,
            next_delta: 0,
        }
    }

    /// How many there can be at most: a record takes at least 7 bytes, so that a count which cannot
    /// be true reserves nothing.
    pub(crate) fn at_most(&self) -> usize {
        (self.header.record_count as usize).min(self.body.len() / 7 + 1)
    }

    fn read(&mut self) -> Result<Record, BatchError> {
        let length = usize::try_from(read_varint(&mut self.body)?)
            .ok()
            .filter(|length| *length <= self.body.len())
            .ok_or(BatchError::Records("a record is longer than its batch"))?;
        let record = self.body.split_to(length);
        let record = read_record(self.header, record, self.next_delta.into())?;
        self.next_delta += 1;
        if self.next_delta == self.header.record_count && !self.body.is_empty() {
            return Err(BatchError::Records("bytes follow the last record"));
        }
        Ok(record)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_delta >= self.header.record_count {
            return None;
        }
        let record = self.read();
        if record.is_err() {
            self.next_delta = self.header.record_count;
        }
        Some(record)
    }
}

fn read_record(
    header: &BatchHeader,
    mut record: Bytes,
    expected_delta: i64,
) -> Result<Record, BatchError> {
    if record.is_empty() {
        return Err(BatchError::Records("a record is empty"));
    }
    record.advance(1);
    let timestamp_delta = read_varint(&mut record)?;
    if read_varint(&mut record)? != expected_delta {
        return Err(BatchError::Records("offsets do not rise one by one"));
    }
    let key = read_field(&mut record)?;
    let value = read_field(&mut record)?;
    let count = usize::try_from(read_varint(&mut record)?)
        .map_err(|_| BatchError::Records("a header count is negative"))?;
    let mut headers = Vec::with_capacity(count.min(record.len() / 2));
    for _ in 0..count {
        let name = read_field(&mut record)?.ok_or(BatchError::Records("a header has no name"))?;
        let key = String::from_utf8(name.to_vec())
            .map_err(|_| BatchError::Records("a header's name is not UTF-8"))?;
        headers.push(RecordHeader {
            key,
            value: read_field(&mut record)?,
        });
    }
    if !record.is_empty() {
        return Err(BatchError::Records("bytes follow a record's headers"));
    }
    let timestamp = match header.timestamp_type {
        TimestampType::LogAppendTime => header.max_timestamp,
        TimestampType::CreateTime => {
            Timestamp::from_millis(header.base_timestamp.millis().wrapping_add(timestamp_delta))
        }
    };
    let offset = header.base_offset.plus(expected_delta as u64);
    Ok(Record {
        offset,
        timestamp,
        key,
        value,
        headers,
    })
}
