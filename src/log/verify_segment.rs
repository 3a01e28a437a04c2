//! Checks one segment: each batch by itself, that it follows the one before, and that the index
//! and the epochs file agree with it.

use quorate_record::{Batch, BatchError};
use quorate_types::{LeaderEpoch, Offset, Timestamp};

use crate::dir::Dir;
use crate::error::LogError;
use crate::finding::{Findings, Severity};
use crate::segment::{IndexEntry, file_name};
use crate::verify::Checked;
use crate::verify_files::{Closed, Known, index_of_segment};
use crate::walk::{Piece, SegmentWalk};

/// Where a log ends, as far as the walk has come.
pub(crate) struct End {
    /// The offset that must follow.
    next: Offset,
    /// The same, counted on from where a batch did not follow: its offset may be what was changed.
    or: Option<Offset>,
    /// Damage was just passed: nobody knows how many records are gone, any later offset may follow.
    gap: bool,
    epoch: LeaderEpoch,
    /// Bytes of the segment.
    pub(crate) length: u64,
    /// The segment was closed, and nothing was written to it since.
    pub(crate) closed: bool,
    /// The end of the log's readable part, before the first damage: what a start keeps.
    pub(crate) kept: Option<(String, u64, Offset)>,
}

impl End {
    /// Notes that a start would end the log here, unless it does so earlier.
    pub(crate) fn cut(&mut self, file: &str, position: u64) {
        let next = self.next;
        self.kept
            .get_or_insert_with(|| (file.to_owned(), position, next));
    }
}

/// Checks one segment.
pub(crate) struct SegmentCheck<'a, D: Dir> {
    pub(crate) dir: &'a D,
    pub(crate) folder: &'a str,
    pub(crate) base: Offset,
    pub(crate) next_base: Option<Offset>,
    pub(crate) known: &'a Known,
    pub(crate) findings: &'a mut Findings,
}

