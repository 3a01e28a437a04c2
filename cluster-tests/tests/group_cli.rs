//! Groups by the command line: members that read and commit, resets in all their forms, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use cluster_tests::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quorate_client::{ProducerOptions, ToSend};
use quorate_types::PartitionId;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const PARTITIONS: u32 = 3;
/// No command takes longer.
const BOUND: Duration = Duration::from_secs(60);
/// Signals of one wish may be so far apart: more than it takes to notice the first.
const APART: Duration = Duration::from_millis(5);

struct Shell {
    cluster: Cluster,
    bootstrap: String,
}

impl Shell {
    async fn start() -> Self {
        let cluster = Cluster::start(Path::new(BINARY)).await;
        let created = cluster
            .client
            .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
            .await;
        created.unwrap();
        cluster.all_in_sync(TOPIC).await;
        let nodes = cluster.processes.addresses();
        let bootstrap: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        Self {
            cluster,
            bootstrap: bootstrap.join(","),
        }
    }

    /// Writes so many records to each partition.
    async fn write(&self, each: u32) {
        let producer = self.cluster.client.producer(ProducerOptions::default());
        for number in 0..each * PARTITIONS {
            let record = ToSend {
                value: Some(b"v"),
                partition: Some(PartitionId::new(number % PARTITIONS)),
                ..ToSend::default()
            };
            producer.send(TOPIC, record).await.unwrap();
        }
        producer.flush().await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .args(["--bootstrap", &self.bootstrap])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let output = timeout(BOUND, self.command(arguments).output()).await;
        output.unwrap().unwrap()
    }

