//! The log against a model, and recovery from what crashes leave behind.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag, SequenceCheck};
use quorate_types::{
    LeaderEpoch, NodeId, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicName,
    TopicPartition,
};
use tempfile::TempDir;

use crate::{
    DataDirectory, FlushDone, LogError, LogOptions, OsDir, PartitionLog, ReadError,
    RecoveryContext, RecoveryReport,
};

pub(crate) const PATH: &str = "logs/t-0";
pub(crate) const AFTER_KILL: RecoveryContext = RecoveryContext { same_boot: true };
pub(crate) const AFTER_POWER_LOSS: RecoveryContext = RecoveryContext { same_boot: false };

pub(crate) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 600,
        index_interval_bytes: 100,
        tail_cache_bytes: 300,
        ..LogOptions::default()
    }
}

pub(crate) fn open(root: &TempDir, cx: RecoveryContext) -> (PartitionLog<OsDir>, RecoveryReport) {
    let dir = Arc::new(OsDir::new(root.path()));
    PartitionLog::open(dir, PATH, options(), cx).unwrap()
}

fn batch(base: u64, epoch: u32, records: u32, mark: u64) -> Batch {
    let tag = ProducerTag {
        id: ProducerId::new(1),
        epoch: ProducerEpoch::ZERO,
        base_sequence: Sequence::new(base as u32),
    };
    let mut builder = BatchBuilder::new(Compression::None).producer(tag);
    for i in 0..records {
        let value = format!("{mark}/{i}");
        let time = Timestamp::from_millis((base + u64::from(i)) as i64 * 10);
        builder.push(time, Some(b"k"), Some(value.as_bytes()), &[]);
    }
    builder
        .build()
        .stamped(Offset::new(base), LeaderEpoch::new(epoch))
}

pub(crate) fn append(log: &mut PartitionLog<OsDir>, epoch: u32, records: u32, mark: u64) -> Batch {
    let batch = batch(log.log_end().get(), epoch, records, mark);
    log.append(&batch, Timestamp::from_millis(0)).unwrap();
    batch
}

pub(crate) fn flush(log: &mut PartitionLog<OsDir>) {
    if let Some(ticket) = log.start_flush() {
        log.complete_flush(ticket.run()).unwrap();
    }
}

/// Everything in the log, read in small pieces.
pub(crate) fn read_all(log: &PartitionLog<OsDir>) -> Vec<Batch> {
    let reader = log.reader();
    let mut at = log.log_start();
    let mut batches = Vec::new();
    while at < log.log_end() {
        let bytes = reader.read(at, log.log_end(), 250).unwrap();
        let read = Batch::split(bytes).unwrap();
        at = read
            .last()
            .expect("there is at least one batch")
            .end_offset();
        batches.extend(read);
    }
    batches
}

