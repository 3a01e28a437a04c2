//! The offline check on real logs: clean when nothing happened, and whatever is flipped or cut
//! is named by its file and a position, while nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag};
use quorate_types::{
    BrokerEpoch, ClusterId, LeaderEpoch, NodeId, Offset, PartitionId, ProducerEpoch, ProducerId,
    Sequence, Timestamp, TopicId, TopicName, TopicPartition,
};
use tempfile::TempDir;

use crate::{
    Checked, DataDirectory, Finding, Findings, LogOptions, Offline, OfflineTarget, PartitionLog,
    RecoveryContext, Severity, SlowDir, verify_directory, verify_partition,
};

type Log = PartitionLog<SlowDir<crate::OsDir>>;

/// How the log's last life ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ended {
    Closed,
    /// Killed, with a checkpoint below the end.
    Killed,
}

fn batch(base: Offset, epoch: u32, records: u32, compression: Compression) -> Batch {
    let tag = ProducerTag {
        id: ProducerId::new(5),
        epoch: ProducerEpoch::ZERO,
        base_sequence: Sequence::new(base.get() as u32),
    };
    let mut builder = BatchBuilder::new(compression).producer(tag);
    for record in 0..records {
        let time = Timestamp::from_millis((base.get() + u64::from(record)) as i64);
        builder.push(time, Some(b"key"), Some(b"value of a record"), &[]);
    }
    builder.build().stamped(base, LeaderEpoch::new(epoch))
}

fn fill(log: &mut Log, ended: Ended) {
    for number in 0..24 {
        let epoch = 1 + number / 7;
        if number % 7 == 0 {
            log.begin_epoch(LeaderEpoch::new(epoch)).unwrap();
        }
        let compression = Compression::ALL[number as usize % 5];
        let batch = batch(log.log_end(), epoch, 1 + number % 4, compression);
        log.append(&batch, Timestamp::default()).unwrap();
        if ended == Ended::Closed || number <= 20 {
            let ticket = log.start_flush().unwrap();
            log.complete_flush(ticket.run()).unwrap();
            log.set_high_watermark(log.flushed_end());
            log.checkpoint().unwrap();
        }
    }
}

/// A data directory with one partition; gives the partition's directory, relative to it.
fn data(root: &Path, ended: Ended) -> String {
    let directory = DataDirectory::open(root, NodeId::new(1), Duration::ZERO).unwrap();
    directory
        .set_cluster_id(ClusterId::from_bytes([3; 16]))
        .unwrap();
    let topic = TopicName::new("orders").unwrap();
    let id = TopicPartition::new(TopicId::from_bytes([7; 16]), PartitionId::new(0));
    let path = directory.partition_path(&topic, &id);
    let options = LogOptions {
        segment_bytes: 1_200,
        index_interval_bytes: 200,
        ..LogOptions::default()
    };
    let cx = RecoveryContext { same_boot: true };
    let dir = Arc::clone(&directory.dir());
    let (mut log, _) = PartitionLog::open(dir, &path, options, cx).unwrap();
    directory.logs_opened().unwrap();
    fill(&mut log, ended);
    if ended == Ended::Closed {
        log.close().unwrap();
        directory.write_clean(BrokerEpoch::new(9)).unwrap();
    }
    path
}

/// Every file below, with its content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.insert(path.clone(), Vec::new());
                open.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

fn verify(path: &Path) -> (Vec<Finding>, Checked) {
    let offline = Offline::open(path).unwrap();
    let mut findings = Findings::new(offline.root());
    let mut checked = Checked::default();
    let only = match offline.target() {
        OfflineTarget::DataDirectory => {
            verify_directory(offline.dir(), &mut findings).unwrap();
            None
        }
        OfflineTarget::Partition(_) => None,
        OfflineTarget::Segment(_, base) => Some(*base),
    };
    for partition in offline.partitions().unwrap() {
        let dir = offline.dir();
        verify_partition(dir, &partition.path, only, &mut findings, &mut checked).unwrap();
    }
    (findings.into_list(), checked)
}

