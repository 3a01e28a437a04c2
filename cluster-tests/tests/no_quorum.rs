//! Two nodes of three dead: nothing is acknowledged, each request says by its time-out what became
//! of it, and with one more node back everything goes on by itself.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::Path;
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, produce_raw, raw_key};
use quorate_proto::v1::Acks;
use quorate_types::ErrorCode;
use quorate_workload::{Sent, check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "no-quorum";
const TIMEOUT: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged_and_with_one_it_goes_on() {
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let writer = cluster.write_to(TOPIC).await;
    let begun = Instant::now();
    acknowledged_after(&writer, begun, "every partition to be written").await;
    let described = cluster.client.describe_topic(TOPIC).await.unwrap();
    let controller = cluster.controller().await;
    let nodes = cluster.processes.node_ids();
    let addresses = cluster.processes.addresses();
    let survivor = nodes.iter().position(|node| *node != controller).unwrap();
    let (node, address) = (nodes[survivor], addresses[survivor].clone());
    let dead: Vec<_> = nodes.into_iter().filter(|other| *other != node).collect();
    for other in &dead {
        cluster.processes.kill(*other).unwrap();
    }
    let killed = Instant::now();
    let mut calls = Vec::new();
    for (at, partition) in described.partitions.iter().enumerate() {
        let number = 1_000_000_000 + at as u64;
        let id = partition.partition.unsigned_abs();
        let leads = partition.leader == Some(node.get());
        let asked = Instant::now();
        let answer = produce_raw(&address, (TOPIC, id), number, Acks::All, TIMEOUT).await;
        let took = asked.elapsed();
        let code = answer.as_ref().unwrap_err().code();
        println!(
            "led by the survivor {leads}: {code:?} after {} ms",
            took.as_millis()
        );
        let expected: &[ErrorCode] = if leads {
            &[ErrorCode::RequestTimedOut, ErrorCode::NotEnoughReplicas]
        } else {
            &[ErrorCode::NotLeaderOrFollower]
        };
        assert!(expected.contains(&code.unwrap()), "{answer:?}");
        assert!(took < TIMEOUT + Duration::from_secs(2), "{took:?}");
        calls.push(Sent {
            key: raw_key(number),
            number,
            acknowledged: None,
        });
    }
    assert!(!writer.all_acknowledged_after(killed + Duration::from_millis(100)));
    let back = Instant::now();
    cluster.processes.start_node(dead[0]).unwrap();
    acknowledged_after(&writer, back, "every partition to go on with two nodes").await;
    println!(
        "went on {} ms after a second node was started",
        back.elapsed().as_millis()
    );
    cluster.processes.start_node(dead[1]).unwrap();
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
    let mut history = writer.finish().await.unwrap();
    history.extend(calls);
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    assert_eq!(check(&history, &stored), []);
}
