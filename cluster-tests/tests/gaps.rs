//! How long clients wait when a node is killed: the active controller's or another, for the
//! partitions that it led and for those that it followed. `KILLS` sets how many (default 4); the
//! figures are printed, and what the nodes that were left logged in the longest gap of each kind.
//! `LOG_LEVEL` sets their levels: `info,openraft=info` shows each vote.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use cluster_tests::{Cluster, Figures, Story, acknowledged_after, eventually};
use quorate_types::PartitionId;
use quorate_workload::{check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "gaps";
/// What is promised where another node than the active controller's is killed, and where it is that
/// one.
const PROMISED: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];
/// So many times as long is let pass in a build for tests, which runs beside others: a busy machine is
/// no failure.
const BUSY: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
/// After so long without a gap a failover is over.
const OVER: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gap_after_a_kill_is_short() {
    let kills: usize = std::env::var("KILLS").map_or(4, |kills| kills.parse().unwrap());
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let levels = std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
    let mut cluster = Cluster::start_with(binary, &["--log-level", &levels]).await;
    let writer = cluster.write_to(TOPIC).await;
    let mut figures: [Figures; 4] = Default::default();
    let mut slowest: [(Duration, Vec<String>); 2] = Default::default();
    for kill in 0..kills {
        let started = Instant::now();
        acknowledged_after(&writer, started, "every partition to be written").await;
        let controller = cluster.controller().await;
        let with_controller = kill % 2 == 0;
        let nodes = cluster.processes.node_ids();
        let others: Vec<_> = nodes.into_iter().filter(|n| *n != controller).collect();
        let node = if with_controller {
            controller
        } else {
            others[kill / 2 % others.len()]
        };
        let led = eventually("the node to lead something", || async {
            let described = cluster.client.describe_topic(TOPIC).await;
            let described = described.map_err(|error| error.to_string())?;
            let led = described.partitions.iter();
            let led = led.filter(|partition| partition.leader == Some(node.get()));
            let led: BTreeSet<PartitionId> = led
                .map(|partition| PartitionId::new(partition.partition.unsigned_abs()))
                .collect();
            (!led.is_empty()).then_some(led).ok_or("nothing".to_owned())
        })
        .await;
        let story = Story::begin(&cluster, node);
        let at = Instant::now();
        cluster.processes.kill(node).unwrap();
        acknowledged_after(&writer, at + OVER, "every partition to go on").await;
        let gaps = writer.gaps(at);
        let longest = gaps.values().max().copied().unwrap_or_default();
        println!(
            "kill of node {node}, controller {with_controller}: {} ms",
            longest.as_millis()
        );
        let slowest = &mut slowest[usize::from(with_controller)];
        if longest > slowest.0 {
            *slowest = (longest, story.told(longest));
        }
        for (partition, gap) in gaps {
            let kind = usize::from(with_controller) * 2 + usize::from(led.contains(&partition));
            figures[kind].add(gap);
        }
        cluster.processes.start_node(node).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
    }
    let kinds = [
        "another node, followed",
        "another node, led",
        "active controller, followed",
        "active controller, led",
    ];
    for (figures, kind) in figures.iter_mut().zip(kinds) {
        figures.print(kind);
    }
    for ((gap, story), kind) in slowest.iter().zip(["another node", "active controller"]) {
        println!("the longest, {kind}, {} ms:", gap.as_millis());
        story.iter().for_each(|line| println!("  {line}"));
    }
    let history = writer.finish().await.unwrap();
    // The node that is asked may have lost its way to a leader with the last kill.
    let client = &cluster.client;
    let stored = eventually("everything can be read", || read_all(client, TOPIC)).await;
    assert_eq!(check(&history, &stored), []);
    for (longest, promised) in slowest.iter().map(|(gap, _)| gap).zip(PROMISED) {
        assert!(*longest <= promised * BUSY, "{longest:?}");
    }
}
