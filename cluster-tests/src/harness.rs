//! A cluster of real processes for a test; ended with it, even when it fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use quorate::{LocalCluster, LocalClusterOptions, NodeLogs, NodePlan, NodeState};
use quorate_client::{Client, ClientError, ClientOptions};
use quorate_config::{Key, Layers, NodeSettings};
use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::Endpoint;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::interval;

use crate::view::{View, eventually, out_of_sync};

/// A running cluster of three.
pub struct Cluster {
    /// The processes.
    pub processes: LocalCluster,
    /// What a client of it sees, with every node's address.
    view: View,
    _directory: TempDir,
    _alone: Flock<File>,
}

/// Snapshots of the metadata come often where the flags do not say otherwise.
const SNAPSHOTS: [&str; 4] = [
    "--snapshot-every-entries",
    "100",
    "--snapshot-keep-entries",
    "10",
];

/// Lines of each node's log that a failed test shows.
const LINES: usize = 200;

/// A test that fails shows what its nodes have logged last.
impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in self.processes.node_ids() {
            let log = self
                .processes
                .log_path(node)
                .and_then(std::fs::read_to_string);
            let log = log.unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES)..];
            eprintln!("node {node} logged at the end:\n{}", last.join("\n"));
        }
    }
}

/// Waits for this machine's only place for a cluster: two would disturb each other's timing.
pub(crate) async fn alone() -> Flock<File> {
    let path = std::env::temp_dir().join("quorate-cluster-tests.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("the temporary directory can be written");
    tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive))
        .await
        .expect("waiting for a lock does not panic")
        .map_err(|(_, error)| error)
        .expect("a file lock can be had")
}

impl Cluster {
    /// Starts three nodes of `binary` that snapshot their metadata often, and waits until all of
    /// them take part.
    pub async fn start(binary: &Path) -> Self {
        Self::start_so(binary, &[], None, |_| {}).await
    }

    /// The same with further flags of `quorate server`.
    pub async fn start_with(binary: &Path, flags: &[&str]) -> Self {
        Self::start_so(binary, flags, None, |_| {}).await
    }

    /// The same with further flags and three nodes at these places; its client knows them by what
    /// they advertise.
    pub async fn start_at(binary: &Path, flags: &[&str], nodes: Vec<NodePlan>) -> Self {
        Self::start_so(binary, flags, Some(nodes), |_| {}).await
    }

    /// The same after `prepare` has seen the directory that the nodes will keep their data in, node
    /// N in `node-N`.
    pub async fn start_in(binary: &Path, prepare: impl FnOnce(&Path)) -> Self {
        Self::start_so(binary, &[], None, prepare).await
    }

    async fn start_so(
        binary: &Path,
        flags: &[&str],
        nodes: Option<Vec<NodePlan>>,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let alone = alone().await;
        let directory = TempDir::new().expect("a temporary directory can be made");
        prepare(directory.path());
        let nodes = nodes.map_or_else(|| NodePlan::on_free_ports(3), Ok);
        let nodes = nodes.expect("loopback has free ports");
        let told = nodes.iter().map(|plan| plan.advertised.clone()).collect();
        let mut arguments = flags.to_vec();
        for pair in SNAPSHOTS.chunks(2).filter(|pair| !flags.contains(&pair[0])) {
            arguments.extend(pair);
        }
        let processes = LocalCluster::start(LocalClusterOptions {
            binary: binary.to_owned(),
            nodes,
            directory: directory.path().to_owned(),
            server_arguments: arguments.into_iter().map(str::to_owned).collect(),
            logs: NodeLogs::Files,
        })
        .expect("the processes can be started");
        let client = Client::new(told, ClientOptions::default()).expect("there are addresses");
        let mut cluster = Self {
            processes,
            view: View { client },
            _directory: directory,
            _alone: alone,
        };
        tokio::select! {
            () = cluster.view.all_active() => {}
            why = ended(&mut cluster.processes) => panic!("a node did not start: {why}"),
        }
        cluster
    }
}

/// A node that was just started shows at first what was before: these ask every one.
impl Cluster {
    /// Waits until every node takes part, by its own word too.
    pub async fn all_active(&self) {
        for node in self.processes.addresses() {
            eventually("every node to be ready", || async {
                match ready(&node).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(format!("{node} is not")),
                    Err(error) => Err(format!("{node}: {error}")),
                }
            })
            .await;
        }
        self.view.all_active().await;
    }

    /// Waits until every node sees every replica of the topic in sync, and a leader of every
    /// partition. To be called when all are [active](Self::all_active).
    pub async fn all_in_sync(&self, topic: &str) {
        for node in self.processes.addresses() {
            eventually("every replica in sync", || async {
                let described = describe_raw(&node, topic).await;
                let described = described.map_err(|error| error.to_string())?;
                out_of_sync(&described).map_or(Ok(()), |why| Err(format!("{node}: {why}")))
            })
            .await;
        }
    }
}

