//! A running cluster as a client of it sees it, whatever its nodes run in; and waiting for it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use quorate_client::Client;
use quorate_proto::v1;
use quorate_types::NodeId;
use quorate_workload::{Writer, WriterOptions};
use tokio::time::{Instant, interval};

/// No condition is waited for longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Partitions of a topic under load.
const PARTITIONS: u32 = 6;

/// A cluster of three, through a client.
pub struct View {
    /// A client that knows every node's address.
    pub client: Client,
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

/// A partition without a leader, or not all of whose replicas are in sync.
pub(crate) fn out_of_sync(topic: &v1::TopicDescription) -> Option<String> {
    let mut partitions = topic.partitions.iter();
    let missing = partitions.find(|p| p.leader.is_none() || p.isr.len() != p.replicas.len());
    missing.map(|partition| format!("{partition:?}"))
}

impl View {
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
            out_of_sync(&topic).map_or(Ok(()), Err)
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
