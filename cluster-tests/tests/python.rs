//! Clients in Python, made from the published protocol. One knows one node only: what it writes is
//! where it was told, whoever leads it, and what is refused says why in a typed form. Others are
//! members of a group, and survive the kill of their node and of leaders. `.ci/python` makes the
//! environment (`CLUSTER_TEST_PYTHON` names its interpreter) and runs this.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use quorate_client::v1;
use quorate_types::NodeId;
use quorate_workload::{History, Sent, Stored, Writer, WriterOptions, check, read_all};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

const TOPIC: &str = "from-python";
const RECORDS: u64 = 300;
const PARTITIONS: u32 = 6;
const CLIENTS: &str = "cluster-tests/clients/python";
const GROUP: &str = "readers";
const MEMBER: &str = "group_member.py";
/// The session that the member in Python asks for.
const SESSION: Duration = Duration::from_secs(10);

struct Python {
    interpreter: PathBuf,
    stubs: TempDir,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

impl Python {
    /// Generates the stubs as the example's README says.
    async fn new() -> Self {
        let interpreter = std::env::var_os("CLUSTER_TEST_PYTHON").expect(
            "CLUSTER_TEST_PYTHON names an interpreter with the requirements: run `.ci/python`",
        );
        let python = Self {
            interpreter: interpreter.into(),
            stubs: TempDir::new().unwrap(),
        };
        let stubs = python.stubs.path().display();
        let protos = std::fs::read_dir(root().join("proto/quorate/v1")).unwrap();
        let protos = protos.map(|entry| entry.unwrap().path());
        let generated = Command::new(&python.interpreter)
            .current_dir(root())
            .args(["-m", "grpc_tools.protoc", "-Iproto"])
            .arg(format!("--python_out={stubs}"))
            .arg(format!("--grpc_python_out={stubs}"))
            .args(protos.map(|path| path.strip_prefix(root()).unwrap().to_owned()))
            .output()
            .await
            .unwrap();
        assert!(generated.status.success(), "{}", text(&generated).1);
        python
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.interpreter);
        command
            .current_dir(root())
            .env("PYTHONPATH", self.stubs.path())
            .env("PYTHONUNBUFFERED", "1")
            .arg(format!("{CLIENTS}/{script}"))
            .args(arguments)
            .kill_on_drop(true);
        command
    }

    /// Runs an example.
    async fn run(&self, script: &str, arguments: &[&str]) -> Output {
        self.command(script, arguments).output().await.unwrap()
    }
}

