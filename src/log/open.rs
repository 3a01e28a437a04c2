//! Opening a log: what is on the disk is checked from the recovery point on, cut where it ends,
//! and synced before anything above the old recovery point counts (R9, R13).

use std::sync::Arc;

use bytes::Bytes;
use quorate_record::{Batch, BatchError, BatchHeader, HEADER_LEN, LeaderEpochCache};
use quorate_types::{LeaderEpoch, Offset};
use tracing::warn;

use crate::checkpoint::{POSITIONS_LEN, Positions, decode_epochs, encode_epochs};
use crate::damage::{damage_mark, mark_damaged};
use crate::dir::{Dir, DirFile, OpenMode, read_file, replace_file};
use crate::error::{LogError, at};
use crate::partition_log::{EPOCHS_FILE, LogOptions, POSITIONS_FILE, PartitionLog};
use crate::reader::Shared;
use crate::segment::{Index, Segment, base_of, file_name};
use crate::truncate::{load_producers, remove_if_there};
use crate::walk::SegmentWalk;

/// Ends the name of what was cut from a damaged log and kept.
pub(crate) const SET_ASIDE: &str = "set-aside";

/// Bytes read at a time while a segment is checked.
const SCAN: usize = 1 << 20;

/// No batch is larger, in bytes: `max.message.bytes` ends at 64 MiB.
pub(crate) const BATCH_MAX: usize = 65 << 20;

/// What the process knows of its last life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecoveryContext {
    /// The machine has not been booted since: the page cache survived.
    pub same_boot: bool,
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Why the replica is damaged, if it is (R9).
    pub damaged: Option<String>,
    /// Where the log of a damaged replica ended before, where that is known.
    pub had: Option<Offset>,
    /// Bytes cut from the end.
    pub truncated_bytes: u64,
    /// Where the log ends now.
    pub log_end: Offset,
}

/// What the scan of one segment found.
struct Scanned {
    index: Index,
    size: u64,
    end: Offset,
    /// Where the first batch begins that is not known to be on the disk.
    unsure_from: Option<u64>,
    /// Why it ended before the file did, and whether what is left looks like the beginning of one
    /// batch that was never written whole.
    cut: Option<(BatchError, bool)>,
}

struct Opening<'a, D: Dir> {
    dir: &'a Arc<D>,
    path: &'a str,
    options: LogOptions,
    same_boot: bool,
    recovery_point: Offset,
    /// Where the log ended at least.
    expected: Offset,
    /// Where the log begins, where that is known.
    known_start: Option<Offset>,
    epochs: LeaderEpochCache,
    segments: Vec<Arc<Segment<D>>>,
    scanned: bool,
    /// Of the last batch that was scanned: those of later segments are no older.
    epoch: LeaderEpoch,
    truncated_bytes: u64,
    corrupt: Option<String>,
}