impl<D: Dir> SegmentCheck<'_, D> {
    /// Checks it from its first byte to its last; `before` is where the segment before ended.
    pub(crate) fn run(
        &mut self,
        before: Option<End>,
        checked: &mut Checked,
    ) -> Result<End, LogError> {
        let mut walk = SegmentWalk::open(self.dir, self.folder, self.base)?;
        let (path, length) = (walk.path().to_owned(), walk.length());
        checked.bytes += length;
        let mut end = match before {
            Some(before) => self.follow(before, &path, length),
            None => End {
                next: self.base,
                or: None,
                gap: false,
                epoch: LeaderEpoch::ZERO,
                length,
                closed: false,
                kept: None,
            },
        };
        let closed = index_of_segment(
            self.dir,
            self.folder,
            self.base,
            (self.next_base, length),
            self.findings,
        )?;
        end.closed = closed.fits();
        let mut entries = closed.entries().iter().copied().peekable();
        let mut times = Timestamp::from_millis(i64::MIN);
        let mut damaged = false;
        while let Some(piece) = walk.next_piece()? {
            match piece {
                Piece::Batch { position, batch } => {
                    checked.batches += 1;
                    checked.records += u64::from(batch.header().record_count);
                    self.batch(&path, position, &batch, &closed, &mut end);
                    if closed.fits() && !damaged {
                        let found = (position, batch.base_offset(), times);
                        self.index_entries(&mut entries, found);
                    }
                    times = times.max(batch.header().max_timestamp);
                }
                Piece::Damage {
                    position,
                    until,
                    error,
                    ..
                } => {
                    damaged = true;
                    self.damage(&path, (position, until, length), &error, &closed, &mut end);
                }
            }
        }
        if closed.fits() && !damaged {
            for entry in entries {
                self.wrong_entry(&entry, "there is no batch");
            }
        }
        if let Some(next) = self.next_base
            && end.next < next
            && end.or != Some(next)
            && !damaged
        {
            self.findings.add(
                Severity::Corruption,
                &path,
                length,
                end.next,
                format!(
                    "the segment ends at offset {}, the next one begins at {next}: what is between \
                     is gone. {}",
                    end.next,
                    self.consequence(end.next, &closed)
                ),
            );
            end.cut(&path, length);
        }
        Ok(end)
    }

    /// The end of the segment before must be where this one begins.
    fn follow(&mut self, before: End, path: &str, length: u64) -> End {
        if self.base < before.next && before.or != Some(self.base) {
            self.findings.add(
                Severity::Corruption,
                path,
                0,
                self.base,
                format!(
                    "the segment begins at offset {}, the one before ends at {}: the next start \
                     removes this one ({length} bytes)",
                    self.base, before.next
                ),
            );
        }
        End {
            next: self.base,
            or: None,
            gap: false,
            length,
            ..before
        }
    }

    fn batch(&mut self, path: &str, position: u64, batch: &Batch, closed: &Closed, end: &mut End) {
        let (base, epoch) = (batch.base_offset(), batch.leader_epoch());
        let mut wrong = Vec::new();
        let follows = base == end.next || Some(base) == end.or || (end.gap && base > end.next);
        if !follows {
            wrong.push(format!(
                "the batch begins at offset {base}, where {} must follow",
                end.next
            ));
        }
        if epoch < end.epoch {
            wrong.push(format!(
                "the batch is of leader epoch {epoch}, one before it of {}",
                end.epoch
            ));
        }
        if !batch.is_stamped() {
            wrong.push("the batch's leader epoch is negative".to_owned());
        }
        for what in wrong {
            let told = format!("{what}. {}", self.consequence(end.next, closed));
            self.findings.add(
                self.severity(end.next),
                path,
                position,
                end.next.min(base),
                told,
            );
            end.cut(path, position);
        }
        self.epoch_known(path, position, batch, closed);
        if let Err(error) = batch.records() {
            self.findings.add(
                Severity::Corruption,
                path,
                position,
                base,
                format!(
                    "the CRC holds, but its records cannot be read: {error}. The node serves the \
                     batch as it is, consumers fail on it"
                ),
            );
        }
        let count = u64::from(batch.header().record_count);
        end.gap = false;
        end.or = (!follows).then(|| end.next.plus(count));
        end.next = batch.end_offset();
        end.epoch = end.epoch.max(epoch);
    }

    /// The epochs file is written when a segment is closed: it must say the same as the batches.
    /// Of a segment that is written to it may lag behind, and a start goes by the batches.
    fn epoch_known(&mut self, path: &str, position: u64, batch: &Batch, closed: &Closed) {
        let Some(epochs) = &self.known.epochs else {
            return;
        };
        let (base, epoch) = (batch.base_offset(), batch.leader_epoch());
        let last = Offset::new(batch.end_offset().get() - 1);
        let strict = self.next_base.is_some() || closed.fits();
        let said = |at| epochs.epoch_at(at);
        if said(base) == Some(epoch) && said(last) == Some(epoch) {
            return;
        }
        let told = said(base).map_or_else(|| "no epoch".to_owned(), |said| format!("epoch {said}"));
        let name = &self.known.epochs_path;
        if strict {
            self.findings.add(
                Severity::Corruption,
                path,
                position,
                base,
                format!("the batch is of leader epoch {epoch}, {name} says {told} at its offset"),
            );
        } else if epochs
            .entries()
            .last()
            .is_some_and(|(last, begun)| base < *begun || epoch < *last)
        {
            self.findings.add(
                Severity::Note,
                path,
                position,
                base,
                format!(
                    "the batch is of leader epoch {epoch}, {name} says {told} at its offset: the \
                     next start goes by the batches"
                ),
            );
        }
    }

    fn damage(
        &mut self,
        path: &str,
        (position, until, length): (u64, u64, u64),
        error: &BatchError,
        closed: &Closed,
        end: &mut End,
    ) {
        let rest = if until < length {
            format!("the next whole batch is at {until}")
        } else {
            format!("no whole batch follows up to the end at {length}")
        };
        let told = match (self.severity(end.next), error) {
            (Severity::TornTail, BatchError::Truncated { .. }) if until == length => {
                "An unfinished write: the next start cuts it off".to_owned()
            }
            _ => self.consequence(end.next, closed),
        };
        self.findings.add(
            self.severity(end.next),
            path,
            position,
            end.next,
            format!(
                "{error}; {} bytes are no batch, {rest}. {told}",
                until - position
            ),
        );
        end.cut(path, position);
        end.gap = true;
    }

    /// Damage is corruption where the log is known to have been on the disk: below the recovery
    /// point or the high watermark, and in every segment that was closed.
    fn severity(&self, offset: Offset) -> Severity {
        if offset < self.known.expected() || self.next_base.is_some() {
            Severity::Corruption
        } else {
            Severity::TornTail
        }
    }

    /// What the node does about damage at `offset`.
    fn consequence(&self, offset: Offset, closed: &Closed) -> String {
        let trusted = closed.fits()
            && self
                .next_base
                .is_some_and(|next| next <= self.known.recovery_point());
        if trusted {
            "A start does not read closed segments: reads of it fail until then".to_owned()
        } else if offset < self.known.expected() {
            "The next start cuts the log here, calls the replica damaged and copies it from its \
             peers"
                .to_owned()
        } else {
            "The next start cuts the log here; where the machine was not booted since, it also \
             calls the replica damaged and copies it from its peers"
                .to_owned()
        }
    }

    fn index_entries(
        &mut self,
        entries: &mut std::iter::Peekable<impl Iterator<Item = IndexEntry>>,
        (position, base, times): (u64, Offset, Timestamp),
    ) {
        while let Some(entry) = entries.next_if(|entry| entry.position <= position) {
            if entry.position < position {
                self.wrong_entry(&entry, "no batch begins there");
            } else if entry.offset != base {
                self.wrong_entry(&entry, &format!("the batch there begins at {base}"));
            } else if entry.max_timestamp_before < times {
                self.wrong_entry(&entry, "a batch before it has a later time than it says");
            }
        }
    }

    fn wrong_entry(&mut self, entry: &IndexEntry, why: &str) {
        let path = format!("{}/{}", self.folder, file_name(self.base, "index"));
        self.findings.add(
            Severity::Corruption,
            &path,
            0,
            entry.offset,
            format!(
                "offset {} is said to be at position {} of the segment: {why}",
                entry.offset, entry.position
            ),
        );
    }
}