fn stored(line: &str) -> Stored {
    let words: Vec<&str> = line.split(' ').collect();
    let [partition, offset, key, value] = words[..] else {
        panic!("four words are printed a record: {line}");
    };
    Stored {
        partition: partition.parse().unwrap(),
        offset: offset.parse().unwrap(),
        key: key.to_owned(),
        number: value.parse().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 and grpcio"]
async fn a_python_client_of_one_node_reaches_every_partition() {
    let python = Python::new().await;
    let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new());
    created.await.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let node = cluster.processes.addresses()[0].clone();

    let (at, count) = (node.to_string(), RECORDS.to_string());
    let arguments = [at.as_str(), TOPIC, &count];
    let output = python.run("produce_consume.py", &arguments).await;
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    let mut read: Vec<Stored> = printed.lines().map(stored).collect();
    read.sort_by_key(|record| (record.partition, record.offset));
    let sent = (0..RECORDS).map(|number| Sent {
        key: format!("key-{}", number % 20),
        number,
        acknowledged: None,
    });
    assert_eq!(check(&sent.collect::<Vec<_>>(), &read), []);
    assert_eq!(read.len() as u64, RECORDS);
    // What it read is what our own client reads from the leaders.
    assert_eq!(read_all(&cluster.client, TOPIC).await.unwrap(), read);

    let described = cluster.client.describe_topic(TOPIC).await.unwrap();
    let leaders: BTreeSet<u32> = read
        .iter()
        .filter_map(|record| described.partitions[record.partition as usize].leader)
        .collect();
    println!(
        "{} records of partitions led by {leaders:?} through node 1",
        read.len()
    );
    assert_eq!(
        leaders,
        BTreeSet::from([1, 2, 3]),
        "others' partitions, too"
    );

    let looked = python.run("look.py", &[&at]).await;
    let (printed, errors) = text(&looked);
    assert!(looked.status.success(), "{errors}");
    for expected in [
        "service grpc.health.v1.Health",
        "service quorate.v1.Admin",
        "service quorate.v1.Cluster",
        "service quorate.v1.Consumer",
        "service quorate.v1.Groups",
        "service quorate.v1.Producer",
        "health SERVING",
        "refused quorate UNKNOWN_TOPIC_OR_PARTITION",
    ] {
        assert!(printed.lines().any(|line| line == expected), "{printed}");
    }
    assert!(
        !printed.contains("internal"),
        "nodes' own services are not told: {printed}"
    );
}

/// A running `group_member.py`.
struct Member {
    child: Child,
    /// In the order in which it came.
    printed: Arc<Mutex<Vec<Stored>>>,
}

/// What a member prints: topic, partition, offset, and key and value as Python shows bytes.
fn printed(line: &str) -> Stored {
    let words: Vec<&str> = line.split(' ').collect();
    let [TOPIC, partition, offset, key, value] = words[..] else {
        panic!("topic and four words are printed a record: {line}");
    };
    let bytes = |word: &str| {
        let inner = word
            .strip_prefix("b'")
            .and_then(|word| word.strip_suffix('\''));
        inner.map(str::to_owned).unwrap()
    };
    Stored {
        partition: partition.parse().unwrap(),
        offset: offset.parse().unwrap(),
        key: bytes(key),
        number: bytes(value).parse().unwrap(),
    }
}

impl Member {
    /// Starts one that goes to these nodes by turns.
    fn start(python: &Python, nodes: &[String]) -> Self {
        let mut command = python.command(MEMBER, &[&nodes.join(","), GROUP, TOPIC]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let all = Arc::<Mutex<Vec<Stored>>>::default();
        let seen = Arc::clone(&all);
        // Ends with the program's output.
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                seen.lock().push(printed(&line));
            }
        });
        Self {
            child,
            printed: all,
        }
    }

    /// Asks it to end, and waits until it has, without a complaint.
    async fn ends_on(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed());
        kill(pid, signal).unwrap();
        let ended = timeout(SESSION, self.child.wait()).await;
        let status = ended.expect("it ends in time").unwrap();
        assert!(status.success(), "it ended with {status} on {signal}");
    }
}

type Place = (u32, i64);

fn place(record: &Stored) -> Place {
    (record.partition, record.offset)
}

/// What was printed at each place, by whomever, and how often.
fn by_place(members: &[&Member]) -> BTreeMap<Place, Vec<Stored>> {
    let mut all: BTreeMap<Place, Vec<Stored>> = BTreeMap::new();
    for member in members {
        for record in &*member.printed.lock() {
            all.entry(place(record)).or_default().push(record.clone());
        }
    }
    all
}

fn write(cluster: &Cluster, last: u64) -> Writer {
    let options = WriterOptions {
        topic: TOPIC.to_owned(),
        partitions: PARTITIONS,
        keys: 60,
        records: 4,
        every: Duration::from_millis(10),
    };
    Writer::start_after(&cluster.client, options, last)
}

/// Where the partitions end now, for readers.
async fn ends(cluster: &Cluster) -> BTreeMap<u32, i64> {
    let ends = eventually("the partitions' ends", || async {
        let described = cluster.client.describe_topic(TOPIC).await;
        let described = described.map_err(|error| error.to_string())?;
        let ends = described.partitions.iter().map(|partition| {
            let number = partition.partition.unsigned_abs();
            partition.high_watermark.map(|end| (number, end))
        });
        let ends: Option<BTreeMap<u32, i64>> = ends.collect();
        ends.ok_or("a leader does not tell".to_owned())
    });
    ends.await
}