impl<D: Dir> PartitionLog<D> {
    /// Opens the log in the directory `path`, or makes it. When it returns, all of it is on the
    /// disk.
    ///
    /// # Errors
    /// [`LogError`] of the disk. Damage is no error: it is reported, and the log holds what is
    /// whole.
    pub fn open(
        dir: Arc<D>,
        path: &str,
        options: LogOptions,
        cx: RecoveryContext,
    ) -> Result<(Self, RecoveryReport), LogError> {
        dir.create_dir(path).map_err(at(path))?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            dir.sync_dir(parent).map_err(at(parent))?;
        }
        let file = |name: &str| format!("{path}/{name}");
        let positions_path = file(POSITIONS_FILE);
        let stored = read_file(&*dir, &positions_path).map_err(at(&positions_path))?;
        let known = stored.as_deref().and_then(Positions::last_of);
        let mut positions = known.unwrap_or_default();
        let epochs_path = file(EPOCHS_FILE);
        let stored_epochs = read_file(&*dir, &epochs_path).map_err(at(&epochs_path))?;
        let known_epochs = stored_epochs.as_deref().and_then(decode_epochs);
        let marked = damage_mark(&*dir, path)?;
        // Epochs of closed segments are in the file; without it every batch is looked at, and so
        // it is where damage was found before.
        let recover_from = if marked.is_some() || known_epochs.is_none() {
            Offset::ZERO
        } else {
            positions.recovery_point
        };
        let mut opening = Opening {
            dir: &dir,
            path,
            options,
            same_boot: cx.same_boot,
            recovery_point: positions.recovery_point,
            expected: positions.high_watermark.max(positions.recovery_point),
            known_start: known.map(|positions| positions.log_start),
            epochs: known_epochs.unwrap_or_default(),
            segments: Vec::new(),
            scanned: false,
            epoch: LeaderEpoch::ZERO,
            truncated_bytes: 0,
            corrupt: None,
        };
        let mut log_end = opening.segments(recover_from, positions)?;
        let producers = match load_producers(&*dir, path, &opening.segments, log_end) {
            Err(error @ LogError::Corrupt { .. }) => {
                // In a segment that was trusted: nothing is, the second time.
                warn!(%error, "every segment is checked");
                opening.segments.clear();
                log_end = opening.segments(Offset::ZERO, positions)?;
                load_producers(&*dir, path, &opening.segments, log_end)?
            }
            loaded => loaded?,
        };
        let Opening {
            segments,
            truncated_bytes,
            corrupt,
            mut epochs,
            ..
        } = opening;
        let kept: Vec<_> = epochs
            .entries()
            .iter()
            .copied()
            .filter(|(_, first)| *first <= log_end)
            .collect();
        epochs = LeaderEpochCache::from_entries(kept).unwrap_or_default();
        let expected = positions.high_watermark.max(positions.recovery_point);
        let damaged = if log_end < expected {
            Some(format!(
                "the log ends at {log_end}, but had been flushed or committed to {expected}"
            ))
        } else {
            corrupt.filter(|_| cx.same_boot)
        };
        if let (None, Some(first)) = (known, segments.first()) {
            positions.log_start = first.base;
        }
        let active = segments.last().cloned().ok_or_else(|| LogError::Corrupt {
            path: path.to_owned(),
            position: 0,
            reason: "a log without a segment".to_owned(),
        })?;
        let had = Some(expected).filter(|expected| *expected > log_end);
        let had = had.max(marked.as_ref().and_then(|mark| mark.had));
        let damaged = marked.map(|mark| mark.why).or(damaged);
        if let Some(why) = &damaged {
            // Before anything says that the log was never longer: until the cluster has been told.
            mark_damaged(&*dir, path, why, had)?;
        }
        let positions_file = dir
            .open(&positions_path, OpenMode::Append)
            .map_err(at(&positions_path))?;
        let mut log = Self {
            shared: Arc::new(Shared::new(
                segments,
                positions.log_start,
                options.tail_cache_bytes,
            )),
            dir: Arc::clone(&dir),
            path: path.to_owned(),
            options,
            active,
            active_since: None,
            log_start: positions.log_start,
            log_end,
            flushed_end: log_end,
            high_watermark: positions.high_watermark.min(log_end),
            epochs,
            producers,
            generation: 0,
            dirty: Vec::new(),
            dirty_folder: true,
            in_flight: None,
            failed: None,
            in_pieces: false,
            positions: Arc::new(positions_file),
            checkpointed: positions,
            has_set_aside: false,
        };
        log.has_set_aside = !log.set_aside_files()?.is_empty();
        log.sync_recovered(stored.map_or(0, |file| file.len()))?;
        Ok((
            log,
            RecoveryReport {
                had: had.filter(|_| damaged.is_some()),
                damaged,
                truncated_bytes,
                log_end,
            },
        ))
    }

    /// Syncs every file that may hold what is not on the disk yet, and begins the checkpoint file
    /// anew, so that what it says is no more than what is there.
    fn sync_recovered(&mut self, positions_len: usize) -> Result<(), LogError> {
        let segments = self.shared.segments.read().clone();
        for segment in segments {
            self.mark_dirty(&segment.file);
        }
        self.remove_snapshots_above(self.log_end)?;
        self.sync_now()?;
        let now = Positions {
            high_watermark: self.high_watermark,
            recovery_point: self.flushed_end,
            log_start: self.log_start,
        };
        if now != self.checkpointed || !positions_len.is_multiple_of(POSITIONS_LEN) {
            self.replace_positions(now)?;
            self.checkpointed = now;
        }
        Ok(())
    }
}

