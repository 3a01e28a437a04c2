//! The log and the state machine against openraft's own suite, and what a restart finds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::RaftStateMachine;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{blank_ent, log_id};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use tempfile::TempDir;

use crate::ids::{Entry, Proposal, RaftId, RaftLogId, TypeConfig, Vote};
use crate::log_store::{LogCloser, LogStore};
use crate::snapshots::Snapshots;
use crate::state_machine::StateMachine;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, (LogCloser, TempDir)> for Builder {
    async fn build(
        &self,
    ) -> Result<((LogCloser, TempDir), LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, closer) = LogStore::open(&dir.path().join("log")).unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        let (machine, _view) = StateMachine::open(snapshots).unwrap();
        Ok(((closer, dir), log, machine))
    }
}

#[tokio::test]
async fn the_stores_pass_openrafts_suite() {
    Suite::test_all(Builder).await.unwrap();
}

pub(crate) fn entry(index: u64, size: usize) -> Entry {
    let mut entry = blank_ent::<TypeConfig>(1, RaftId::from(1), index);
    entry.payload = EntryPayload::Normal(Proposal(vec![index as u8; size].into()));
    entry
}

fn at(index: u64) -> RaftLogId {
    log_id::<TypeConfig>(1, RaftId::from(1), index)
}

pub(crate) async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    let (done, result) = openraft_oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    let expected = entries.clone();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    let first = expected[0].log_id.index;
    let end = first + expected.len() as u64;
    assert_eq!(
        log.try_get_log_entries(first..end).await.unwrap(),
        expected,
        "readable at once"
    );
    result.await.unwrap().unwrap();
}

type Flushed = Result<(), std::io::Error>;

fn openraft_oneshot() -> (
    openraft::alias::OneshotSenderOf<TypeConfig, Flushed>,
    openraft::alias::OneshotReceiverOf<TypeConfig, Flushed>,
) {
    use openraft::type_config::TypeConfigExt;
    TypeConfig::oneshot()
}

async fn reopen(log: LogStore, closer: LogCloser, dir: &TempDir) -> (LogStore, LogCloser) {
    close(log, closer).await;
    LogStore::open(dir.path()).unwrap()
}

pub(crate) async fn close(log: LogStore, closer: LogCloser) {
    drop(log);
    while !closer.is_closed() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reopened_log_has_its_vote_its_entries_and_its_purge() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = LogStore::open(dir.path()).unwrap();
    assert!(log.is_pristine());
    let vote = Vote::new_committed(4, RaftId::from(2));
    log.save_vote(&vote).await.unwrap();
    append(&mut log, (0..300).map(|i| entry(i, 40))).await;
    log.save_committed(Some(at(250))).await.unwrap();
    log.purge(at(99)).await.unwrap();
    log.truncate_after(Some(at(279))).await.unwrap();

    let (mut log, closer) = reopen(log, closer, &dir).await;
    assert!(!log.is_pristine());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(at(250)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(at(99)));
    assert_eq!(state.last_log_id, Some(at(279)));
    let expected: Vec<Entry> = (100..280).map(|i| entry(i, 40)).collect();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected);

    // Beyond the end, as after a snapshot from the leader.
    log.purge(at(400)).await.unwrap();
    let (mut log, closer) = reopen(log, closer, &dir).await;
    assert_eq!(
        log.get_log_state().await.unwrap().last_log_id,
        Some(at(400))
    );
    append(&mut log, [entry(401, 1)]).await;
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(401, 1)]);
    close(log, closer).await;
}