/// Waits until every partition is printed up to where it ends now.
async fn caught_up(cluster: &Cluster, members: &[&Member], after: &str) {
    let ends = ends(cluster).await;
    eventually(&format!("all to be printed after {after}"), || async {
        let all = by_place(members);
        let missing = ends
            .iter()
            .find(|(partition, end)| *end > &0 && !all.contains_key(&(**partition, **end - 1)));
        missing.map_or(Ok(()), |missing| Err(format!("{missing:?} is not")))
    })
    .await;
}

async fn described(cluster: &Cluster) -> Result<v1::DescribeGroupResponse, String> {
    let described = cluster.client.describe_group(GROUP).await;
    described.map_err(|error| error.to_string())
}

/// Waits until so many members share the partitions evenly; gives what each has.
async fn shared(cluster: &Cluster, members: u32) -> BTreeMap<String, BTreeSet<u32>> {
    eventually(
        &format!("{members} members to share the partitions"),
        || async {
            let described = described(cluster).await?;
            let partitions = |member: &v1::MemberDescription| {
                let of = member.partitions.iter().flat_map(|of| &of.partitions);
                of.map(|partition| partition.unsigned_abs()).collect()
            };
            let having: BTreeMap<String, BTreeSet<u32>> = described
                .members
                .iter()
                .map(|member| (member.member_id.clone(), partitions(member)))
                .collect();
            let all: BTreeSet<&u32> = having.values().flatten().collect();
            let share = PARTITIONS / members;
            let even = having.values().all(|has| has.len() == share as usize);
            let stable = described
                .members
                .iter()
                .all(|member| member.revoking.is_empty());
            let right = having.len() == members as usize && all.len() == PARTITIONS as usize;
            (right && even && stable)
                .then_some(having.clone())
                .ok_or(format!("{having:?}"))
        },
    )
    .await
}

/// Waits until all is committed.
async fn committed(cluster: &Cluster) {
    eventually("all to be committed", || async {
        let lags = described(cluster).await?.offsets;
        let lags: Vec<Option<i64>> = lags.iter().map(|of| of.lag).collect();
        (lags == [Some(0); PARTITIONS as usize])
            .then_some(())
            .ok_or(format!("{lags:?}"))
    })
    .await;
}

async fn restart(cluster: &mut Cluster, node: NodeId) {
    cluster.processes.start_node(node).unwrap();
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
}

async fn goes_on(writer: &Writer, after: &str) {
    let what = format!("acknowledged records after {after}");
    acknowledged_after(writer, Instant::now(), &what).await;
}

/// All that is in the log was printed as it is there, and everything acknowledged is in the log.
async fn all_printed(cluster: &Cluster, members: &[&Member], history: &History) {
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    assert_eq!(check(history, &stored), []);
    let all = by_place(members);
    let once: Vec<Stored> = all.values().map(|copies| copies[0].clone()).collect();
    assert!(
        all.values()
            .flatten()
            .all(|copy| all[&place(copy)][0] == *copy)
    );
    assert_eq!(once, stored, "each at least once, and nothing else");
}