impl<D: Dir> Opening<'_, D> {
    /// Opens all segments in order, checks those from the recovery point on, cuts where the log
    /// ends; gives its end.
    fn segments(&mut self, recover_from: Offset, positions: Positions) -> Result<Offset, LogError> {
        let names = self.dir.list(self.path).map_err(at(self.path))?;
        let mut bases: Vec<Offset> = names
            .iter()
            .filter_map(|entry| base_of(&entry.name, "log"))
            .collect();
        if let Some(start) = self.known_start {
            // Segments wholly below the log's start were removed, whether or not the disk knows yet.
            let stale = bases.partition_point(|base| *base <= start);
            for base in bases.drain(..stale.saturating_sub(1)) {
                self.remove(base)?;
            }
        }
        // Segments that are lost in front leave a hole like any other.
        let in_place = |base: &Offset| self.known_start.is_none_or(|start| *base <= start);
        let first = bases.first().copied().filter(in_place);
        let first = first.unwrap_or(positions.log_start);
        let mut end = first;
        let mut ended = false;
        self.epoch = LeaderEpoch::ZERO;
        for (at_index, base) in bases.iter().copied().enumerate() {
            let path = format!("{}/{}", self.path, file_name(base, "log"));
            if ended || base != end {
                // What follows a hole or a cut is no part of the log.
                let file = self.dir.open(&path, OpenMode::Read).map_err(at(&path))?;
                let size = file.len().map_err(at(&path))?;
                if size > 0 || !ended {
                    self.note_corrupt(format!("{path} does not follow offset {end}"));
                }
                self.truncated_bytes += size;
                ended = true;
                self.mark_if_corrupt()?;
                if self.may_have_counted(end) {
                    self.keep(self.rename_aside(base), base);
                }
                self.remove(base)?;
                continue;
            }
            let next_base = bases.get(at_index + 1).copied();
            let below = next_base.is_some_and(|next| next <= recover_from);
            let trusted = if below && !self.scanned {
                self.trusted(base, next_base)?
            } else {
                None
            };
            let file = self.dir.open(&path, OpenMode::Append).map_err(at(&path))?;
            let (index, size, segment_end) = match trusted {
                Some((index, size)) => (index, size, next_base.unwrap_or(base)),
                None => {
                    let scanned = self.scan(&file, &path, base)?;
                    if let Some((why, incomplete)) = scanned.cut {
                        let length = file.len().map_err(at(&path))?;
                        warn!(file = path, position = scanned.size, %why, "log cut");
                        if !incomplete {
                            let position = scanned.size;
                            self.note_corrupt(format!("{path}, position {position}: {why}"));
                        }
                        self.truncated_bytes += length - scanned.size;
                        self.mark_if_corrupt()?;
                        if !incomplete && self.may_have_counted(scanned.end) {
                            self.keep(self.set_aside(base, scanned.size, length), base);
                        }
                        file.truncate(scanned.size).map_err(at(&path))?;
                        ended = true;
                    }
                    if let (true, Some(from)) = (self.same_boot, scanned.unsure_from) {
                        self.write_again(&path, from, scanned.size)?;
                    }
                    (scanned.index, scanned.size, scanned.end)
                }
            };
            end = segment_end;
            self.segments
                .push(Arc::new(Segment::new(base, path, file, size, index)));
        }
        if end < positions.log_start {
            // Nothing of what is left belongs to the log: it was to begin anew behind it (R15), or
            // all above was never written.
            for segment in std::mem::take(&mut self.segments) {
                self.remove(segment.base)?;
            }
            end = positions.log_start;
            self.epochs = LeaderEpochCache::default();
            let none = encode_epochs(&self.epochs);
            replace_file(&**self.dir, self.path, EPOCHS_FILE, &none).map_err(at(self.path))?;
            for base in names
                .iter()
                .filter_map(|entry| base_of(&entry.name, "snapshot"))
            {
                let path = format!("{}/{}", self.path, file_name(base, "snapshot"));
                remove_if_there(&**self.dir, &path)?;
            }
        }
        let first = first.max(end.min(positions.log_start));
        if self.segments.is_empty() {
            let path = format!("{}/{}", self.path, file_name(first, "log"));
            let file = self.dir.open(&path, OpenMode::Append).map_err(at(&path))?;
            self.segments.push(Arc::new(Segment::new(
                first,
                path,
                file,
                0,
                Index::default(),
            )));
        }
        Ok(end)
    }

    /// Writes what may be in the page cache only once more, in place: after a sync that failed in
    /// the last life the kernel takes those pages for written, and no further sync would write
    /// them (R13).
    fn write_again(&self, path: &str, from: u64, to: u64) -> Result<(), LogError> {
        let file = self.dir.open(path, OpenMode::Overwrite).map_err(at(path))?;
        let mut position = from;
        let mut buffer = vec![0; SCAN.min((to - from) as usize)];
        while position < to {
            let piece = &mut buffer[..SCAN.min((to - position) as usize)];
            file.read_at(piece, position).map_err(at(path))?;
            file.write_at(piece, position).map_err(at(path))?;
            position += piece.len() as u64;
        }
        file.sync_data().map_err(at(path))
    }

    /// Before a cut: after it nothing would show what was there.
    fn mark_if_corrupt(&self) -> Result<(), LogError> {
        match &self.corrupt {
            Some(why) if self.same_boot => {
                mark_damaged(&**self.dir, self.path, why, Some(self.expected))
            }
            _ => Ok(()),
        }
    }

    /// Whether what is cut at `end` may have been acknowledged: it had been flushed or committed, or
    /// was only ever in this machine's memory and that has not been lost.
    fn may_have_counted(&self, end: Offset) -> bool {
        self.same_boot || end < self.expected
    }

    /// What cannot be kept, on a full disk perhaps, keeps no log from being opened.
    fn keep(&self, kept: Result<(), LogError>, base: Offset) {
        if let Err(error) = kept {
            let path = format!("{}/{}", self.path, file_name(base, "log"));
            warn!(file = path, %error, "what is cut cannot be kept");
        }
    }

    /// Keeps a segment that is no part of the log.
    fn rename_aside(&self, base: Offset) -> Result<(), LogError> {
        let path = format!("{}/{}", self.path, file_name(base, "log"));
        let aside = format!("{path}.{SET_ASIDE}");
        remove_if_there(&**self.dir, &aside)?;
        self.dir.rename(&path, &aside).map_err(at(&path))
    }

    /// Keeps what is about to be cut from a segment that goes on, all of it where its first batch is
    /// damaged: as a copy, since the file is open, for people to look into: where no other replica
    /// has it, it is all that is left.
    fn set_aside(&self, base: Offset, from: u64, to: u64) -> Result<(), LogError> {
        let path = format!("{}/{}", self.path, file_name(base, "log"));
        let aside = format!("{path}.{SET_ASIDE}");
        remove_if_there(&**self.dir, &aside)?;
        let source = self.dir.open(&path, OpenMode::Read).map_err(at(&path))?;
        let kept = self
            .dir
            .open(&aside, OpenMode::Append)
            .map_err(at(&aside))?;
        let mut position = from;
        let mut buffer = vec![0; SCAN.min((to - from) as usize)];
        while position < to {
            let piece = &mut buffer[..SCAN.min((to - position) as usize)];
            source.read_at(piece, position).map_err(at(&path))?;
            kept.append(&[piece]).map_err(at(&aside))?;
            position += piece.len() as u64;
        }
        kept.sync_data().map_err(at(&aside))
    }

    fn note_corrupt(&mut self, what: String) {
        self.corrupt.get_or_insert(what);
    }

    fn remove(&self, base: Offset) -> Result<(), LogError> {
        for extension in ["index", "timeindex", "log"] {
            let path = format!("{}/{}", self.path, file_name(base, extension));
            remove_if_there(&**self.dir, &path)?;
        }
        Ok(())
    }

    /// The index of a closed segment below the recovery point, where its files are whole and fit.
    fn trusted(
        &self,
        base: Offset,
        next_base: Option<Offset>,
    ) -> Result<Option<(Index, u64)>, LogError> {
        let read = |extension| {
            let path = format!("{}/{}", self.path, file_name(base, extension));
            read_file(&**self.dir, &path).map_err(at(&path))
        };
        let (Some(offsets), Some(times)) = (read("index")?, read("timeindex")?) else {
            return Ok(None);
        };
        let path = format!("{}/{}", self.path, file_name(base, "log"));
        let file = self.dir.open(&path, OpenMode::Read).map_err(at(&path))?;
        let length = file.len().map_err(at(&path))?;
        Ok(Index::decode(&offsets, &times)
            .filter(|(_, size, end)| *size == length && Some(*end) == next_base)
            .map(|(index, size, _)| (index, size)))
    }

    /// Checks every batch of a segment: CRC, offsets one after the other, epochs that do not fall.
    fn scan(&mut self, file: &D::File, path: &str, base: Offset) -> Result<Scanned, LogError> {
        self.scanned = true;
        let length = file.len().map_err(at(path))?;
        let mut found = Scanned {
            index: Index::default(),
            size: 0,
            end: base,
            unsure_from: None,
            cut: None,
        };
        // What the epochs file says of this segment is replaced by what its batches say; an epoch
        // that began at its end and holds no batch is kept.
        let mut epoch = self.epoch;
        while found.size < length {
            match next_batch(file, path, found.size, length)? {
                Ok(batch) => {
                    let header = batch.header();
                    let follows = header.base_offset == found.end && header.leader_epoch >= epoch;
                    if !follows || !batch.is_stamped() {
                        let why = BatchError::Records("offset or epoch does not follow");
                        found.cut = Some((why, false));
                        break;
                    }
                    epoch = header.leader_epoch;
                    let (base, end) = (header.base_offset, header.end_offset());
                    self.epochs.note_records(epoch, base, end);
                    let interval = self.options.index_interval_bytes;
                    found.index.note(header, found.size, interval);
                    if header.end_offset() > self.recovery_point {
                        found.unsure_from.get_or_insert(found.size);
                    }
                    found.size += header.size as u64;
                    found.end = header.end_offset();
                }
                Err(why) => {
                    // A changed length looks like a batch that ends beyond the file; then whole
                    // ones follow.
                    let incomplete = matches!(why, BatchError::Truncated { .. })
                        && !SegmentWalk::open(&**self.dir, self.path, base)?
                            .whole_after(found.size, found.end, epoch)?;
                    found.cut = Some((why, incomplete));
                    break;
                }
            }
        }
        self.epoch = epoch;
        Ok(found)
    }
}

pub(crate) fn next_batch<F: DirFile>(
    file: &F,
    path: &str,
    position: u64,
    length: u64,
) -> Result<Result<Batch, BatchError>, LogError> {
    let left = length - position;
    let mut head = [0; HEADER_LEN];
    let have = head.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    file.read_at(&mut head[..have], position)
        .map_err(at(path))?;
    let size = match BatchHeader::size_of(&head[..have]) {
        Ok(size) => size,
        Err(why) => return Ok(Err(why)),
    };
    if size > BATCH_MAX {
        // A length that only damage explains takes no memory.
        let length = i32::try_from(size).unwrap_or(i32::MAX);
        return Ok(Err(BatchError::Length(length)));
    }
    if size as u64 > left {
        return Ok(Err(BatchError::Truncated {
            have: left as usize,
            need: size,
        }));
    }
    let mut bytes = vec![0; size];
    for (chunk, part) in bytes.chunks_mut(SCAN).enumerate() {
        file.read_at(part, position + (chunk * SCAN) as u64)
            .map_err(at(path))?;
    }
    Ok(Batch::parse(Bytes::from(bytes)))
}
