//! What the kernel sees: every vote and every append reaches the disk before it counts.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::ids::{RaftId, Vote};
use crate::log_store::LogStore;
use crate::store_tests::{append, close, entry};

const CHILD: &str = "QUORATE_SYNC_TRACE_CHILD";
const ROUNDS: u64 = 5;

fn mark(text: &str) {
    // Straight to the descriptor, so that the trace has it in order.
    std::io::stderr()
        .write_all(format!("mark {text}\n").as_bytes())
        .unwrap();
}

/// What is traced: votes and appends one after the other, with marks around each.
async fn votes_and_appends(path: &Path) {
    let (mut log, closer) = LogStore::open(path).unwrap();
    for round in 0..ROUNDS {
        use openraft::storage::RaftLogStorage;
        let vote = Vote::new(round + 1, RaftId::from(1));
        mark("begin vote");
        log.save_vote(&vote).await.unwrap();
        mark("end vote");
        mark("begin append");
        append(&mut log, [entry(round, 100)]).await;
        mark("end append");
    }
    close(log, closer).await;
}

/// How many operations ended, and which of them without a finished sync of sled's file.
fn judge(trace: &str) -> (usize, Vec<String>) {
    let (mut ended, mut unsynced) = (0, Vec::new());
    let (mut synced, mut pending) = (false, false);
    for line in trace.lines() {
        let sync = line.contains("fdatasync(") && line.contains("/db>");
        let finished = line.trim_end().ends_with("= 0");
        if line.contains("mark begin") {
            (synced, pending) = (false, false);
        } else if line.contains("mark end") {
            ended += 1;
            if !synced {
                unsynced.push(line.to_owned());
            }
        } else if sync && line.contains("unfinished") {
            pending = true;
        } else if sync || (pending && line.contains("fdatasync resumed")) {
            synced |= finished;
            pending = false;
        }
    }
    (ended, unsynced)
}

/// `cargo test -p quorate-quorum --lib -- --ignored synced_to_the_disk`
#[test]
#[ignore = "needs strace"]
fn every_vote_and_append_is_synced_to_the_disk() {
    if let Some(path) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build();
        runtime
            .unwrap()
            .block_on(votes_and_appends(Path::new(&path)));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let name = "sync_trace_tests::every_vote_and_append_is_synced_to_the_disk";
    let status = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "64",
            "-e",
            "trace=fdatasync,fsync,write",
            "-o",
        ])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env(CHILD, dir.path().join("log"))
        .status()
        .expect("strace is installed and may trace");
    assert!(status.success(), "the traced process failed: {status}");
    let trace = std::fs::read_to_string(trace).unwrap();
    let (ended, unsynced) = judge(&trace);
    assert_eq!(
        ended as u64,
        2 * ROUNDS,
        "the trace is incomplete:\n{trace}"
    );
    assert!(
        unsynced.is_empty(),
        "not synced before it counted: {unsynced:?}\n{trace}"
    );
}

#[test]
fn a_trace_without_a_finished_sync_is_found_out() {
    let begin = "7 write(2<x>, \"mark begin vote\\n\", 16) = 16\n";
    let end = "7 write(2<x>, \"mark end vote\\n\", 14) = 14\n";
    let sync = "9 fdatasync(8</tmp/log/db>) = 0\n";
    let start = "9 fdatasync(8</tmp/log/db> <unfinished ...>\n";
    let resumed = "9 <... fdatasync resumed>) = 0\n";
    assert_eq!(judge(&[begin, sync, end].concat()), (1, vec![]));
    assert_eq!(judge(&[begin, start, resumed, end].concat()), (1, vec![]));
    for bad in [
        [begin, end].concat(),
        [sync, begin, end].concat(),
        [begin, start, end, resumed].concat(),
        [begin, "9 fdatasync(8</tmp/log/other>) = 0\n", end].concat(),
        [
            begin,
            "9 fdatasync(8</tmp/log/db>) = -1 EIO (Input/output error)\n",
            end,
        ]
        .concat(),
    ] {
        assert_eq!(judge(&bad).1.len(), 1, "{bad}");
    }
}
