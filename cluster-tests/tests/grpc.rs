//! gRPC as any language uses it, through one fixed node: records of partitions that others lead,
//! over a change of leaders, with the figures and the health that the node tells meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate_proto::v1;
use quorate_proto::v1::consume_request::Start;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_types::{Endpoint, NodeId};
use quorate_workload::{Stored, check};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const TOPIC: &str = "any-language";
/// Nothing that a live stream brings takes longer.
const SOON: Duration = Duration::from_secs(30);

async fn start() -> Cluster {
    Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await
}

async fn get(node: &Endpoint, path: &str) -> String {
    let mut stream = TcpStream::connect((node.host.as_str(), node.port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn stored(response: &v1::ConsumeResponse) -> impl Iterator<Item = Stored> {
    response.records.iter().map(|record| Stored {
        partition: response.partition.unsigned_abs(),
        offset: record.offset,
        key: String::from_utf8(record.key.as_deref().unwrap().to_vec()).unwrap(),
        number: std::str::from_utf8(record.value.as_deref().unwrap())
            .unwrap()
            .parse()
            .unwrap(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_through_one_node_outlives_changes_of_leaders() {
    let mut cluster = start().await;
    let writer = cluster.write_to(TOPIC).await;
    // A node that the test does not kill, and that does not lead partition 0.
    let leader = cluster.leader(TOPIC, 0).await;
    let fixed = cluster
        .processes
        .node_ids()
        .into_iter()
        .find(|node| *node != leader)
        .unwrap();
    let fixed = cluster.processes.addresses()[fixed.get() as usize - 1].clone();
    let mut consumer = ConsumerClient::connect(format!("http://{fixed}"))
        .await
        .unwrap();
    let request = v1::ConsumeRequest {
        topic: TOPIC.to_owned(),
        start: Some(Start::Position(v1::Position::Earliest.into())),
        ..v1::ConsumeRequest::default()
    };
    let mut live = consumer
        .consume(request.clone())
        .await
        .unwrap()
        .into_inner();
    acknowledged_after(&writer, Instant::now(), "writes to every partition").await;
    cluster.processes.kill(leader).unwrap();
    acknowledged_after(&writer, Instant::now(), "writes after the kill").await;
    cluster.processes.start_node(leader).unwrap();
    cluster.all_in_sync(TOPIC).await;
    let sent = writer.finish().await.unwrap();
    let acknowledged = sent
        .iter()
        .filter(|sent| sent.acknowledged.is_some())
        .count();

    // The same stream has it all, in order, nothing twice.
    let mut read: Vec<Stored> = Vec::new();
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    while read.len() < acknowledged {
        let response = timeout(SOON, live.message()).await.expect("records come");
        let response = response.unwrap().expect("a live stream does not end");
        for record in &response.records {
            let expected = next
                .insert(response.partition, record.offset + 1)
                .unwrap_or(0);
            assert_eq!(record.offset, expected, "partition {}", response.partition);
        }
        assert!(response.next_offset <= response.high_watermark);
        read.extend(stored(&response));
    }
    // And one that ends at the end has the same.
    let until_end = v1::ConsumeRequest {
        until_end: true,
        ..request
    };
    let mut whole = consumer.consume(until_end).await.unwrap().into_inner();
    let mut again: Vec<Stored> = Vec::new();
    while let Some(response) = timeout(SOON, whole.message()).await.unwrap().unwrap() {
        again.extend(stored(&response));
    }
    assert_eq!(check(&sent, &again), []);
    assert!(again.len() >= read.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_health_and_log_levels_are_told_by_every_node() {
    let mut cluster = start().await;
    let writer = cluster.write_to(TOPIC).await;
    acknowledged_after(&writer, Instant::now(), "writes to every partition").await;
    let leader = cluster.leader(TOPIC, 0).await;
    let at = cluster.processes.addresses()[leader.get() as usize - 1].clone();
    let figures = get(&at, "/metrics").await;
    assert!(figures.starts_with("HTTP/1.1 200 OK\r\n"), "{figures}");
    for expected in [
        "quorate_ready 1",
        "quorate_partition_in_sync_replicas{topic=\"any-language\",partition=\"0\"} 3",
        "quorate_brokers{state=\"active\"} 3",
        "quorate_cluster_events_total{kind=\"leader-elected\"}",
        "quorate_log_flush_duration_seconds_count",
        "quorate_produce_stage_duration_seconds_bucket{stage=\"commit\",le=\"30\"}",
        "quorate_grpc_requests_total{port=\"clients\"",
        "quorate_queue_limit{queue=\"produce_bytes\"} 134217728",
        "# TYPE quorate_produced_bytes_total counter",
        "# HELP quorate_raft_term",
    ] {
        assert!(
            figures.contains(expected),
            "{expected} is missing in {figures}"
        );
    }
    assert!(get(&at, "/readyz").await.starts_with("HTTP/1.1 200 OK"));
    let not_there = get(&at, "/quorate.v1.Producer/Produce").await;
    assert!(not_there.starts_with("HTTP/1.1 505"), "{not_there}");

    // Asked of any node, changed on that one.
    let told = cluster.client.log_level(Some(leader), None).await.unwrap();
    assert_eq!(told.node_id, leader.get());
    let level = Some("warn,quorate_broker=debug".to_owned());
    let changed = cluster
        .client
        .log_level(Some(leader), level.clone())
        .await
        .unwrap();
    let parts = |level: &str| {
        let mut parts: Vec<String> = level.split(',').map(str::to_owned).collect();
        parts.sort();
        parts
    };
    assert_eq!(parts(&changed.level), ["quorate_broker=debug", "warn"]);
    let bad = cluster
        .client
        .log_level(Some(leader), Some("loud=".to_owned()))
        .await;
    assert!(bad.is_err());
    assert_eq!(
        parts(
            &cluster
                .client
                .log_level(Some(leader), None)
                .await
                .unwrap()
                .level
        ),
        parts(&changed.level)
    );
    writer.finish().await.unwrap();
    cluster.processes.kill(leader).unwrap();
    let other = cluster.processes.addresses()[leader.get() as usize % 3].clone();
    eventually("the figures of the failover", || async {
        let figures = get(&other, "/metrics").await;
        let fenced = figures.contains("quorate_brokers{state=\"fenced\"} 1");
        fenced.then_some(()).ok_or("no broker is fenced yet")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_topic_change_while_it_is_in_use() {
    let cluster = start().await;
    let writer = cluster.write_to(TOPIC).await;
    acknowledged_after(&writer, Instant::now(), "writes to every partition").await;
    let alter = |set: &[(&str, &str)]| {
        let set = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let (client, set) = (cluster.client.clone(), set.collect());
        async move { client.alter_topic(TOPIC, set, Vec::new()).await }
    };
    for durability in ["page-cache", "fsync", "page-cache", "fsync"] {
        alter(&[("durability", durability)]).await.unwrap();
        acknowledged_after(&writer, Instant::now(), durability).await;
    }
    alter(&[("compression.type", "zstd"), ("segment.bytes", "65536")])
        .await
        .unwrap();
    acknowledged_after(&writer, Instant::now(), "writes under another codec").await;
    // A batch of one record is larger than this.
    alter(&[("max.message.bytes", "61")]).await.unwrap();
    let request = || {
        let record = v1::Record {
            value: Some(vec![7; 100].into()),
            ..v1::Record::default()
        };
        v1::ProduceRequest {
            topic: TOPIC.to_owned(),
            partition: Some(0),
            payload: Some(v1::produce_request::Payload::Records(v1::RecordList {
                records: vec![record],
            })),
            ..v1::ProduceRequest::default()
        }
    };
    let node = cluster.processes.addresses()[NodeId::new(1).get() as usize - 1].clone();
    eventually("the limit to be in force", || async {
        let to = format!("http://{node}");
        let mut client = v1::producer_client::ProducerClient::connect(to)
            .await
            .unwrap();
        match client.produce(request()).await {
            Err(status) if status.message().contains("61") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    alter(&[("max.message.bytes", "1048588")]).await.unwrap();
    acknowledged_after(&writer, Instant::now(), "writes under the old limit").await;
    let sent = writer.finish().await.unwrap();
    let stored = quorate_workload::read_all(&cluster.client, TOPIC)
        .await
        .unwrap();
    assert_eq!(check(&sent, &stored), []);
    let refused = alter(&[("segment.bytes", "1")])
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("segment.bytes=1: must be"), "{refused}");
}
