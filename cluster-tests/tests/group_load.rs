//! Many groups at rest, and many commits: `LOAD_GROUPS` groups (default 50) of four members each, that send
//! heartbeats as the nodes ask for, for `SECONDS` (default 6); then all of them commit what they have, at
//! more than 20,000 offsets a second together. What the nodes need for it is printed, and what became of
//! the commits in the metadata log; a release build must keep what is promised.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster_tests::{Cluster, eventually, metric};
use parking_lot::Mutex;
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::NodeId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tonic::Code;
use tonic::transport::{Channel, Endpoint as Address};

const TOPIC: &str = "many";
const PARTITIONS: u32 = 40;
const MEMBERS: usize = 4;
/// Connections to each node.
const CONNECTIONS: usize = 4;
/// Members begin to join so far apart.
const JOINS_APART: Duration = Duration::from_millis(2);
/// What groups at rest cost all nodes together, beside what these cost anyway, as a share of one core.
const PROMISED_CPU: f64 = 0.1;
/// Offsets a second that are committed, and so many more are tried.
const PROMISED_COMMITS: f64 = 20_000.0;
const TRIED: f64 = 1.2;
/// As `/proc` counts it.
const TICKS_A_SECOND: f64 = 100.0;

/// What a member is and has.
#[derive(Default)]
struct State {
    epoch: u32,
    owned: Vec<v1::TopicPartitions>,
}

struct Member {
    group: String,
    id: String,
    /// To the coordinator, once it is known which node that is.
    way: Mutex<Channel>,
    state: Mutex<State>,
    /// Calls that are to be made again.
    failed: Arc<AtomicU64>,
}

impl Member {
    fn groups(&self) -> GroupsClient<Channel> {
        GroupsClient::new(self.way.lock().clone())
    }

