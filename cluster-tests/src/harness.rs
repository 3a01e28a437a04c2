//! A cluster of real processes for a test; ended with it, even when it fails.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use quorate::{LocalCluster, LocalClusterOptions, NodeLogs, NodePlan};
use quorate_client::{Client, ClientError, ClientOptions};
use quorate_proto::v1;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::{Endpoint, NodeId};
use quorate_workload::{Writer, WriterOptions};
use tempfile::TempDir;
use tokio::time::{Instant, interval};

/// No condition is waited for longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Partitions of a topic under load.
const PARTITIONS: u32 = 6;

/// A running cluster of three.
pub struct Cluster {
    /// The processes.
    pub processes: LocalCluster,
    /// A client that knows every node's address.
    pub client: Client,
    _directory: TempDir,
    _alone: Flock<File>,
}

/// Waits until an attempt succeeds; fails with what was waited for and the last error.
pub async fn eventually<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + DEADLINE;
    let mut again = interval(Duration::from_millis(20));
    loop {
        again.tick().await;
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "waited for {what}: {error}"),
        }
    }
}

impl Cluster {
    /// Starts three nodes of `binary` that snapshot their metadata often, and waits until all of
    /// them take part.
    pub async fn start(binary: &Path) -> Self {
        let path = std::env::temp_dir().join("quorate-cluster-tests.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .expect("the temporary directory can be written");
        // One cluster at a time: two would disturb each other's timing.
        let alone = tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive))
            .await
            .expect("waiting for a lock does not panic")
            .map_err(|(_, error)| error)
            .expect("a file lock can be had");
        let directory = TempDir::new().expect("a temporary directory can be made");
        let arguments = [
            "--snapshot-every-entries",
            "100",
            "--snapshot-keep-entries",
            "10",
        ];
        let processes = LocalCluster::start(LocalClusterOptions {
            binary: binary.to_owned(),
            nodes: NodePlan::on_free_ports(3).expect("loopback has free ports"),
            directory: directory.path().to_owned(),
            server_arguments: arguments.map(str::to_owned).into(),
            logs: NodeLogs::Files,
        })
        .expect("the processes can be started");
        let client = Client::new(processes.addresses(), ClientOptions::default())
            .expect("there are addresses");
        let cluster = Self {
            processes,
            client,
            _directory: directory,
            _alone: alone,
        };
        cluster.all_active().await;
        cluster
    }

    /// Waits until all three brokers take part.
    pub async fn all_active(&self) {
        eventually("three active brokers", || async {
            let cluster = self
                .client
                .describe_cluster()
                .await
                .map_err(|e| e.to_string())?;
            let states: Vec<i32> = cluster.brokers.iter().map(|broker| broker.state).collect();
            if states == [1, 1, 1] {
                Ok(())
            } else {
                Err(format!("states {states:?}"))
            }
        })
        .await;
    }

    /// Waits until every replica of the topic is in sync, and every partition has a leader.
    pub async fn all_in_sync(&self, topic: &str) {
        eventually("every replica in sync", || async {
            let topic = self
                .client
                .describe_topic(topic)
                .await
                .map_err(|e| e.to_string())?;
            let missing = topic
                .partitions
                .iter()
                .find(|p| p.leader.is_none() || p.isr.len() != p.replicas.len());
            match missing {
                None => Ok(()),
                Some(partition) => Err(format!("{partition:?}")),
            }
        })
        .await;
    }

    /// The node that leads a partition.
    pub async fn leader(&self, topic: &str, partition: usize) -> NodeId {
        eventually("a leader", || async {
            let topic = self
                .client
                .describe_topic(topic)
                .await
                .map_err(|e| e.to_string())?;
            let leader = topic
                .partitions
                .get(partition)
                .and_then(|partition| partition.leader);
            leader.map(NodeId::new).ok_or_else(|| "none".to_owned())
        })
        .await
    }

    /// The node that runs the active controller.
    pub async fn controller(&self) -> NodeId {
        eventually("an active controller", || async {
            let cluster = self
                .client
                .describe_cluster()
                .await
                .map_err(|e| e.to_string())?;
            cluster
                .controller
                .map(NodeId::new)
                .ok_or_else(|| "none".to_owned())
        })
        .await
    }

    /// Makes a topic of six partitions with three replicas each, and starts to write to all of
    /// them: some records every 2 ms.
    pub async fn write_to(&self, topic: &str) -> Writer {
        let created = self
            .client
            .create_topic(topic, PARTITIONS, 3, BTreeMap::new())
            .await;
        created.expect("a topic can be made");
        let options = WriterOptions {
            topic: topic.to_owned(),
            partitions: PARTITIONS,
            keys: 60,
            records: 8,
            every: Duration::from_millis(2),
        };
        Writer::start(&self.client, options)
    }
}

/// Waits until every partition has acknowledged something after `at`.
pub async fn acknowledged_after(writer: &Writer, at: Instant, what: &str) {
    eventually(what, || async {
        let all = writer.all_acknowledged_after(at);
        let so_far = writer.acknowledged();
        all.then_some(()).ok_or(format!("{so_far} acknowledged"))
    })
    .await;
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

/// The key of a record of [`produce_raw`].
pub fn raw_key(number: u64) -> String {
    format!("raw-{number}")
}