#[test]
fn several_batches_at_once_are_the_same_as_one_after_the_other() {
    let (one_root, many_root) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (mut one, _) = open(&one_root, AFTER_KILL);
    let (mut many, _) = open(&many_root, AFTER_KILL);
    // Enough for several segments, one of the batches larger than a segment.
    let mut batches = Vec::new();
    for (number, records) in [3, 1, 40, 2, 2, 9, 1, 1, 1, 12].into_iter().enumerate() {
        let base = batches.last().map_or(0, |b: &Batch| b.end_offset().get());
        batches.push(batch(base, 1 + number as u32 / 4, records, 7));
    }
    let now = Timestamp::from_millis(0);
    batches
        .iter()
        .for_each(|batch| one.append(batch, now).unwrap());
    many.append_all(&batches, now).unwrap();
    assert_eq!(read_all(&many), batches);
    assert_eq!(many.epochs(), one.epochs());
    assert_eq!(many.producers().encode(), one.producers().encode());
    let files = |root: &TempDir| {
        let mut files: Vec<_> = std::fs::read_dir(root.path().join(PATH))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    assert_eq!(files(&many_root), files(&one_root));

    // What does not follow changes nothing, whichever it is.
    let end = many.log_end().get();
    let gap = [batch(end, 3, 1, 8), batch(end + 2, 3, 1, 8)];
    let refused = many.append_all(&gap, now);
    assert!(matches!(refused, Err(LogError::NotAtEnd { .. })));
    let older = [batch(end, 3, 1, 8), batch(end + 1, 2, 1, 8)];
    let refused = many.append_all(&older, now);
    assert!(matches!(refused, Err(LogError::EpochFell { .. })));
    assert_eq!(files(&many_root), files(&one_root));
    assert_eq!(many.log_end().get(), end);
}

#[derive(Debug, Clone)]
enum Step {
    Append { records: u32, new_epoch: bool },
    Flush,
    Truncate { back: u64 },
    Checkpoint,
    Reopen { clean: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1_u32..6, proptest::bool::weighted(0.2))
            .prop_map(|(records, new_epoch)| Step::Append { records, new_epoch }),
        2 => Just(Step::Flush),
        1 => (0_u64..20).prop_map(|back| Step::Truncate { back }),
        1 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn a_log_holds_what_a_list_of_batches_would(steps in steps()) {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        let mut model: Vec<Batch> = Vec::new();
        let mut epoch = 1;
        for (mark, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append { records, new_epoch } => {
                    epoch += u32::from(new_epoch);
                    model.push(append(&mut log, epoch, records, mark as u64));
                }
                Step::Flush => flush(&mut log),
                Step::Truncate { back } => {
                    let to = Offset::new(log.log_end().get().saturating_sub(back));
                    log.truncate_to(to).unwrap();
                    model.retain(|batch| batch.end_offset() <= to);
                    epoch += 1;
                    let end = model.last().map_or(Offset::ZERO, Batch::end_offset);
                    if back > 0 {
                        prop_assert!(log.flushed_end() == end || log.log_end() == to);
                    }
                }
                Step::Checkpoint => {
                    let high_watermark = log.flushed_end();
                    log.set_high_watermark(high_watermark);
                    log.checkpoint().unwrap();
                }
                Step::Reopen { clean } => {
                    if clean {
                        log.close().unwrap();
                    } else {
                        drop(log);
                    }
                    let (reopened, report) = open(&root, AFTER_KILL);
                    prop_assert_eq!(report.damaged, None);
                    log = reopened;
                    prop_assert_eq!(log.flushed_end(), log.log_end());
                }
            }
            prop_assert_eq!(log.log_end(), model.last().map_or(Offset::ZERO, Batch::end_offset));
            prop_assert!(log.flushed_end() <= log.log_end());
            prop_assert!(log.high_watermark() <= log.log_end());
        }
        prop_assert_eq!(read_all(&log), model.clone());
        if let Some(last) = model.last() {
            prop_assert_eq!(log.epochs().epoch_at(last.base_offset()), Some(last.leader_epoch()));
            let tag = last.header().producer.unwrap();
            let (base, end) = (last.base_offset(), last.end_offset());
            prop_assert_eq!(
                log.producers().check(&tag, last.header().record_count),
                Ok(SequenceCheck::Duplicate { base, end })
            );
        }
    }
}

#[test]
fn a_batch_torn_at_any_byte_is_cut_and_no_damage_after_a_kill() {
    let whole = batch(3, 1, 2, 9).size();
    for keep in 0..whole {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        append(&mut log, 1, 3, 0);
        flush(&mut log);
        log.checkpoint().unwrap();
        append(&mut log, 1, 2, 9);
        drop(log);
        let file = root.path().join(PATH).join("00000000000000000000.log");
        let len = std::fs::metadata(&file).unwrap().len();
        let torn = len - whole as u64 + keep as u64;
        std::fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(torn)
            .unwrap();
        let (log, report) = open(&root, AFTER_KILL);
        assert_eq!(log.log_end(), Offset::new(3), "{keep} bytes kept");
        assert_eq!(report.damaged, None);
        assert_eq!(report.truncated_bytes, keep as u64);
    }
}

