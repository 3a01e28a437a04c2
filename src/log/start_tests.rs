//! Logs that begin later than they did, and what recovery keeps of damaged ones.

use std::fs;
use std::path::PathBuf;

use quorate_types::{LeaderEpoch, Offset};
use tempfile::TempDir;

use crate::tests::{AFTER_KILL, AFTER_POWER_LOSS, PATH, append, flush, open, read_all};
use crate::{PartitionLog, ReadError};

fn file(root: &TempDir, name: &str) -> PathBuf {
    root.path().join(PATH).join(name)
}

fn segments(root: &TempDir) -> Vec<u64> {
    let names = fs::read_dir(root.path().join(PATH)).unwrap();
    let bases = names.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".log")?.parse().ok()
    });
    let mut bases: Vec<u64> = bases.collect();
    bases.sort_unstable();
    bases
}

/// A log of several segments, all of it flushed and committed.
fn filled(root: &TempDir, batches: u64) -> PartitionLog<crate::OsDir> {
    let (mut log, _) = open(root, AFTER_KILL);
    for mark in 0..batches {
        append(&mut log, 1, 3, mark);
    }
    flush(&mut log);
    log.set_high_watermark(log.log_end());
    log
}

#[test]
fn a_log_that_begins_later_stays_so_and_gives_the_segments_below_up() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 30);
    let before = segments(&root);
    assert!(before.len() > 4, "{before:?}");
    let start = Offset::new(before[3] + 3);
    log.delete_before(start).unwrap();
    assert_eq!(log.log_start(), start);
    assert_eq!(segments(&root), before[3..]);
    let read = log.reader().read(Offset::new(before[3]), log.log_end(), 1);
    assert!(matches!(read, Err(ReadError::NotThere(_))), "{read:?}");
    assert_eq!(read_all(&log)[0].base_offset(), start);
    // Never downwards, and never above what is committed.
    log.delete_before(Offset::new(1)).unwrap();
    assert_eq!(log.log_start(), start);
    for cx in [AFTER_KILL, AFTER_POWER_LOSS] {
        let (again, report) = open(&root, cx);
        assert_eq!(report.damaged, None);
        assert_eq!(
            (again.log_start(), again.log_end()),
            (start, Offset::new(90))
        );
    }
    log.delete_before(Offset::new(1_000)).unwrap();
    assert_eq!(log.log_start(), Offset::new(90));
    append(&mut log, 1, 3, 99);
    assert_eq!(log.log_end(), Offset::new(93));
}

#[test]
fn segments_below_the_start_that_are_still_there_are_no_part_of_the_log() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 30);
    let bases = segments(&root);
    let name = |base: u64| format!("{base:020}.log");
    let kept: Vec<_> = [0, 2]
        .map(|at| (bases[at], fs::read(file(&root, &name(bases[at])))))
        .into_iter()
        .map(|(base, bytes)| (base, bytes.unwrap()))
        .collect();
    log.delete_before(Offset::new(bases[4])).unwrap();
    drop(log);
    // A power loss took two of the removals back, and left a hole between them.
    for (base, bytes) in kept {
        fs::write(file(&root, &name(base)), bytes).unwrap();
    }
    let (log, report) = open(&root, AFTER_POWER_LOSS);
    assert_eq!((report.damaged, report.truncated_bytes), (None, 0));
    assert_eq!(log.log_start(), Offset::new(bases[4]));
    assert_eq!(log.log_end(), Offset::new(90));
    assert_eq!(segments(&root), bases[4..]);
}

#[test]
fn a_log_begins_anew_behind_all_that_it_held() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 10);
    let epochs = log.epochs().clone();
    let ticket = {
        append(&mut log, 2, 1, 7);
        log.start_flush().unwrap()
    };
    log.restart_at(Offset::new(500)).unwrap();
    log.complete_flush(ticket.run()).unwrap();
    let places = |log: &PartitionLog<_>| {
        [
            log.log_start(),
            log.high_watermark(),
            log.flushed_end(),
            log.log_end(),
        ]
    };
    assert_eq!(places(&log), [Offset::new(500); 4]);
    assert_eq!(log.last_record_epoch(), None);
    assert_ne!(*log.epochs(), epochs);
    assert_eq!(segments(&root), [500]);
    let (again, report) = open(&root, AFTER_POWER_LOSS);
    assert_eq!(report.damaged, None);
    assert_eq!(places(&again), [Offset::new(500); 4]);
    drop(again);
    append(&mut log, 3, 2, 8);
    flush(&mut log);
    let (again, _) = open(&root, AFTER_KILL);
    assert_eq!(again.log_end(), Offset::new(502));
    assert_eq!(again.last_epoch(), Some(LeaderEpoch::new(3)));
}

