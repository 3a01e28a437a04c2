//! Checks the small files of a partition: positions, epochs, indexes, snapshots, and names that
//! belong to none of these.

use quorate_record::{LeaderEpochCache, ProducerStates};
use quorate_types::Offset;

use crate::checkpoint::{POSITIONS_LEN, Positions, decode_epochs, frame_fault, unframe};
use crate::damage::DAMAGED_FILE;
use crate::dir::{Dir, DirFile, OpenMode, read_file};
use crate::error::{LogError, at};
use crate::finding::{Findings, Severity};
use crate::open::SET_ASIDE;
use crate::partition_log::{EPOCHS_FILE, POSITIONS_FILE};
use crate::segment::{Index, IndexEntry, base_of, file_name};

/// What the files beside the segments say.
pub(crate) struct Known {
    /// The positions that count, and where in the file they stand.
    pub(crate) positions: Option<(Positions, u64)>,
    pub(crate) epochs: Option<LeaderEpochCache>,
    pub(crate) epochs_path: String,
}

impl Known {
    pub(crate) fn recovery_point(&self) -> Offset {
        self.positions
            .map_or(Offset::ZERO, |(positions, _)| positions.recovery_point)
    }

    /// The log must reach so far.
    pub(crate) fn expected(&self) -> Offset {
        self.positions.map_or(Offset::ZERO, |(positions, _)| {
            positions.recovery_point.max(positions.high_watermark)
        })
    }
}

/// Reads positions and epochs, and says what is wrong with them.
pub(crate) fn read_known<D: Dir>(
    dir: &D,
    folder: &str,
    findings: &mut Findings,
) -> Result<Known, LogError> {
    let names = dir.list(folder).map_err(at(folder))?;
    let some_log = names.iter().any(|entry| {
        base_of(&entry.name, "log").is_some()
            && length_of(dir, &format!("{folder}/{}", entry.name)).is_ok_and(|length| length > 0)
    });
    let closed = names
        .iter()
        .filter(|entry| base_of(&entry.name, "log").is_some())
        .count()
        > 1;
    let positions_path = format!("{folder}/{POSITIONS_FILE}");
    let positions = match read(dir, &positions_path, findings) {
        Some(file) => positions(&positions_path, &file, findings),
        None => {
            if some_log {
                let what = "is missing: the next start reads the whole log, and does not know what \
                            had been flushed or committed";
                findings.add(Severity::Corruption, &positions_path, None, None, what);
            }
            None
        }
    };
    let epochs_path = format!("{folder}/{EPOCHS_FILE}");
    let epochs = match read(dir, &epochs_path, findings) {
        Some(file) => {
            let epochs = decode_epochs(&file);
            if epochs.is_none() {
                let (position, why) = frame_fault(&file)
                    .unwrap_or((4, "epochs and offsets do not both rise".to_owned()));
                findings.add(
                    Severity::Corruption,
                    &epochs_path,
                    position,
                    None,
                    format!("{why}. The next start reads every batch to find the epochs again"),
                );
            }
            epochs
        }
        None => {
            if closed {
                let what = "is missing, but segments were closed: it is written before that. The \
                            next start does not look for the epochs of segments with an index";
                findings.add(Severity::Corruption, &epochs_path, None, None, what);
            }
            None
        }
    };
    Ok(Known {
        positions,
        epochs,
        epochs_path,
    })
}

/// None of these files is larger: a snapshot of 100,000 producers has 10 MiB.
const FILE_MAX: u64 = 256 << 20;

fn length_of<D: Dir>(dir: &D, path: &str) -> std::io::Result<u64> {
    dir.open(path, OpenMode::Read)?.len()
}

/// A file's bytes; none where there is no such file, and what cannot be read is a finding.
pub(crate) fn read<D: Dir>(dir: &D, path: &str, findings: &mut Findings) -> Option<Vec<u8>> {
    let file = match length_of(dir, path) {
        Ok(length) if length > FILE_MAX => Err(std::io::Error::other(format!(
            "{length} bytes, no such file has more than {FILE_MAX}"
        ))),
        _ => read_file(dir, path),
    };
    file.unwrap_or_else(|error| {
        let what = format!("cannot be read: {error}");
        findings.add(Severity::Corruption, path, 0, None, what);
        None
    })
}

/// The records of the positions file: the last whole one counts. Only the end can be torn, since
/// records are appended.
fn positions(path: &str, file: &[u8], findings: &mut Findings) -> Option<(Positions, u64)> {
    let records: Vec<Option<Positions>> = file
        .chunks(POSITIONS_LEN)
        .map(|chunk| {
            (chunk.len() == POSITIONS_LEN)
                .then(|| Positions::decode(chunk))
                .flatten()
        })
        .collect();
    let last = records.iter().rposition(Option::is_some);
    for (number, _) in records.iter().enumerate().filter(|(_, r)| r.is_none()) {
        let position = (number * POSITIONS_LEN) as u64;
        let (severity, what) = match last {
            None if number == 0 && file.len() >= POSITIONS_LEN => (
                Severity::Corruption,
                "no record is whole: the next start reads the whole log, and does not know what \
                 had been flushed or committed",
            ),
            Some(last) if number < last => (
                Severity::Corruption,
                "a record's CRC or version does not fit; later ones are whole and count",
            ),
            _ => (
                Severity::TornTail,
                "the last record is not whole: the next start goes by the one before, and begins \
                 the file anew",
            ),
        };
        findings.add(severity, path, position, None, what);
    }
    let counts = records
        .get(last?)
        .copied()
        .flatten()
        .map(|positions| (positions, (last.unwrap_or(0) * POSITIONS_LEN) as u64))?;
    let Positions {
        high_watermark,
        recovery_point,
        log_start,
    } = counts.0;
    if log_start > high_watermark || high_watermark > recovery_point {
        let what = format!(
            "log start {log_start}, high watermark {high_watermark} and recovery point \
             {recovery_point} are not in this order"
        );
        findings.add(Severity::Corruption, path, counts.1, high_watermark, what);
    }
    Some(counts)
}

