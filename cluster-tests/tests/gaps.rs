//! How long clients wait when a node is killed: the active controller's or another, for the
//! partitions that it led and for those that it followed. `KILLS` sets how many (default 4); the
//! figures are printed, and what the nodes that were left logged in the longest gap of each kind.
//! `LOG_LEVEL` sets their levels: `info,openraft=info` shows each vote.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate_types::{NodeId, PartitionId};
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

/// Lines of a gap's story that are printed.
const LINES: usize = 120;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Default)]
struct Figures(Vec<Duration>);

impl Figures {
    fn print(&mut self, what: &str) {
        self.0.sort_unstable();
        let Some(last) = self.0.len().checked_sub(1) else {
            return;
        };
        let at = |percent: usize| self.0[last * percent / 100].as_millis();
        println!(
            "{what}: {} gaps, p50 {} ms, p90 {} ms, p99 {} ms, max {} ms",
            self.0.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
}

/// The logs of the nodes that are left, from the moment of a kill on.
struct Story {
    killed: Duration,
    logs: Vec<(NodeId, PathBuf, u64)>,
}

impl Story {
    fn begin(cluster: &Cluster, killed: NodeId) -> Self {
        let nodes = cluster.processes.node_ids().into_iter();
        let logs = nodes.filter(|node| *node != killed).map(|node| {
            let path = cluster.processes.log_path(node).unwrap();
            let length = fs::metadata(&path).unwrap().len();
            (node, path, length)
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self {
            killed: Duration::from_nanos((now.as_nanos() % DAY.as_nanos()) as u64),
            logs: logs.collect(),
        }
    }

    /// What was logged until so long after the kill, in order, each line with its time since then.
    fn told(&self, until: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        for (node, path, from) in &self.logs {
            let log = fs::read(path).unwrap();
            let log = String::from_utf8_lossy(&log[*from as usize..]).into_owned();
            let timed = log.lines().filter_map(|line| {
                let (time, said) = line.split_once(' ')?;
                let after = (time_of_day(time)? + DAY).checked_sub(self.killed)?;
                let after = if after >= DAY { after - DAY } else { after };
                (after <= until).then(|| (after, format!("node {node}: {}", said.trim_start())))
            });
            lines.extend(timed);
        }
        lines.sort();
        let shown = lines.into_iter().take(LINES);
        shown
            .map(|(after, said)| format!("{:7.1} ms {said}", after.as_secs_f64() * 1e3))
            .collect()
    }
}

/// Of a time such as `2026-01-31T23:59:59.999999Z`.
fn time_of_day(time: &str) -> Option<Duration> {
    let clock = time.split_once('T')?.1.strip_suffix('Z')?;
    let mut parts = clock.splitn(3, ':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    Some(Duration::from_secs_f64(
        part()? * 3600.0 + part()? * 60.0 + part()?,
    ))
}

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
            figures[kind].0.push(gap);
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