#[test]
fn a_log_that_was_to_begin_anew_does_so_when_it_is_opened() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 30);
    let bases = segments(&root);
    let name = |base: u64| format!("{base:020}.log");
    let epochs = fs::read(file(&root, "leader-epoch-checkpoint"));
    let old: Vec<_> = bases
        .iter()
        .map(|base| (*base, fs::read(file(&root, &name(*base))).unwrap()))
        .collect();
    let snapshots = |root: &TempDir| -> Vec<PathBuf> {
        let entries = fs::read_dir(root.path().join(PATH)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|of| of == "snapshot"))
            .collect()
    };
    let kept: Vec<_> = snapshots(&root)
        .into_iter()
        .map(|path| (fs::read(&path).unwrap(), path))
        .collect();
    assert!(!kept.is_empty());
    log.restart_at(Offset::new(500)).unwrap();
    drop(log);
    // The power went before the disk knew of any removal, or of the new segment's name.
    for (bytes, path) in kept {
        fs::write(path, bytes).unwrap();
    }
    fs::write(file(&root, "leader-epoch-checkpoint"), epochs.unwrap()).unwrap();
    fs::remove_file(file(&root, &name(500))).unwrap();
    for (base, bytes) in old {
        fs::write(file(&root, &name(base)), bytes).unwrap();
    }
    let (log, report) = open(&root, AFTER_POWER_LOSS);
    assert_eq!(report.damaged, None);
    assert_eq!(log.log_start(), Offset::new(500));
    assert_eq!(log.log_end(), Offset::new(500));
    assert_eq!(log.last_epoch(), None);
    assert_eq!(segments(&root), [500]);
    assert_eq!(snapshots(&root), [] as [PathBuf; 0]);
    let none = quorate_record::ProducerStates::default();
    assert_eq!(log.producers().encode(), none.encode());
    // Nor is it had again from a file that was written before.
    drop(log);
    let (log, _) = open(&root, AFTER_KILL);
    assert_eq!(log.last_epoch(), None);
}

#[test]
fn a_log_that_cannot_begin_anew_takes_nothing_more() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 30);
    let bases = segments(&root);
    fs::remove_file(file(&root, &format!("{:020}.log", bases[2]))).unwrap();
    log.restart_at(Offset::new(500)).unwrap_err();
    log.cut_to_flushed().unwrap_err();
    log.begin_epoch(LeaderEpoch::new(9)).unwrap_err();
}

#[test]
fn what_is_cut_from_a_damaged_log_is_kept_until_it_is_had_again() {
    let root = TempDir::new().unwrap();
    let mut log = filled(&root, 30);
    log.checkpoint().unwrap();
    let bases = segments(&root);
    log.close().unwrap();
    let name = |base: u64| format!("{base:020}.log");
    let second = file(&root, &name(bases[1]));
    let mut bytes = fs::read(&second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&second, &bytes).unwrap();
    // Its index no longer helps: the segment is read.
    fs::remove_file(second.with_extension("index")).unwrap();
    let (log, report) = open(&root, AFTER_POWER_LOSS);
    assert!(report.damaged.is_some());
    assert_eq!(report.had, Some(Offset::new(90)));
    let end = log.log_end().get();
    assert!((bases[1]..bases[2]).contains(&end), "{end}");
    assert!(log.has_set_aside());
    let cut = fs::metadata(&second).unwrap().len() as usize;
    let aside = |base| fs::read(file(&root, &format!("{}.set-aside", name(base))));
    assert_eq!(aside(bases[1]).unwrap(), bytes[cut..]);
    assert!(aside(bases[2]).unwrap().len() > 100);
    log.damage_told().unwrap();
    drop(log);
    let (mut log, report) = open(&root, AFTER_KILL);
    assert_eq!(report.damaged, None);
    assert!(log.has_set_aside());
    log.discard_set_aside().unwrap();
    assert!(!log.has_set_aside());
    assert!(aside(bases[2]).is_err());
}

#[test]
fn a_damage_mark_tells_where_the_log_ended_until_the_cluster_knows() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 3, 0);
    flush(&mut log);
    append(&mut log, 1, 4, 1);
    log.mark_damaged("the sync failed").unwrap();
    log.cut_to_flushed().unwrap();
    drop(log);
    for _ in 0..2 {
        let (log, report) = open(&root, AFTER_KILL);
        assert_eq!(report.damaged.as_deref(), Some("the sync failed"));
        assert_eq!(report.had, Some(Offset::new(7)));
        assert_eq!(log.log_end(), Offset::new(3));
    }
    open(&root, AFTER_KILL).0.damage_told().unwrap();
    let (_, report) = open(&root, AFTER_KILL);
    assert_eq!((report.damaged, report.had), (None, None));
}