fn flip(root: &TempDir, at: usize, bits: u8) {
    let file = root.path().join(PATH).join("00000000000000000000.log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at] ^= bits;
    std::fs::write(&file, bytes).unwrap();
}

#[test]
fn a_bit_flipped_below_the_recovery_point_is_damage() {
    for cx in [AFTER_KILL, AFTER_POWER_LOSS] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        append(&mut log, 1, 3, 0);
        append(&mut log, 1, 1, 1);
        flush(&mut log);
        log.checkpoint().unwrap();
        drop(log);
        flip(&root, 70, 1);
        let (log, report) = open(&root, cx);
        assert!(report.damaged.is_some(), "{cx:?}");
        assert_eq!(log.log_end(), Offset::ZERO);
    }
}

#[test]
fn a_bit_flipped_above_the_recovery_point_is_damage_only_with_the_same_boot() {
    for (cx, damaged) in [(AFTER_KILL, true), (AFTER_POWER_LOSS, false)] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        append(&mut log, 1, 3, 0);
        drop(log);
        flip(&root, 70, 1);
        let (_, report) = open(&root, cx);
        assert_eq!(report.damaged.is_some(), damaged, "{cx:?}");
    }
}

#[test]
fn a_log_shorter_than_its_committed_end_is_damaged() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 3, 0);
    flush(&mut log);
    log.set_high_watermark(Offset::new(3));
    log.checkpoint().unwrap();
    drop(log);
    std::fs::remove_file(root.path().join(PATH).join("00000000000000000000.log")).unwrap();
    let (_, report) = open(&root, AFTER_POWER_LOSS);
    assert!(report.damaged.unwrap().contains("ends at 0"));
}

#[test]
fn a_flush_from_before_a_truncation_counts_for_nothing() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 2, 0);
    append(&mut log, 1, 2, 1);
    let ticket = log.start_flush().unwrap();
    log.truncate_to(Offset::new(2)).unwrap();
    append(&mut log, 2, 2, 2);
    log.complete_flush(ticket.run()).unwrap();
    assert_eq!(log.flushed_end(), Offset::new(2));
    flush(&mut log);
    assert_eq!(log.flushed_end(), Offset::new(4));
}

#[test]
fn a_failed_flush_stops_the_log_until_it_is_cut_to_the_last_good_one() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 2, 0);
    flush(&mut log);
    append(&mut log, 1, 2, 1);
    let mut done = log.start_flush().unwrap().run();
    done.error = Some(std::io::Error::other("no space"));
    assert!(log.complete_flush(done).is_err());
    let next = batch(4, 1, 1, 2);
    assert!(matches!(
        log.append(&next, Timestamp::default()),
        Err(LogError::Failed(_))
    ));
    log.cut_to_flushed().unwrap();
    assert_eq!(log.log_end(), Offset::new(2));
    append(&mut log, 2, 1, 3);
}

#[test]
fn a_log_whose_last_flush_failed_or_is_under_way_is_not_closed() {
    for failed in [true, false] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        append(&mut log, 1, 2, 0);
        let ticket = log.start_flush().unwrap();
        if failed {
            let mut done = ticket.run();
            done.error = Some(std::io::Error::other("no space"));
            assert!(log.complete_flush(done).is_err());
        }
        assert!(matches!(log.close(), Err(LogError::Failed(_))));
    }
}

#[test]
fn what_does_not_follow_is_refused_and_changes_nothing() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 5, 2, 0);
    let gap = log.append(&batch(3, 5, 1, 1), Timestamp::default());
    assert!(matches!(gap, Err(LogError::NotAtEnd { .. })));
    let old = log.append(&batch(2, 4, 1, 1), Timestamp::default());
    assert!(matches!(old, Err(LogError::EpochFell { .. })));
    assert_eq!(read_all(&log).len(), 1);
}

