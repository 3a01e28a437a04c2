//! Metadata of the shipped store, read offline: what is flipped or cut is reported, or was not
//! read at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use openraft::storage::RaftStateMachine;
use openraft::testing::{blank_ent, log_id};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use quorate_log::{Finding, Findings, Severity};
use quorate_metadata::{Command, Envelope, LogId, Origin};
use quorate_types::{ClusterId, DirectoryId, Incarnation, NodeId, RaftIndex, Term, Timestamp};
use tempfile::TempDir;

use crate::ids::{Entry, Proposal, RaftId, TypeConfig, Vote};
use crate::inspect::{MetadataCopy, MetadataEntry};
use crate::log_store::LogStore;
use crate::snapshots::Snapshots;
use crate::state_machine::StateMachine;
use crate::store_tests::{append, close};

fn command(index: u64) -> Entry {
    let envelope = Envelope {
        origin: Origin {
            node: NodeId::new(1),
            directory: DirectoryId::from_bytes([9; 16]),
            incarnation: Incarnation {
                start: 1,
                random: 1,
            },
        },
        sequence: index,
        required_term: None,
        time: Timestamp::default(),
        commands: vec![Command::BootstrapCluster {
            cluster_id: ClusterId::from_bytes([5; 16]),
        }],
    };
    let mut entry = blank_ent::<TypeConfig>(1, RaftId::from(1), index);
    entry.payload = EntryPayload::Normal(Proposal(Bytes::from(envelope.encode())));
    entry
}

/// A data directory with metadata of two lives: a snapshot at 19, entries 10 to 59.
async fn metadata() -> TempDir {
    let data = TempDir::new().unwrap();
    let path = data.path().join("metadata");
    let (mut log, closer) = LogStore::open(&path.join("log")).unwrap();
    log.save_vote(&Vote::new_committed(1, RaftId::from(1)))
        .await
        .unwrap();
    append(&mut log, [blank_ent::<TypeConfig>(1, RaftId::from(1), 0)]).await;
    append(&mut log, (1..40).map(command)).await;
    close(log, closer).await;
    let (mut log, closer) = LogStore::open(&path.join("log")).unwrap();
    for index in 40..60 {
        append(&mut log, [command(index)]).await;
    }
    let at = |index| log_id::<TypeConfig>(1, RaftId::from(1), index);
    log.save_committed(Some(at(55))).await.unwrap();
    let snapshots = Snapshots::open(path.join("snapshots")).unwrap();
    let (mut machine, _view) = StateMachine::open(snapshots).unwrap();
    let applied = (0..20).map(|index| {
        let entry = match index {
            0 => blank_ent::<TypeConfig>(1, RaftId::from(1), 0),
            _ => command(index),
        };
        Ok((entry, None))
    });
    machine.apply(futures::stream::iter(applied)).await.unwrap();
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    log.purge(at(9)).await.unwrap();
    close(log, closer).await;
    data
}

type Read = (Vec<Finding>, Vec<MetadataEntry>, String);

/// The findings, the entries, and everything else that was read, as text.
fn read(data: &Path) -> Read {
    let mut findings = Findings::new(data);
    let copy = MetadataCopy::open(data, &mut findings).unwrap();
    let summary = copy.summary().clone();
    let image = summary.image.encode();
    let rest = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        summary.vote,
        summary.committed,
        summary.purged,
        summary.last,
        summary.snapshot,
        summary.members,
        image
    );
    (findings.into_list(), copy.entries().collect(), rest)
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

#[tokio::test]
async fn what_a_store_holds_is_read_and_nothing_is_changed() {
    let data = metadata().await;
    let before = tree(data.path());
    let (found, entries, _) = read(data.path());
    assert_eq!(found, []);
    let indexes: Vec<u64> = entries.iter().map(|entry| entry.index).collect();
    assert_eq!(indexes, (10..60).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.kind == "commands"));
    let copy = MetadataCopy::open(data.path(), &mut Findings::new(data.path())).unwrap();
    let summary = copy.summary();
    let at = |index| {
        Some(LogId {
            term: Term::new(1),
            index: RaftIndex::new(index),
        })
    };
    assert_eq!(summary.image.applied().index.get(), 55);
    assert_eq!(
        summary.image.cluster_id(),
        Some(ClusterId::from_bytes([5; 16]))
    );
    assert_eq!(
        (summary.last, summary.committed, summary.purged),
        (at(59), at(55), at(9))
    );
    assert_eq!(summary.snapshot.as_ref().map(|s| s.1), Some(at(19)));
    assert!(summary.vote.is_some());
    assert_eq!(tree(data.path()), before);
}