#[tokio::test]
async fn large_entries_are_whole_and_reading_is_limited_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = LogStore::open(dir.path()).unwrap();
    // More than the cache holds, so that most comes from the disk.
    for index in 0..20 {
        append(&mut log, [entry(index, 900_000)]).await;
    }
    for from in 0..20 {
        let some = log.limited_get_log_entries(from, 20).await.unwrap();
        assert!(
            (1..=2).contains(&some.len()),
            "{} entries from {from}",
            some.len()
        );
        assert_eq!(some[0], entry(from, 900_000));
    }
    let (mut log, closer) = reopen(log, closer, &dir).await;
    assert_eq!(log.try_get_log_entries(0..20).await.unwrap().len(), 20);
    assert!(log.try_get_log_entries(20..30).await.unwrap().is_empty());
    let blobs = std::fs::read_dir(dir.path().join("blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0, "sled does not sync its blob files");
    close(log, closer).await;
}

#[tokio::test]
async fn what_was_truncated_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = LogStore::open(dir.path()).unwrap();
    append(&mut log, (0..10).map(|i| entry(i, 100_000))).await;
    log.truncate_after(Some(at(4))).await.unwrap();
    append(&mut log, [entry(5, 1)]).await;
    let (mut log, closer) = reopen(log, closer, &dir).await;
    let indexes: BTreeSet<u64> = log
        .try_get_log_entries(..)
        .await
        .unwrap()
        .iter()
        .map(|e| e.log_id.index)
        .collect();
    assert_eq!(indexes, (0..6).collect());
    assert_eq!(log.try_get_log_entries(5..6).await.unwrap(), [entry(5, 1)]);
    log.truncate_after(None).await.unwrap();
    let (log, closer) = reopen(log, closer, &dir).await;
    assert!(log.is_pristine());
    close(log, closer).await;
}