#[test]
fn an_epoch_that_was_begun_survives_a_kill_without_a_record() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 2, 0);
    log.begin_epoch(LeaderEpoch::new(4)).unwrap();
    assert_eq!(log.flushed_end(), Offset::new(2));
    drop(log);
    let (log, _) = open(&root, AFTER_POWER_LOSS);
    assert_eq!(log.last_epoch(), Some(LeaderEpoch::new(4)));
}

#[test]
fn what_lies_above_is_no_business_of_a_read() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    let first = append(&mut log, 1, 2, 0);
    append(&mut log, 1, 2, 1);
    drop(log);
    let (log, _) = open(&root, AFTER_KILL);
    flip(&root, first.size() + 70, 1);
    let read = |up_to| log.reader().read(Offset::ZERO, Offset::new(up_to), 1 << 20);
    assert_eq!(read(2).unwrap(), *first.bytes());
    assert!(read(4).is_err());
}

#[test]
fn a_batch_whose_length_was_changed_is_an_error_and_not_the_end() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    let first = append(&mut log, 1, 2, 0);
    append(&mut log, 1, 2, 1);
    append(&mut log, 1, 2, 2);
    drop(log);
    let (log, _) = open(&root, AFTER_KILL);
    // In the second batch's length: 256 KiB more than the segment has.
    flip(&root, first.size() + 9, 4);
    for from in 2..4 {
        let (from, end) = (Offset::new(from), Offset::new(6));
        let read = log.reader().read(from, end, 1 << 20);
        assert!(
            matches!(read, Err(ReadError::Corrupt { .. })),
            "from {from}: {read:?}"
        );
    }
}

#[test]
fn a_batch_whose_offset_was_changed_is_not_read() {
    for (at, name) in [(7, "lower"), (6, "higher")] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        let first = append(&mut log, 1, 2, 0);
        append(&mut log, 1, 2, 1);
        append(&mut log, 1, 2, 2);
        drop(log);
        let (log, _) = open(&root, AFTER_KILL);
        // In the second batch's base offset, 2: to 0, or to 514.
        flip(&root, first.size() + at, 2);
        for from in 0..4 {
            let read = log
                .reader()
                .read(Offset::new(from), Offset::new(6), 1 << 20);
            assert!(
                matches!(read, Err(ReadError::Corrupt { .. })),
                "{name} from {from}: {read:?}"
            );
        }
    }
}

#[test]
fn an_offset_is_found_by_its_time() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    for mark in 0..20 {
        append(&mut log, 1, 3, mark);
    }
    let find = |millis| {
        let found = log
            .reader()
            .offset_for_timestamp(Timestamp::from_millis(millis), log.log_end());
        found.unwrap().map(|(offset, _)| offset.get())
    };
    assert_eq!(find(i64::MIN), Some(0));
    assert_eq!(find(305), Some(31));
    assert_eq!(find(590), Some(59));
    assert_eq!(find(591), None);
}

#[test]
fn a_directory_counts_its_starts_and_refuses_another_node_and_a_second_process() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("data");
    let open = |node| DataDirectory::open(&path, NodeId::new(node), Duration::ZERO);
    let first = open(1).unwrap();
    assert_eq!(first.incarnation().start, 1);
    assert!(
        open(1)
            .err()
            .unwrap()
            .to_string()
            .contains("another process")
    );
    first.logs_opened().unwrap();
    first
        .write_clean(quorate_types::BrokerEpoch::new(77))
        .unwrap();
    let directory = first.directory_id();
    drop(first);
    assert!(
        open(2)
            .err()
            .unwrap()
            .to_string()
            .contains("belongs to node 1")
    );
    let second = open(1).unwrap();
    assert_eq!(second.incarnation().start, 2);
    assert_eq!(second.directory_id(), directory);
    assert_eq!(second.clean_epoch().map(|epoch| epoch.get()), Some(77));
    assert!(second.recovery_context().same_boot);
    second.logs_opened().unwrap();
    drop(second);
    assert_eq!(open(1).unwrap().clean_epoch(), None);
}

