//! A client in Python, made from the published protocol, that knows one node only: what it writes
//! is where it was told, whoever leads it, and what is refused says why in a typed form. `.ci/python`
//! makes the environment (`CLUSTER_TEST_PYTHON` names its interpreter) and runs this.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;

use cluster_tests::Cluster;
use quorate_workload::{Sent, Stored, check, read_all};
use tempfile::TempDir;
use tokio::process::Command;

const TOPIC: &str = "from-python";
const RECORDS: u64 = 300;

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

    /// Runs an example.
    async fn run(&self, script: &str, arguments: &[&str]) -> Output {
        Command::new(&self.interpreter)
            .current_dir(root())
            .env("PYTHONPATH", self.stubs.path())
            .arg(format!("cluster-tests/clients/python/{script}"))
            .args(arguments)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
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
    let created = cluster.client.create_topic(TOPIC, 6, 3, BTreeMap::new());
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
