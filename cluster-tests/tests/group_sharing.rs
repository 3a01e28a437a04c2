//! Members of a group, each a process of its own, share six partitions while nodes are killed: a third
//! joins the two, one is killed, all restart; the coordinator's node, the active controller's and a
//! leader's are killed in between in one round, and at the same time in the next. `ROUNDS` sets how many
//! (default 2); how long partitions paused is printed.
//!
//! In the end every record was processed, in order, by one member at a time; twice only what a killed
//! member had not committed.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use cluster_tests::{
    Cluster, MemberProcess, Told, What, acknowledged_after, eventually, monotonic,
};
use quorate_types::NodeId;
use quorate_workload::{Stored, Writer, WriterOptions, check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "shared";
const GROUP: &str = "sharing";
const PARTITIONS: u32 = 6;
const SESSION: Duration = Duration::from_secs(6);
/// A partition that stays with its member while another joins pauses no longer.
const STAYS: Duration = Duration::from_millis(500);
/// So many times as long is let pass in a build for tests, which runs beside others: a busy machine is
/// no failure.
const BUSY: u32 = if cfg!(debug_assertions) { 10 } else { 1 };

/// Which node.
#[derive(Debug, Clone, Copy)]
enum Which {
    Coordinator,
    Controller,
    Leader,
}

/// How a member was killed.
struct Killed {
    /// It did nothing after this.
    at: Duration,
    /// What the group had committed then, by partition.
    committed: BTreeMap<u32, u64>,
}

struct Member {
    process: MemberProcess,
    killed: Option<Killed>,
}

struct Test {
    cluster: Cluster,
    writer: Writer,
    /// All that there have been, by their names.
    members: BTreeMap<String, Member>,
}

impl Test {
    async fn start() -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
        let cluster = Cluster::start(binary).await;
        let created = cluster
            .client
            .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
            .await;
        created.unwrap();
        let options = WriterOptions {
            topic: TOPIC.to_owned(),
            partitions: PARTITIONS,
            keys: 60,
            records: 2,
            every: Duration::from_millis(2),
        };
        let writer = Writer::start(&cluster.client, options);
        acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
        Self {
            cluster,
            writer,
            members: BTreeMap::new(),
        }
    }

    fn join(&mut self, name: &str) {
        let binary = Path::new(env!("CARGO_BIN_EXE_group-member"));
        let nodes = self.cluster.processes.addresses();
        let process = MemberProcess::start(binary, &nodes, (GROUP, TOPIC), SESSION);
        let member = Member {
            process,
            killed: None,
        };
        let before = self.members.insert(name.to_owned(), member);
        assert!(before.is_none(), "there was a member {name}");
    }

    async fn kill_member(&mut self, name: &str) {
        let member = self.members.get_mut(name).unwrap();
        member.process.kill().await;
        let at = monotonic();
        let offsets = self.cluster.client.committed_offsets(GROUP).await.unwrap();
        let each = offsets.iter();
        let committed = each.map(|of| (of.partition.unsigned_abs(), of.offset.unsigned_abs()));
        let committed = committed.collect();
        member.killed = Some(Killed { at, committed });
    }

    /// What every member has that was not killed and has not left.
    fn has(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let members = self.members.iter();
        let alive = members.filter(|(_, member)| member.killed.is_none());
        let has = alive.map(|(name, member)| (name.clone(), member.process.has()));
        has.filter(|(_, has)| !has.is_empty()).collect()
    }

    async fn shares(&self, wanted: &[usize]) {
        eventually(&format!("{wanted:?} partitions a member"), || async {
            let has = self.has();
            let shares: Vec<usize> = has.values().map(BTreeSet::len).collect();
            (shares == wanted).then_some(()).ok_or(format!("{has:?}"))
        })
        .await;
    }

    /// When something was processed of each partition, in order.
    fn times(&self) -> BTreeMap<u32, Vec<Duration>> {
        let mut times = BTreeMap::<u32, Vec<Duration>>::new();
        for member in self.members.values() {
            for told in member.process.told() {
                if let What::Processed { partition, .. } = told.what {
                    times.entry(partition).or_default().push(told.at);
                }
            }
        }
        times.values_mut().for_each(|times| times.sort_unstable());
        times
    }

    /// Waits until every partition is written and processed again.
    async fn goes_on(&self, after: &str) {
        let what = format!("every partition to be written after {after}");
        acknowledged_after(&self.writer, Instant::now(), &what).await;
        let from = monotonic();
        let what = format!("every partition to be processed after {after}");
        eventually(&what, || async {
            let times = self.times();
            let late = (0..PARTITIONS).find(|partition| {
                let last = times.get(partition).and_then(|times| times.last());
                last.is_none_or(|last| *last <= from)
            });
            late.map_or(Ok(()), |late| {
                Err(format!("{late} is not: {:?}", self.has()))
            })
        })
        .await;
    }

    /// The longest time without a record processed since then, of each partition.
    fn pauses(&self, since: Duration) -> BTreeMap<u32, Duration> {
        let now = monotonic();
        let pause = |times: Vec<Duration>| {
            let later = times.into_iter().filter(|at| *at > since).chain([now]);
            let (longest, _) = later.fold((Duration::ZERO, since), |(longest, last), at| {
                (longest.max(at.saturating_sub(last)), at)
            });
            longest
        };
        let times = self.times().into_iter();
        times
            .map(|(partition, times)| (partition, pause(times)))
            .collect()
    }

    async fn kill_node(&mut self, which: Which) -> NodeId {
        let controller = self.cluster.controller().await;
        let described = self.cluster.client.describe_group(GROUP).await.unwrap();
        let coordinator = described.group.and_then(|group| group.coordinator);
        let coordinator = NodeId::new(coordinator.unwrap());
        let leader = self.cluster.leader(TOPIC, 0).await;
        let node = match which {
            Which::Coordinator => coordinator,
            Which::Controller => controller,
            Which::Leader => leader,
        };
        self.cluster.processes.kill(node).unwrap();
        println!(
            "killed {which:?}, node {node} (the coordinator is {coordinator}, the active controller \
             {controller}, partition 0's leader {leader})"
        );
        node
    }

    async fn start_node(&mut self, node: NodeId) {
        self.cluster.processes.start_node(node).unwrap();
        self.cluster.all_active().await;
        self.cluster.all_in_sync(TOPIC).await;
    }

    /// A node is killed and comes back, and everybody keeps what they have.
    async fn nothing_moves(&mut self, which: Which) {
        let (before, since) = (self.has(), monotonic());
        let node = self.kill_node(which).await;
        self.goes_on("the kill of a node").await;
        println!("  longest pause {} ms", longest(self.pauses(since)));
        self.start_node(node).await;
        self.goes_on("a node's return").await;
        assert_eq!(self.has(), before);
    }

    /// Kills a node in the midst of something, or does not.
    async fn meanwhile(&mut self, which: Option<Which>) -> Option<NodeId> {
        match which {
            Some(which) => Some(self.kill_node(which).await),
            None => None,
        }
    }

    async fn is_over(&mut self, killed: Option<NodeId>, what: &str) {
        self.goes_on(what).await;
        if let Some(node) = killed {
            self.start_node(node).await;
            self.goes_on("a node's return").await;
        }
    }

    async fn third_joins(&mut self, name: &str, kill: Option<Which>) {
        let (before, since) = (self.has(), monotonic());
        self.join(name);
        let killed = self.meanwhile(kill).await;
        self.shares(&[2, 2, 2]).await;
        self.goes_on("the third has joined").await;
        let (after, pauses) = (self.has(), self.pauses(since));
        let of = |partition: &u32| {
            let mut before = before.iter();
            before.any(|(name, has)| has.contains(partition) && after[name].contains(partition))
        };
        let (stayed, moved): (BTreeMap<_, _>, BTreeMap<_, _>) =
            pauses.into_iter().partition(|(partition, _)| of(partition));
        println!(
            "{name} joined: {} stayed, longest pause {} ms; {} moved, longest pause {} ms",
            stayed.len(),
            longest(stayed.clone()),
            moved.len(),
            longest(moved.clone()),
        );
        assert_eq!(stayed.len(), 4, "{before:?}, then {after:?}");
        if kill.is_none() {
            let in_time = stayed.values().all(|pause| *pause <= STAYS * BUSY);
            assert!(in_time, "{stayed:?}");
        }
        self.is_over(killed, "the third has joined").await;
    }

    async fn third_is_killed(&mut self, name: &str, kill: Option<Which>) {
        let had = self.has().remove(name).unwrap();
        self.kill_member(name).await;
        let killed = self.meanwhile(kill).await;
        self.shares(&[3, 3]).await;
        self.goes_on("a member was killed").await;
        let at = self.members[name].killed.as_ref().unwrap().at;
        let told = self.members.values();
        let told = told.flat_map(|member| member.process.told());
        let moved = told.filter_map(|told| match told.what {
            What::Assigned { partition, .. } if told.at > at && had.contains(&partition) => {
                Some(told.at - at)
            }
            _ => None,
        });
        let moved: Vec<Duration> = moved.collect();
        println!("{name} was killed, and what it had moved {moved:?} later");
        assert_eq!(moved.len(), had.len());
        // It was heard last a third of its session before, at most; and a coordinator that has only just
        // taken over waits for as long as the former one can have answered, too.
        let wrong = moved
            .iter()
            .find(|after| **after < SESSION / 2 || **after > SESSION * 2 * BUSY);
        assert_eq!(wrong, None, "{SESSION:?}");
        self.is_over(killed, "a member was killed").await;
    }

    /// One leaves and the other is killed, then both are there again.
    async fn all_restart(&mut self, round: u32, kill: Option<Which>) {
        let (left, killed) = (format!("a{round}"), format!("b{round}"));
        self.members.get_mut(&left).unwrap().process.leave().await;
        self.kill_member(&killed).await;
        let node = self.meanwhile(kill).await;
        self.join(&format!("a{}", round + 1));
        self.join(&format!("b{}", round + 1));
        self.shares(&[3, 3]).await;
        self.is_over(node, "all have restarted").await;
    }
}