#[test]
fn a_start_that_ends_before_the_logs_are_open_leaves_the_next_one_what_it_found() {
    let root = TempDir::new().unwrap();
    let start = || DataDirectory::open(root.path(), NodeId::new(1), Duration::ZERO).unwrap();
    let first = start();
    first.logs_opened().unwrap();
    let epoch = quorate_types::BrokerEpoch::new(7);
    first.write_clean(epoch).unwrap();
    drop(first);
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 1, 0);
    flush(&mut log);
    log.checkpoint().unwrap();
    let torn = append(&mut log, 1, 1, 1).size();
    drop(log);
    // The machine was booted since, and what was not synced came back as zeros.
    let other = quorate_types::BootId::from_bytes([1; 16]);
    crate::identity::note_boot(&OsDir::new(root.path()), other).unwrap();
    let mut bytes = std::fs::read(first_segment(&root)).unwrap();
    let whole = bytes.len() - torn;
    bytes[whole..].fill(0);
    std::fs::write(first_segment(&root), bytes).unwrap();
    drop(start());
    let second = start();
    assert_eq!(second.clean_epoch(), Some(epoch));
    let (log, report) = open(&root, second.recovery_context());
    assert_eq!((report.damaged, log.log_end()), (None, Offset::new(1)));
    second.logs_opened().unwrap();
    drop(second);
    let third = start();
    assert!(third.recovery_context().same_boot);
    assert_eq!(third.clean_epoch(), None);
}

#[test]
fn a_partition_set_aside_is_found_no_more() {
    let root = TempDir::new().unwrap();
    let directory = DataDirectory::open(root.path(), NodeId::new(1), Duration::ZERO).unwrap();
    let topic = TopicName::new("orders.v1-eu").unwrap();
    let id: TopicPartition = TopicPartition::new(
        quorate_types::TopicId::from_bytes([7; 16]),
        quorate_types::PartitionId::new(3),
    );
    let path = directory.partition_path(&topic, &id);
    let (log, _) = PartitionLog::open(directory.dir(), &path, options(), AFTER_KILL).unwrap();
    assert_eq!(log.name(), "orders.v1-eu-3", "as people know it");
    drop(log);
    let found = directory.partitions(Duration::from_secs(60)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].topic, found[0].id, &found[0].path),
        (&topic, id, &path)
    );
    directory.set_aside(&[id].into()).unwrap();
    assert!(
        directory
            .partitions(Duration::from_secs(60))
            .unwrap()
            .is_empty()
    );
    let left = || std::fs::read_dir(root.path().join("logs")).unwrap().count();
    assert_eq!(left(), 1);
    directory.partitions(Duration::ZERO).unwrap();
    assert_eq!(left(), 0);
}

#[test]
fn a_roll_or_a_new_epoch_counts_nothing_as_flushed_whose_flush_is_under_way() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 3, 0);
    let ticket = log.start_flush().unwrap();
    while log.shared.segments.read().len() == 1 {
        append(&mut log, 1, 3, 1);
    }
    log.begin_epoch(LeaderEpoch::new(2)).unwrap();
    assert_eq!(log.flushed_end(), Offset::ZERO);
    let synced = log.log_end();
    append(&mut log, 2, 1, 2);
    log.complete_flush(ticket.run()).unwrap();
    assert_eq!(log.flushed_end(), synced);
}

