//! A producer writes numbered keyed records with `acks=all` while nodes are killed; afterwards
//! every acknowledged record is where it was acknowledged, in order per key, once.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster_tests::{Cluster, History, Sent, Stored, check, eventually};
use quorate_client::{Assignment, Client, ConsumerOptions, ProducerOptions, ToSend};
use quorate_types::{NodeId, Offset, PartitionId};
use tokio::task::JoinHandle;
use tokio::time::interval;

const TOPIC: &str = "numbered";
const PARTITIONS: u32 = 6;
const KEYS: u64 = 40;
const STOP: Duration = Duration::from_secs(30);

struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<History>,
}

impl Writer {
    fn start(client: &Client) -> Self {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let producer = client.producer(ProducerOptions::default());
        let task = tokio::spawn(async move {
            let mut sent = Vec::new();
            let mut pace = interval(Duration::from_millis(2));
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                for _ in 0..10 {
                    number += 1;
                    let key = format!("key-{}", number % KEYS);
                    let value = number.to_string();
                    let record = ToSend {
                        key: Some(key.as_bytes()),
                        value: Some(value.as_bytes()),
                        ..ToSend::default()
                    };
                    let delivery = producer.send(TOPIC, record).await.unwrap();
                    let (counted, waiting) = (Arc::clone(&counted), delivery.clone());
                    if number % 10 == 0 {
                        tokio::spawn(async move {
                            if waiting.wait().await.is_ok() {
                                counted.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    sent.push((key, number, delivery));
                }
            }
            producer.flush().await;
            let mut history = History::new();
            for (key, number, delivery) in sent {
                let acked = delivery.wait().await.ok();
                let acknowledged =
                    acked.and_then(|acked| Some((acked.partition.get(), acked.offset?)));
                history.push(Sent {
                    key,
                    number,
                    acknowledged,
                });
            }
            history
        });
        Self {
            stop,
            acknowledged,
            task,
        }
    }

    /// Waits until more records are acknowledged than were before.
    async fn goes_on(&self, after: &str) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually(&format!("acknowledged records after {after}"), || async {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now > before + 20 {
                Ok(())
            } else {
                Err(format!("{now}, {before} before"))
            }
        })
        .await;
    }

    async fn finish(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn read_all(client: &Client) -> Vec<Stored> {
    let topic = client.describe_topic(TOPIC).await.unwrap();
    let mut stored = Vec::new();
    for partition in topic.partitions {
        let end = partition
            .high_watermark
            .expect("the leader tells its high watermark");
        let id = PartitionId::new(partition.partition.unsigned_abs());
        let assigned = vec![Assignment {
            topic: TOPIC.into(),
            partition: id,
            offset: Offset::ZERO,
        }];
        let mut consumer = client.consumer(assigned, ConsumerOptions::default());
        let mut next = 0;
        while next < end {
            let consumed = consumer.poll().await.unwrap().unwrap();
            next = consumed.next.to_signed();
            stored.extend(consumed.records.into_iter().map(|record| {
                Stored {
                    partition: id.get(),
                    offset: record.offset.to_signed(),
                    key: String::from_utf8(record.key.unwrap().to_vec()).unwrap(),
                    number: String::from_utf8(record.value.unwrap().to_vec())
                        .unwrap()
                        .parse()
                        .unwrap(),
                }
            }));
        }
    }
    stored
}

async fn restart(cluster: &mut Cluster, nodes: &[NodeId]) {
    for node in nodes {
        cluster.processes.start_node(*node).unwrap();
    }
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_survive_the_kill_of_any_node_and_of_all() {
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, Default::default())
        .await
        .unwrap();
    let writer = Writer::start(&cluster.client);
    writer.goes_on("the start").await;

    let leader = cluster.leader(TOPIC, 0).await;
    cluster.processes.kill(leader).unwrap();
    writer.goes_on("the kill of a leader").await;
    restart(&mut cluster, &[leader]).await;

    let controller = cluster.controller().await;
    cluster.processes.kill(controller).unwrap();
    writer.goes_on("the kill of the active controller").await;
    restart(&mut cluster, &[controller]).await;

    let controller = cluster.controller().await;
    let other = cluster
        .processes
        .node_ids()
        .into_iter()
        .find(|node| *node != controller)
        .unwrap();
    for node in [controller, other] {
        cluster.processes.kill(node).unwrap();
    }
    restart(&mut cluster, &[controller, other]).await;
    writer
        .goes_on("the kill of the active controller and another")
        .await;

    let all = cluster.processes.node_ids();
    for node in &all {
        cluster.processes.kill(*node).unwrap();
    }
    restart(&mut cluster, &all).await;
    writer.goes_on("the kill of all").await;

    for node in all {
        cluster.processes.terminate(node).unwrap();
        let status = cluster
            .processes
            .wait_down(node, STOP)
            .await
            .unwrap()
            .unwrap();
        assert!(status.success(), "node {node} stopped with {status}");
        writer.goes_on("a node stopped cleanly").await;
        restart(&mut cluster, &[node]).await;
    }

    let history = writer.finish().await;
    let acknowledged = history
        .iter()
        .filter(|sent| sent.acknowledged.is_some())
        .count();
    let stored = read_all(&cluster.client).await;
    println!(
        "{} sent, {acknowledged} acknowledged, {} stored",
        history.len(),
        stored.len()
    );
    let violations = check(&history, &stored);
    assert!(
        violations.is_empty(),
        "{:?}",
        &violations[..violations.len().min(10)]
    );
    assert!(acknowledged > 0);
}