fn worse_than_notes(list: &[Finding]) -> Vec<&Finding> {
    let worse = list.iter().filter(|f| f.severity != Severity::Note);
    worse.collect()
}

#[test]
fn a_log_is_clean_however_its_last_life_ended_and_nothing_is_changed() {
    for ended in [Ended::Closed, Ended::Killed] {
        let root = TempDir::new().unwrap();
        let path = data(root.path(), ended);
        let before = tree(root.path());
        let (found, checked) = verify(root.path());
        assert_eq!(found, [], "{ended:?}");
        assert_eq!((checked.partitions, checked.batches), (1, 24));
        assert!(checked.segments > 2, "{checked:?}");
        let (found, alone) = verify(&root.path().join(&path));
        assert_eq!(found, []);
        assert_eq!(alone, checked);
        let mut segments = 0;
        for file in before
            .keys()
            .filter(|file| file.extension().is_some_and(|e| e == "log"))
        {
            let (found, one) = verify(file);
            assert_eq!(found, []);
            segments += one.segments;
        }
        assert_eq!(segments, checked.segments);
        assert_eq!(tree(root.path()), before, "{ended:?}");
    }
}

fn assert_named(root: &Path, file: &Path, what: &str) {
    let before = tree(root);
    let (found, _) = verify(root);
    let worse = worse_than_notes(&found);
    assert!(
        worse
            .iter()
            .any(|finding| finding.file == file && finding.position.is_some()),
        "{what} of {}: {found:#?}",
        file.display()
    );
    assert_eq!(tree(root), before, "{what} of {}", file.display());
}

#[test]
fn a_flip_in_any_file_and_a_missing_half_of_it_are_named() {
    for ended in [Ended::Closed, Ended::Killed] {
        let root = TempDir::new().unwrap();
        data(root.path(), ended);
        let mut kinds = std::collections::BTreeSet::new();
        for (file, content) in tree(root.path()) {
            if file.is_dir() || content.is_empty() {
                continue;
            }
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            kinds.insert(name.rsplit('.').next().unwrap().to_owned());
            // Of a log that was not closed nobody knows how many whole records there were.
            let torn = usize::from(ended == Ended::Killed && name == "checkpoint");
            fs::write(&file, &content[..content.len() / 2 - torn]).unwrap();
            assert_named(root.path(), &file, "a missing half");
            for part in 0..8 {
                let mut flipped = content.clone();
                flipped[content.len() * part / 8] ^= 1 << part;
                fs::write(&file, &flipped).unwrap();
                if ended == Ended::Closed || !name.ends_with(".log") {
                    assert_named(root.path(), &file, "a flip");
                }
            }
            fs::write(&file, &content).unwrap();
        }
        let mut all = vec![
            "boot-id",
            "checkpoint",
            "hosted",
            "index",
            "leader-epoch-checkpoint",
            "log",
        ];
        all.extend(["properties", "snapshot", "start-count", "timeindex"]);
        all.extend((ended == Ended::Closed).then_some("clean-shutdown"));
        all.sort_unstable();
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_flip_anywhere_in_a_closed_log_is_named_with_the_batch_it_is_in(
        at in any::<prop::sample::Index>(), bit in 0_u32..8, which in any::<prop::sample::Index>(),
    ) {
        let (root, files) = closed_log();
        let (file, content) = &files[which.index(files.len())];
        let at = at.index(content.len());
        let batch = batch_around(content, at);
        let file = root.path().join(file);
        let mut flipped = content.clone();
        flipped[at] ^= 1 << bit;
        fs::write(&file, &flipped).unwrap();
        let (found, _) = verify(root.path());
        fs::write(&file, content).unwrap();
        let worse = worse_than_notes(&found);
        // What does not follow is seen at the batch itself or at the one after it.
        let near = batch.0..=batch.1;
        prop_assert!(
            worse.iter().any(|finding| finding.file == file
                && finding.position.is_some_and(|position| near.contains(&position))),
            "{} at {at}, batch {batch:?}: {found:#?}", file.display()
        );
    }
}

/// One closed log for all cases, and its segments.
fn closed_log() -> (&'static TempDir, &'static [(PathBuf, Vec<u8>)]) {
    use std::sync::LazyLock;
    type Files = Vec<(PathBuf, Vec<u8>)>;
    static LOG: LazyLock<(TempDir, Files)> = LazyLock::new(|| {
        let root = TempDir::new().unwrap();
        data(root.path(), Ended::Closed);
        let segments = tree(root.path())
            .into_iter()
            .filter(|(file, content)| {
                file.extension().is_some_and(|e| e == "log") && !content.is_empty()
            })
            .map(|(file, content)| (file.strip_prefix(root.path()).unwrap().to_owned(), content))
            .collect();
        (root, segments)
    });
    (&LOG.0, &LOG.1)
}

/// Where the batch that holds the byte begins and ends.
fn batch_around(segment: &[u8], at: usize) -> (u64, u64) {
    let mut begin = 0;
    loop {
        let size = quorate_record::BatchHeader::size_of(&segment[begin..]).unwrap();
        if at < begin + size {
            return (begin as u64, (begin + size) as u64);
        }
        begin += size;
    }
}

#[test]
fn a_torn_tail_is_told_apart_from_damage_below_the_recovery_point() {
    let root = TempDir::new().unwrap();
    data(root.path(), Ended::Killed);
    let files = tree(root.path());
    let segments: Vec<_> = files
        .iter()
        .filter(|(file, _)| file.extension().is_some_and(|e| e == "log"))
        .collect();
    let (last, content) = segments.last().unwrap();
    fs::write(last, &content[..content.len() - 3]).unwrap();
    let (found, _) = verify(root.path());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].severity, Severity::TornTail);
    assert!(
        found[0].what.contains("the next start cuts it off"),
        "{found:#?}"
    );
    fs::write(last, content).unwrap();

    let (first, content) = segments[0];
    fs::write(first, &content[..content.len() - 3]).unwrap();
    let (found, _) = verify(root.path());
    assert_eq!(found[0].severity, Severity::Corruption, "{found:#?}");
}