fn longest(pauses: BTreeMap<u32, Duration>) -> u128 {
    pauses
        .values()
        .max()
        .copied()
        .unwrap_or_default()
        .as_millis()
}

/// How a member's time with a partition ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    GivenUp,
    /// With what was committed.
    Killed(u64),
}

/// A member's time with a partition.
#[derive(Debug)]
struct Owned {
    by: String,
    from: Duration,
    until: Duration,
    end: End,
    start: u64,
    /// The numbers of what it processed, from `start` on.
    numbers: Vec<u64>,
}

impl Owned {
    fn next(&self) -> u64 {
        self.start + self.numbers.len() as u64
    }
}

/// Who had each partition, in order.
fn owned(members: &BTreeMap<String, Member>) -> BTreeMap<u32, Vec<Owned>> {
    let mut all = BTreeMap::<u32, Vec<Owned>>::new();
    for (name, member) in members {
        let mut has = BTreeMap::<u32, Owned>::new();
        for Told { at, what } in member.process.told() {
            match what {
                What::Assigned { partition, offset } => {
                    let owned = Owned {
                        by: name.clone(),
                        from: at,
                        until: at,
                        end: End::GivenUp,
                        start: offset,
                        numbers: Vec::new(),
                    };
                    let before = has.insert(partition, owned);
                    assert!(before.is_none(), "{name} was given {partition} twice");
                }
                What::Processed {
                    partition,
                    offset,
                    number,
                } => {
                    let owned = has.get_mut(&partition);
                    let owned = owned.unwrap_or_else(|| panic!("{name} has no {partition}"));
                    assert_eq!(offset, owned.next(), "{name} in {partition}");
                    owned.numbers.push(number);
                }
                What::GivenUp { partition } => {
                    let mut owned = has.remove(&partition).unwrap();
                    owned.until = at;
                    all.entry(partition).or_default().push(owned);
                }
                What::Lost { partition } => {
                    panic!("{name} lived, and lost {partition} all the same")
                }
            }
        }
        for (partition, mut owned) in has {
            let killed = member.killed.as_ref();
            let killed = killed.unwrap_or_else(|| panic!("{name} left and has {partition}"));
            let committed = killed.committed.get(&partition).copied();
            owned.until = killed.at;
            owned.end = End::Killed(committed.unwrap_or_default());
            all.entry(partition).or_default().push(owned);
        }
    }
    all.values_mut()
        .for_each(|all| all.sort_by_key(|owned| owned.from));
    all
}