/// Returns when a node has ended by itself, with the end of its log.
async fn ended(processes: &mut LocalCluster) -> String {
    let mut again = interval(Duration::from_millis(50));
    loop {
        again.tick().await;
        for node in processes.node_ids() {
            if processes
                .state(node)
                .is_ok_and(|state| state == NodeState::Down)
            {
                let log = processes.log_path(node).and_then(std::fs::read_to_string);
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(5).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                return format!("node {node} has ended:\n{}", lines.join("\n"));
            }
        }
    }
}

impl Deref for Cluster {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

/// Produces one numbered record by a call of its own, under a key of its own (calls at the same
/// time have no order); gives the acknowledged offset.
///
/// # Errors
/// The node's answer.
pub async fn produce_raw(
    to: &Endpoint,
    (topic, partition): (&str, u32),
    number: u64,
    acks: v1::Acks,
    timeout: Duration,
) -> Result<Option<i64>, ClientError> {
    let record = v1::Record {
        key: Some(raw_key(number).into_bytes().into()),
        value: Some(number.to_string().into_bytes().into()),
        ..v1::Record::default()
    };
    let records = vec![record];
    let request = v1::ProduceRequest {
        topic: topic.to_owned(),
        partition: i32::try_from(partition).ok(),
        acks: acks.into(),
        payload: Some(Payload::Records(v1::RecordList { records })),
        timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        ..v1::ProduceRequest::default()
    };
    let connected = ProducerClient::connect(format!("http://{to}")).await;
    let mut client = connected.map_err(|error| ClientError::Connection(error.to_string()))?;
    let answer = client.produce(request).await?;
    Ok(answer.into_inner().base_offset)
}

/// Whether a node takes part in the cluster, by its own word (`/readyz`).
///
/// # Errors
/// Where it does not answer.
pub async fn ready(node: &Endpoint) -> io::Result<bool> {
    Ok(get(node, "/readyz").await?.starts_with("HTTP/1.1 200"))
}

/// What a node has counted under a name since its start, over all labels (`/metrics`); zero where
/// there is nothing of that name.
///
/// # Errors
/// Where it does not answer.
pub async fn metric(node: &Endpoint, name: &str) -> io::Result<u64> {
    let answer = get(node, "/metrics").await?;
    let values = answer.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let named = series.split('{').next() == Some(name);
        named.then(|| value.parse::<u64>().ok()).flatten()
    });
    Ok(values.sum())
}

async fn get(node: &Endpoint, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A topic as this very node sees it: others may be behind.
///
/// # Errors
/// The node's answer.
pub async fn describe_raw(
    node: &Endpoint,
    topic: &str,
) -> Result<v1::TopicDescription, ClientError> {
    let connected = AdminClient::connect(format!("http://{node}")).await;
    let mut client = connected.map_err(|error| ClientError::Connection(error.to_string()))?;
    let request = v1::DescribeTopicRequest {
        name: topic.to_owned(),
    };
    let described = client.describe_topic(request).await?.into_inner();
    described
        .topic
        .ok_or_else(|| ClientError::Protocol("no topic in the answer".to_owned()))
}

/// The key of a record of [`produce_raw`].
pub fn raw_key(number: u64) -> String {
    format!("raw-{number}")
}

/// Bytes of memory that a process holds.
///
/// # Errors
/// Where there is no such process.
pub fn resident(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let kib = lines.find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other(format!("process {pid} holds no memory")))
}

/// Bytes of memory that a node takes at most by these flags of `quorate server`.
///
/// # Panics
/// Where they are no flags, or none of one value each.
pub fn memory_bound(flags: &[&str]) -> u64 {
    let needed = [
        ("node-id", "1"),
        ("data-dir", "."),
        ("controllers", "1@h:1"),
    ];
    let needed = needed.map(|(name, value)| (name, value.to_owned()));
    let given = flags.chunks(2).map(|pair| {
        let name = pair[0].strip_prefix("--").expect("a flag");
        let key = Key::find(name).expect("a flag of the server");
        (key.name, pair[1].to_owned())
    });
    let layers = Layers::default().flags(needed);
    let layers = layers.and_then(|layers| layers.flags(given));
    let resolved = layers.expect("values of flags").resolve();
    let settings = NodeSettings::from_resolved(&resolved, "h");
    settings.expect("settings of a node").memory_bound()
}
