//! Nodes whose wall clocks are a day apart, one ahead and one behind: nobody is fenced for it, a
//! failover goes on as ever, nothing that was acknowledged is lost. Clocks are changed for the
//! processes alone, by libfaketime, whose path `LIBFAKETIME` gives (`.ci/clocks`).
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster_tests::hostile::batch;
use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::list_offsets_request::Position;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::Compression;
use quorate_types::PartitionId;
use quorate_workload::{check, read_all};
use tempfile::TempDir;
use tokio::time::Instant;

const TOPIC: &str = "clocks";
/// Stored under the leader's time.
const STAMPED: &str = "clocks-of-leaders";
const DAY_MS: i64 = 24 * 3_600_000;

/// A start of the binary under the clock of its node: node 1 is a day ahead, node 2 a day behind.
/// The monotonic clock is everybody's own.
fn under_other_clocks(directory: &Path) -> PathBuf {
    let library = std::env::var("LIBFAKETIME");
    let library = library.expect("LIBFAKETIME names libfaketime.so.1: run .ci/clocks");
    assert!(Path::new(&library).exists(), "{library} is not there");
    let script = directory.join("quorate");
    let binary = env!("CARGO_BIN_EXE_quorate-under-test");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in\n*\" --node-id 1 \"*) FAKETIME=+1d ;;\n\
         *\" --node-id 2 \"*) FAKETIME=-1d ;;\n*) FAKETIME=+0 ;;\nesac\n\
         export FAKETIME FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD='{library}'\n\
         exec '{binary}' \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Kinds of the events that a node remembers.
async fn events(cluster: &Cluster, kind: &str) -> Vec<String> {
    let node = cluster.processes.addresses().pop().unwrap();
    let mut client = ClusterClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let request = v1::WatchEventsRequest { follow: false };
    let mut stream = client.watch_events(request).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        if event.kind == kind {
            found.push(event.text);
        }
    }
    found
}

/// Appends one record that the leader stamps; gives its offset and time.
async fn stamped(cluster: &Cluster) -> (i64, i64) {
    eventually("a record under the leader's time", || async {
        let node = cluster.processes.addresses().pop().unwrap();
        let client = ProducerClient::connect(format!("http://{node}")).await;
        let mut client = client.map_err(|error| error.to_string())?;
        let request = v1::ProduceRequest {
            topic: STAMPED.to_owned(),
            partition: Some(0),
            payload: Some(Payload::Batch(
                batch(Compression::None, 0, &[b"now"]).bytes().clone(),
            )),
            ..v1::ProduceRequest::default()
        };
        let answer = client.produce(request).await;
        let answer = answer.map_err(|error| error.to_string())?.into_inner();
        Ok::<_, String>((answer.base_offset.unwrap(), answer.log_append_time_ms))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs faketime"]
async fn clocks_a_day_apart_fence_nobody_and_lose_nothing() {
    let scripts = TempDir::new().unwrap();
    let mut cluster = Cluster::start(&under_other_clocks(scripts.path())).await;
    let by_leader = (
        "message.timestamp.type".to_owned(),
        "LogAppendTime".to_owned(),
    );
    let made = cluster
        .client
        .create_topic(STAMPED, 1, 3, BTreeMap::from([by_leader]));
    made.await.unwrap();
    let writer = cluster.write_to(TOPIC).await;
    // Longer than two sessions.
    let later = Instant::now() + Duration::from_secs(7);
    acknowledged_after(&writer, later, "every partition to be written for a while").await;
    assert_eq!(
        events(&cluster, "broker-fenced").await,
        Vec::<String>::new()
    );

    // Every node leads the stamped partition in turn, each by the end of the one before.
    let mut times = Vec::new();
    for _ in 0..3 {
        let leader = cluster.leader(STAMPED, 0).await;
        let (offset, time) = stamped(&cluster).await;
        times.push((leader.get(), offset, time));
        let at = Instant::now();
        cluster.processes.kill(leader).unwrap();
        acknowledged_after(&writer, at, "every partition to go on").await;
        eventually("another leader", || async {
            let now = cluster.leader(STAMPED, 0).await;
            (now != leader).then_some(()).ok_or("the one before")
        })
        .await;
        cluster.processes.start_node(leader).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
        cluster.all_in_sync(STAMPED).await;
    }
    println!("leader, offset, its time: {times:?}");
    let apart = times.iter().map(|(_, _, time)| *time);
    let apart = apart.clone().max().unwrap() - apart.min().unwrap();
    assert!(apart > DAY_MS / 2, "the clocks were not apart: {times:?}");
    // Times fall where leadership moves to a clock that is behind: a lookup still finds what is
    // young enough, the first of it by offset.
    for (_, _, time) in &times {
        let found = cluster
            .client
            .list_offset(STAMPED, PartitionId::new(0), Position::TimestampMs(*time))
            .await;
        let found = found.unwrap().unwrap();
        let first = times.iter().filter(|(_, _, other)| other >= time);
        assert_eq!(Some(found), first.map(|(_, offset, _)| *offset).min());
    }
    let history = writer.finish().await.unwrap();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    println!("{} sent, {} stored", history.len(), stored.len());
    let violations = check(&history, &stored);
    assert!(
        violations.is_empty(),
        "{:?}",
        &violations[..violations.len().min(10)]
    );
}
