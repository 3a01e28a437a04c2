//! The log of one partition, as its one writer sees it.

use std::sync::Arc;

use quorate_record::{Batch, LeaderEpochCache, ProducerStates};
use quorate_types::{Faults, LeaderEpoch, Offset, Timestamp};

use crate::checkpoint::{POSITIONS_LEN, Positions, encode_epochs, frame};
use crate::dir::{Dir, DirFile, OpenMode, replace_file};
use crate::error::{LogError, at};
use crate::flush::{FlushDone, FlushTicket};
use crate::reader::{LogReader, Shared};
use crate::segment::{Index, Segment, file_name};
use crate::tail::TailBudget;

pub(crate) const EPOCHS_FILE: &str = "leader-epoch-checkpoint";
pub(crate) const POSITIONS_FILE: &str = "checkpoint";

/// The positions file is written anew beyond this size, in bytes.
const POSITIONS_MAX: u64 = 64 << 10;

/// Snapshots of the producers kept besides the newest.
const SNAPSHOTS_KEPT: usize = 1;

/// Settings of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment is closed before it would pass so many bytes (`segment.bytes`).
    pub segment_bytes: u64,
    /// A segment is closed after so many milliseconds (`segment.ms`).
    pub segment_ms: u64,
    /// Bytes between two entries of the sparse index.
    pub index_interval_bytes: u32,
    /// Bytes of the newest batches kept in memory for readers, within what [`TailBudget`] leaves.
    pub tail_cache_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            index_interval_bytes: 16 << 10,
            tail_cache_bytes: 4 << 20,
        }
    }
}

/// A flush under way. Only its completion tells whether the disk took what it covers: a second
/// sync of the same file would not be told of an error that the first one met (R13).
pub(crate) struct InFlight<D: Dir> {
    files: Vec<Arc<D::File>>,
    folder: bool,
    /// Synced meanwhile by the log itself; counts once the flush has succeeded.
    synced: Offset,
}

/// One partition's log. Offsets are exclusive ends.
pub struct PartitionLog<D: Dir> {
    pub(crate) dir: Arc<D>,
    pub(crate) path: String,
    pub(crate) options: LogOptions,
    pub(crate) shared: Arc<Shared<D>>,
    /// The segment that is appended to; the last of the shared ones.
    pub(crate) active: Arc<Segment<D>>,
    pub(crate) active_since: Option<Timestamp>,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    pub(crate) flushed_end: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) epochs: LeaderEpochCache,
    pub(crate) producers: ProducerStates,
    pub(crate) generation: u64,
    /// Files with content that is not synced.
    pub(crate) dirty: Vec<Arc<D::File>>,
    /// Names that are not synced.
    pub(crate) dirty_folder: bool,
    /// What a flush that is under way covers.
    pub(crate) in_flight: Option<InFlight<D>>,
    pub(crate) failed: Option<String>,
    /// Its files are no log any more: only its next opening helps.
    pub(crate) in_pieces: bool,
    pub(crate) positions: Arc<D::File>,
    pub(crate) checkpointed: Positions,
    /// Something was cut from the damaged log and kept.
    pub(crate) has_set_aside: bool,
}

impl<D: Dir> PartitionLog<D> {
    /// First offset held.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// What people know the partition by: `orders-3`, the name of its directory without the topic's
    /// id.
    pub fn name(&self) -> &str {
        let folder = self.path.rsplit('/').next().unwrap_or(&self.path);
        folder.rsplit_once('.').map_or(folder, |(name, _)| name)
    }

    /// Offset that the next record gets (LEO).
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Everything below is on the disk (R13).
    pub fn flushed_end(&self) -> Offset {
        self.flushed_end
    }

