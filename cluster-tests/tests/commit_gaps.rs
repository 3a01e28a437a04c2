//! How long commits of offsets wait when the coordinator of groups is killed, the active controller's
//! node or another: members of several groups commit all the time. `KILLS` sets how many (default 2);
//! the figures are printed, and what the nodes that were left logged in the longest gap of each kind
//! (`LOG_LEVEL` sets their levels).
//!
//! All along the committed offsets are read through any node: what was acknowledged before a read
//! began is in it, and no read is behind the one before.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_tests::{Cluster, Figures, Story, eventually};
use parking_lot::Mutex;
use quorate_client::{Client, GroupEvent, GroupOptions, OffsetToCommit, StartPosition};
use quorate_types::{NodeId, Offset, PartitionId};
use quorate_workload::longest_gap;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

const TOPIC: &str = "committed";
const PARTITIONS: u32 = 6;
const GROUPS: usize = 9;
/// A member commits what it has so often, once the commit before is answered.
const EVERY: Duration = Duration::from_millis(3);
/// What is promised where a coordinator is killed on another node than the active controller's, and
/// where it is that one.
const PROMISED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// So many times as long is let pass in a build for tests, which runs beside others: a busy machine is
/// no failure.
const BUSY: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
/// After so long without a gap a failover is over.
const OVER: Duration = Duration::from_millis(1_500);

/// What a group's member was acknowledged.
#[derive(Debug, Default)]
struct Acks {
    times: Vec<Instant>,
    /// Committed for every partition.
    last: u64,
}

impl Acks {
    fn add(&mut self, number: u64) {
        self.times.push(Instant::now());
        self.last = number;
    }
}

struct Committers {
    groups: BTreeMap<String, Arc<Mutex<Acks>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Committers {
    fn start(client: &Client) -> Self {
        let names = (0..GROUPS).map(|number| (format!("group-{number}"), Arc::default()));
        let groups: BTreeMap<String, Arc<Mutex<Acks>>> = names.collect();
        let stop = Arc::<AtomicBool>::default();
        let mut tasks = Vec::new();
        for (group, acks) in &groups {
            let (client, group) = (client.clone(), group.clone());
            let (acks, stop) = (Arc::clone(acks), Arc::clone(&stop));
            tasks.push(tokio::spawn(commit(client, group, acks, stop)));
        }
        let read = read(client.clone(), groups.clone(), Arc::clone(&stop));
        tasks.push(tokio::spawn(read));
        Self {
            groups,
            stop,
            tasks,
        }
    }

    async fn acknowledged_after(&self, at: Instant) {
        eventually("every group to commit", || async {
            let mut groups = self.groups.iter();
            let late = groups.find(|(_, acks)| acks.lock().times.last() <= Some(&at));
            late.map_or(Ok(()), |(group, _)| Err(format!("{group} has not")))
        })
        .await;
    }

    /// The longest gap of each group from `since` until now.
    fn gaps(&self, since: Instant) -> BTreeMap<String, Duration> {
        let now = Instant::now();
        let groups = self.groups.iter();
        groups
            .map(|(group, acks)| {
                let gap = longest_gap(&acks.lock().times, since, now);
                (group.clone(), gap)
            })
            .collect()
    }

    async fn finish(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let last = self.groups.into_iter();
        last.map(|(group, acks)| (group, acks.lock().last))
            .collect()
    }
}

async fn commit(client: Client, group: String, acks: Arc<Mutex<Acks>>, stop: Arc<AtomicBool>) {
    let mut member = client
        .group(GroupOptions {
            start: StartPosition::Earliest,
            auto_commit: None,
            ..GroupOptions::new(group, [TOPIC])
        })
        .unwrap();
    let mut has = BTreeSet::new();
    while has.len() < PARTITIONS as usize {
        if let GroupEvent::Assigned(new) = member.poll().await.unwrap() {
            has.extend(new.iter().map(|of| of.partition));
        }
    }
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let each = has.iter();
        let each = each.map(|of| OffsetToCommit::new(TOPIC, *of, Offset::new(number)));
        let each: Vec<_> = each.collect();
        member.commit_offsets(&each).await.unwrap();
        acks.lock().add(number);
        // There is nothing to be read, and the member keeps what it has over all that happens.
        if let Ok(event) = timeout(EVERY, member.poll()).await {
            assert!(matches!(event.unwrap(), GroupEvent::Records(_)));
        }
    }
    member.close().await.unwrap();
}

/// Of every partition what is committed; nothing is of one that is not there.
async fn committed(client: &Client, group: &str) -> BTreeMap<PartitionId, u64> {
    let offsets = client.committed_offsets(group).await.unwrap();
    let each = offsets.into_iter().map(|of| {
        let partition = PartitionId::new(of.partition.unsigned_abs());
        (partition, of.offset.unsigned_abs())
    });
    each.collect()
}