/// Everything told of, but notes.
fn reported(found: &[Finding]) -> bool {
    found.iter().any(|f| f.severity != Severity::Note)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_or_a_missing_half_is_reported_or_was_never_read() {
    let data = metadata().await;
    let whole = read(data.path());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut told = BTreeMap::new();
    for (file, content) in tree(data.path()) {
        if content.is_empty() {
            continue;
        }
        let name = file.strip_prefix(data.path()).unwrap().to_owned();
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let mut damaged = vec![
            content[..content.len() / 2].to_vec(),
            content[..used / 2].to_vec(),
        ];
        for round in 0..60 {
            let mut flipped = content.clone();
            // The last write too: nothing whole follows it.
            let at = if round % 6 == 0 {
                used - 1 - next(used.min(60))
            } else {
                next(used)
            };
            flipped[at] ^= 1 << next(8);
            damaged.push(flipped);
        }
        for (round, damage) in damaged.into_iter().enumerate() {
            let first = damage.iter().zip(&content).position(|(a, b)| a != b);
            fs::write(&file, &damage).unwrap();
            let (found, entries, rest) = read(data.path());
            if reported(&found) {
                *told.entry(name.clone()).or_insert(0) += 1;
                let named = found
                    .iter()
                    .any(|f| f.file.starts_with(data.path().join("metadata")));
                assert!(named, "{found:?}");
            } else {
                assert!(
                    entries == whole.1 && rest == whole.2,
                    "{} round {round}, byte {first:?}: read differently, and nothing said",
                    name.display()
                );
            }
        }
        fs::write(&file, &content).unwrap();
    }
    assert_eq!(read(data.path()), whole);
    for name in ["metadata/log/db", "metadata/log/conf"] {
        assert!(
            told.get(Path::new(name)).is_some_and(|told| *told > 0),
            "{told:?}"
        );
    }
    assert!(
        told.keys()
            .any(|name| name.to_string_lossy().contains("snapshot-")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_hole_and_an_entry_that_is_none_are_named_by_index() {
    let data = TempDir::new().unwrap();
    let path = data.path().join("metadata");
    let (mut log, closer) = LogStore::open(&path.join("log")).unwrap();
    let mut unknown = command(1);
    unknown.payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"?")));
    append(&mut log, [command(0), unknown]).await;
    append(&mut log, [command(4)]).await;
    close(log, closer).await;
    fs::create_dir(path.join("snapshots")).unwrap();
    let (found, entries, _) = read(data.path());
    let all: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
    assert!(
        all.iter()
            .any(|what| what.contains("entry 4 stands where 2 must")),
        "{all:?}"
    );
    assert!(
        all.iter()
            .any(|what| what.contains("entry 1 cannot be read")),
        "{all:?}"
    );
    assert!(all.iter().any(|what| what.contains("no vote")), "{all:?}");
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn a_flip_within_a_batch_that_others_follow_is_corruption_and_not_a_torn_end() {
    let data = metadata().await;
    let db = data.path().join("metadata/log/db");
    let content = fs::read(&db).unwrap();
    // Entries hold their commands as text; this one is of the second life, and not its last.
    let entry = format!("\"sequence\":{}", 45);
    let found = content
        .windows(entry.len())
        .position(|bytes| bytes == entry.as_bytes());
    let mut flipped = content.clone();
    flipped[found.unwrap()] ^= 1;
    fs::write(&db, flipped).unwrap();
    let (found, entries, _) = read(data.path());
    assert_eq!(entries.last().map(|entry| entry.index), Some(44));
    let worst = found.iter().find(|finding| finding.file == db).unwrap();
    assert_eq!(worst.severity, Severity::Corruption, "{found:?}");
    assert!(worst.position.is_some());
}

#[tokio::test]
async fn a_page_table_that_was_being_written_is_no_damage() {
    let data = metadata().await;
    let whole = read(data.path());
    let name = data
        .path()
        .join("metadata/log/snap.00000000FFFFFFFF.generating");
    fs::write(&name, "").unwrap();
    let (found, entries, rest) = read(data.path());
    let told: Vec<_> = found.iter().map(|f| (&f.file, f.severity)).collect();
    assert_eq!(told, [(&name, Severity::Note)]);
    assert_eq!((entries, rest), (whole.1, whole.2));
    assert!(name.exists());
}

#[tokio::test]
async fn a_log_that_holds_less_than_was_promised_is_told_of() {
    let data = TempDir::new().unwrap();
    let log = data.path().join("metadata/log");
    fs::create_dir_all(data.path().join("metadata/snapshots")).unwrap();
    let (mut store, closer) = LogStore::open(&log).unwrap();
    store
        .save_vote(&Vote::new_committed(1, RaftId::from(1)))
        .await
        .unwrap();
    append(&mut store, (0..9).map(command)).await;
    close(store, closer).await;
    let before = tree(&log);
    let (mut store, closer) = LogStore::open(&log).unwrap();
    append(&mut store, (9..20).map(command)).await;
    close(store, closer).await;
    // Whole, and older than what was promised since.
    let promised = fs::read(log.join("promised")).unwrap();
    fs::remove_dir_all(&log).unwrap();
    for (path, content) in &before {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let worst = || {
        let (found, ..) = read(data.path());
        let of = found.into_iter().min_by_key(|finding| finding.severity);
        of.map(|finding| (finding.severity, finding.what))
    };
    fs::remove_file(log.join("promised")).unwrap();
    let (severity, what) = worst().unwrap();
    assert!(
        severity == Severity::Note && what.contains("is missing"),
        "{what}"
    );
    fs::write(log.join("promised"), promised).unwrap();
    let (severity, what) = worst().unwrap();
    assert_eq!(severity, Severity::Corruption);
    assert!(what.contains("acknowledged up to"), "{what}");
    assert!(LogStore::open(&log).is_err());
}
