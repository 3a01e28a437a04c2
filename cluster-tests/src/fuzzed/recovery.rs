//! Bytes as the files of a partition, whose log is opened on the simulator's disk, read, verified,
//! opened again and appended to.
//!
//! The first byte says whether the machine was booted since; then files follow each other: what it
//! is and whether its checksums are made to fit (a byte), the offset in its name (a byte), its
//! length (two bytes, big-endian), its content.

use std::path::Path;
use std::sync::Arc;

use quorate_log::{
    Checked, Dir, DirFile, Finding, Findings, LogOptions, OpenMode, PartitionLog, RecoveryContext,
    RecoveryReport, Severity, verify_partition,
};
use quorate_record::{Batch, Compression};
use quorate_types::{LeaderEpoch, Offset, Timestamp};

use crate::hostile::{at, batch, crc, seal};
use crate::sim::SimDisk;

pub(super) const FOLDER: &str = "logs/p";
/// A file's head in the bytes.
const HEAD: usize = 4;
const SEALED: u8 = 8;
/// Bytes of a record of the checkpoint file.
const POSITIONS: usize = 32;
/// Small, so that few bytes make several segments and index entries.
pub(super) const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 400,
    segment_ms: u64::MAX,
    index_interval_bytes: 64,
    tail_cache_bytes: 256,
};
/// By extension or name; the place is what stands for it in the bytes.
const KINDS: [&str; 7] = [
    "log",
    "index",
    "timeindex",
    "snapshot",
    "checkpoint",
    "leader-epoch-checkpoint",
    "damaged",
];
/// Kinds from here on are names of their own.
const NAMES: usize = 4;

/// The bytes that stand for such files, named without a folder.
pub(super) fn packed(same_boot: bool, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![u8::from(same_boot)];
    for (name, content) in files {
        let (base, extension) = name.split_once('.').unwrap_or(("0", name));
        let kind = KINDS.iter().position(|kind| *kind == extension);
        let (Some(kind), Ok(base), Ok(length)) =
            (kind, base.parse::<u8>(), u16::try_from(content.len()))
        else {
            continue;
        };
        bytes.extend([kind as u8 | SEALED, base]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(content);
    }
    bytes
}

/// The files: kind, name, content.
fn unpacked(mut bytes: &[u8]) -> Vec<(usize, String, Vec<u8>)> {
    let mut files = Vec::new();
    while let Some((&[kind, base, high, low], rest)) = bytes.split_first_chunk::<HEAD>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (content, rest) = rest.split_at(length);
        let mut content = content.to_vec();
        let number = usize::from(kind & (SEALED - 1)) % KINDS.len();
        if kind & SEALED != 0 {
            seal_file(number, &mut content);
        }
        let name = match KINDS[number] {
            name if number >= NAMES => name.to_owned(),
            extension => format!("{base:020}.{extension}"),
        };
        files.push((number, name, content));
        bytes = rest;
    }
    files
}

/// Makes every checksum in a file fit.
fn seal_file(kind: usize, content: &mut [u8]) {
    let frames = match KINDS[kind] {
        "log" => {
            let mut rest = content;
            while rest.len() >= at::RECORDS {
                let mut length = [0; 4];
                length.copy_from_slice(&rest[at::LENGTH..at::LENGTH + 4]);
                let size = (u32::from_be_bytes(length) as usize).saturating_add(at::LENGTH + 4);
                if size < at::RECORDS || size > rest.len() {
                    return;
                }
                let (one, more) = rest.split_at_mut(size);
                seal(one);
                rest = more;
            }
            return;
        }
        "checkpoint" => POSITIONS,
        _ => content.len().max(1),
    };
    for frame in content.chunks_mut(frames) {
        if let Some((body, stored)) = frame.split_last_chunk_mut::<4>() {
            *stored = crc(body).to_be_bytes();
        }
    }
}

/// A log as it was found, to be compared.
#[derive(Debug, PartialEq)]
struct Found {
    log_start: Offset,
    log_end: Offset,
    high_watermark: Offset,
    last_epoch: Option<LeaderEpoch>,
    epochs: Vec<(LeaderEpoch, Offset)>,
    producers: Vec<u8>,
    damaged: Option<String>,
}

impl Found {
    fn of(log: &PartitionLog<SimDisk>, report: &RecoveryReport) -> Self {
        assert_eq!(log.log_end(), report.log_end);
        assert_eq!(log.flushed_end(), log.log_end(), "all of it is on the disk");
        assert!(log.high_watermark() <= log.log_end());
        Self {
            log_start: log.log_start(),
            log_end: log.log_end(),
            high_watermark: log.high_watermark(),
            last_epoch: log.last_epoch(),
            epochs: log.epochs().entries().to_vec(),
            producers: log.producers().encode(),
            damaged: report.damaged.clone(),
        }
    }
}

fn open(disk: &SimDisk, same_boot: bool) -> (PartitionLog<SimDisk>, RecoveryReport) {
    let cx = RecoveryContext { same_boot };
    match PartitionLog::open(Arc::new(disk.clone()), FOLDER, OPTIONS, cx) {
        Ok(opened) => opened,
        Err(error) => panic!("damage stops the opening: {error}"),
    }
}

