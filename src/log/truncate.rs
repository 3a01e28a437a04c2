//! Cutting a log (R4): durable before it returns, with everything that is derived from the log.

use std::sync::Arc;

use quorate_record::ProducerStates;
use quorate_types::{Faults, Offset};

use crate::checkpoint::{Positions, unframe};
use crate::dir::{Dir, DirFile, read_file};
use crate::error::{LogError, ReadError, at};
use crate::partition_log::PartitionLog;
use crate::reader::find;
use crate::segment::{Segment, base_of, file_name};

impl From<ReadError> for LogError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io { path, source } => Self::Io { path, source },
            ReadError::Corrupt {
                path,
                position,
                source,
                ..
            } => Self::Corrupt {
                path,
                position,
                reason: source.to_string(),
            },
            ReadError::NotThere(offset) => Self::Corrupt {
                path: String::new(),
                position: 0,
                reason: format!("offset {offset} is not in the log"),
            },
        }
    }
}

impl<D: Dir> PartitionLog<D> {
    /// Cuts the log to `end`, or to the beginning of the batch that holds it; epochs, producers,
    /// flushed end and high watermark go back with it. Flushes that are under way no longer count.
    ///
    /// # Errors
    /// Of the disk; the log then takes nothing more.
    pub fn truncate_to(&mut self, end: Offset) -> Result<(), LogError> {
        self.usable()?;
        if end >= self.log_end {
            return Ok(());
        }
        self.generation += 1;
        let cut = self.cut(end.max(self.log_start));
        cut.map_err(|error| self.fail(error))
    }

    /// After a failed write or sync: cuts to the last good sync and takes appends again (R13).
    ///
    /// # Errors
    /// Of the disk; the log stays failed.
    pub fn cut_to_flushed(&mut self) -> Result<(), LogError> {
        if self.in_pieces {
            self.usable()?;
        }
        self.failed = None;
        self.generation += 1;
        // What a write of half a batch has left never was the log's; on a full disk it holds the room
        // that the cut takes.
        let active = &self.active;
        let tail = active.file.truncate(active.size());
        let tail = tail.map_err(at(&active.path));
        let cut = tail.and_then(|()| self.cut(self.flushed_end));
        cut.map_err(|error| self.fail(error))
    }

    fn cut(&mut self, end: Offset) -> Result<(), LogError> {
        let segments = self.shared.segments.read().clone();
        let holder = segments
            .partition_point(|segment| segment.base <= end)
            .saturating_sub(1);
        let segment = Arc::clone(&segments[holder]);
        let start = segment.index.read().position_of(end);
        let (position, cut) = match find(&segment, start, segment.size(), |header| {
            header.end_offset() > end
        })? {
            Some((position, header)) if D::Faults::SHORT_CUT => {
                (position + header.size as u64, header.end_offset())
            }
            Some((position, header)) => (position, header.base_offset),
            None => (segment.size(), end),
        };
        // First what a crash in between would measure the log by: it must not call it damaged.
        let high_watermark = self.high_watermark.min(cut);
        let recovery_point = self.flushed_end.min(cut);
        let positions = Positions {
            high_watermark: high_watermark.min(recovery_point),
            recovery_point,
            log_start: self.log_start,
        };
        self.replace_positions(positions)?;
        self.checkpointed = positions;
        for later in segments[holder + 1..].iter().rev() {
            self.remove_segment(later)?;
            // Where the cut fails further on it is tried again.
            self.shared.segments.write().pop();
        }
        let same_path = |extension| format!("{}/{}", self.path, file_name(segment.base, extension));
        for extension in ["index", "timeindex"] {
            remove_if_there(&*self.dir, &same_path(extension))?;
        }
        segment.set_size(position);
        segment.index.write().truncate_to(position);
        self.shared.truncated(cut);
        segment.file.truncate(position).map_err(at(&segment.path))?;
        self.active = segment;
        let active = Arc::clone(&self.active.file);
        self.mark_dirty(&active);
        self.dirty_folder = true;
        self.log_end = cut;
        self.flushed_end = recovery_point;
        self.high_watermark = high_watermark;
        self.epochs.truncate_to(cut);
        self.write_epochs()?;
        self.remove_snapshots_above(cut)?;
        if !D::Faults::KEEP_PRODUCERS {
            self.producers = load_producers(&*self.dir, &self.path, &segments[..=holder], cut)?;
        }
        self.sync_now()
    }

    pub(crate) fn remove_segment(&self, segment: &Segment<D>) -> Result<(), LogError> {
        for extension in ["index", "timeindex"] {
            let path = format!("{}/{}", self.path, file_name(segment.base, extension));
            remove_if_there(&*self.dir, &path)?;
        }
        self.dir
            .remove_file(&segment.path)
            .map_err(at(&segment.path))
    }

    pub(crate) fn remove_snapshots_above(&self, end: Offset) -> Result<(), LogError> {
        for entry in self.dir.list(&self.path).map_err(at(&self.path))? {
            if base_of(&entry.name, "snapshot").is_some_and(|base| base > end) {
                let path = format!("{}/{}", self.path, entry.name);
                self.dir.remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }
}

pub(crate) fn remove_if_there<D: Dir>(dir: &D, path: &str) -> Result<(), LogError> {
    match dir.remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Rebuilds the producers' state at `end`: the newest whole snapshot at or below it, then the
/// headers from there on.
pub(crate) fn load_producers<D: Dir>(
    dir: &D,
    folder: &str,
    segments: &[Arc<Segment<D>>],
    end: Offset,
) -> Result<ProducerStates, LogError> {
    let mut from = Offset::ZERO;
    let mut states = ProducerStates::default();
    let names = dir.list(folder).map_err(at(folder))?;
    let snapshots = names
        .iter()
        .filter_map(|entry| base_of(&entry.name, "snapshot"));
    for base in snapshots
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .filter(|base| *base <= end)
    {
        let path = format!("{folder}/{}", file_name(base, "snapshot"));
        let file = read_file(dir, &path).map_err(at(&path))?;
        if let Some(read) = file
            .as_deref()
            .and_then(unframe)
            .and_then(ProducerStates::decode)
        {
            (from, states) = (base, read);
            break;
        }
    }
    for (index, segment) in segments.iter().enumerate() {
        if segments
            .get(index + 1)
            .is_some_and(|next| next.base <= from)
        {
            continue;
        }
        let start = segment.index.read().position_of(from);
        find(segment, start, segment.size(), |header| {
            if header.base_offset >= from && header.base_offset < end {
                states.update(header);
            }
            false
        })?;
    }
    Ok(states)
}
