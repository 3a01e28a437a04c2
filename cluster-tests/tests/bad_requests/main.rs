//! Requests that are wrong in one thing each, to every node of a cluster: each gets a gRPC code, a
//! reason by Kafka's name and a message that says what would be right; nothing is changed by any.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod admin;
mod batches;
mod groups;
mod produces;
mod reads;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster_tests::hostile::Expected;
use cluster_tests::{Cluster, eventually};
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::Endpoint;
use tonic::Code;
use tonic::Code::{DataLoss, InvalidArgument, NotFound};

const TOPIC: &str = "bad-requests";
const PARTITIONS: u32 = 2;
const MESSAGE_MAX: usize = 4_096;
const SOON: Duration = Duration::from_secs(30);

fn expected(code: Code, reason: &'static str, says: &'static str) -> Expected {
    Expected { code, reason, says }
}

fn invalid(says: &'static str) -> Expected {
    expected(InvalidArgument, "INVALID_REQUEST", says)
}

fn unknown(says: &'static str) -> Expected {
    expected(NotFound, "UNKNOWN_TOPIC_OR_PARTITION", says)
}

fn corrupt(says: &'static str) -> Expected {
    expected(DataLoss, "CORRUPT_MESSAGE", says)
}

fn bad_record(says: &'static str) -> Expected {
    expected(InvalidArgument, "INVALID_RECORD", says)
}

/// Names that no topic can have, and what the refusal says.
fn bad_names() -> [(String, &'static str); 5] {
    [
        (String::new(), "must not be empty"),
        ("..".to_owned(), "cannot be called"),
        ("x".repeat(250), "at most 249"),
        ("a/b".to_owned(), "is made of a-z"),
        ("tüpfel".to_owned(), "is made of a-z"),
    ]
}

/// A produce that is right.
fn good() -> v1::ProduceRequest {
    let record = v1::Record {
        value: Some("fine".into()),
        ..v1::Record::default()
    };
    v1::ProduceRequest {
        topic: TOPIC.to_owned(),
        partition: Some(0),
        payload: Some(Payload::Records(v1::RecordList {
            records: vec![record],
        })),
        ..v1::ProduceRequest::default()
    }
}

/// Waits until this very node sees three active brokers: one that has just been started may still
/// have the picture of before its end.
async fn three_active(node: &Endpoint) {
    eventually("three active brokers in a node's image", || async {
        let client = ClusterClient::connect(format!("http://{node}")).await;
        let mut client = client.map_err(|error| error.to_string())?;
        let asked = client.describe(v1::DescribeClusterRequest::default()).await;
        let brokers = asked
            .map_err(|error| error.to_string())?
            .into_inner()
            .brokers;
        let states: Vec<i32> = brokers.iter().map(|broker| broker.state).collect();
        (states == [1, 1, 1])
            .then_some(())
            .ok_or(format!("states {states:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_wrong_is_refused_by_name_and_changes_nothing() {
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let limit = BTreeMap::from([("max.message.bytes".to_owned(), MESSAGE_MAX.to_string())]);
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, limit)
        .await;
    created.unwrap();
    // Another leader, so that there is an epoch that is over.
    let leader = cluster.leader(TOPIC, 0).await;
    cluster.processes.kill(leader).unwrap();
    eventually("a leader at a new epoch", || async {
        let topic = cluster.client.describe_topic(TOPIC).await;
        let epoch = topic.map_err(|e| e.to_string())?.partitions[0].leader_epoch;
        (epoch > 0).then_some(()).ok_or(format!("epoch {epoch}"))
    })
    .await;
    cluster.processes.start_node(leader).unwrap();
    for node in cluster.processes.addresses() {
        three_active(&node).await;
    }
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.addresses();
    let mut client = ProducerClient::connect(format!("http://{}", nodes[0]))
        .await
        .unwrap();
    client.produce(good()).await.unwrap();
    let before = cluster.client.describe_topic(TOPIC).await.unwrap();
    let topics = cluster.client.list_topics().await.unwrap();
    let epoch = before.partitions[0].leader_epoch;
    assert!(epoch > 0, "the leader was killed");

    for node in &nodes {
        let mut client = ProducerClient::connect(format!("http://{node}"))
            .await
            .unwrap();
        for (what, request, expected) in produces::bad_produces(epoch) {
            expected.check(&format!("{node}: {what}"), client.produce(request).await);
        }
        reads::fetches(node, epoch).await;
        reads::consumes(node).await;
        admin::admin(node).await;
        groups::heartbeats(node).await;
        groups::commits(node).await;
        groups::of_no_group(node).await;
    }
    let after = cluster.client.describe_topic(TOPIC).await.unwrap();
    assert_eq!(after, before, "offsets, epochs and settings stay");
    assert_eq!(cluster.client.list_topics().await.unwrap(), topics);

    for node in &nodes {
        produces::stream(node, produces::bad_produces(epoch)).await;
    }
    let high = |topic: &v1::TopicDescription| topic.partitions[0].high_watermark.unwrap();
    let now = cluster.client.describe_topic(TOPIC).await.unwrap();
    assert_eq!(
        high(&now),
        high(&before) + 3,
        "a good record of each stream"
    );
}