#[test]
fn the_check_goes_on_after_damage_and_counts_what_is_whole() {
    let root = TempDir::new().unwrap();
    data(root.path(), Ended::Closed);
    let files = tree(root.path());
    let mut broken = 0;
    for (file, content) in &files {
        if file.extension().is_some_and(|e| e == "log") && !content.is_empty() {
            let mut flipped = content.clone();
            flipped[70] ^= 1;
            fs::write(file, flipped).unwrap();
            broken += 1;
        }
    }
    let (found, checked) = verify(root.path());
    assert_eq!(worse_than_notes(&found).len(), broken, "{found:#?}");
    assert_eq!(checked.batches, 24 - broken as u64);
}

#[test]
fn a_removed_segment_is_missed_wherever_it_was() {
    let root = TempDir::new().unwrap();
    data(root.path(), Ended::Closed);
    for (file, content) in tree(root.path()) {
        if file.extension().is_none_or(|e| e != "log") || content.is_empty() {
            continue;
        }
        fs::remove_file(&file).unwrap();
        let (found, _) = verify(root.path());
        assert!(!worse_than_notes(&found).is_empty(), "{}", file.display());
        fs::write(&file, content).unwrap();
    }
    assert_eq!(verify(root.path()).0, []);
}

#[test]
fn what_does_not_belong_is_noted_and_no_reason_to_fail() {
    let root = TempDir::new().unwrap();
    let path = data(root.path(), Ended::Closed);
    let strays = ["notes.txt", "logs/somewhere", "meta.properties.tmp"].map(str::to_owned);
    let inner = ["checkpoint.tmp", "00000000000000009999.index", "x"];
    let all = strays
        .into_iter()
        .chain(inner.map(|name| format!("{path}/{name}")));
    for stray in all.clone() {
        fs::write(root.path().join(stray), b"?").unwrap();
    }
    let (found, _) = verify(root.path());
    for stray in all {
        let file = root.path().join(stray);
        let finding = found.iter().find(|finding| finding.file == file);
        assert_eq!(
            finding.map(|f| f.severity),
            Some(Severity::Note),
            "{file:?}"
        );
    }
    assert!(worse_than_notes(&found).is_empty(), "{found:#?}");
}