#[test]
fn a_failed_flush_counts_also_when_the_log_was_cut_meanwhile() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    for mark in 0..4 {
        append(&mut log, 1, 1, mark);
    }
    let ticket = log.start_flush().unwrap();
    log.truncate_to(Offset::new(2)).unwrap();
    assert_eq!(log.flushed_end(), Offset::ZERO);
    let failed = FlushDone {
        error: Some(std::io::Error::other("lost")),
        ..ticket.run()
    };
    assert!(log.complete_flush(failed).is_err());
    log.cut_to_flushed().unwrap();
    assert_eq!(log.log_end(), Offset::ZERO);
}

#[test]
fn a_cut_after_a_failed_write_gives_its_room_back_first_and_can_be_tried_again() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 1, 0);
    flush(&mut log);
    let folder = root.path().join(PATH);
    let file = folder.join("00000000000000000000.log");
    let whole = std::fs::read(&file).unwrap();
    // Half a batch took the last room.
    std::fs::write(&file, [whole.as_slice(), &[0; 100]].concat()).unwrap();
    let _why = log.fail(LogError::Failed("no space".to_owned()));
    let in_the_way = folder.join("checkpoint.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    log.cut_to_flushed().unwrap_err();
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    std::fs::remove_dir(&in_the_way).unwrap();
    log.cut_to_flushed().unwrap();
    assert_eq!(log.log_end(), Offset::new(1));
    append(&mut log, 2, 1, 1);
}

#[test]
fn a_flush_that_ends_well_after_another_sync_has_failed_counts_nothing() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 1, 0);
    flush(&mut log);
    append(&mut log, 1, 1, 1);
    let ticket = log.start_flush().unwrap();
    let _why = log.fail(LogError::Failed("another sync of the same file".to_owned()));
    log.complete_flush(ticket.run()).unwrap();
    assert_eq!(log.flushed_end(), Offset::new(1));
    log.cut_to_flushed().unwrap();
    assert_eq!(log.log_end(), Offset::new(1));
}

#[test]
fn an_epoch_that_was_begun_without_a_record_is_no_bar_to_older_ones() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 1, 0);
    log.begin_epoch(LeaderEpoch::new(3)).unwrap();
    // Another replica leads at epoch 4 and has a record of epoch 2 here.
    append(&mut log, 2, 1, 1);
    let second = Some(LeaderEpoch::new(2));
    assert_eq!(log.epochs().epoch_at(Offset::new(1)), second);
    assert!(matches!(
        log.append(&batch(2, 1, 1, 2), Timestamp::from_millis(0)),
        Err(LogError::EpochFell { .. })
    ));
    flush(&mut log);
    drop(log);
    // What was written when the epoch was begun does not come back.
    let (log, _) = open(&root, AFTER_KILL);
    assert_eq!(log.epochs().epoch_at(Offset::new(1)), second);
}

#[test]
fn a_power_loss_of_what_only_the_page_cache_had_is_no_damage() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 1, 0);
    flush(&mut log);
    append(&mut log, 1, 1, 1);
    // Committed by the page caches of all replicas (`durability = page-cache`).
    log.set_high_watermark(Offset::new(2));
    log.checkpoint().unwrap();
    let file = root.path().join(PATH).join("00000000000000000000.log");
    drop(log);
    let length = std::fs::metadata(&file).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(length / 2).unwrap();
    let (log, report) = open(&root, AFTER_POWER_LOSS);
    assert_eq!((report.damaged, log.log_end()), (None, Offset::new(1)));
}

/// A closed log of several segments, flushed and committed; and what is in it.
fn closed() -> (TempDir, Vec<Batch>) {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    for number in 0..30 {
        if number % 10 == 0 {
            log.begin_epoch(LeaderEpoch::new(1 + number / 10)).unwrap();
        }
        append(&mut log, 1 + number / 10, 3, u64::from(number));
    }
    flush(&mut log);
    log.set_high_watermark(log.log_end());
    let all = read_all(&log);
    log.close().unwrap();
    (root, all)
}