async fn read(client: Client, groups: BTreeMap<String, Arc<Mutex<Acks>>>, stop: Arc<AtomicBool>) {
    let mut before = BTreeMap::<(String, PartitionId), u64>::new();
    let mut reads = 0;
    let mut again = interval(Duration::from_millis(20));
    while !stop.load(Ordering::Relaxed) {
        for (group, acks) in &groups {
            again.tick().await;
            let acknowledged = acks.lock().last;
            if acknowledged == 0 {
                continue;
            }
            let found = committed(&client, group).await;
            reads += 1;
            for partition in (0..PARTITIONS).map(PartitionId::new) {
                let offset = found.get(&partition).copied().unwrap_or_default();
                let last = before.insert((group.clone(), partition), offset);
                let least = last.unwrap_or_default().max(acknowledged);
                assert!(
                    offset >= least,
                    "{group}, partition {partition}: {offset} after {least}"
                );
            }
        }
    }
    println!("{reads} reads of committed offsets, none behind");
}

/// The groups that each node coordinates.
async fn coordinated(cluster: &Cluster, groups: &Committers) -> BTreeMap<NodeId, Vec<String>> {
    let mut coordinated = BTreeMap::<NodeId, Vec<String>>::new();
    for group in groups.groups.keys() {
        let described = cluster.client.describe_group(group).await.unwrap();
        let coordinator = described.group.and_then(|group| group.coordinator);
        let node = NodeId::new(coordinator.unwrap());
        coordinated.entry(node).or_default().push(group.clone());
    }
    coordinated
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_go_on_soon_after_the_kill_of_a_coordinator() {
    let kills: usize = std::env::var("KILLS").map_or(2, |kills| kills.parse().unwrap());
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let levels = std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
    // Commits are entries of the metadata log, by the thousand: snapshots come as they do elsewhere.
    let flags = ["--log-level", &levels, "--snapshot-every-entries", "10000"];
    let mut cluster = Cluster::start_with(binary, &flags).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let committers = Committers::start(&cluster.client);
    let mut figures: [Figures; 4] = Default::default();
    let mut returns = Figures::default();
    let mut slowest: [(Duration, Vec<String>); 2] = Default::default();
    for kill in 0..kills {
        committers.acknowledged_after(Instant::now()).await;
        let controller = cluster.controller().await;
        let with_controller = kill % 2 == 0;
        let nodes = cluster.processes.node_ids();
        let others: Vec<_> = nodes.into_iter().filter(|n| *n != controller).collect();
        let node = if with_controller {
            controller
        } else {
            others[kill / 2 % others.len()]
        };
        // Who coordinates what is the same whenever all three take part.
        let coordinated = coordinated(&cluster, &committers).await;
        let its_own = coordinated.get(&node).cloned().unwrap_or_default();
        assert!(!its_own.is_empty(), "{node} of {coordinated:?}");
        let story = Story::begin(&cluster, node);
        let at = Instant::now();
        cluster.processes.kill(node).unwrap();
        committers.acknowledged_after(at + OVER).await;
        let gaps = committers.gaps(at);
        let longest = gaps.values().max().copied().unwrap_or_default();
        for (group, gap) in gaps {
            let kind = usize::from(with_controller) * 2 + usize::from(its_own.contains(&group));
            figures[kind].add(gap);
        }
        println!(
            "kill of node {node}, coordinator of {}, controller {with_controller}: {} ms",
            its_own.len(),
            longest.as_millis()
        );
        let slowest = &mut slowest[usize::from(with_controller)];
        if longest > slowest.0 {
            *slowest = (longest, story.told(longest));
        }
        // What it coordinated comes back to it.
        let back = Instant::now();
        cluster.processes.start_node(node).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
        committers.acknowledged_after(Instant::now()).await;
        let gaps = committers.gaps(back).into_values();
        gaps.for_each(|gap| returns.add(gap));
    }
    committers.acknowledged_after(Instant::now()).await;
    let last = committers.finish().await;
    for (group, last) in &last {
        let found = committed(&cluster.client, group).await;
        let all = found.len() == PARTITIONS as usize && found.values().all(|of| of == last);
        assert!(all, "{group}: {found:?}, and {last} was acknowledged");
    }
    let kinds = [
        "another node, not the coordinator",
        "another node, the coordinator",
        "active controller, not the coordinator",
        "active controller, the coordinator",
    ];
    for (figures, kind) in figures.iter_mut().zip(kinds) {
        figures.print(kind);
    }
    returns.print("while it comes back");
    for ((gap, story), kind) in slowest.iter().zip(["another node", "active controller"]) {
        println!("the longest, {kind}, {} ms:", gap.as_millis());
        story.iter().for_each(|line| println!("  {line}"));
    }
    println!("{} commits", last.values().sum::<u64>());
    for (longest, promised) in slowest.iter().map(|(gap, _)| gap).zip(PROMISED) {
        assert!(*longest <= promised * BUSY, "{longest:?}");
    }
}