#[tokio::test]
async fn a_state_machine_begins_with_its_newest_whole_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let open = || StateMachine::open(Snapshots::open(dir.path().to_owned()).unwrap()).unwrap();
    let (mut machine, view) = open();
    let entries = (0..5).map(|i| Ok((blank_ent::<TypeConfig>(1, RaftId::from(1), i), None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
    assert_eq!(view.image().applied().index.get(), 4);
    machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let (mut again, view) = open();
    assert_eq!(again.applied(), Some(at(4)));
    assert_eq!(view.image().applied().index.get(), 4);

    let entries = (5..7).map(|i| Ok((blank_ent::<TypeConfig>(1, RaftId::from(1), i), None)));
    again.apply(futures::stream::iter(entries)).await.unwrap();
    again
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(open().0.applied(), None);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_state_machine() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path().to_owned()).unwrap();
    let (mut machine, _view) = StateMachine::open(snapshots).unwrap();
    let unknown = entry(0, 3);
    assert!(
        machine
            .apply(futures::stream::iter([Ok((unknown, None))]))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_feature_level_that_this_program_does_not_speak_stops_the_state_machine() {
    use quorate_metadata::{Command, Envelope, MAX_LEVEL, Origin, RegisterBroker};
    let incarnation = quorate_types::Incarnation {
        start: 1,
        random: 1,
    };
    let endpoint = quorate_types::Endpoint {
        host: "h".to_owned(),
        port: 1,
    };
    let newer = RegisterBroker {
        node: quorate_types::NodeId::new(1),
        directory: RaftId::from(1).directory,
        incarnation,
        boot: quorate_types::BootId::from_bytes([1; 16]),
        clean_epoch: None,
        damaged: Vec::new(),
        client: endpoint.clone(),
        internal: endpoint,
        rack: None,
        min_level: 1,
        max_level: MAX_LEVEL + 1,
    };
    let dir = TempDir::new().unwrap();
    let snapshots = Snapshots::open(dir.path().to_owned()).unwrap();
    let (mut machine, _) = StateMachine::open(snapshots).unwrap();
    let envelope = Envelope {
        origin: Origin {
            node: quorate_types::NodeId::new(1),
            directory: RaftId::from(1).directory,
            incarnation,
        },
        sequence: 1,
        required_term: None,
        time: quorate_types::Timestamp::from_millis(0),
        commands: vec![
            Command::RegisterBroker(newer),
            Command::SetFeature {
                level: MAX_LEVEL + 1,
            },
        ],
    };
    let proposal = crate::ids::Proposal(envelope.encode().into());
    let raised = Entry::new_normal(at(1), proposal);
    let error = machine
        .apply(futures::stream::iter([Ok((raised, None))]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("feature level"), "{error}");
}

/// What a member knows after an opening, or why there is none.
async fn reopened(path: &Path) -> Result<(Option<Vote>, Option<RaftLogId>, Vec<Entry>), String> {
    let (mut log, closer) = LogStore::open(path).map_err(|error| error.to_string())?;
    let vote = log.read_vote().await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    let entries = log.try_get_log_entries(..).await;
    close(log, closer).await;
    Ok((vote, last, entries.map_err(|error| error.to_string())?))
}

#[tokio::test]
async fn a_flipped_bit_or_a_cut_never_makes_a_member_forget_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = LogStore::open(dir.path()).unwrap();
    append(&mut log, (0..40).map(|i| entry(i, 300))).await;
    let (mut log, closer) = reopen(log, closer, &dir).await;
    log.truncate_after(Some(at(29))).await.unwrap();
    append(&mut log, (30..60).map(|i| entry(i, 300))).await;
    log.save_vote(&Vote::new(9, RaftId::from(2))).await.unwrap();
    close(log, closer).await;

    let files: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    let copy = |name: &Path, changed: &[u8]| {
        let copy = tempfile::tempdir().unwrap();
        for (path, content) in &files {
            let to = copy.path().join(path.file_name().unwrap());
            let content = if path == name { changed } else { content };
            std::fs::write(to, content).unwrap();
        }
        copy
    };
    let whole = reopened(copy(Path::new(""), &[]).path()).await.unwrap();
    assert_eq!(whole.1, Some(at(59)));
    let mut refused = std::collections::BTreeMap::<String, usize>::new();
    for (path, content) in &files {
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let mut damaged = vec![
            content[..content.len() / 2].to_vec(),
            content[..used / 2].to_vec(),
        ];
        // All over the file, and what was written last.
        let places = (0..24)
            .map(|i| i * used / 24)
            .chain((1..40).map(|i| used - i.min(used)));
        for place in places {
            let mut flipped = content.clone();
            flipped[place] ^= 4;
            damaged.push(flipped);
        }
        for changed in damaged {
            let copy = copy(path, &changed);
            let place = changed.iter().zip(content).position(|(a, b)| a != b);
            match reopened(copy.path()).await {
                Ok(found) => assert!(found == whole, "{}, {place:?}", path.display()),
                Err(why) => {
                    let named = why.contains(&copy.path().display().to_string());
                    assert!(named && why.contains("new member"), "{why}");
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    *refused.entry(name).or_default() += 1;
                    // Nor at the next start: sled has cut its file by now.
                    let again = reopened(copy.path()).await;
                    assert!(again.is_err() || again == Ok(whole.clone()), "{why}");
                }
            }
        }
    }
    assert!(refused["db"] > 2, "{refused:?}");
    assert!(refused["conf"] > 2, "{refused:?}");
}

#[tokio::test]
async fn what_sled_had_not_finished_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = LogStore::open(dir.path()).unwrap();
    append(&mut log, (0..9).map(|i| entry(i, 300))).await;
    close(log, closer).await;
    let unfinished = dir.path().join("snap.00000000FFFFFFFF.generating");
    // sled never syncs its settings: after a power loss there may be none.
    for settings in [0, 8] {
        std::fs::write(dir.path().join("conf"), vec![0; settings]).unwrap();
        std::fs::write(&unfinished, "").unwrap();
        let (_, last, entries) = reopened(dir.path()).await.unwrap();
        assert_eq!((last, entries.len()), (Some(at(8)), 9));
        assert!(!unfinished.exists());
        let written = std::fs::read(dir.path().join("conf")).unwrap();
        assert!(written.len() > settings);
    }
}
