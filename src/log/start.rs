//! Where a log begins: what lies below is given up for good, by retention or because a follower is
//! behind all that its leader still has (R15).

use std::sync::Arc;

use quorate_record::{LeaderEpochCache, ProducerStates};
use quorate_types::Offset;

use crate::checkpoint::Positions;
use crate::dir::{Dir, OpenMode};
use crate::error::{LogError, at};
use crate::partition_log::PartitionLog;
use crate::reader::find;
use crate::segment::{Index, Segment, file_name};

impl<D: Dir> PartitionLog<D> {
    /// Raises the log's start to `offset`, or to the beginning of the batch that holds it: a follower
    /// that begins anew there (R15) must be able to append what it is sent. Not above the high
    /// watermark or what is on the disk; durable when it returns. Segments that lie wholly below are
    /// removed.
    ///
    /// # Errors
    /// Of the disk; the log then takes nothing more.
    pub fn delete_before(&mut self, offset: Offset) -> Result<(), LogError> {
        self.usable()?;
        let start = offset.min(self.high_watermark).min(self.flushed_end);
        if start <= self.log_start {
            return Ok(());
        }
        let start = self.base_of_batch_at(start)?;
        if start <= self.log_start {
            return Ok(());
        }
        let deleted = self.begin_at(start);
        deleted.map_err(|error| self.fail(error))
    }

    /// The first offset of the batch that holds `offset`; the same where there is none.
    ///
    /// # Errors
    /// Of the disk, or of a segment whose batches cannot be followed.
    pub fn base_of_batch_at(&self, offset: Offset) -> Result<Offset, LogError> {
        let segments = self.shared.segments.read().clone();
        let holder = segments.partition_point(|segment| segment.base <= offset);
        let Some(segment) = holder.checked_sub(1).and_then(|at| segments.get(at)) else {
            return Ok(offset);
        };
        let from = segment.index.read().position_of(offset);
        let found = find(segment, from, segment.size(), |header| {
            header.end_offset() > offset
        })?;
        Ok(found.map_or(offset, |(_, header)| header.base_offset))
    }

    fn begin_at(&mut self, start: Offset) -> Result<(), LogError> {
        self.log_start = start;
        let positions = Positions {
            high_watermark: self.high_watermark.min(self.flushed_end),
            recovery_point: self.flushed_end,
            log_start: start,
        };
        // First: a crash in between finds segments that it does not need, and never the reverse.
        self.replace_positions(positions)?;
        self.checkpointed = positions;
        self.shared.begins_at(start);
        let segments = self.shared.segments.read().clone();
        let below = segments.partition_point(|segment| segment.base <= start);
        let below = &segments[..below.saturating_sub(1)];
        self.shared.segments.write().drain(..below.len());
        for segment in below {
            self.dirty.retain(|file| !Arc::ptr_eq(file, &segment.file));
            self.remove_segment(segment)?;
        }
        if !below.is_empty() {
            self.dirty_folder = true;
        }
        Ok(())
    }

    /// Gives up all that the log holds and begins anew, empty, at `start`; durable when it returns.
    /// For a follower outside the ISR that is behind its leader's start (R15).
    ///
    /// # Errors
    /// Of the disk; the log then takes nothing more until it is opened again.
    pub fn restart_at(&mut self, start: Offset) -> Result<(), LogError> {
        self.usable()?;
        self.generation += 1;
        let restarted = self.begin_anew(start);
        restarted.map_err(|error| {
            self.in_pieces = true;
            self.fail(error)
        })
    }

    fn begin_anew(&mut self, start: Offset) -> Result<(), LogError> {
        // First what a crash in between would measure the log by: an opening that finds a log that
        // ends below its start begins anew, too.
        let positions = Positions {
            high_watermark: start,
            recovery_point: start,
            log_start: start,
        };
        self.replace_positions(positions)?;
        self.checkpointed = positions;
        // Then what is derived from the log, so that no crash leaves it to another one.
        self.epochs = LeaderEpochCache::default();
        self.producers = ProducerStates::default();
        self.write_epochs()?;
        self.remove_snapshots_above(Offset::ZERO)?;
        self.dir.sync_dir(&self.path).map_err(at(&self.path))?;
        let segments = self.shared.segments.read().clone();
        for segment in segments.iter().rev() {
            self.remove_segment(segment)?;
        }
        let path = format!("{}/{}", self.path, file_name(start, "log"));
        let file = self.dir.open(&path, OpenMode::Append).map_err(at(&path))?;
        self.active = Arc::new(Segment::new(start, path, file, 0, Index::default()));
        self.active_since = None;
        *self.shared.segments.write() = vec![Arc::clone(&self.active)];
        self.shared.truncated(Offset::ZERO);
        self.shared.begins_at(start);
        self.log_start = start;
        self.log_end = start;
        self.flushed_end = start;
        self.high_watermark = start;
        self.dirty.clear();
        self.dirty_folder = true;
        self.sync_now()
    }
}
