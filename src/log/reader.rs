//! Reading a log while its writer appends: the tail from memory, the rest by positional reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorate_record::{Batch, BatchError, BatchHeader, HEADER_LEN};
use quorate_types::{Offset, Timestamp};

use crate::dir::{Dir, DirFile};
use crate::error::ReadError;
use crate::segment::Segment;
use crate::tail::{Tail, TailBudget};

/// What the records of a batch may take when they are decompressed for a lookup.
const DECOMPRESSED_MAX: usize = 64 << 20;
/// Bytes read at a time while looking for a batch.
const SCAN: usize = 64 << 10;

/// What the writer shares with readers.
pub(crate) struct Shared<D: Dir> {
    pub(crate) segments: RwLock<Vec<Arc<Segment<D>>>>,
    tail: Mutex<Tail>,
    log_start: AtomicU64,
}

impl<D: Dir> Shared<D> {
    pub(crate) fn new(
        segments: Vec<Arc<Segment<D>>>,
        log_start: Offset,
        tail_limit: usize,
    ) -> Self {
        Self {
            segments: RwLock::new(segments),
            tail: Mutex::new(Tail::new(tail_limit)),
            log_start: AtomicU64::new(log_start.get()),
        }
    }

    pub(crate) fn appended(&self, batches: &[Batch]) {
        let mut tail = self.tail.lock();
        batches.iter().for_each(|batch| tail.push(batch));
    }

    pub(crate) fn share_tail(&self, budget: Arc<TailBudget>) {
        self.tail.lock().share(budget);
    }

    pub(crate) fn begins_at(&self, start: Offset) {
        self.log_start.store(start.get(), Ordering::Release);
    }

    pub(crate) fn truncated(&self, end: Offset) {
        self.tail.lock().truncate_to(end);
    }
}

/// Reads a log from any thread. Clones are cheap.
pub struct LogReader<D: Dir> {
    shared: Arc<Shared<D>>,
}

impl<D: Dir> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<D: Dir> LogReader<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// Whole batches from the one that holds `from`, none that ends above `up_to`, at most
    /// `max_bytes` but at least one where there is one. Blocks on the disk where the tail in
    /// memory does not reach back far enough; what comes from the disk has its CRC checked.
    ///
    /// # Errors
    /// [`ReadError`] naming file and position.
    pub fn read(&self, from: Offset, up_to: Offset, max_bytes: usize) -> Result<Bytes, ReadError> {
        if from >= up_to {
            return Ok(Bytes::new());
        }
        match self.read_cached(from, up_to, max_bytes) {
            Some(bytes) => Ok(bytes),
            None => self.read_disk(from, up_to, max_bytes),
        }
    }

    /// The same from memory alone; none where that takes the disk.
    pub fn read_cached(&self, from: Offset, up_to: Offset, max_bytes: usize) -> Option<Bytes> {
        self.shared.tail.lock().read(from, up_to, max_bytes)
    }

    fn segment_of(&self, offset: Offset) -> Result<Arc<Segment<D>>, ReadError> {
        let log_start = Offset::new(self.shared.log_start.load(Ordering::Acquire));
        let segments = self.shared.segments.read();
        let next = segments.partition_point(|segment| segment.base <= offset);
        match next.checked_sub(1) {
            Some(at) if offset >= log_start => Ok(Arc::clone(&segments[at])),
            _ => Err(ReadError::NotThere(offset)),
        }
    }

    fn read_disk(&self, from: Offset, up_to: Offset, max_bytes: usize) -> Result<Bytes, ReadError> {
        let segment = self.segment_of(from)?;
        let size = segment.size();
        let start = segment.index.read().position_of(from);
        let Some(first) = find(&segment, start, size, |header| header.end_offset() > from)? else {
            return Ok(Bytes::new());
        };
        let (position, header) = first;
        let want = header.size.max(max_bytes).min((size - position) as usize);
        let mut bytes = Bytes::from(read_block(&segment, position, want)?);
        let mut end = 0;
        let mut rest = bytes.clone();
        // What lies above may be cut and written anew at this moment: no business of this read.
        let mut reached = from;
        while rest.len() >= HEADER_LEN && reached < up_to {
            let corrupt = |source| ReadError::Corrupt {
                path: segment.path.clone(),
                position: position + end as u64,
                offset: from,
                source,
            };
            let size = BatchHeader::size_of(&rest).map_err(corrupt)?;
            if size > rest.len() {
                break;
            }
            let header = BatchHeader::read(&rest).map_err(corrupt)?;
            // Offsets follow each other without a gap, and `from` is in the first batch. A base
            // offset that was changed on the disk would lead a reader astray.
            let first = end == 0 && header.base_offset <= from;
            if !first && header.base_offset != reached {
                return Err(corrupt(BatchError::OutOfPlace {
                    expected: reached,
                    got: header.base_offset,
                }));
            }
            if header.end_offset() > up_to {
                break;
            }
            Batch::parse(rest.split_to(size)).map_err(corrupt)?;
            reached = header.end_offset();
            end += size;
        }
        if end < want / 2 {
            // What is given is not to keep what was read beside it.
            return Ok(Bytes::copy_from_slice(&bytes[..end]));
        }
        bytes.truncate(end);
        Ok(bytes)
    }

    /// The first record below `up_to` whose timestamp is at least `at`, with its timestamp.
    ///
    /// # Errors
    /// [`ReadError`] naming file and position.
    pub fn offset_for_timestamp(
        &self,
        at: Timestamp,
        up_to: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let segments = self.shared.segments.read().clone();
        for segment in segments {
            let Some(start) = segment.index.read().position_of_time(at) else {
                continue;
            };
            let size = segment.size();
            let mut position = start;
            while let Some((found, header)) = find(&segment, position, size, |header| {
                header.max_timestamp >= at
            })? {
                let bytes = Bytes::from(read_block(&segment, found, header.size)?);
                let batch = Batch::parse(bytes).map_err(|source| ReadError::Corrupt {
                    path: segment.path.clone(),
                    position: found,
                    offset: header.base_offset,
                    source,
                })?;
                if let Some((offset, timestamp)) = first_since(&batch, at) {
                    return Ok((offset < up_to).then_some((offset, timestamp)));
                }
                position = found + header.size as u64;
            }
        }
        Ok(None)
    }
}

