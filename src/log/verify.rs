//! Checks one partition's directory without changing it: every batch of every segment, and that
//! indexes, epochs, checkpoints and snapshots agree with them. What is wrong is named by file,
//! position and offset; the check goes on after it.
//!
//! What it cannot know: of a log that was not closed, a leader epoch that was raised in the very
//! last batch, and one that was lowered in the first of the last epoch, which is worth a note only
//! (it is outside the CRC, and the epochs file may lag behind the log); and whole batches above the
//! recovery point or whole records of positions that are missing at the end.

use quorate_types::Offset;

use crate::checkpoint::POSITIONS_LEN;
use crate::dir::Dir;
use crate::error::LogError;
use crate::finding::{Findings, Severity};
use crate::partition_log::POSITIONS_FILE;
use crate::segment::file_name;
use crate::verify_files::{Known, read_known, snapshots, strays};
use crate::verify_segment::{End, SegmentCheck};
use crate::walk::segments;

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Partitions.
    pub partitions: u64,
    /// Segments.
    pub segments: u64,
    /// Batches that are whole.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of the segments, damaged ones too.
    pub bytes: u64,
}

/// Checks the partition in `folder`, or only its segment `only`.
///
/// # Errors
/// [`LogError`] where the directory cannot be listed; a file that cannot be read is a finding.
pub fn verify_partition<D: Dir>(
    dir: &D,
    folder: &str,
    only: Option<Offset>,
    findings: &mut Findings,
    checked: &mut Checked,
) -> Result<(), LogError> {
    let bases = segments(dir, folder)?;
    let mut quiet = Findings::new(std::path::Path::new(""));
    // Of one segment alone the other files are read to judge it, and not judged themselves.
    let beside = if only.is_some() {
        &mut quiet
    } else {
        &mut *findings
    };
    let known = read_known(dir, folder, beside)?;
    let mut end: Option<End> = None;
    for (number, base) in bases.iter().copied().enumerate() {
        if only.is_some_and(|only| only != base) {
            continue;
        }
        let next_base = bases.get(number + 1).copied();
        let mut check = SegmentCheck {
            dir,
            folder,
            base,
            next_base,
            known: &known,
            findings,
        };
        let name = format!("{folder}/{}", file_name(base, "log"));
        match check.run(end.take(), checked) {
            Ok(reached) => end = Some(reached),
            Err(error) => {
                findings.add(Severity::Corruption, &name, 0, base, error.to_string());
            }
        }
        checked.segments += 1;
    }
    let whole = only.is_none() || only == bases.last().copied();
    if let Some(end) = end.filter(|_| whole) {
        check_end(folder, &bases, &known, end, findings);
    } else if bases.is_empty() && known.expected() > Offset::ZERO {
        findings.add(
            Severity::Corruption,
            folder,
            None,
            Offset::ZERO,
            format!(
                "there is no segment, but the log had come to {}: the next start calls the \
                 replica damaged and copies it from its peers",
                known.expected()
            ),
        );
    }
    if only.is_none() {
        snapshots(dir, folder, findings)?;
        strays(dir, folder, &bases, findings)?;
        checked.partitions += 1;
    }
    Ok(())
}

/// The log must reach what had been flushed or committed.
fn check_end(folder: &str, bases: &[Offset], known: &Known, mut end: End, findings: &mut Findings) {
    let last = bases.last().copied().unwrap_or_default();
    let file = format!("{folder}/{}", file_name(last, "log"));
    let damaged = end.kept.is_some();
    let length = end.length;
    end.cut(&file, length);
    let Some((file, position, log_end)) = end.kept else {
        return;
    };
    if let Some((positions, at)) = known.positions
        && end.closed
        && !damaged
        && positions.recovery_point < log_end
    {
        findings.add(
            Severity::TornTail,
            &format!("{folder}/{POSITIONS_FILE}"),
            at + POSITIONS_LEN as u64,
            positions.recovery_point,
            format!(
                "the log was closed at offset {log_end}, but the last record here says that it was \
                 flushed to {}: the records after it are missing",
                positions.recovery_point
            ),
        );
    }
    // Damage was told of where it is.
    if log_end < known.expected() && !damaged {
        findings.add(
            Severity::Corruption,
            &file,
            position,
            log_end,
            format!(
                "the log ends at offset {log_end}, but had been flushed or committed to {}: the \
                 next start calls the replica damaged and copies it from its peers",
                known.expected()
            ),
        );
    }
    if let (Some((positions, at)), Some(first)) = (known.positions, bases.first())
        && positions.log_start < *first
    {
        findings.add(
            Severity::Corruption,
            &format!("{folder}/{POSITIONS_FILE}"),
            at,
            positions.log_start,
            format!(
                "the log begins at offset {}, the first segment only at {first}: what is between \
                 is gone",
                positions.log_start
            ),
        );
    }
    if let Some((epoch, first)) = known
        .epochs
        .as_ref()
        .and_then(|epochs| epochs.entries().last().copied())
        && first > log_end
    {
        findings.add(
            Severity::Note,
            &known.epochs_path,
            None,
            first,
            format!(
                "epoch {epoch} begins at {first}, the log ends at {log_end}: the next start \
                 forgets that epoch"
            ),
        );
    }
}