fn first_segment(root: &TempDir) -> std::path::PathBuf {
    root.path().join(PATH).join("00000000000000000000.log")
}

#[test]
fn epochs_are_read_from_the_batches_where_their_file_is_missing() {
    let (root, all) = closed();
    let epochs = open(&root, AFTER_KILL).0.epochs().clone();
    assert_eq!(epochs.entries().len(), 3);
    std::fs::remove_file(root.path().join(PATH).join("leader-epoch-checkpoint")).unwrap();
    let (log, report) = open(&root, AFTER_KILL);
    assert_eq!(log.epochs(), &epochs);
    assert_eq!((report.damaged, read_all(&log)), (None, all));
}

#[test]
fn a_header_that_cannot_be_read_below_the_recovery_point_is_damage_and_no_error() {
    let (root, all) = closed();
    for entry in std::fs::read_dir(root.path().join(PATH)).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "snapshot")
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    let file = first_segment(&root);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = all[0].size() + 16;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (log, report) = open(&root, AFTER_KILL);
    assert!(report.damaged.is_some());
    assert_eq!(read_all(&log), all[..1]);
}

#[test]
fn an_epoch_that_is_none_or_falls_in_the_next_segment_is_damage() {
    let damaged_where = |changed: fn(&[Batch]) -> (usize, u32, usize)| {
        let (root, all) = closed();
        let file = first_segment(&root);
        let mut bytes = std::fs::read(&file).unwrap();
        let (at, epoch, kept) = changed(&Batch::split(bytes.clone().into()).unwrap());
        // The epoch stands outside the CRC.
        bytes[at + 12..at + 16].copy_from_slice(&epoch.to_be_bytes());
        std::fs::write(&file, bytes).unwrap();
        // So that every batch is looked at.
        std::fs::remove_file(root.path().join(PATH).join("leader-epoch-checkpoint")).unwrap();
        let (log, report) = open(&root, AFTER_KILL);
        assert!(report.damaged.is_some());
        let end = all[..kept].last().map(Batch::end_offset);
        assert_eq!(log.log_end(), end.unwrap_or_default());
    };
    damaged_where(|held| {
        let before = held[..held.len() - 1].iter().map(Batch::size).sum();
        (before, 9, held.len())
    });
    damaged_where(|_| (0, 1 | 1 << 31, 0));
}

#[test]
fn a_log_whose_first_segment_is_lost_is_damaged_and_begins_anew() {
    let (root, _) = closed();
    std::fs::remove_file(first_segment(&root)).unwrap();
    let (log, report) = open(&root, AFTER_POWER_LOSS);
    assert!(report.damaged.is_some());
    // What follows a hole is no part of the log: its peers give all of it.
    assert_eq!(
        (log.log_start(), log.log_end()),
        (Offset::ZERO, Offset::ZERO)
    );
}

#[test]
fn damage_is_reported_by_every_start_until_the_cluster_knows() {
    let (root, all) = closed();
    let (log, _) = open(&root, AFTER_KILL);
    log.mark_damaged("a batch could not be read").unwrap();
    drop(log);
    let file = first_segment(&root);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[all[0].size() + 70] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for _ in 0..2 {
        let (log, report) = open(&root, AFTER_POWER_LOSS);
        assert!(report.damaged.is_some());
        assert_eq!(read_all(&log), all[..1]);
    }
    open(&root, AFTER_KILL).0.damage_told().unwrap();
    assert_eq!(open(&root, AFTER_KILL).1.damaged, None);
}

#[test]
fn a_changed_length_in_the_middle_is_not_taken_for_a_torn_end() {
    for flipped in [8, 9] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        let first = append(&mut log, 1, 2, 0);
        append(&mut log, 1, 2, 1);
        append(&mut log, 1, 2, 2);
        flush(&mut log);
        drop(log);
        let file = first_segment(&root);
        let mut bytes = std::fs::read(&file).unwrap();
        // Nearly 2 GiB: neither taken for a torn end, nor allocated; and 4 MiB.
        bytes[first.size() + flipped] ^= if flipped == 8 { 0x7f } else { 0x40 };
        std::fs::write(&file, bytes).unwrap();
        let (log, report) = open(&root, AFTER_KILL);
        assert!(report.damaged.is_some(), "byte {flipped}");
        assert_eq!(read_all(&log), [first]);
    }
}