/// The first record whose timestamp is at least `at`. What producers put into a batch that cannot be
/// decoded is theirs: its first offset stands for the records, so that the lookup goes on for
/// everybody else.
fn first_since(batch: &Batch, at: Timestamp) -> Option<(Offset, Timestamp)> {
    let undecodable = Some((batch.base_offset(), batch.header().max_timestamp));
    let Ok(records) = batch.iter(DECOMPRESSED_MAX) else {
        return undecodable;
    };
    for record in records {
        match record {
            Ok(record) if record.timestamp >= at => {
                return Some((record.offset, record.timestamp));
            }
            Ok(_) => {}
            Err(_) => return undecodable,
        }
    }
    None
}

fn read_block<D: Dir>(
    segment: &Segment<D>,
    position: u64,
    len: usize,
) -> Result<Vec<u8>, ReadError> {
    let mut block = vec![0; len];
    let read = segment
        .file
        .read_at(&mut block, position)
        .map_err(|source| ReadError::Io {
            path: segment.path.clone(),
            source,
        })?;
    block.truncate(read);
    Ok(block)
}

/// The first batch from `position` on whose header fits, by headers alone. A batch that says that it
/// goes on behind `size`, where one ends, is corrupt: what follows it would never be found.
pub(crate) fn find<D: Dir>(
    segment: &Segment<D>,
    mut position: u64,
    size: u64,
    mut fits: impl FnMut(&BatchHeader) -> bool,
) -> Result<Option<(u64, BatchHeader)>, ReadError> {
    let mut block = Vec::new();
    let mut block_at = position;
    while position < size {
        let in_block = (position - block_at) as usize;
        if block.len() < in_block + HEADER_LEN {
            block_at = position;
            block = read_block(segment, position, SCAN.min((size - position) as usize))?;
        }
        let bytes = &block[(position - block_at) as usize..];
        let header = BatchHeader::read(bytes).map_err(|source| ReadError::Corrupt {
            path: segment.path.clone(),
            position,
            offset: segment.base,
            source,
        })?;
        let have = size - position;
        if header.size as u64 > have {
            return Err(ReadError::Corrupt {
                path: segment.path.clone(),
                position,
                offset: header.base_offset,
                source: BatchError::Truncated {
                    have: have as usize,
                    need: header.size,
                },
            });
        }
        if fits(&header) {
            return Ok(Some((position, header)));
        }
        position += header.size as u64;
    }
    Ok(None)
}