/// What was printed more than once.
fn again(members: &[&Member]) -> BTreeMap<Place, usize> {
    let all = by_place(members).into_iter();
    let times = all.map(|(place, copies)| (place, copies.len()));
    times.filter(|(_, times)| *times > 1).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 and grpcio"]
async fn members_in_python_survive_the_kill_of_their_node_and_of_leaders() {
    let source = std::fs::read_to_string(root().join(CLIENTS).join(MEMBER)).unwrap();
    assert!(source.lines().count() < 30, "a short program");
    let python = Python::new().await;
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new());
    created.await.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.node_ids();
    let mut addresses: Vec<String> = cluster
        .processes
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();

    // What is wrong for good ends it, with the node's word.
    let refused = python.run(MEMBER, &[&addresses[0], "", TOPIC]).await;
    let (_, errors) = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("group") && !errors.contains("Traceback"),
        "{errors}"
    );

    let writer = write(&cluster, 0);
    let mut first = Member::start(&python, &addresses);
    let before: BTreeSet<String> = shared(&cluster, 1).await.into_keys().collect();
    addresses.rotate_left(1);
    let mut second = Member::start(&python, &addresses);
    let having = shared(&cluster, 2).await;
    let of_first = having.iter().find(|(id, _)| before.contains(*id));
    let of_first = of_first.expect("the first stays a member").1.clone();
    goes_on(&writer, "the start").await;
    caught_up(&cluster, &[&first, &second], "the start").await;
    assert_eq!(again(&[&first, &second]), [].into(), "moved without a copy");

    // The node of the first, which goes on through that of the second.
    let asked = cluster.client.committed_offsets(GROUP).await.unwrap();
    let floor: BTreeMap<u32, i64> = asked
        .iter()
        .map(|of| (of.partition.unsigned_abs(), of.offset))
        .collect();
    cluster.processes.kill(nodes[0]).unwrap();
    goes_on(&writer, "the kill of a member's node").await;
    let ceiling = ends(&cluster).await;
    shared(&cluster, 2).await;
    caught_up(&cluster, &[&first, &second], "the kill of a member's node").await;
    let copies = again(&[&first, &second]);
    for ((partition, offset), times) in &copies {
        let why = format!("{partition}-{offset} was printed {times} times");
        assert!(
            of_first.contains(partition),
            "{why}, and is of the other member"
        );
        let uncommitted = floor[partition]..ceiling[partition];
        assert!(uncommitted.contains(offset), "{why}, and was committed");
        assert_eq!(*times, 2, "{why}");
    }
    restart(&mut cluster, nodes[0]).await;

    // A leader that is nobody's node: the calls go on over it.
    let members: BTreeSet<String> = shared(&cluster, 2).await.into_keys().collect();
    eventually("the third node to lead again", || async {
        let described = cluster.client.describe_topic(TOPIC).await;
        let partitions = described.map_err(|error| error.to_string())?.partitions;
        let leaders: Vec<Option<u32>> = partitions.iter().map(|of| of.leader).collect();
        let leads = leaders.contains(&Some(nodes[2].get()));
        leads.then_some(()).ok_or(format!("{leaders:?}"))
    })
    .await;
    cluster.processes.kill(nodes[2]).unwrap();
    goes_on(&writer, "the kill of a leader").await;
    caught_up(&cluster, &[&first, &second], "the kill of a leader").await;
    let now: BTreeSet<String> = shared(&cluster, 2).await.into_keys().collect();
    assert_eq!(now, members, "nobody had to join anew");
    restart(&mut cluster, nodes[2]).await;
    goes_on(&writer, "the start of a leader").await;

    let mut history = writer.finish().await.unwrap();
    caught_up(&cluster, &[&first, &second], "all that was written").await;
    all_printed(&cluster, &[&first, &second], &history).await;
    println!(
        "{} records, {} of them printed twice, of partitions {of_first:?}",
        history.len(),
        copies.len()
    );

    // Who is stopped leaves at once, and the other one has everything.
    committed(&cluster).await;
    let stopped = Instant::now();
    second.ends_on(Signal::SIGTERM).await;
    shared(&cluster, 1).await;
    let took = stopped.elapsed();
    assert!(
        took < SESSION,
        "it has not left: its session ended, after {took:?}"
    );
    let last = history.last().unwrap().number;
    let writer = write(&cluster, last);
    goes_on(&writer, "the stop of a member").await;
    history.extend(writer.finish().await.unwrap());
    caught_up(&cluster, &[&first, &second], "the stop of a member").await;
    all_printed(&cluster, &[&first, &second], &history).await;
    assert_eq!(
        again(&[&first, &second]),
        copies,
        "only what the kill of a node left"
    );

    first.ends_on(Signal::SIGINT).await;
    eventually("a group without members", || async {
        let members = described(&cluster).await?.members;
        members
            .is_empty()
            .then_some(())
            .ok_or(format!("{members:?}"))
    })
    .await;
}