#[test]
fn a_batch_that_a_torn_record_holds_is_no_batch_of_the_log() {
    for whole in [0, 1] {
        let root = TempDir::new().unwrap();
        let (mut log, _) = open(&root, AFTER_KILL);
        for base in 0..=whole {
            // As one that is kept from another log.
            let held = batch(0, 9, 1, 7);
            let mut builder = BatchBuilder::new(Compression::None);
            builder.push(Timestamp::default(), None, Some(held.bytes()), &[]);
            let holder = builder.build();
            let holder = holder.stamped(Offset::new(base), LeaderEpoch::new(1));
            log.append(&holder, Timestamp::default()).unwrap();
        }
        drop(log);
        let bytes = std::fs::read(first_segment(&root)).unwrap();
        std::fs::write(first_segment(&root), &bytes[..bytes.len() - 1]).unwrap();
        let (log, report) = open(&root, AFTER_KILL);
        assert_eq!((report.damaged, log.log_end()), (None, Offset::new(whole)));
    }
}

#[test]
fn a_damaged_count_or_list_keeps_the_directory_closed_and_is_named() {
    let id = TopicPartition::new(
        quorate_types::TopicId::from_bytes([4; 16]),
        quorate_types::PartitionId::new(2),
    );
    for name in ["start-count", "hosted"] {
        let root = TempDir::new().unwrap();
        let start = || DataDirectory::open(root.path(), NodeId::new(1), Duration::ZERO);
        let first = start().unwrap();
        first.note_hosted([id]).unwrap();
        drop(first);
        let again = start().unwrap();
        assert_eq!(again.incarnation().start, 2);
        assert_eq!(again.hosted().into_iter().collect::<Vec<_>>(), [id]);
        drop(again);
        let whole = std::fs::read(root.path().join(name)).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() / 2]] {
            std::fs::write(root.path().join(name), damaged).unwrap();
            let why = start().err().expect("it is damaged").to_string();
            assert!(why.contains(name) && why.contains("new member"), "{why}");
        }
        std::fs::write(root.path().join(name), whole).unwrap();
        start().unwrap().set_aside(&[id].into()).unwrap();
        assert!(start().unwrap().hosted().is_empty());
    }
}

#[test]
fn a_log_whose_first_batch_is_damaged_goes_on_in_its_own_file() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 2, 1);
    flush(&mut log);
    drop(log);
    flip(&root, 70, 1);
    let (mut log, report) = open(&root, AFTER_KILL);
    assert!(report.damaged.is_some());
    assert_eq!(log.log_end(), Offset::ZERO);
    append(&mut log, 2, 3, 2);
    flush(&mut log);
    log.damage_told().unwrap();
    let held = read_all(&log);
    drop(log);
    let (log, report) = open(&root, AFTER_KILL);
    assert_eq!(report.damaged, None);
    assert_eq!(read_all(&log), held);
}

#[test]
fn a_log_begins_where_a_batch_does() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    append(&mut log, 1, 3, 1);
    append(&mut log, 1, 3, 2);
    flush(&mut log);
    log.set_high_watermark(Offset::new(6));
    log.delete_before(Offset::new(2)).unwrap();
    assert_eq!(log.log_start(), Offset::ZERO);
    log.delete_before(Offset::new(5)).unwrap();
    assert_eq!(log.log_start(), Offset::new(3));
    log.delete_before(Offset::new(9)).unwrap();
    assert_eq!(log.log_start(), Offset::new(6));
}
