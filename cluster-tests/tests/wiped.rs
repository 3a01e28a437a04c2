//! A node that comes back without its disk: it has forgotten what it voted for and every record, so
//! it is a new member under its old number, and gets everything again by itself: its vote, its
//! replicas, its places in the ISRs. Where another voter is down meanwhile there is no quorum; that
//! is said, and ends when that one is back.
//!
//! Not shown here: that the old name would be dangerous (`src/quorum/fault_tests/mutants.rs`).
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::Path;
use std::process::Command;

use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_types::{Endpoint, NodeId};
use quorate_workload::{check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "wiped";
const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");

/// Kills a node and takes its data away.
fn wipe(cluster: &mut Cluster, node: NodeId) {
    cluster.processes.kill(node).unwrap();
    let data = cluster.processes.directory().join(format!("node-{node}"));
    std::fs::remove_dir_all(data).unwrap();
}

/// The cluster as this very node sees it.
async fn seen_by(node: &Endpoint) -> Result<v1::DescribeClusterResponse, String> {
    let connected = ClusterClient::connect(format!("http://{node}")).await;
    let mut client = connected.map_err(|error| error.to_string())?;
    let request = v1::DescribeClusterRequest::default();
    let described = client.describe(request).await.map_err(|s| s.to_string())?;
    Ok(described.into_inner())
}

/// The directory that a node votes with, where it is the only one of its name in the quorum of
/// three and nobody only follows.
fn vote_of(cluster: &v1::DescribeClusterResponse, node: NodeId) -> Result<String, String> {
    let quorum = cluster.quorum.clone().unwrap_or_default();
    let votes = quorum.voters.iter().filter(|v| v.node_id == node.get());
    let votes: Vec<String> = votes.map(|voter| voter.directory_id.clone()).collect();
    match &votes[..] {
        [vote] if quorum.voters.len() == 3 && quorum.observers.is_empty() => Ok(vote.clone()),
        _ => Err(format!("{quorum:?}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_disk_is_a_voter_and_in_sync_again_by_itself() {
    let mut cluster = Cluster::start(Path::new(BINARY)).await;
    let writer = cluster.write_to(TOPIC).await;
    acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
    cluster.all_in_sync(TOPIC).await;
    let controller = cluster.controller().await;
    let nodes = cluster.processes.node_ids();
    let other = nodes.iter().copied().find(|n| *n != controller).unwrap();
    for (node, role) in [(other, "a follower"), (controller, "the controller")] {
        let described = cluster.client.describe_cluster().await.unwrap();
        let before = vote_of(&described, node).unwrap();
        wipe(&mut cluster, node);
        let started = Instant::now();
        cluster.processes.start_node(node).unwrap();
        eventually("its vote under a new name", || async {
            let described = cluster.client.describe_cluster().await;
            let vote = vote_of(&described.map_err(|e| e.to_string())?, node)?;
            let moved = vote != before;
            moved.then_some(()).ok_or_else(|| format!("still {vote}"))
        })
        .await;
        let voted = started.elapsed().as_millis();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
        let synced = started.elapsed().as_millis();
        println!("wiped {role}: a voter after {voted} ms, in every ISR after {synced} ms");
        // Its vote counts: with the third node gone the two of them are the quorum.
        let third = nodes
            .iter()
            .copied()
            .find(|n| *n != other && *n != controller);
        let third = third.unwrap();
        cluster.processes.kill(third).unwrap();
        let killed = Instant::now();
        acknowledged_after(&writer, killed, "the wiped node to count").await;
        cluster.processes.start_node(third).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
    }
    let history = writer.finish().await.unwrap();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    assert_eq!(check(&history, &stored), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wiped_and_one_down_is_no_quorum_until_that_one_is_back() {
    let mut cluster = Cluster::start(Path::new(BINARY)).await;
    let writer = cluster.write_to(TOPIC).await;
    acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.node_ids();
    let addresses = cluster.processes.addresses();
    let [survivor, down, wiped] = nodes[..] else {
        panic!("three nodes: {nodes:?}")
    };
    cluster.processes.kill(down).unwrap();
    wipe(&mut cluster, wiped);
    cluster.processes.start_node(wiped).unwrap();
    let expected = [
        format!("node {down} at "),
        "does not answer".to_owned(),
        format!("node {wiped} came back with another disk"),
        format!("start node {down} again"),
    ];
    eventually("the survivor to say what is wrong", || async {
        let outage = seen_by(&addresses[0]).await?.quorum.unwrap().outage;
        let outage = outage.unwrap_or_default();
        let all = expected.iter().all(|part| outage.contains(part));
        all.then_some(()).ok_or(outage)
    })
    .await;
    // The command line and the log have the same.
    let status = Command::new(BINARY)
        .args([
            "cluster",
            "status",
            "--bootstrap",
            &addresses[0].to_string(),
        ])
        .output()
        .unwrap();
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    let status = String::from_utf8(status.stdout).unwrap();
    println!("{status}");
    let log = cluster.processes.log_path(survivor).unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    for part in &expected {
        assert!(status.contains(part), "{part}: {status}");
        assert!(log.contains(part), "{part}");
    }
    eventually("the wiped node to say that it waits", || async {
        let outage = seen_by(&addresses[2]).await?.quorum.unwrap().outage;
        let outage = outage.unwrap_or_default();
        let waits = outage.contains("not in it yet");
        waits.then_some(()).ok_or(outage)
    })
    .await;

    let back = Instant::now();
    cluster.processes.start_node(down).unwrap();
    acknowledged_after(&writer, back, "two voters to go on").await;
    let went_on = back.elapsed().as_millis();
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
    let synced = back.elapsed().as_millis();
    eventually("three voters again", || async {
        let described = seen_by(&addresses[0]).await?;
        let outage = described.quorum.clone().unwrap_or_default().outage;
        if let Some(outage) = outage {
            return Err(outage);
        }
        vote_of(&described, wiped).map(drop)
    })
    .await;
    println!(
        "once the one that was down was started: writes after {went_on} ms, every ISR whole after \
         {synced} ms, three voters after {} ms",
        back.elapsed().as_millis()
    );
    let history = writer.finish().await.unwrap();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    assert_eq!(check(&history, &stored), []);
}
