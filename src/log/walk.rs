//! A segment batch by batch, also past damage: where no batch can be read the walk looks for the
//! next one that is whole. One batch is in memory at a time. Batches are read as a start of the
//! node reads them (`open::next_batch`).

use quorate_record::{Batch, BatchError, BatchHeader, HEADER_LEN};
use quorate_types::{LeaderEpoch, Offset};

use crate::dir::{Dir, DirFile, OpenMode};
use crate::error::{LogError, at};
use crate::open::{BATCH_MAX, next_batch};
use crate::segment::{base_of, file_name};

/// Bytes read at a time while the next batch is looked for.
const BLOCK: usize = 64 << 10;
/// So many bytes behind places that look like a header are read before the rest of a file is given
/// up; each place counts for [`TRY`] at least.
const TRIED_MAX: u64 = 256 << 20;
const TRY: u64 = 16 << 10;

/// A part of a segment.
#[derive(Debug)]
pub enum Piece {
    /// A batch whose length, magic, CRC and record count hold.
    Batch {
        /// Where it begins, in bytes.
        position: u64,
        /// The batch.
        batch: Batch,
    },
    /// Bytes that are no batch.
    Damage {
        /// Where they begin, in bytes.
        position: u64,
        /// Where the next whole batch begins, or the file ends.
        until: u64,
        /// Why the first of them begins no batch.
        error: BatchError,
        /// The header there, where at least that is one.
        header: Option<BatchHeader>,
    },
}

/// Walks over one segment.
pub struct SegmentWalk<F> {
    file: F,
    path: String,
    base: Offset,
    length: u64,
    position: u64,
    /// The end of what was walked over, and its epoch at least: what follows damage begins above.
    /// Other batches there may be what a record holds.
    next: Offset,
    epoch: LeaderEpoch,
}

/// The first offsets of a partition's segments, rising.
///
/// # Errors
/// Of the disk.
pub fn segments<D: Dir>(dir: &D, folder: &str) -> Result<Vec<Offset>, LogError> {
    let names = dir.list(folder).map_err(at(folder))?;
    Ok(names
        .iter()
        .filter_map(|entry| base_of(&entry.name, "log"))
        .collect())
}

impl<F: DirFile> SegmentWalk<F> {
    /// Begins at the start of the segment `base` in `folder`.
    ///
    /// # Errors
    /// Of the disk.
    pub fn open<D: Dir<File = F>>(dir: &D, folder: &str, base: Offset) -> Result<Self, LogError> {
        let path = format!("{folder}/{}", file_name(base, "log"));
        let file = dir.open(&path, OpenMode::Read).map_err(at(&path))?;
        let length = file.len().map_err(at(&path))?;
        Ok(Self {
            file,
            path,
            base,
            length,
            position: 0,
            next: base,
            epoch: LeaderEpoch::ZERO,
        })
    }

    /// Bytes in the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file, relative to the tree.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The next part; none at the end.
    ///
    /// # Errors
    /// Of the disk.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, LogError> {
        if self.position >= self.length {
            return Ok(None);
        }
        let position = self.position;
        match self.batch_at(position)? {
            Ok(batch) => {
                self.position += batch.size() as u64;
                // The offset is outside the CRC: one that was changed may be much too large.
                let counted = self.next.plus(u64::from(batch.header().record_count));
                self.next = counted.min(batch.end_offset());
                Ok(Some(Piece::Batch { position, batch }))
            }
            Err(error) => {
                let header = self.header_at(position)?;
                let until = self.resume_after(position, header.as_ref())?;
                self.position = until;
                Ok(Some(Piece::Damage {
                    position,
                    until,
                    error,
                    header,
                }))
            }
        }
    }

    fn header_at(&self, position: u64) -> Result<Option<BatchHeader>, LogError> {
        let mut head = [0; HEADER_LEN];
        let read = self.file.read_at(&mut head, position);
        let read = read.map_err(at(&self.path))?;
        Ok(BatchHeader::read(&head[..read]).ok())
    }

    fn batch_at(&self, position: u64) -> Result<Result<Batch, BatchError>, LogError> {
        next_batch(&self.file, &self.path, position, self.length)
    }

    /// Whether a whole batch lies somewhere after the one at `position`, which is not and was to
    /// begin at `offset`, after a batch of `epoch`.
    pub(crate) fn whole_after(
        self,
        position: u64,
        offset: Offset,
        epoch: LeaderEpoch,
    ) -> Result<bool, LogError> {
        let walk = Self {
            next: offset,
            epoch,
            ..self
        };
        Ok(walk.resume_after(position, None)? < walk.length)
    }

    /// Where the next whole batch begins after damage: first where the damaged one says that it
    /// ends, then anywhere.
    fn resume_after(&self, damage: u64, header: Option<&BatchHeader>) -> Result<u64, LogError> {
        if let Some(header) = header {
            let next = damage + header.size as u64;
            if next < self.length && self.plausible(next)? {
                return Ok(next);
            }
        }
        let mut tried = 0;
        let mut start = damage + 1;
        while start + HEADER_LEN as u64 <= self.length {
            let want = BLOCK.min((self.length - start) as usize);
            let mut block = vec![0; want];
            let read = self.file.read_at(&mut block, start);
            let read = read.map_err(at(&self.path))?;
            let Some(last) = read.checked_sub(HEADER_LEN) else {
                break;
            };
            for inner in 0..=last {
                let Ok(header) = BatchHeader::read(&block[inner..inner + HEADER_LEN]) else {
                    continue;
                };
                let position = start + inner as u64;
                if header.base_offset <= self.next
                    || header.leader_epoch < self.epoch
                    || header.size as u64 > (self.length - position).min(BATCH_MAX as u64)
                {
                    continue;
                }
                tried += TRY.max(header.size as u64);
                if tried > TRIED_MAX {
                    return Ok(self.length);
                }
                if self.plausible(position)? {
                    return Ok(position);
                }
            }
            start += last as u64 + 1;
        }
        Ok(self.length)
    }

    fn plausible(&self, position: u64) -> Result<bool, LogError> {
        let batch = self.batch_at(position)?;
        Ok(batch.is_ok_and(|batch| batch.base_offset() >= self.base))
    }
}
