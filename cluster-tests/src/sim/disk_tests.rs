//! What the simulated disk keeps and what it loses.

use quorate_log::{LogOptions, PartitionLog, RecoveryContext};
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{LeaderEpoch, Offset, Timestamp};
use rand::SeedableRng;

use super::disk::*;
use quorate_log::{Dir, DirFile, OpenMode};
use rand::rngs::StdRng;
use std::sync::Arc;

fn disk_with(synced: &[u8], unsynced: &[u8]) -> SimDisk {
    let disk = SimDisk::default();
    disk.create_dir("d").unwrap();
    disk.sync_dir("").unwrap();
    let file = disk.open("d/f", OpenMode::Append).unwrap();
    file.append(&[synced]).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("d").unwrap();
    file.append(&[unsynced]).unwrap();
    disk
}

/// What is certain of the first file.
fn durable(disk: &SimDisk) -> Vec<u8> {
    let mut first = None;
    disk.look_at_durable("d", "", |_, bytes| {
        first.get_or_insert_with(|| bytes.to_vec());
    });
    first.unwrap()
}

#[test]
fn what_was_synced_survives_a_power_loss_and_the_rest_may_be_torn() {
    let (mut whole, mut none, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = disk_with(b"synced", &[7; 300]);
        disk.lose_power(&mut StdRng::seed_from_u64(seed));
        let left = durable(&disk);
        assert!(left.starts_with(b"synced"));
        match &left[6..] {
            [] => none += 1,
            rest if rest == [7; 300] => whole += 1,
            _ => torn += 1,
        }
    }
    assert!(whole > 0 && none > 0 && torn > 0, "{whole} {none} {torn}");
}

#[test]
fn a_name_that_was_not_synced_may_be_gone_with_its_synced_content() {
    let mut gone = 0;
    for seed in 0..50 {
        let disk = disk_with(b"a", b"");
        let file = disk.open("d/new", OpenMode::Append).unwrap();
        file.append(&[b"b"]).unwrap();
        file.sync_data().unwrap();
        let mut names = 0;
        disk.look_at_durable("d", "", |_, _| names += 1);
        assert_eq!(names, 1);
        disk.lose_power(&mut StdRng::seed_from_u64(seed));
        gone += u32::from(disk.list("d").unwrap().len() == 1);
    }
    assert!(gone > 0 && gone < 50, "{gone}");
}

#[test]
fn what_a_failed_sync_dropped_is_never_durable() {
    let disk = disk_with(b"a", b"b");
    let file = disk.open("d/f", OpenMode::Append).unwrap();
    disk.fail_syncs(1);
    assert!(file.sync_data().is_err());
    file.append(&[b"c"]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(durable(&disk), b"a\0c");
    let mut cached = [0; 3];
    file.read_at(&mut cached, 0).unwrap();
    assert_eq!(&cached, b"abc");
}

#[test]
fn a_log_opened_after_a_failed_sync_is_on_the_disk() {
    let disk = SimDisk::default();
    let open = || {
        let cx = RecoveryContext { same_boot: true };
        let disk = Arc::new(disk.clone());
        PartitionLog::open(disk, "logs/t-0", LogOptions::default(), cx)
            .unwrap()
            .0
    };
    let mut log = open();
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(Timestamp::from_millis(0), None, Some(b"v"), &[]);
    let now = Timestamp::from_millis(0);
    let batch = batch.build().stamped(Offset::ZERO, LeaderEpoch::new(1));
    log.append(&batch, now).unwrap();
    disk.fail_syncs(1);
    assert!(log.start_flush().unwrap().run().error.is_some());
    // Killed before it could be told.
    drop(log);
    assert_eq!(open().flushed_end(), Offset::new(1));
    disk.lose_power(&mut StdRng::seed_from_u64(1));
    assert_eq!(open().log_end(), Offset::new(1));
}

#[test]
fn a_renamed_folder_takes_its_files_along_once_the_names_are_synced() {
    let disk = disk_with(b"a", b"");
    disk.rename("d", "e").unwrap();
    assert_eq!(disk.list("").unwrap().len(), 1);
    assert_eq!(disk.list("e").unwrap().len(), 1);
    disk.look_at_durable("e", "", |_, _| panic!("the name was not synced"));
    disk.sync_dir(".").unwrap();
    disk.lose_power(&mut StdRng::seed_from_u64(1));
    assert_eq!(disk.bytes_of("e/f"), b"a");
    assert!(disk.list("d").unwrap().is_empty());
}