/// Reads every batch from `from` on; none where something of it cannot be read, or does not follow:
/// offsets stand outside the CRC, and in a segment that is trusted nobody has compared them.
fn read_all(log: &PartitionLog<SimDisk>, from: Offset) -> Option<Vec<Batch>> {
    let (reader, end) = (log.reader(), log.log_end());
    let (mut at, mut all) = (from, Vec::new());
    while at < end {
        let bytes = reader.read(at, end, 1 << 10).ok()?;
        let batches = Batch::split(bytes).ok()?;
        let last = batches.last()?.end_offset();
        if last <= at {
            return None;
        }
        at = last;
        all.extend(batches);
    }
    Some(all)
}

/// What is wrong with the segments: the files beside them are written anew when the next segment
/// begins, and until then an opening goes without those that are damaged. Records that cannot be
/// decoded under a CRC that holds are the producer's: the log keeps them as they came.
fn corruption(disk: &SimDisk) -> Vec<Finding> {
    let mut findings = Findings::new(Path::new(""));
    let mut checked = Checked::default();
    if let Err(error) = verify_partition(disk, FOLDER, None, &mut findings, &mut checked) {
        panic!("it cannot be verified: {error}");
    }
    let mut found = findings.into_list();
    found.retain(|finding| {
        let of_a_segment = finding.file.extension().is_some_and(|kind| kind == "log");
        let other = ["its records cannot be read", "leader-epoch-checkpoint says"];
        let of_another = other.iter().any(|said| finding.what.contains(said));
        of_a_segment && !of_another && finding.severity == Severity::Corruption
    });
    found
}

/// Opens, reads, verifies, opens again, appends, closes, opens once more.
///
/// # Panics
/// Where what is kept cannot be read, or a second opening finds something else.
pub fn recovery(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else {
        return;
    };
    let disk = SimDisk::default();
    let written = write(&disk, rest);
    if written.is_err() {
        return;
    }
    let _findings = corruption(&disk);
    let (mut log, mut report) = open(&disk, first & 1 != 0);
    // A closed segment with an index that fits is trusted, and what is wrong in it shows when it is
    // read; once the replica is marked as damaged, none is.
    let mut all_checked = !unpacked(rest)
        .iter()
        .any(|(kind, ..)| KINDS[*kind] == "index");
    if report.damaged.is_some() {
        drop(log);
        (log, report) = open(&disk, true);
        all_checked = true;
    }
    if log.log_start() > log.log_end() {
        // A whole checkpoint says so, and no log writes one that does.
        return;
    }
    let found = Found::of(&log, &report);
    let from = segment_start(&disk).max(log.log_start());
    let all = read_all(&log, from);
    if all_checked {
        let all = all.as_deref().unwrap_or_default();
        let end = all.last().map_or(from, Batch::end_offset);
        assert_eq!(end, log.log_end(), "what is kept can be read");
        for batch in all {
            let epoch = log.epochs().epoch_at(batch.base_offset());
            assert_eq!(epoch, Some(batch.leader_epoch()), "epochs are the batches'");
        }
    }
    for at in [Timestamp::from_millis(0), Timestamp::from_millis(i64::MAX)] {
        let _found = log.reader().offset_for_timestamp(at, log.log_end());
    }
    drop(log);
    let (mut log, again) = open(&disk, true);
    assert_eq!(Found::of(&log, &again), found, "the second opening");
    assert_eq!(again.truncated_bytes, 0, "nothing is cut twice");
    if all_checked {
        assert_eq!(read_all(&log, from), all);
        let corruption = corruption(&disk);
        assert!(corruption.is_empty(), "after an opening: {corruption:?}");
    }
    append(&mut log);
    let end = log.log_end();
    if log.close().is_ok() {
        assert_eq!(open(&disk, false).0.log_end(), end, "after an append");
    }
}

fn write(disk: &SimDisk, bytes: &[u8]) -> std::io::Result<()> {
    disk.create_dir(FOLDER)?;
    for (_, name, content) in unpacked(bytes) {
        let file = disk.open(&format!("{FOLDER}/{name}"), OpenMode::Append)?;
        file.append(&[&content])?;
    }
    Ok(())
}

/// Where the first segment begins.
fn segment_start(disk: &SimDisk) -> Offset {
    let bases = quorate_log::segments(disk, FOLDER).unwrap_or_default();
    bases.first().copied().unwrap_or_default()
}

fn append(log: &mut PartitionLog<SimDisk>) {
    let (at, epoch) = (log.log_end(), log.last_epoch().unwrap_or_default());
    if at >= Offset::new(1 << 62) {
        return;
    }
    let one = batch(Compression::None, 1_000, &[b"appended"]).stamped(at, epoch);
    match log.append(&one, Timestamp::from_millis(1_000)) {
        Ok(()) => assert_eq!(read_all(log, at), Some(vec![one])),
        Err(error) => panic!("a log takes nothing after its recovery: {error}"),
    }
}
