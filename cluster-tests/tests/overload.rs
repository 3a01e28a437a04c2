//! More than a node can take: connections by the thousand, consumers that do not read, a producer
//! far ahead of the disk. The nodes' memory stays below what their settings allow, health is told at
//! once, nobody is fenced, and what was acknowledged is there.
//!
//! `CONNECTIONS=10000 SLOW=1000 SECONDS=30 cargo test --release -p cluster-tests --test overload --
//! --nocapture` runs it at full size (the limit of open files must allow it).
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::{Cluster, memory_bound, ready, resident};
use quorate_proto::v1;
use quorate_proto::v1::consume_request::Start;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{Endpoint, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint as Address};

const TOPIC: &str = "flooded";
const MIB: u64 = 1 << 20;

/// Connections and streams beside those that the test opens by the hundred.
const SPARE: usize = 64;

/// A disk that takes its time, and little memory: what waits for the disk fills it. Little more may
/// be open than the test opens, so that the bound is one.
fn settings(connections: usize, consumers: usize) -> Vec<String> {
    let pairs = [
        ("--test-fsync-delay-ms", "50".to_owned()),
        ("--produce-bytes", "32MiB".to_owned()),
        ("--request-bytes", "32MiB".to_owned()),
        ("--fetch-bytes", "32MiB".to_owned()),
        ("--tail-cache-bytes", "32MiB".to_owned()),
        (
            "--max-connections",
            (connections + consumers + SPARE).to_string(),
        ),
        ("--max-streams", (consumers + SPARE).to_string()),
    ];
    let pairs = pairs.into_iter();
    pairs
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

fn scale(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(given) => given.parse().unwrap(),
        Err(_) => default,
    }
}

async fn connect(node: &Endpoint) -> Channel {
    let address = Address::from_shared(format!("http://{node}")).unwrap();
    address.connect().await.unwrap()
}

async fn healthy(node: &Endpoint) -> Duration {
    let begun = Instant::now();
    assert!(ready(node).await.unwrap(), "{node} takes no part");
    begun.elapsed()
}

/// A connection that has asked something once and stays.
async fn idle(node: &Endpoint) -> Channel {
    let channel = connect(node).await;
    let mut admin = v1::admin_client::AdminClient::new(channel.clone());
    admin.list_topics(v1::ListTopicsRequest {}).await.unwrap();
    channel
}