/// Checks one partition; gives how many records of whom were processed again.
fn check_partition(partition: u32, owned: &[Owned], numbers: &[u64]) -> Vec<(String, u64)> {
    let mut twice = Vec::new();
    // Nobody had it, and nothing was done.
    let (mut until, mut next, mut end) = (Duration::ZERO, 0, End::GivenUp);
    let mut before = String::new();
    for owned in owned {
        let by = &owned.by;
        assert!(
            until <= owned.from,
            "partition {partition} was {by}'s before another had done with it"
        );
        match end {
            End::GivenUp => assert_eq!(owned.start, next, "{by} in partition {partition}"),
            End::Killed(committed) => {
                let expected = committed..=next;
                let start = owned.start;
                assert!(expected.contains(&start), "{by}: {start} of {expected:?}");
                twice.push((before, next - start));
            }
        }
        let (from, to) = (owned.start as usize, owned.next() as usize);
        assert!(to <= numbers.len(), "{by} in partition {partition}: {to}");
        assert_eq!(owned.numbers, numbers[from..to], "{by} in {partition}");
        (until, next, end) = (owned.until, owned.next(), owned.end);
        before = by.clone();
    }
    assert_eq!(next as usize, numbers.len(), "partition {partition}");
    twice
}

fn of_partition(stored: &[Stored], partition: u32) -> Vec<u64> {
    let of = stored.iter().filter(|record| record.partition == partition);
    of.map(|record| record.number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_partitions_whoever_is_killed() {
    let rounds: u32 = std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let mut test = Test::start().await;
    test.join("a0");
    test.join("b0");
    test.shares(&[3, 3]).await;
    test.goes_on("two have joined").await;
    for round in 0..rounds {
        let third = format!("c{round}");
        let meanwhile = |which| (round % 2 == 1).then_some(which);
        test.third_joins(&third, meanwhile(Which::Coordinator))
            .await;
        if round % 2 == 0 {
            for which in [Which::Coordinator, Which::Controller, Which::Leader] {
                test.nothing_moves(which).await;
            }
        }
        test.third_is_killed(&third, meanwhile(Which::Controller))
            .await;
        test.all_restart(round, meanwhile(Which::Leader)).await;
    }

    let Test {
        cluster,
        writer,
        mut members,
    } = test;
    let history = writer.finish().await.unwrap();
    let client = &cluster.client;
    let stored = eventually("everything can be read", || read_all(client, TOPIC)).await;
    assert_eq!(check(&history, &stored)[..], []);
    let last = [format!("a{rounds}"), format!("b{rounds}")];
    eventually("everything to be processed", || async {
        let numbers: BTreeSet<u64> = stored.iter().map(|record| record.number).collect();
        let mut left = numbers;
        for told in members.values().flat_map(|member| member.process.told()) {
            if let What::Processed { number, .. } = told.what {
                left.remove(&number);
            }
        }
        left.is_empty().then_some(()).ok_or(format!("{left:?}"))
    })
    .await;
    for name in &last {
        members.get_mut(name).unwrap().process.leave().await;
    }
    let owned = owned(&members);
    let mut twice = BTreeMap::<String, u64>::new();
    for partition in 0..PARTITIONS {
        let numbers = of_partition(&stored, partition);
        let owned = owned.get(&partition).map_or(&[][..], Vec::as_slice);
        for (whose, again) in check_partition(partition, owned, &numbers) {
            *twice.entry(whose).or_default() += again;
        }
    }
    let times: usize = owned.values().map(Vec::len).sum();
    println!(
        "{} records, partitions had by a member {times} times, processed twice: {twice:?}",
        stored.len()
    );
    let committed = client.committed_offsets(GROUP).await.unwrap();
    for of in committed {
        let numbers = of_partition(&stored, of.partition.unsigned_abs());
        assert_eq!(of.offset.unsigned_abs() as usize, numbers.len());
    }
}