    /// Joins, and sends one heartbeat after the other, each of which waits for news.
    async fn stay(self: Arc<Self>) {
        let mut request = v1::HeartbeatRequest {
            group: self.group.clone(),
            member_id: self.id.clone(),
            profile: Some(v1::MemberProfile {
                topics: vec![TOPIC.to_owned()],
                client_id: "load".to_owned(),
                ..v1::MemberProfile::default()
            }),
            ..v1::HeartbeatRequest::default()
        };
        loop {
            let sent = Instant::now();
            let answer = match self.groups().heartbeat(request.clone()).await {
                Ok(answer) => answer.into_inner(),
                Err(_refused) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let rests =
                answer.member_epoch == request.member_epoch && answer.assigned == request.owned;
            let every = Duration::from_millis(answer.heartbeat_interval_ms.into());
            request.profile = None;
            request.member_epoch = answer.member_epoch;
            request.owned.clone_from(&answer.assigned);
            request.max_wait_ms = answer.heartbeat_interval_ms;
            *self.state.lock() = State {
                epoch: answer.member_epoch,
                owned: answer.assigned,
            };
            // Answers come together, a little sooner than asked for.
            if rests && sent.elapsed() < every * 7 / 8 {
                sleep_until(sent + every).await;
            }
        }
    }

    /// Commits all that it has, every so often, for so long; adds up what was taken.
    async fn commit(self: Arc<Self>, every: Duration, until: Instant, taken: Arc<AtomicU64>) {
        let mut pace = interval(every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 1.. {
            pace.tick().await;
            if Instant::now() >= until {
                return;
            }
            let request = {
                let state = self.state.lock();
                let offsets = state.owned.iter().flat_map(|topic| {
                    topic.partitions.iter().map(|partition| v1::OffsetToCommit {
                        topic: topic.topic.clone(),
                        topic_id: Some(topic.topic_id.clone()),
                        partition: *partition,
                        offset: Some(number),
                        ..v1::OffsetToCommit::default()
                    })
                });
                v1::CommitOffsetsRequest {
                    group: self.group.clone(),
                    member_id: Some(self.id.clone()),
                    member_epoch: state.epoch,
                    commit_seq: Some(number.unsigned_abs()),
                    offsets: offsets.collect(),
                    timeout_ms: 0,
                }
            };
            let items = request.offsets.len() as u64;
            match self.groups().commit_offsets(request).await {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().refused, []);
                    taken.fetch_add(items, Ordering::Relaxed);
                }
                // The next says it again.
                Err(refused) => {
                    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |given| given.parse().unwrap())
}

/// CPU seconds of all nodes since their start.
fn cpu(cluster: &Cluster) -> f64 {
    let nodes = cluster.processes.node_ids().into_iter();
    let ticks = nodes.map(|node| {
        let pid = cluster.processes.pid(node).unwrap().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, after) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = after.split(' ').collect();
        // utime and stime are fields 14 and 15 of the line, 12 and 13 after the name.
        [fields[11], fields[12]].map(|ticks| ticks.parse::<u64>().unwrap())
    });
    ticks.flatten().sum::<u64>() as f64 / TICKS_A_SECOND
}

/// The nodes' CPU time over a window, as a share of one core.
async fn share(cluster: &Cluster, window: Duration) -> f64 {
    let (before, begun) = (cpu(cluster), Instant::now());
    sleep(window).await;
    (cpu(cluster) - before) / begun.elapsed().as_secs_f64()
}

async fn counted(cluster: &Cluster, name: &str) -> u64 {
    let mut sum = 0;
    for node in cluster.processes.addresses() {
        sum += metric(&node, name).await.unwrap();
    }
    sum
}

/// The end of the metadata log.
async fn last_entry(cluster: &Cluster) -> i64 {
    let described = cluster.client.describe_cluster().await.unwrap();
    described.quorum.unwrap().last_log_index
}

/// Connections to every node, by its number.
async fn connect(cluster: &Cluster) -> BTreeMap<NodeId, Vec<Channel>> {
    let nodes = cluster.processes.node_ids().into_iter();
    let mut channels = BTreeMap::<NodeId, Vec<Channel>>::new();
    for (node, at) in nodes.zip(cluster.processes.addresses()) {
        for _ in 0..CONNECTIONS {
            let address = Address::from_shared(format!("http://{at}")).unwrap();
            let channel = address.tcp_nodelay(true).connect().await.unwrap();
            channels.entry(node).or_default().push(channel);
        }
    }
    channels
}

/// Waits until all groups have all their members and are at rest; gives their coordinators.
async fn at_rest(cluster: &Cluster, groups: usize) -> BTreeMap<String, NodeId> {
    eventually("every group at rest", || async {
        let listed = cluster.client.list_groups().await;
        let listed = listed.map_err(|error| error.to_string())?;
        let rests = listed.iter().filter(|group| {
            let complete = group.members as usize == MEMBERS;
            complete && group.state() == v1::GroupState::Stable
        });
        let coordinators: BTreeMap<String, NodeId> = rests
            .filter_map(|of| Some((of.group.clone(), NodeId::new(of.coordinator?))))
            .collect();
        let found = coordinators.len();
        (found == groups)
            .then_some(coordinators)
            .ok_or(format!("{found} of {groups}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_at_rest_cost_little_and_commits_share_entries() {
    let groups = variable("LOAD_GROUPS", 50);
    let window = Duration::from_secs(variable("SECONDS", 6) as u64);
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let cluster = Cluster::start_with(binary, &["--snapshot-every-entries", "10000"]).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let idle = share(&cluster, window).await;

    let channels = connect(&cluster).await;
    let any: Vec<&Channel> = channels.values().flatten().collect();
    let failed = Arc::<AtomicU64>::default();
    let mut members = Vec::new();
    let mut stay = JoinSet::new();
    let mut apart = interval(JOINS_APART);
    let begun = Instant::now();
    for number in 0..groups * MEMBERS {
        apart.tick().await;
        let member = Arc::new(Member {
            group: format!("group-{}", number / MEMBERS),
            id: format!("member-{number}"),
            way: Mutex::new(any[number % any.len()].clone()),
            state: Mutex::default(),
            failed: Arc::clone(&failed),
        });
        stay.spawn(Arc::clone(&member).stay());
        members.push(member);
    }
    let coordinators = at_rest(&cluster, groups).await;
    let joined = begun.elapsed();
    println!(
        "{groups} groups of {MEMBERS} are at rest {:.1} s after the first began to join",
        joined.as_secs_f64()
    );
    for (number, member) in members.iter().enumerate() {
        let straight = &channels[&coordinators[&member.group]];
        *member.way.lock() = straight[number % straight.len()].clone();
    }
    // The heartbeats that are under way still came by another node.
    let interval_over = Duration::from_secs(5);
    sleep(interval_over).await;
    let refused = failed.load(Ordering::Relaxed);
    let beats = counted(&cluster, "quorate_group_heartbeats_total").await;
    let at_rest = share(&cluster, window).await;
    let beats = counted(&cluster, "quorate_group_heartbeats_total").await - beats;
    println!(
        "{beats} heartbeats in {window:?}: the nodes take {:.1} % of one core, {:.1} % without groups",
        at_rest * 100.0,
        idle * 100.0
    );
    assert_eq!(failed.load(Ordering::Relaxed), refused, "heartbeats failed");

    let owned = groups * PARTITIONS as usize;
    let every = Duration::from_secs_f64(owned as f64 / (PROMISED_COMMITS * TRIED));
    let taken = Arc::<AtomicU64>::default();
    let items = counted(&cluster, "quorate_group_commit_items_total").await;
    let proposals = counted(&cluster, "quorate_group_commit_proposals_total").await;
    let (entry, used, begun) = (last_entry(&cluster).await, cpu(&cluster), Instant::now());
    let mut commits = JoinSet::new();
    let mut apart = interval(every / members.len() as u32);
    for member in &members {
        apart.tick().await;
        let member = Arc::clone(member);
        commits.spawn(member.commit(every, begun + window, Arc::clone(&taken)));
    }
    while let Some(committed) = commits.join_next().await {
        committed.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    let entries = last_entry(&cluster).await - entry;
    let used = (cpu(&cluster) - used) / took;
    let items = counted(&cluster, "quorate_group_commit_items_total").await - items;
    let proposals = counted(&cluster, "quorate_group_commit_proposals_total").await - proposals;
    let taken = taken.load(Ordering::Relaxed);
    let rate = taken as f64 / took;
    let again = failed.load(Ordering::Relaxed) - refused;
    println!(
        "{taken} offsets committed, {rate:.0} a second: {proposals} proposals, {entries} entries of the \
         metadata log in all ({:.1} offsets an entry); the nodes take {:.0} % of one core; {again} calls \
         were to be made again",
        taken as f64 / entries as f64,
        used * 100.0
    );
    assert!(items >= taken, "{items} counted, {taken} acknowledged");
    assert!(entries < taken as i64, "commits share no entries");
    drop(stay);
    if !cfg!(debug_assertions) {
        assert!(at_rest - idle <= PROMISED_CPU, "{at_rest}, {idle}");
        assert_eq!(again, 0, "calls failed");
        assert!(rate >= PROMISED_COMMITS, "{rate}");
    }
}
