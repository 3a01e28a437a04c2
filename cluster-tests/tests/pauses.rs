//! A node that is frozen for longer than its session: the others go on without it, and when it
//! goes on it does no harm.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::Path;
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, eventually, produce_raw, raw_key};
use quorate_client::{Client, ClientError};
use quorate_proto::v1::Acks;
use quorate_types::NodeId;
use quorate_workload::{Sent, check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "pauses";
const CALLS: usize = 30;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Far above what is promised (session + 1 s; + 2 s more with the controller).
const BOUND: Duration = Duration::from_secs(12);

/// The partitions that a node leads.
async fn led(client: &Client, node: NodeId) -> Result<Vec<u32>, ClientError> {
    let described = client.describe_topic(TOPIC).await?;
    let partitions = described.partitions.iter();
    let led = partitions.filter(|partition| partition.leader == Some(node.get()));
    Ok(led
        .map(|partition| partition.partition.unsigned_abs())
        .collect())
}

async fn leads_nothing(cluster: &Cluster, node: NodeId) {
    eventually("another leader for every partition", || async {
        // The frozen node may be the one that is asked.
        let led = led(&cluster.client, node)
            .await
            .map_err(|error| error.to_string())?;
        led.is_empty().then_some(()).ok_or(format!("{led:?}"))
    })
    .await;
}

/// Truncations that a node has told of.
fn cuts(cluster: &Cluster, node: NodeId) -> usize {
    let path = cluster.processes.log_path(node).unwrap();
    let log = std::fs::read_to_string(path).unwrap();
    log.lines().filter(|line| line.contains("log cut")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_replaced_and_does_no_harm_when_it_goes_on() {
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let writer = cluster.write_to(TOPIC).await;
    for with_controller in [false, true] {
        let started = Instant::now();
        acknowledged_after(&writer, started, "every partition to be written").await;
        let controller = cluster.controller().await;
        let mut nodes = cluster.processes.node_ids().into_iter();
        let node = nodes
            .find(|node| (*node == controller) == with_controller)
            .unwrap();
        let at = Instant::now();
        cluster.processes.pause(node).unwrap();
        acknowledged_after(
            &writer,
            at + Duration::from_secs(8),
            "every partition to go on",
        )
        .await;
        let longest = writer.gaps(at).into_values().max().unwrap();
        println!(
            "frozen, with the controller {with_controller}: longest gap {} ms",
            longest.as_millis()
        );
        assert!(longest <= BOUND, "{longest:?}");
        cluster.processes.resume(node).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
    }
    let mut history = writer.finish().await.unwrap();

    // What reaches a frozen leader is neither appended at its old epoch nor told to be.
    let node = cluster.leader(TOPIC, 0).await;
    let partitions = led(&cluster.client, node).await.unwrap();
    let cuts_before = cuts(&cluster, node);
    cluster.processes.pause(node).unwrap();
    let address = cluster
        .processes
        .addresses()
        .into_iter()
        .zip(cluster.processes.node_ids())
        .find(|(_, id)| *id == node)
        .unwrap()
        .0;
    let mut calls = Vec::new();
    for (at, acks) in [Acks::Leader, Acks::None]
        .into_iter()
        .cycle()
        .take(CALLS)
        .enumerate()
    {
        let partition = partitions[at % partitions.len()];
        let number = 1_000_000_000 + at as u64;
        let address = address.clone();
        let call = tokio::spawn(async move {
            produce_raw(&address, (TOPIC, partition), number, acks, TIMEOUT).await
        });
        calls.push((number, acks, call));
    }
    leads_nothing(&cluster, node).await;
    cluster.processes.resume(node).unwrap();
    let mut refused = 0;
    for (number, acks, call) in calls {
        if let Err(error) = call.await.unwrap() {
            refused += 1;
            assert!(error.code().is_some(), "{acks:?}: {error}");
        }
        history.push(Sent {
            key: raw_key(number),
            number,
            // Forwarded to the new leader, it may be lost with the next change: that is `acks=1`.
            acknowledged: None,
        });
    }
    println!("{refused} of {CALLS} with acks=0/1 refused, the rest forwarded");
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
    assert_eq!(
        cuts(&cluster, node),
        cuts_before,
        "it appended while it was replaced"
    );
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    assert_eq!(check(&history, &stored), []);
}
