//! A producer writes numbered keyed records with `acks=all` while nodes are killed; afterwards
//! every acknowledged record is where it was acknowledged, in order per key, once. What happened is
//! told by `quorate partition describe --why`, also after all nodes have started again.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate_types::NodeId;
use quorate_workload::{Writer, check, read_all};
use serde_json::Value;
use tokio::time::Instant;

const TOPIC: &str = "numbered";
const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
const STOP: Duration = Duration::from_secs(30);

async fn goes_on(writer: &Writer, after: &str) {
    let what = format!("acknowledged records after {after}");
    acknowledged_after(writer, Instant::now(), &what).await;
}

async fn restart(cluster: &mut Cluster, nodes: &[NodeId]) {
    for node in nodes {
        cluster.processes.start_node(*node).unwrap();
    }
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
}

/// What `quorate partition describe --partition 0 --why` prints.
fn why(cluster: &Cluster, format: &str) -> String {
    let nodes: Vec<String> = cluster
        .processes
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut command = Command::new(BINARY);
    command.args(["partition", "describe", TOPIC, "--partition", "0", "--why"]);
    command.args(["--output", format, "--bootstrap", &nodes.join(",")]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn history(cluster: &Cluster) -> Vec<Value> {
    let mut told: Value = serde_json::from_str(&why(cluster, "json")).unwrap();
    serde_json::from_value(told[0]["history"].take()).unwrap()
}

/// More partitions than one answer holds, each once and in their order.
async fn pages(cluster: &Cluster) {
    const COUNT: u32 = 65;
    let client = &cluster.client;
    let created = client
        .create_topic("pages", COUNT, 1, BTreeMap::new())
        .await;
    created.unwrap();
    // The node that answers may not have heard of the topic yet.
    let described = eventually("the pages", || async {
        client.describe_partitions("pages", None, true).await
    });
    let partitions = described.await.partitions;
    let numbers = partitions
        .iter()
        .map(|state| state.partition.as_ref().unwrap().partition.unsigned_abs());
    assert!(numbers.eq(0..COUNT));
    assert!(partitions.iter().all(|state| state.history.len() == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_survive_the_kill_of_any_node_and_of_all() {
    let mut cluster = Cluster::start(Path::new(BINARY)).await;
    let writer = cluster.write_to(TOPIC).await;
    goes_on(&writer, "the start").await;

    let leader = cluster.leader(TOPIC, 0).await;
    cluster.processes.kill(leader).unwrap();
    goes_on(&writer, "the kill of a leader").await;
    let told = why(&cluster, "text");
    println!("{told}");
    let fenced = format!("broker {leader} was fenced: ");
    let election = told.lines().find(|line| line.contains(&fenced));
    let election = election.unwrap_or_else(|| panic!("no election says why: {told}"));
    assert!(election.contains("leads at epoch"), "{election}");
    let reasons = ["its process is gone", "no heartbeat for"];
    let names = |why: &&str| election.contains(&format!("{fenced}{why}"));
    assert!(reasons.iter().any(names), "{election}");
    assert!(
        told.contains(&format!("broker {leader} is fenced since")),
        "{told}"
    );
    let before = history(&cluster);
    assert_eq!(before[0]["kind"], "topic-created");
    restart(&mut cluster, &[leader]).await;

    let controller = cluster.controller().await;
    cluster.processes.kill(controller).unwrap();
    goes_on(&writer, "the kill of the active controller").await;
    restart(&mut cluster, &[controller]).await;

    let controller = cluster.controller().await;
    let other = cluster
        .processes
        .node_ids()
        .into_iter()
        .find(|node| *node != controller)
        .unwrap();
    for node in [controller, other] {
        cluster.processes.kill(node).unwrap();
    }
    restart(&mut cluster, &[controller, other]).await;
    goes_on(&writer, "the kill of the active controller and another").await;

    let all = cluster.processes.node_ids();
    for node in &all {
        cluster.processes.kill(*node).unwrap();
    }
    restart(&mut cluster, &all).await;
    goes_on(&writer, "the kill of all").await;
    let after = history(&cluster);
    assert_eq!(
        after[..before.len()],
        before,
        "all nodes have started again"
    );
    let again = |event: &Value| {
        let cause = event["cause"].as_str().unwrap_or_default();
        cause.contains("started again without a clean shutdown")
    };
    assert!(after.iter().any(again), "{after:#?}");

    for node in all {
        cluster.processes.terminate(node).unwrap();
        let status = cluster
            .processes
            .wait_down(node, STOP)
            .await
            .unwrap()
            .unwrap();
        assert!(status.success(), "node {node} stopped with {status}");
        goes_on(&writer, "a node stopped cleanly").await;
        restart(&mut cluster, &[node]).await;
    }

    pages(&cluster).await;
    let history = writer.finish().await.unwrap();
    let acknowledged = history
        .iter()
        .filter(|sent| sent.acknowledged.is_some())
        .count();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    println!(
        "{} sent, {acknowledged} acknowledged, {} stored",
        history.len(),
        stored.len()
    );
    let violations = check(&history, &stored);
    assert!(
        violations.is_empty(),
        "{:?}",
        &violations[..violations.len().min(10)]
    );
    assert!(acknowledged > 0);
}