/// What the index files say of a segment.
pub(crate) struct Closed {
    index: Index,
    fits: bool,
}

impl Closed {
    /// The index was written for the segment as it is: what is written before it (epochs,
    /// snapshot) speaks of the whole segment too.
    pub(crate) fn fits(&self) -> bool {
        self.fits
    }

    pub(crate) fn entries(&self) -> &[IndexEntry] {
        self.index.entries()
    }
}

/// Checks the index files of the segment `base`, of `length` bytes, that ends at `next` where one
/// follows it. Of the last segment they may be older than it: they are written when a segment is
/// closed, also by a clean stop.
pub(crate) fn index_of_segment<D: Dir>(
    dir: &D,
    folder: &str,
    base: Offset,
    (next, length): (Option<Offset>, u64),
    findings: &mut Findings,
) -> Result<Closed, LogError> {
    let paths = ["index", "timeindex"].map(|ext| format!("{folder}/{}", file_name(base, ext)));
    let mut files = Vec::new();
    for path in &paths {
        let Some(file) = read(dir, path, findings) else {
            if next.is_some() {
                let what = "is missing: each start reads the whole segment";
                findings.add(Severity::Note, path, None, None, what);
            }
            continue;
        };
        if let Some((position, why)) = frame_fault(&file) {
            let what = format!("{why}. The next start reads the segment instead");
            findings.add(Severity::Corruption, path, position, base, what);
        } else {
            files.push(file);
        }
    }
    let none = Closed {
        index: Index::default(),
        fits: false,
    };
    let [offsets, times] = &files[..] else {
        return Ok(none);
    };
    let decoded = Index::decode(offsets, times);
    let fits =
        |index: &(Index, u64, Offset)| index.1 == length && next.is_none_or(|next| index.2 == next);
    match decoded {
        Some(index) if fits(&index) => Ok(Closed {
            index: index.0,
            fits: true,
        }),
        other => {
            if next.is_some() {
                let what = match other {
                    None => "does not go with the .timeindex file".to_owned(),
                    Some((_, size, end)) => format!(
                        "was written for {size} bytes that end at offset {end}, the segment has \
                         {length}"
                    ),
                };
                let what = format!("{what}. The next start reads the segment instead");
                findings.add(Severity::Corruption, &paths[0], 4, base, what);
            }
            Ok(none)
        }
    }
}

/// Checks the producers' snapshots.
pub(crate) fn snapshots<D: Dir>(
    dir: &D,
    folder: &str,
    findings: &mut Findings,
) -> Result<(), LogError> {
    for entry in dir.list(folder).map_err(at(folder))? {
        let Some(base) = base_of(&entry.name, "snapshot") else {
            continue;
        };
        let path = format!("{folder}/{}", entry.name);
        let Some(file) = read(dir, &path, findings) else {
            continue;
        };
        let fault = frame_fault(&file).or_else(|| {
            let read = unframe(&file).and_then(ProducerStates::decode);
            read.is_none()
                .then(|| (4, "is no list of producers".to_owned()))
        });
        if let Some((position, why)) = fault {
            let what = format!(
                "{why}. The next start takes an older snapshot, or reads the producers from the \
                 batches"
            );
            findings.add(Severity::Corruption, &path, position, base, what);
        }
    }
    Ok(())
}

/// Notes what a log does not make.
pub(crate) fn strays<D: Dir>(
    dir: &D,
    folder: &str,
    bases: &[Offset],
    findings: &mut Findings,
) -> Result<(), LogError> {
    for entry in dir.list(folder).map_err(at(folder))? {
        let name = &entry.name;
        let path = format!("{folder}/{name}");
        let index = base_of(name, "index").or_else(|| base_of(name, "timeindex"));
        if let Some(base) = index {
            if !bases.contains(&base) {
                let what = "belongs to no segment: nobody reads it";
                findings.add(Severity::Note, &path, None, base, what);
            }
            continue;
        }
        let known = base_of(name, "log").is_some() || base_of(name, "snapshot").is_some();
        if known || name == EPOCHS_FILE || name == POSITIONS_FILE {
            continue;
        }
        if name == DAMAGED_FILE {
            let what = "says that the replica was found damaged: the next start checks every batch \
                        and reports it";
            findings.add(Severity::Corruption, &path, None, None, what);
            continue;
        }
        let what = if name.ends_with(".tmp") {
            "was being written when the node ended: nobody reads it"
        } else if name.ends_with(SET_ASIDE) {
            "is what a start has cut from the damaged log: kept for people to look into"
        } else {
            "is no file of a log: nobody reads it"
        };
        findings.add(Severity::Note, &path, None, None, what);
    }
    Ok(())
}
