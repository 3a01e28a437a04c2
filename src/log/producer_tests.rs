//! Producers that were silent are forgotten (R11): what a start and a cut make of that.

use quorate_record::{Batch, ProducerTag, SILENT_ROUNDS, SequenceCheck, SequenceError};
use quorate_types::Offset;
use tempfile::TempDir;

use crate::tests::{AFTER_KILL, append, flush, open};
use crate::{OsDir, PartitionLog};

/// Long enough for every producer that is known by now.
fn silence(log: &mut PartitionLog<OsDir>) {
    (0..=SILENT_ROUNDS).for_each(|_| {
        log.age_producers();
    });
}

/// A repeat of a batch.
fn repeat(log: &PartitionLog<OsDir>, batch: &Batch) -> Result<SequenceCheck, SequenceError> {
    let header = batch.header();
    log.producers()
        .check(&header.producer.unwrap(), header.record_count)
}

fn known(batch: &Batch) -> Result<SequenceCheck, SequenceError> {
    let (base, end) = (batch.base_offset(), batch.end_offset());
    Ok(SequenceCheck::Duplicate { base, end })
}

fn tag(batch: &Batch) -> ProducerTag {
    batch.header().producer.unwrap()
}

#[test]
fn a_repeat_of_a_forgotten_producer_is_refused_and_so_it_is_after_a_clean_start() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 2, 0);
    let second = append(&mut log, 1, 2, 1);
    assert_eq!(repeat(&log, &second), known(&second));
    silence(&mut log);
    let got = tag(&second).base_sequence;
    let unknown = Err(SequenceError::UnknownProducer { got });
    assert_eq!(repeat(&log, &second), unknown);
    log.close().unwrap();
    let (log, _) = open(&root, AFTER_KILL);
    assert_eq!(repeat(&log, &second), unknown);
}

#[test]
fn whom_the_log_tells_of_is_known_again_after_a_crash_and_counts_as_silent_from_then_on() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    // Over several segments, with snapshots of before.
    for mark in 0..40 {
        append(&mut log, 1, 2, mark);
    }
    let last = append(&mut log, 1, 2, 40);
    flush(&mut log);
    silence(&mut log);
    assert!(log.producers().is_empty());
    drop(log);
    let (mut log, _) = open(&root, AFTER_KILL);
    assert_eq!(repeat(&log, &last), known(&last));
    (0..SILENT_ROUNDS).for_each(|_| {
        log.age_producers();
    });
    assert_eq!(repeat(&log, &last), known(&last));
    log.age_producers();
    assert!(log.producers().is_empty());
}

#[test]
fn a_cut_log_knows_whom_what_is_left_tells_of() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    let first = append(&mut log, 1, 2, 0);
    let second = append(&mut log, 1, 2, 1);
    silence(&mut log);
    log.truncate_to(second.base_offset()).unwrap();
    assert_eq!(repeat(&log, &first), known(&first));
    // It is not in the log any more: it goes there, once.
    assert_eq!(repeat(&log, &second), Ok(SequenceCheck::Append));
    log.truncate_to(Offset::ZERO).unwrap();
    assert!(log.producers().is_empty());
}
