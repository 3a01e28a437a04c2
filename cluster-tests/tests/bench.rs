//! `quorate bench` against a real cluster: each load runs for about a second, and its JSON is
//! plausible; the failover load kills nodes by turns and finds everything again.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::{Cluster, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quorate_types::NodeId;
use quorate_workload::{FailoverOptions, KillPlan, Monitor, Nodes, failover};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
/// No load takes longer.
const BOUND: Duration = Duration::from_secs(60);

fn start(cluster: &Cluster, arguments: &[&str]) -> Child {
    let addresses = cluster.processes.addresses();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Command::new(BINARY)
        .arg("bench")
        .args(arguments)
        .args(["--output", "json", "--bootstrap", &addresses.join(",")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn result(child: Child, code: i32) -> Value {
    let ended = timeout(BOUND, child.wait_with_output()).await;
    let output = ended.expect("a load ends in time").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let value = result(start(cluster, arguments), 0).await;
    println!("{arguments:?}: {value}");
    assert_eq!(value["bench"], arguments[0]);
    assert_eq!(value["failed"], 0);
    assert!(value["first_error"].is_null());
    value
}

fn number(value: &Value, name: &str) -> f64 {
    let found = value[name].as_f64();
    found.unwrap_or_else(|| panic!("{name} is {}", value[name]))
}

/// Throughput and latencies fit each other; records have `bytes` bytes.
fn plausible(value: &Value, bytes: f64) {
    let [records, seconds] = ["records", "seconds"].map(|name| number(value, name));
    assert!(records > 0.0 && seconds > 0.0);
    let rate = number(value, "records_per_second");
    let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.01;
    assert!(near(rate, records / seconds), "{value}");
    assert!(
        near(number(value, "mb_per_second"), rate * bytes / 1e6),
        "{value}"
    );
    let names = ["p50_ms", "p99_ms", "p999_ms", "max_ms"];
    let latencies = names.map(|name| number(value, name));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{value}");
    assert!(number(value, "cpu_seconds") > 0.0);
    assert!(number(value, "nodes_cpu_seconds") >= 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_load_runs_and_tells_plausible_figures() {
    let cluster = Cluster::start(Path::new(BINARY)).await;
    let short = ["--duration", "1s", "--warm-up", "300ms"];

    let value = bench(&cluster, &[&["produce"][..], &short].concat()).await;
    plausible(&value, 100.0);
    assert!(number(&value, "warm_up_records") > 0.0);
    assert!(value["behind_ms"].is_null());
    assert_eq!(value["settings"]["loop"], "closed");
    assert_eq!(value["settings"]["partitions"], 6);

    let rate = ["produce", "--rate", "500", "--producers", "2"];
    let more = ["--record-size", "250", "--compression", "lz4"];
    let value = bench(&cluster, &[&rate[..], &more, &short].concat()).await;
    plausible(&value, 250.0);
    // Neither more nor less than the rate, whatever the machine does meanwhile.
    assert_eq!(value["records"], 500);
    assert_eq!(value["warm_up_records"], 150);
    assert!(number(&value, "behind_ms") >= 0.0);

    let some = ["--records", "1000", "--warm-up", "0s"];
    for acks in ["all", "1", "0"] {
        let one = ["produce", "--one-per-request", "--acks", acks];
        let value = bench(&cluster, &[&one[..], &some].concat()).await;
        plausible(&value, 100.0);
        assert_eq!(value["records"], 1_000);
    }

    let kept = ["--partitions", "3", "--consumers", "2"];
    let value = bench(
        &cluster,
        &[&["consume", "--records", "20000"][..], &kept].concat(),
    )
    .await;
    plausible(&value, 100.0);
    // A fetch brings whole batches: a few records more than were asked for are counted too.
    assert!(number(&value, "records") >= 20_000.0);

    let value = bench(
        &cluster,
        &[&["end-to-end", "--rate", "300"][..], &short].concat(),
    )
    .await;
    plausible(&value, 100.0);
    assert_eq!(value["records"], 300);

    let value = bench(
        &cluster,
        &[&["failover", "--rate", "400"][..], &short].concat(),
    )
    .await;
    assert!(value["gaps_ms"].is_array());
    assert_eq!(value["violations"], 0);
    assert!(number(&value, "checked") >= number(&value, "records"));

    // Each made a topic of its own and took it away.
    eventually(
        "the topics to be gone for whichever node is asked",
        || async {
            let topics = cluster.client.list_topics().await;
            let topics = topics.map_err(|error| error.to_string())?;
            let gone = topics.is_empty();
            gone.then_some(()).ok_or_else(|| format!("{topics:?}"))
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_load_tells_what_it_measured() {
    let cluster = Cluster::start(Path::new(BINARY)).await;
    let long = ["produce", "--rate", "500", "--duration", "10m"];
    let child = start(&cluster, &[&long[..], &["--warm-up", "0s"]].concat());
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    // Its topic tells that it is at work.
    cluster_tests::eventually("records of the load", || async {
        let topics = cluster.client.list_topics().await;
        let topics = topics.map_err(|error| error.to_string())?;
        let topic = topics.first().ok_or("no topic")?;
        let described = cluster.client.describe_topic(&topic.name).await;
        let described = described.map_err(|error| error.to_string())?;
        let records = described.partitions.iter().filter_map(|p| p.high_watermark);
        if records.sum::<i64>() >= 100 {
            Ok(())
        } else {
            Err("fewer than 100".to_owned())
        }
    })
    .await;
    kill(pid, Signal::SIGINT).unwrap();
    // Less than was asked for.
    let value = result(child, 1).await;
    assert_eq!(value["stopped_early"], true);
    plausible(&value, 100.0);
    assert!(number(&value, "records") >= 100.0);
}

/// The processes of the test, for the load.
struct Processes<'a>(&'a mut quorate::LocalCluster);

impl Nodes for Processes<'_> {
    async fn kill(&mut self, node: NodeId) -> io::Result<()> {
        self.0.kill(node)
    }

    async fn start(&mut self, node: NodeId) -> io::Result<()> {
        self.0.start_node(node)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_failover_load_kills_by_turns_and_finds_everything_again() {
    let mut cluster = Cluster::start(Path::new(BINARY)).await;
    let created = cluster
        .client
        .create_topic("turns", 6, 3, Default::default());
    created.await.unwrap();
    let options = FailoverOptions {
        topic: "turns".into(),
        rate: 1_000.0,
        warm_up: Duration::from_millis(500),
        duration: Duration::from_secs(300),
    };
    let plan = KillPlan {
        kills: 2,
        controller: true,
    };
    let client = cluster.client.clone();
    let mut nodes = Processes(&mut cluster.processes);
    let monitor = Arc::<Monitor>::default();
    let report = failover(&client, &options, plan, &mut nodes, &monitor).await;
    let report = report.unwrap();
    println!("{report:?}");
    let seen = report.failover.unwrap();
    let killed: Vec<_> = seen.gaps.iter().map(|gap| gap.killed).collect();
    assert_eq!(killed, [Some(1), Some(2)]);
    assert_eq!(seen.gaps_ms.len(), 2);
    // Far above what is promised: a busy machine is no failure.
    assert!(seen.gaps_ms.iter().all(|gap| (1.0..5_000.0).contains(gap)));
    // Every node leads a third of the partitions at the beginning.
    assert!(seen.leader_changes > 0 && !seen.gaps[0].partitions.is_empty());
    assert_eq!((seen.violations, report.failed), (0, 0));
    assert_eq!(seen.kills_missing, 0);
    assert!(report.latency.max_ms.unwrap() >= seen.gaps_ms[0] / 2.0);
}
