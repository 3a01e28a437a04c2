//! One segment: a file of batches, and a sparse index of where offsets and times lie in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use quorate_record::BatchHeader;
use quorate_types::{Offset, Timestamp};

use crate::checkpoint::{frame, unframe};
use crate::dir::Dir;

/// Where a batch begins. Positions are bytes in the segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) offset: Offset,
    pub(crate) position: u64,
    /// Highest timestamp of all records below this entry's batch.
    pub(crate) max_timestamp_before: Timestamp,
}

/// The sparse index of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Index {
    entries: Vec<IndexEntry>,
    bytes_since: u64,
    max_timestamp: Option<Timestamp>,
}

impl Index {
    /// Notes a batch at `position`; every `interval` bytes one becomes an entry.
    pub(crate) fn note(&mut self, header: &BatchHeader, position: u64, interval: u32) {
        let lowest = Timestamp::from_millis(i64::MIN);
        if self.entries.is_empty() || self.bytes_since >= u64::from(interval) {
            self.entries.push(IndexEntry {
                offset: header.base_offset,
                position,
                max_timestamp_before: self.max_timestamp.unwrap_or(lowest),
            });
            self.bytes_since = 0;
        }
        self.bytes_since += header.size as u64;
        self.max_timestamp = self.max_timestamp.max(Some(header.max_timestamp));
    }

    /// Its entries, in order.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Position of the last indexed batch that begins at or below `offset`.
    pub(crate) fn position_of(&self, offset: Offset) -> u64 {
        let next = self.entries.partition_point(|entry| entry.offset <= offset);
        next.checked_sub(1)
            .map_or(0, |at| self.entries[at].position)
    }

    /// Position from which a record of at least that time may lie; none where there is none.
    pub(crate) fn position_of_time(&self, at: Timestamp) -> Option<u64> {
        if self.max_timestamp.is_none_or(|max| max < at) {
            return None;
        }
        let next = self
            .entries
            .partition_point(|entry| entry.max_timestamp_before < at);
        Some(
            next.checked_sub(1)
                .map_or(0, |at| self.entries[at].position),
        )
    }

    /// Forgets batches at or above a position. What is known of times stays an upper bound.
    pub(crate) fn truncate_to(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
    }

    /// The `.index` and the `.timeindex` file of a segment of `size` bytes that ends at `end`.
    pub(crate) fn encode(&self, size: u64, end: Offset) -> (Vec<u8>, Vec<u8>) {
        let mut offsets = Vec::with_capacity(16 + self.entries.len() * 16);
        let mut times = Vec::with_capacity(8 + self.entries.len() * 8);
        offsets.extend_from_slice(&size.to_be_bytes());
        offsets.extend_from_slice(&end.get().to_be_bytes());
        let max = self
            .max_timestamp
            .unwrap_or(Timestamp::from_millis(i64::MIN));
        times.extend_from_slice(&max.millis().to_be_bytes());
        for entry in &self.entries {
            offsets.extend_from_slice(&entry.offset.get().to_be_bytes());
            offsets.extend_from_slice(&entry.position.to_be_bytes());
            times.extend_from_slice(&entry.max_timestamp_before.millis().to_be_bytes());
        }
        (frame(&offsets), frame(&times))
    }

    /// Reads both files back, with the size and the end that they were written for.
    pub(crate) fn decode(offsets: &[u8], times: &[u8]) -> Option<(Self, u64, Offset)> {
        let mut offsets = words(unframe(offsets)?)?;
        let mut times = words(unframe(times)?)?;
        let (size, end) = (offsets.next()?, Offset::new(offsets.next()?));
        let max = times.next()? as i64;
        let mut entries = Vec::new();
        while let Some(offset) = offsets.next() {
            entries.push(IndexEntry {
                offset: Offset::new(offset),
                position: offsets.next()?,
                max_timestamp_before: Timestamp::from_millis(times.next()? as i64),
            });
        }
        if times.next().is_some() {
            return None;
        }
        let max_timestamp = (max != i64::MIN).then_some(Timestamp::from_millis(max));
        Some((
            Self {
                entries,
                bytes_since: 0,
                max_timestamp,
            },
            size,
            end,
        ))
    }
}

fn words(body: &[u8]) -> Option<impl Iterator<Item = u64> + '_> {
    body.len().is_multiple_of(8).then(|| {
        body.chunks_exact(8)
            .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    })
}

/// A segment as the writer and all readers share it.
pub(crate) struct Segment<D: Dir> {
    pub(crate) base: Offset,
    pub(crate) path: String,
    pub(crate) file: Arc<D::File>,
    size: AtomicU64,
    pub(crate) index: RwLock<Index>,
}

impl<D: Dir> Segment<D> {
    pub(crate) fn new(base: Offset, path: String, file: D::File, size: u64, index: Index) -> Self {
        Self {
            base,
            path,
            file: Arc::new(file),
            size: AtomicU64::new(size),
            index: RwLock::new(index),
        }
    }

    /// Bytes of whole batches; readers never look beyond.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }
}

pub(crate) fn file_name(base: Offset, extension: &str) -> String {
    format!("{:020}.{extension}", base.get())
}

/// The base offset in the name of a file with that extension.
pub(crate) fn base_of(name: &str, extension: &str) -> Option<Offset> {
    let stem = name.strip_suffix(extension)?.strip_suffix('.')?;
    if stem.len() != 20 || !stem.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    stem.parse().ok().map(Offset::new)
}