#[test]
fn what_is_in_use_missing_or_something_else_is_refused_with_a_reason() {
    let root = TempDir::new().unwrap();
    let data_dir = root.path().join("data");
    let path = data(&data_dir, Ended::Closed);
    let refused = |path: &Path| Offline::open(path).unwrap_err().to_string();
    assert!(refused(&root.path().join("gone")).contains("there is nothing there"));
    assert!(refused(root.path()).contains("neither a data directory"));
    assert!(refused(&data_dir.join("meta.properties")).contains("is no segment"));
    let node = DataDirectory::open(&data_dir, NodeId::new(1), Duration::ZERO).unwrap();
    let segment = data_dir.join(&path).join("00000000000000000000.log");
    for used in [&data_dir, &data_dir.join(&path), &segment] {
        assert!(
            refused(used).contains("in use by a running node"),
            "{used:?}"
        );
    }
    drop(node);
    let looked_at = Offline::open(&data_dir).unwrap();
    Offline::open(&segment).unwrap();
    let node = DataDirectory::open(&data_dir, NodeId::new(1), Duration::ZERO);
    assert!(
        node.is_err(),
        "a node must not start while its directory is read"
    );
    drop(looked_at);
}

#[test]
fn a_partition_that_is_listed_and_gone_is_told_of() {
    let root = TempDir::new().unwrap();
    let path = data(root.path(), Ended::Closed);
    let id = TopicPartition::new(TopicId::from_bytes([7; 16]), PartitionId::new(0));
    let directory = DataDirectory::open(root.path(), NodeId::new(1), Duration::ZERO).unwrap();
    directory.note_hosted([id]).unwrap();
    drop(directory);
    let said = |severity| {
        let (found, _) = verify(root.path());
        let list = root.path().join("hosted");
        let mut of = found
            .iter()
            .filter(|f| f.file == list && f.severity == severity);
        of.next().map(|f| f.what.clone())
    };
    assert_eq!(verify(root.path()).0, []);
    fs::remove_dir_all(root.path().join(path)).unwrap();
    let what = said(Severity::Corruption).unwrap();
    assert!(what.contains(&id.to_string()), "{what}");
    let odd = crate::checkpoint::frame(&[0; 21]);
    fs::write(root.path().join("hosted"), odd).unwrap();
    let what = said(Severity::Corruption).unwrap();
    assert!(what.contains("does not start"), "{what}");
    fs::remove_file(root.path().join("hosted")).unwrap();
    assert!(said(Severity::Note).unwrap().contains("is missing"));
}

#[test]
fn an_epoch_lowered_where_the_last_one_begins_is_noted() {
    let root = TempDir::new().unwrap();
    let path = root.path().join(data(root.path(), Ended::Killed));
    let segments = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
    let last = segments.filter(is_log).max().unwrap();
    let whole = fs::read(&last).unwrap();
    let mut batches = Batch::split(whole.clone().into()).unwrap().into_iter();
    let before = |batch: &Batch| batch.leader_epoch() < LeaderEpoch::new(4);
    let at: usize = batches.by_ref().take_while(before).map(|b| b.size()).sum();
    let mut lowered = whole;
    lowered[at + 12..at + 16].copy_from_slice(&3_i32.to_be_bytes());
    fs::write(&last, lowered).unwrap();
    let (found, _) = verify(root.path());
    assert!(worse_than_notes(&found).is_empty(), "{found:?}");
    assert!(found.iter().any(|f| f.file == last), "{found:?}");
}
