//! `quorate log verify` and `quorate log dump` on the directories of real nodes: running, killed,
//! stopped, and damaged.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after};
use quorate_types::NodeId;
use serde_json::Value;
use tokio::time::Instant;

const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
const STOP: Duration = Duration::from_secs(30);

fn quorate(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code, and what verify says of a directory.
fn verify(path: &Path) -> (Option<i32>, Value) {
    let output = quorate(&["log", "verify", path.to_str().unwrap(), "--output", "json"]);
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    (output.status.code(), said)
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

/// Damages a file, and expects verify to name it with a position and to exit with 1.
fn damage(data: &Path, file: &Path, damaged: &[u8]) {
    let whole = fs::read(file).unwrap();
    fs::write(file, damaged).unwrap();
    let before = tree(data);
    let (code, said) = verify(data);
    assert_eq!(tree(data), before, "verify changed something");
    fs::write(file, whole).unwrap();
    assert_eq!(code, Some(1), "{}", file.display());
    assert_eq!(said["clean"], false);
    let findings = said["findings"].as_array().unwrap();
    assert!(
        findings.iter().any(|finding| {
            finding["file"] == file.to_str().unwrap()
                && finding["position"].is_u64()
                && finding["severity"] != "note"
                && finding["what"].is_string()
        }),
        "{} is not named: {said:#}",
        file.display()
    );
}

fn flipped(content: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = content.to_vec();
    flipped[at] ^= 4;
    flipped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_stopped_nodes_are_read_and_damage_is_named() {
    let mut cluster = Cluster::start(Path::new(BINARY)).await;
    let writer = cluster.write_to("numbered").await;
    acknowledged_after(&writer, Instant::now(), "acknowledged records").await;
    let root = cluster.processes.directory().to_owned();
    let data = |node: u32| root.join(format!("node-{node}"));

    let running = data(1);
    let output = quorate(&["log", "verify", running.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use by a running node"));

    cluster.processes.kill(NodeId::new(2)).unwrap();
    let (code, said) = verify(&data(2));
    assert_eq!(code, Some(0), "after kill -9: {said:#}");
    drop(writer.finish().await);

    cluster.processes.terminate(NodeId::new(1)).unwrap();
    let stopped = cluster.processes.wait_down(NodeId::new(1), STOP).await;
    stopped.unwrap();
    let data = data(1);
    let before = tree(&data);
    let (code, said) = verify(&data);
    assert_eq!((code, &said["clean"]), (Some(0), &true.into()), "{said:#}");
    assert_eq!(said["partitions"], 6);
    for count in [
        "segments",
        "batches",
        "records",
        "bytes",
        "metadata_entries",
    ] {
        assert!(said[count].as_u64() > Some(0), "{count} of {said:#}");
    }
    let shown = quorate(&["log", "verify", data.to_str().unwrap()]);
    assert!(
        text(&shown.stdout).contains("6 partitions, "),
        "{}",
        text(&shown.stdout)
    );

    dumps(&data);
    assert_eq!(tree(&data), before, "something was changed");

    for (file, content) in &before {
        // sled may not read what was changed: the quorum's own tests look at that.
        let sled = file.starts_with(data.join("metadata/log"));
        if content.is_empty() || sled {
            continue;
        }
        if !file.starts_with(data.join("logs")) || file.to_str().unwrap().contains("numbered-0.") {
            damage(&data, file, &flipped(content, content.len() / 3));
            damage(&data, file, &content[..content.len() / 2 + 1]);
        }
    }
    // Where sled begins a message: nothing that follows can be read.
    let db = data.join("metadata/log/db");
    let content = &before[&db];
    let used = content.iter().rposition(|byte| *byte != 0).unwrap();
    damage(&data, &db, &flipped(content, used - 20));

    for (arguments, code) in [
        (["log", "verify", "/nowhere"], 1),
        (["log", "dump", "/nowhere"], 1),
        (["log", "verify", "--what"], 2),
    ] {
        assert_eq!(
            quorate(&arguments).status.code(),
            Some(code),
            "{arguments:?}"
        );
    }
}

fn dumps(data: &Path) {
    let path = data.to_str().unwrap();
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let all = [&["log", "dump", path, "--output", "json"], arguments].concat();
        let output = quorate(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines = text(&output.stdout);
        let parsed = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        parsed.collect()
    };
    let kinds = |lines: &[Value]| -> BTreeSet<String> {
        let kinds = lines.iter().map(|line| line["kind"].as_str().unwrap());
        kinds.map(str::to_owned).collect()
    };
    let all = lines(&["--metadata", "--records"]);
    let mut expected = vec![
        "batch",
        "broker",
        "checkpoint",
        "directory",
        "entry",
        "epoch",
    ];
    expected.extend([
        "member",
        "metadata",
        "partition",
        "producer",
        "record",
        "segment",
        "topic",
    ]);
    assert_eq!(kinds(&all).into_iter().collect::<Vec<_>>(), expected);
    let some = lines(&[
        "--partition",
        "numbered-3",
        "--records",
        "--from-offset",
        "5",
        "--max",
        "2",
    ]);
    let offsets: Vec<u64> = some
        .iter()
        .filter(|line| line["kind"] == "record")
        .map(|line| line["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [5, 6]);
    assert!(some.iter().all(|line| line["partition"] == 3), "{some:?}");
    let output = quorate(&["log", "dump", path, "--partition", "numbered-77"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = quorate(&["log", "dump", path, "--records", "--max", "1"]);
    for part in [
        "data directory ",
        "metadata: vote ",
        "partition numbered-0",
        " record 0 ",
    ] {
        assert!(text(&shown.stdout).contains(part), "{part}");
    }
}