    async fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = [arguments, &["--output", "json"]].concat();
        serde_json::from_str(&self.succeeds(&arguments).await).unwrap()
    }

    /// A command that fails says why, and nothing on stdout.
    async fn fails(&self, arguments: &[&str], code: i32, why: &str) {
        let output = self.run(arguments).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(why), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }

    /// Records that a member reads before it ends by itself.
    async fn read(&self) -> usize {
        let consume = ["consume", TOPIC, "--group", GROUP, "--exit-at-end"];
        let all = [&consume[..], &["--from", "beginning"]].concat();
        self.succeeds(&all).await.lines().count()
    }

    /// By its partitions: what is committed and how far behind that is.
    async fn committed(&self) -> Vec<(Option<u64>, Option<u64>)> {
        let described = self.json(&["group", "describe", GROUP]).await;
        let offsets = described["offsets"].as_array().unwrap().iter();
        let each = offsets.map(|of| (of["committed"].as_u64(), of["lag"].as_u64()));
        each.collect()
    }

    /// Where partitions would go on after a reset.
    async fn reset(&self, to: &[&str]) -> Vec<(u64, u64)> {
        let reset = ["group", "reset-offsets", GROUP, "--topic", TOPIC];
        let rows = self.json(&[&reset[..], to].concat()).await;
        let rows = rows.as_array().unwrap().iter();
        let each = rows.map(|row| (row["partition"].as_u64(), row["after"].as_u64()));
        each.map(|(partition, after)| (partition.unwrap(), after.unwrap()))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_read_commit_and_leave_and_groups_are_reset_and_deleted() {
    let shell = Shell::start().await;
    shell.write(10).await;
    assert_eq!(shell.read().await, 30);
    assert_eq!(shell.read().await, 0, "all was committed");
    assert_eq!(shell.committed().await, [(Some(10), Some(0)); 3]);

    // An offset that is not there is not committed: the member begins at the end.
    let far = [
        "consume",
        TOPIC,
        "--group",
        "far",
        "--from",
        "500",
        "--exit-at-end",
    ];
    assert_eq!(shell.succeeds(&far).await, "");
    let described = shell.json(&["group", "describe", "far"]).await;
    assert_eq!(described["offsets"][0]["committed"], 10);
    shell.succeeds(&["group", "delete", "far"]).await;

    // A member that is told to end twice at once, as `timeout` does, still leaves and commits.
    let mut member = shell.command(&["consume", TOPIC, "--group", GROUP]);
    let mut member = member.spawn().unwrap();
    shell.write(2).await;
    let mut lines = BufReader::new(member.stdout.take().unwrap()).lines();
    for _ in 0..6 {
        timeout(BOUND, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    let reset = ["group", "reset-offsets", GROUP, "--topic", TOPIC];
    let to_earliest = [&reset[..], &["--to-earliest"]].concat();
    shell
        .fails(&to_earliest, 1, "NON_EMPTY_GROUP: it has 1 member")
        .await;
    shell
        .fails(&["group", "delete", GROUP], 1, "NON_EMPTY_GROUP")
        .await;
    let pid = Pid::from_raw(i32::try_from(member.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    tokio::time::sleep(APART).await;
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = timeout(BOUND, member.wait_with_output()).await;
    let ended = ended.unwrap().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(shell.committed().await, [(Some(12), Some(0)); 3]);
    let listed = shell.json(&["group", "list"]).await;
    assert_eq!(listed[0]["state"], "empty");

    let all = |offset| vec![(0, offset), (1, offset), (2, offset)];
    for (to, after) in [
        (&["--to-earliest"][..], all(0)),
        (&["--to-latest"], all(12)),
        (&["--to-offset", "5"], all(5)),
        (&["--to-offset", "500"], all(12)),
        (&["--shift-by", "-2"], all(10)),
        (&["--shift-by", "7"], all(12)),
        (&["--shift-by", "-700"], all(0)),
        (&["--to-timestamp", "2001-01-01"], all(0)),
        (&["--to-timestamp", "2101-01-01T00:00:00Z"], all(12)),
        (&["--by-duration", "7d"], all(0)),
        (&["--by-duration", "0ms"], all(12)),
        (&["--to-current"], all(12)),
        (&["--to-offset", "1", "--partition", "1"], vec![(1, 1)]),
    ] {
        let dry: Vec<&str> = [to, &["--dry-run"]].concat();
        assert_eq!(shell.reset(&dry).await, after, "{to:?}");
    }
    assert_eq!(shell.committed().await, [(Some(12), Some(0)); 3]);
    assert_eq!(shell.reset(&["--to-offset", "5"]).await, all(5));
    assert_eq!(shell.committed().await, [(Some(5), Some(7)); 3]);
    let everything = ["group", "reset-offsets", GROUP, "--all-topics"];
    let back = [&everything[..], &["--shift-by", "-1"]].concat();
    let rows = shell.json(&back).await;
    let row = |partition| json!({"topic": TOPIC, "partition": partition, "before": 5, "after": 4});
    assert_eq!(rows, json!([row(0), row(1), row(2)]));
    assert_eq!(shell.reset(&["--to-offset", "5"]).await, all(5));
    assert_eq!(shell.read().await, 21);

    assert_eq!(
        shell.succeeds(&["group", "delete", GROUP]).await,
        "deleted group billing\n"
    );
    assert_eq!(shell.json(&["group", "list"]).await, Value::Array(vec![]));
    shell
        .fails(&["group", "describe", GROUP], 1, "GROUP_ID_NOT_FOUND")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_stopped_while_it_writes_has_committed_what_it_wrote() {
    let shell = Shell::start().await;
    shell.write(3_000).await;
    let consume = ["consume", TOPIC, "--group", GROUP, "--from", "beginning"];
    let mut member = shell.command(&consume).spawn().unwrap();
    let mut out = member.stdout.take().unwrap();
    let mut text = vec![0; 2];
    timeout(BOUND, out.read_exact(&mut text))
        .await
        .unwrap()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(member.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let rest = out.read_to_end(&mut text);
    timeout(BOUND, rest).await.unwrap().unwrap();
    assert!(member.wait().await.unwrap().success());
    let written = text.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(written + shell.read().await, 9_000, "{written} first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_output_nobody_takes_leaves_and_commits_none_of_it() {
    let shell = Shell::start().await;
    let producer = shell.cluster.client.producer(ProducerOptions::default());
    // More than a pipe takes.
    let value = vec![b'v'; 1_000_000];
    let record = ToSend {
        value: Some(&value),
        partition: Some(PartitionId::new(0)),
        ..ToSend::default()
    };
    producer.send(TOPIC, record).await.unwrap();
    producer.flush().await;
    let consume = ["consume", TOPIC, "--group", GROUP, "--from", "beginning"];
    let mut member = shell.command(&consume).spawn().unwrap();
    // The pipe is full from then on.
    let mut out = member.stdout.take().unwrap();
    let mut some = [0; 10];
    timeout(BOUND, out.read_exact(&mut some))
        .await
        .unwrap()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(member.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = timeout(BOUND, member.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended:?}");
    let described = shell.json(&["group", "describe", GROUP]).await;
    assert_eq!(described["state"], "empty");
    assert_eq!(shell.committed().await[0], (Some(0), Some(1)));
    assert_eq!(shell.read().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_commands_about_groups_say_why_and_change_nothing() {
    let shell = Shell::start().await;
    let reset = ["group", "reset-offsets", GROUP, "--topic"];
    for (arguments, code, why) in [
        (&[TOPIC][..], 2, "--to-offset"),
        (
            &[TOPIC, "--to-earliest", "--to-latest"],
            2,
            "cannot be used",
        ),
        (&[TOPIC, "--to-offset", "-1"], 2, "invalid value '-1'"),
        (&[TOPIC, "--to-timestamp", "soon"], 2, "--to-timestamp"),
        (&[TOPIC, "--shift-by", "1"], 1, "nothing is committed"),
        (&["unknown", "--to-latest"], 1, "UNKNOWN_TOPIC_OR_PARTITION"),
        (&[TOPIC, "--all-topics", "--to-latest"], 2, "cannot be used"),
        (&[TOPIC, "--by-duration", "soon"], 2, "--by-duration"),
        (&[TOPIC, "--topic", TOPIC, "--to-latest"], 2, "named twice"),
        (
            &[TOPIC, "--topic", "b", "--partition", "0", "--to-latest"],
            2,
            "for one --topic",
        ),
        (
            &[TOPIC, "--to-latest", "--partition", "3"],
            1,
            "has 3 partitions",
        ),
    ] {
        shell
            .fails(&[&reset[..], arguments].concat(), code, why)
            .await;
    }
    for (arguments, code, why) in [
        (&["group", "describe", "a\nb"][..], 1, "INVALID_GROUP_ID"),
        (&["group", "delete", "unknown"], 1, "GROUP_ID_NOT_FOUND"),
        (&["group", "delete"], 2, "GROUPS"),
        (
            &[
                "group",
                "reset-offsets",
                GROUP,
                "--all-topics",
                "--to-latest",
            ],
            1,
            "committed nothing",
        ),
        (
            &["group", "reset-offsets", GROUP, "--to-latest"],
            2,
            "--topic",
        ),
        (
            &["consume", TOPIC, "--group", GROUP, "--partition", "0"],
            2,
            "leave out --partition",
        ),
        (&["consume", TOPIC, "--group", ""], 2, "group"),
        (
            &["consume", "unknown", "--group", GROUP],
            1,
            "UNKNOWN_TOPIC_OR_PARTITION",
        ),
    ] {
        shell.fails(arguments, code, why).await;
    }
    assert_eq!(shell.json(&["group", "list"]).await, Value::Array(vec![]));
}