    /// High watermark as last set; on open the checkpointed one.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Epoch of the last batch, or a newer one begun since.
    pub fn last_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.last()
    }

    /// Epoch of the last record; none where there is no record.
    pub fn last_record_epoch(&self) -> Option<LeaderEpoch> {
        let last = self.log_end.get().checked_sub(1).map(Offset::new)?;
        (last >= self.log_start).then(|| self.epochs.epoch_at(last))?
    }

    /// Keeps the newest batches in memory only within what all logs may take together.
    pub fn share_tail(&self, budget: Arc<TailBudget>) {
        self.shared.share_tail(budget);
    }

    /// Epochs and their first offsets.
    pub fn epochs(&self) -> &LeaderEpochCache {
        &self.epochs
    }

    /// State of the idempotent producers.
    pub fn producers(&self) -> &ProducerStates {
        &self.producers
    }

    /// Ends a round of the producers' silence ([`ProducerStates::age`]); gives how many were
    /// forgotten. Those of whom the log, or a snapshot, still tells are known again, and counted
    /// silent from then on, where the state is made of it: with an opening and with a cut.
    pub fn age_producers(&mut self) -> usize {
        self.producers.age()
    }

    /// Truncations since it was opened.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A reader for other threads.
    pub fn reader(&self) -> LogReader<D> {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Takes new settings into use; the present segment keeps what it holds.
    pub fn set_options(&mut self, options: LogOptions) {
        self.options = options;
    }

    pub(crate) fn usable(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(why) => Err(LogError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn fail(&mut self, error: LogError) -> LogError {
        self.failed = Some(error.to_string());
        error
    }

    /// Appends a batch that has its offset and epoch, to the page cache; `now` decides when a
    /// segment is old enough to be closed.
    ///
    /// # Errors
    /// [`LogError::NotAtEnd`] and [`LogError::EpochFell`] change nothing. After an error of the
    /// disk the log takes nothing more until it is cut (R13).
    pub fn append(&mut self, batch: &Batch, now: Timestamp) -> Result<(), LogError> {
        self.append_all(std::slice::from_ref(batch), now)
    }

    /// The same for several, one after the other: one write for those that share a segment.
    ///
    /// # Errors
    /// [`LogError::NotAtEnd`] and [`LogError::EpochFell`] change nothing, whichever batch it is.
    /// After an error of the disk the log takes nothing more until it is cut (R13).
    pub fn append_all(&mut self, batches: &[Batch], now: Timestamp) -> Result<(), LogError> {
        self.usable()?;
        let (mut end, mut last) = (self.log_end, self.last_record_epoch());
        for batch in batches {
            let (expected, got) = (end, batch.base_offset());
            if got != expected {
                return Err(LogError::NotAtEnd { expected, got });
            }
            let got = batch.leader_epoch();
            if let Some(last) = last.filter(|last| got < *last) {
                return Err(LogError::EpochFell { last, got });
            }
            (end, last) = (batch.end_offset(), Some(got));
        }
        let mut rest = batches;
        while let [first, ..] = rest {
            if self.must_roll(first, now) {
                self.roll().map_err(|error| self.fail(error))?;
            }
            let fitting = self.fitting(rest);
            let (run, later) = rest.split_at(fitting);
            self.write_run(run, now)?;
            rest = later;
        }
        Ok(())
    }

    /// How many of the batches go into the active segment; the first always does.
    fn fitting(&self, batches: &[Batch]) -> usize {
        let mut size = self.active.size();
        let fits = |batch: &&Batch| {
            size += batch.size() as u64;
            size <= self.options.segment_bytes
        };
        batches.iter().take_while(fits).count().max(1)
    }

    fn write_run(&mut self, run: &[Batch], now: Timestamp) -> Result<(), LogError> {
        let segment = Arc::clone(&self.active);
        let written = match run {
            [one] => segment.file.append(&[one.bytes()]),
            many => {
                let parts: Vec<&[u8]> = many.iter().map(|batch| &batch.bytes()[..]).collect();
                segment.file.append(&parts)
            }
        };
        if let Err(error) = written {
            return Err(self.fail(at(&segment.path)(error)));
        }
        self.active_since.get_or_insert(now);
        let interval = self.options.index_interval_bytes;
        let mut position = segment.size();
        let mut index = segment.index.write();
        for batch in run {
            index.note(batch.header(), position, interval);
            position += batch.size() as u64;
            let (epoch, base) = (batch.leader_epoch(), batch.base_offset());
            self.epochs.note_records(epoch, base, batch.end_offset());
            self.producers.update(batch.header());
            self.log_end = batch.end_offset();
        }
        drop(index);
        segment.set_size(position);
        self.shared.appended(run);
        self.mark_dirty(&segment.file);
        Ok(())
    }

    fn must_roll(&self, batch: &Batch, now: Timestamp) -> bool {
        let size = self.active.size();
        if size == 0 {
            return false;
        }
        let age = self
            .active_since
            .map_or(0, |since| now.millis() - since.millis());
        size + batch.size() as u64 > self.options.segment_bytes
            || u64::try_from(age).is_ok_and(|age| age >= self.options.segment_ms)
    }

    pub(crate) fn mark_dirty(&mut self, file: &Arc<D::File>) {
        if !self.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, file)) {
            self.dirty.push(Arc::clone(file));
        }
    }

    /// Closes the active segment and begins the next. What a restart reads instead of the closed
    /// segment (epochs, producers, index) is durable before.
    fn roll(&mut self) -> Result<(), LogError> {
        self.sync_now()?;
        self.write_epochs()?;
        self.write_snapshot()?;
        self.write_index()?;
        let path = format!("{}/{}", self.path, file_name(self.log_end, "log"));
        let file = self.dir.open(&path, OpenMode::Append).map_err(at(&path))?;
        let segment = Arc::new(Segment::new(self.log_end, path, file, 0, Index::default()));
        self.shared.segments.write().push(Arc::clone(&segment));
        self.active = segment;
        self.active_since = None;
        // The name is synced with the first flush of the new segment.
        self.dirty_folder = true;
        Ok(())
    }

    pub(crate) fn write_epochs(&self) -> Result<(), LogError> {
        replace_file(
            &*self.dir,
            &self.path,
            EPOCHS_FILE,
            &encode_epochs(&self.epochs),
        )
        .map_err(at(&self.path))
    }

    fn write_snapshot(&self) -> Result<(), LogError> {
        let name = file_name(self.log_end, "snapshot");
        replace_file(
            &*self.dir,
            &self.path,
            &name,
            &frame(&self.producers.encode()),
        )
        .map_err(at(&self.path))?;
        let names = self.dir.list(&self.path).map_err(at(&self.path))?;
        let snapshots: Vec<_> = names
            .iter()
            .filter(|entry| entry.name.ends_with(".snapshot"))
            .collect();
        let old = snapshots.len().saturating_sub(1 + SNAPSHOTS_KEPT);
        for entry in &snapshots[..old] {
            let path = format!("{}/{}", self.path, entry.name);
            self.dir.remove_file(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    fn write_index(&self) -> Result<(), LogError> {
        let segment = &self.active;
        let (offsets, times) = segment.index.read().encode(segment.size(), self.log_end);
        for (extension, bytes) in [("index", offsets), ("timeindex", times)] {
            let name = file_name(segment.base, extension);
            replace_file(&*self.dir, &self.path, &name, &bytes).map_err(at(&self.path))?;
        }
        Ok(())
    }

    /// Syncs everything here and now. While a flush is under way it counts only with that.
    pub(crate) fn sync_now(&mut self) -> Result<(), LogError> {
        let in_flight = self.in_flight.iter().flat_map(|flight| &flight.files);
        for file in in_flight.chain(&self.dirty) {
            file.sync_data().map_err(at(&self.path))?;
        }
        if self.dirty_folder || self.in_flight.as_ref().is_some_and(|flight| flight.folder) {
            self.dir.sync_dir(&self.path).map_err(at(&self.path))?;
        }
        self.dirty.clear();
        self.dirty_folder = false;
        match &mut self.in_flight {
            Some(flight) => flight.synced = self.log_end,
            None => self.flushed_end = self.log_end,
        }
        Ok(())
    }

    /// Makes an epoch's beginning durable before anything is appended in it (R4): flushes, then
    /// writes epoch → log end.
    ///
    /// # Errors
    /// Of the disk; the log then takes nothing more.
    pub fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), LogError> {
        self.usable()?;
        let begun = self.sync_now().and_then(|()| {
            self.epochs.assign(epoch, self.log_end);
            self.write_epochs()
        });
        begun.map_err(|error| self.fail(error))
    }

    /// A flush of what is dirty; none where nothing is, where one is under way, or where the log
    /// has failed.
    pub fn start_flush(&mut self) -> Option<FlushTicket<D>> {
        let clean = self.dirty.is_empty() && !self.dirty_folder;
        if clean || self.in_flight.is_some() || self.failed.is_some() {
            return None;
        }
        let files = std::mem::take(&mut self.dirty);
        let folder = std::mem::take(&mut self.dirty_folder);
        self.in_flight = Some(InFlight {
            files: files.clone(),
            folder,
            synced: Offset::ZERO,
        });
        Some(FlushTicket {
            dir: Arc::clone(&self.dir),
            files,
            folder: folder.then(|| self.path.clone()),
            end: self.log_end,
            generation: self.generation,
        })
    }

    /// Takes a flush's completion; the end of one from before a truncation means nothing (R13).
    ///
    /// # Errors
    /// When the flush failed: the log takes nothing more until it is cut.
    pub fn complete_flush(&mut self, done: FlushDone) -> Result<(), LogError> {
        let synced = self.in_flight.take().map(|flight| flight.synced);
        if let Some(error) = done.error {
            return Err(self.fail(at(&self.path)(error)));
        }
        if self.failed.is_some() {
            // Another sync of the same files has failed meanwhile: this one was not told of it.
            return Ok(());
        }
        let end = synced.unwrap_or_default();
        self.flushed_end = self.flushed_end.max(end);
        if done.generation == self.generation || D::Faults::STALE_FLUSH {
            self.flushed_end = self.flushed_end.max(done.end);
        }
        Ok(())
    }

    /// Sets the high watermark; kept within the log. Reaches the disk with the next checkpoint.
    pub fn set_high_watermark(&mut self, high_watermark: Offset) {
        self.high_watermark = high_watermark.min(self.log_end).max(self.log_start);
    }

    /// Notes high watermark and recovery point for a restart, where they have changed. Survives a
    /// kill at once and a power loss from the next flush on.
    ///
    /// # Errors
    /// Of the disk.
    pub fn checkpoint(&mut self) -> Result<(), LogError> {
        self.usable()?;
        let now = Positions {
            // Beyond what is flushed a power loss may take it, and would not be damage (R9, R10).
            high_watermark: self.high_watermark.min(self.flushed_end),
            recovery_point: self.flushed_end,
            log_start: self.log_start,
        };
        if now == self.checkpointed {
            return Ok(());
        }
        let written = self.write_positions(now);
        written.map_err(|error| self.fail(error))
    }

    pub(crate) fn write_positions(&mut self, now: Positions) -> Result<(), LogError> {
        let size = self.positions.len().map_err(at(&self.path))?;
        if size + POSITIONS_LEN as u64 > POSITIONS_MAX {
            self.replace_positions(now)?;
        } else {
            self.positions
                .append(&[&now.encode()])
                .map_err(at(&self.path))?;
            let positions = Arc::clone(&self.positions);
            self.mark_dirty(&positions);
        }
        self.checkpointed = now;
        Ok(())
    }

    pub(crate) fn replace_positions(&mut self, now: Positions) -> Result<(), LogError> {
        replace_file(&*self.dir, &self.path, POSITIONS_FILE, &now.encode())
            .map_err(at(&self.path))?;
        let path = format!("{}/{POSITIONS_FILE}", self.path);
        self.positions = Arc::new(self.dir.open(&path, OpenMode::Append).map_err(at(&path))?);
        Ok(())
    }

    /// Flushes and writes everything that makes the next opening quick.
    ///
    /// # Errors
    /// Of the disk; [`LogError::Failed`] while a flush is under way: it may have met an error that
    /// no later sync is told of (R13).
    pub fn close(mut self) -> Result<(), LogError> {
        self.usable()?;
        if self.in_flight.is_some() {
            let why = "a flush is under way, and how it ends is not known";
            return Err(LogError::Failed(why.to_owned()));
        }
        self.sync_now()?;
        self.write_epochs()?;
        self.write_snapshot()?;
        self.write_index()?;
        self.checkpoint()?;
        self.sync_now()
    }
}