/// A consumer that takes one response, and no more.
async fn slow(node: &Endpoint) -> tonic::Streaming<v1::ConsumeResponse> {
    let request = v1::ConsumeRequest {
        topic: TOPIC.to_owned(),
        start: Some(Start::Position(v1::Position::Earliest.into())),
        ..v1::ConsumeRequest::default()
    };
    let mut consumer = ConsumerClient::new(connect(node).await);
    let mut stream = consumer.consume(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    stream
}

/// One producer that sends as fast as it is let, whatever the answers say; gives how many bytes were
/// acknowledged and how many requests were refused.
async fn flood(node: Endpoint, until: Instant, acknowledged: Arc<AtomicU64>) -> u64 {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..64 {
        builder.push(Timestamp::from_millis(1), None, Some(&[7; 1_000]), &[]);
    }
    let batch: Bytes = builder.build().bytes().clone();
    let size = batch.len() as u64;
    let (requests, outgoing) = mpsc::channel(64);
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while Instant::now() < until {
            number += 1;
            let request = v1::ProduceRequest {
                topic: TOPIC.to_owned(),
                partition: Some(number as i32 % 6),
                payload: Some(v1::produce_request::Payload::Batch(batch.clone())),
                timeout_ms: 10_000,
                ..v1::ProduceRequest::default()
            };
            let request = v1::ProduceStreamRequest {
                request_id: number,
                request: Some(request),
            };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    let mut client = ProducerClient::new(connect(&node).await);
    let answers = client.produce_stream(ReceiverStream::new(outgoing)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut refused = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        use v1::produce_stream_response::Result as Answer;
        match answer.result {
            Some(Answer::Response(_)) => {
                acknowledged.fetch_add(size, Ordering::Relaxed);
            }
            Some(Answer::Error(error)) => {
                assert!(error.retriable, "{error:?}");
                refused += 1;
            }
            None => panic!("an answer says something"),
        }
    }
    sending.await.unwrap();
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_node_can_take_leaves_it_well() {
    let (connections, consumers) = (scale("CONNECTIONS", 1_000), scale("SLOW", 100));
    let seconds = scale("SECONDS", 5) as u64;
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let settings = settings(connections, consumers);
    let given: Vec<&str> = settings.iter().map(String::as_str).collect();
    let cluster = Cluster::start_with(binary, &given).await;
    let created = cluster
        .client
        .create_topic(TOPIC, 6, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.addresses();
    let pids: Vec<u32> = cluster
        .processes
        .node_ids()
        .into_iter()
        .map(|node| cluster.processes.pid(node).unwrap().unwrap())
        .collect();
    let start: Vec<u64> = pids
        .iter()
        .map(|pid| resident(*pid).unwrap() / MIB)
        .collect();

    // Something to read: more than any buffer holds.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let soon = Instant::now() + Duration::from_secs(2);
    flood(nodes[0].clone(), soon, Arc::clone(&acknowledged)).await;

    // All at one node.
    let mut opening = JoinSet::new();
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        let node = nodes[0].clone();
        opening.spawn(async move { idle(&node).await });
        if opening.len() >= 200 {
            open.extend(opening.join_next().await.transpose().unwrap());
        }
    }
    open.extend(opening.join_all().await);
    let connected: Vec<u64> = pids
        .iter()
        .map(|pid| resident(*pid).unwrap() / MIB)
        .collect();
    let mut reading = Vec::with_capacity(consumers);
    for number in 0..consumers {
        reading.push(slow(&nodes[number % 3]).await);
    }

    let until = Instant::now() + Duration::from_secs(seconds);
    let flooding = tokio::spawn(flood(nodes[0].clone(), until, Arc::clone(&acknowledged)));
    let (mut most, mut slowest) = (start.clone(), Duration::ZERO);
    let mut tick = interval(Duration::from_millis(50));
    while Instant::now() < until || !flooding.is_finished() {
        tick.tick().await;
        for (node, address) in nodes.iter().enumerate() {
            slowest = slowest.max(healthy(address).await);
            most[node] = most[node].max(resident(pids[node]).unwrap() / MIB);
        }
        assert!(
            Instant::now() < until + Duration::from_secs(60),
            "the flood does not end"
        );
    }
    let refused = flooding.await.unwrap();
    let taken = acknowledged.load(Ordering::Relaxed) / MIB;
    let bound = memory_bound(&given) / MIB;
    println!(
        "{connections} connections, {consumers} slow consumers, {taken} MiB acknowledged, \
         {refused} requests refused; MiB a node: {start:?} at the start, {connected:?} with the \
         connections, {most:?} at most, {bound} allowed; health within {slowest:?}"
    );
    assert!(
        most.iter().all(|most| *most < bound),
        "{most:?} of {bound} MiB"
    );
    // A wide bound on a machine that does everything at once; the figure is what is printed.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    drop((open, reading));

    let mut events = cluster.client.watch_events(false).await.unwrap();
    while let Some(event) = events.message().await.unwrap() {
        assert_ne!(event.kind, "broker-fenced", "{}", event.text);
    }
    let stored = cluster.client.describe_topic(TOPIC).await.unwrap();
    let stored: i64 = stored
        .partitions
        .iter()
        .filter_map(|p| p.high_watermark)
        .sum();
    assert!(stored as u64 * 1_000 >= acknowledged.load(Ordering::Relaxed) * 9 / 10);
}
