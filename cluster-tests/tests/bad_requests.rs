//! Requests that are wrong in one thing each, to every node of a cluster: each gets a gRPC code, a
//! reason by Kafka's name and a message that says what would be right; nothing is changed by any.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster_tests::hostile::{Expected, at, batch, resealed};
use cluster_tests::{Cluster, eventually};
use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::consume_request::Start;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::list_offsets_request::{Latest, Position};
use quorate_proto::v1::partition_start::Start as PartitionStart;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::produce_stream_response::Result as Answer;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::Compression;
use quorate_types::Endpoint;
use tokio::time::timeout;
use tonic::Code::{AlreadyExists, DataLoss, InvalidArgument, NotFound, OutOfRange, Unavailable};
use tonic::{Code, Request};

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

/// Produces of batches whose bytes are wrong.
fn bad_batches() -> Vec<(String, v1::ProduceRequest, Expected)> {
    let good_batch = batch(Compression::None, 1_000, &[b"one", b"two"]);
    let mut cases: Vec<(String, bytes::Bytes, Expected)> = Vec::new();
    let mut add = |what: &str, bytes: bytes::Bytes, expected: Expected| {
        cases.push((what.to_owned(), bytes, expected));
    };
    let whole = good_batch.bytes().clone();
    add("no bytes", bytes::Bytes::new(), corrupt("cut off"));
    add("cut in its header", whole.slice(..40), corrupt("cut off"));
    add(
        "cut in its records",
        whole.slice(..whole.len() - 1),
        corrupt("cut off"),
    );
    add(
        "bytes behind it",
        [&whole[..], b"more"].concat().into(),
        corrupt("4 bytes follow"),
    );
    add(
        "two batches",
        [&whole[..], &whole[..]].concat().into(),
        corrupt("bytes follow the batch"),
    );
    for length in [-1_i32, 0, 48, i32::MIN] {
        let mut bytes = whole.to_vec();
        bytes[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
        add(
            &format!("length {length}"),
            bytes.into(),
            corrupt("at least 49"),
        );
    }
    let mut longest = whole.to_vec();
    longest[at::LENGTH..at::LENGTH + 4].copy_from_slice(&i32::MAX.to_be_bytes());
    add("length 2 GiB", longest.into(), corrupt("cut off"));
    let mut flipped = whole.to_vec();
    flipped[at::RECORDS] ^= 1;
    add("a wrong CRC", flipped.into(), corrupt("CRC-32C"));
    let patched = |change: &dyn Fn(&mut Vec<u8>)| resealed(&good_batch, |bytes| change(bytes));
    for magic in [0, 1, 3] {
        let bytes = patched(&|bytes| bytes[at::MAGIC] = magic);
        add(&format!("magic {magic}"), bytes, corrupt("only 2 is taken"));
    }
    for (count, delta) in [
        (3_i32, 1_i32),
        (1, 1),
        (0, -1),
        (-1, 1),
        (i32::MIN, i32::MAX),
    ] {
        let bytes = patched(&|bytes| {
            bytes[at::COUNT..at::COUNT + 4].copy_from_slice(&count.to_be_bytes());
            bytes[at::LAST_OFFSET_DELTA..at::LAST_OFFSET_DELTA + 4]
                .copy_from_slice(&delta.to_be_bytes());
        });
        let what = format!("{count} records, last delta {delta}");
        add(&what, bytes, bad_record("must differ by 1"));
    }
    for codec in [5, 6, 7] {
        let bytes = patched(&|bytes| bytes[at::ATTRIBUTES_LOW] = codec);
        let refused = "UNSUPPORTED_COMPRESSION_TYPE";
        let refused = expected(InvalidArgument, refused, "4 (zstd)");
        add(&format!("codec {codec}"), bytes, refused);
    }
    for (what, bit) in [("transactional", 1 << 4), ("control", 1 << 5)] {
        let bytes = patched(&|bytes| bytes[at::ATTRIBUTES_LOW] |= bit);
        add(what, bytes, bad_record("are not taken"));
    }
    let half = |epoch: i16, sequence: i32| {
        patched(&|bytes| {
            bytes[at::PRODUCER_ID..at::PRODUCER_ID + 8].copy_from_slice(&7_i64.to_be_bytes());
            bytes[at::PRODUCER_EPOCH..at::PRODUCER_EPOCH + 2].copy_from_slice(&epoch.to_be_bytes());
            bytes[at::BASE_SEQUENCE..at::BASE_SEQUENCE + 4]
                .copy_from_slice(&sequence.to_be_bytes());
        })
    };
    add(
        "a producer without epoch",
        half(-1, 0),
        bad_record("producer epoch"),
    );
    add(
        "a producer without sequence",
        half(0, -1),
        bad_record("base sequence"),
    );
    let large = batch(Compression::None, 1_000, &[&[7; MESSAGE_MAX][..]]);
    let too_large = expected(InvalidArgument, "MESSAGE_TOO_LARGE", "the topic takes 4096");
    add("too large", large.bytes().clone(), too_large);
    let requests = cases.into_iter().map(|(what, bytes, expected)| {
        let request = v1::ProduceRequest {
            payload: Some(Payload::Batch(bytes)),
            ..good()
        };
        (format!("produce a batch: {what}"), request, expected)
    });
    requests.collect()
}

/// Produces that are wrong, and what they must get.
fn bad_produces(epoch: i32) -> Vec<(String, v1::ProduceRequest, Expected)> {
    let mut cases = bad_batches();
    let mut add = |what: &str, expected: Expected, change: &dyn Fn(&mut v1::ProduceRequest)| {
        let mut request = good();
        change(&mut request);
        cases.push((format!("produce: {what}"), request, expected));
    };
    add("unknown topic", unknown("no topic no-such"), &|r| {
        r.topic = "no-such".into()
    });
    for (name, says) in bad_names() {
        let bad = expected(InvalidArgument, "INVALID_TOPIC_EXCEPTION", says);
        add(&format!("topic {name:?}"), bad, &|r| {
            r.topic.clone_from(&name)
        });
    }
    add("partition 2", unknown("has 2 partitions"), &|r| {
        r.partition = Some(2)
    });
    add("partition -1", invalid("partition"), &|r| {
        r.partition = Some(-1)
    });
    add(
        "acks 9",
        invalid("must be 0 (all), 1 (leader) or 2 (none)"),
        &|r| r.acks = 9,
    );
    add("no payload", invalid("needs records or a batch"), &|r| {
        r.payload = None
    });
    add("no records", invalid("one at least"), &|r| {
        r.payload = Some(Payload::Records(v1::RecordList::default()));
    });
    add("only a producer id", invalid("go together"), &|r| {
        r.producer_id = Some(1)
    });
    add("no sequence", invalid("go together"), &|r| {
        (r.producer_id, r.producer_epoch) = (Some(1), Some(0));
    });
    add("a negative producer id", invalid("0 or more"), &|r| {
        (r.producer_id, r.producer_epoch, r.base_sequence) = (Some(-1), Some(0), Some(0));
    });
    add(
        "a producer epoch of 17 bits",
        invalid("fit its field"),
        &|r| {
            (r.producer_id, r.producer_epoch, r.base_sequence) = (Some(1), Some(1 << 16), Some(0));
        },
    );
    let other = expected(Unavailable, "INCONSISTENT_TOPIC_ID", "has id");
    add("another topic's id", other, &|r| {
        r.topic_id = Some(vec![7; 16].into())
    });
    add("half a topic id", invalid("16 bytes"), &|r| {
        r.topic_id = Some(vec![7; 8].into())
    });
    let fenced = expected(Unavailable, "FENCED_LEADER_EPOCH", "older");
    add("a stale leader epoch", fenced, &|r| {
        r.current_leader_epoch = Some(epoch - 1)
    });
    let ahead = expected(Unavailable, "UNKNOWN_LEADER_EPOCH", "newer");
    add("a newer leader epoch", ahead, &|r| {
        r.current_leader_epoch = Some(epoch + 1)
    });
    add("leader epoch -1", invalid("epoch"), &|r| {
        r.current_leader_epoch = Some(-1)
    });
    cases
}

async fn fetches(node: &Endpoint, epoch: i32) {
    let mut client = ConsumerClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let fetch = |change: &dyn Fn(&mut v1::FetchRequest)| {
        let mut request = v1::FetchRequest {
            topic: TOPIC.to_owned(),
            ..v1::FetchRequest::default()
        };
        change(&mut request);
        request
    };
    let outside = expected(OutOfRange, "OFFSET_OUT_OF_RANGE", "which holds 0 to");
    let fenced = expected(Unavailable, "FENCED_LEADER_EPOCH", "older");
    let ahead = expected(Unavailable, "UNKNOWN_LEADER_EPOCH", "newer");
    for (what, request, expected) in [
        (
            "no topic",
            fetch(&|r| r.topic = "no-such".into()),
            unknown("no topic"),
        ),
        (
            "partition 2",
            fetch(&|r| r.partition = 2),
            unknown("has 2 partitions"),
        ),
        (
            "partition -1",
            fetch(&|r| r.partition = -1),
            invalid("partition"),
        ),
        ("offset -1", fetch(&|r| r.offset = -1), invalid("offset")),
        ("offset 999", fetch(&|r| r.offset = 999), outside),
        (
            "stale",
            fetch(&|r| r.current_leader_epoch = Some(epoch - 1)),
            fenced,
        ),
        (
            "newer",
            fetch(&|r| r.current_leader_epoch = Some(epoch + 1)),
            ahead,
        ),
        (
            "topic id",
            fetch(&|r| r.topic_id = Some("short".into())),
            invalid("16 bytes"),
        ),
    ] {
        expected.check(&format!("fetch: {what}"), client.fetch(request).await);
    }
    let list = |change: &dyn Fn(&mut v1::ListOffsetsRequest)| {
        let mut request = v1::ListOffsetsRequest {
            topic: TOPIC.to_owned(),
            position: Some(Position::Latest(Latest {})),
            ..v1::ListOffsetsRequest::default()
        };
        change(&mut request);
        request
    };
    for (what, request, expected) in [
        (
            "no topic",
            list(&|r| r.topic = "no-such".into()),
            unknown("no topic"),
        ),
        (
            "partition 2",
            list(&|r| r.partition = 2),
            unknown("has 2 partitions"),
        ),
        (
            "partition -9",
            list(&|r| r.partition = -9),
            invalid("partition"),
        ),
        (
            "no position",
            list(&|r| r.position = None),
            invalid("earliest, latest or timestamp_ms"),
        ),
        (
            "newer",
            list(&|r| r.current_leader_epoch = Some(epoch + 1)),
            ahead,
        ),
    ] {
        expected.check(
            &format!("list offsets: {what}"),
            client.list_offsets(request).await,
        );
    }
}

async fn consumes(node: &Endpoint) {
    let mut client = ConsumerClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let from = |partition: i32, start: PartitionStart| v1::PartitionStart {
        partition,
        start: Some(start),
        ..v1::PartitionStart::default()
    };
    let first = |partition| from(partition, PartitionStart::Offset(0));
    let outside = expected(OutOfRange, "OFFSET_OUT_OF_RANGE", "which holds 0 to");
    for (what, topic, partitions, start, expected) in [
        ("no topic", "no-such", vec![], None, unknown("no topic")),
        (
            "partition 2",
            TOPIC,
            vec![first(2)],
            None,
            unknown("has 2 partitions"),
        ),
        (
            "partition -1",
            TOPIC,
            vec![first(-1)],
            None,
            invalid("partition"),
        ),
        (
            "twice",
            TOPIC,
            vec![first(0), first(0)],
            None,
            invalid("named twice"),
        ),
        (
            "offset -1",
            TOPIC,
            vec![from(0, PartitionStart::Offset(-1))],
            None,
            invalid("offset"),
        ),
        (
            "position 7",
            TOPIC,
            vec![],
            Some(Start::Position(7)),
            invalid("7 is no position"),
        ),
        (
            "offset 999",
            TOPIC,
            vec![from(0, PartitionStart::Offset(999))],
            None,
            outside,
        ),
    ] {
        let request = v1::ConsumeRequest {
            topic: topic.to_owned(),
            partitions,
            start,
            ..v1::ConsumeRequest::default()
        };
        let opened = client.consume(request).await;
        // What the request says by itself is refused at once, what only the leader knows later.
        let answer = match opened {
            Ok(stream) => timeout(SOON, stream.into_inner().message()).await.unwrap(),
            Err(status) => Err(status),
        };
        let refusal = expected.check(&format!("consume: {what}"), answer);
        if what == "offset 999" {
            let place = ["topic", "partition", "offset"].map(|key| refusal.metadata[key].as_str());
            assert_eq!(place, [TOPIC, "0", "999"]);
        }
    }
}

async fn admin(node: &Endpoint) {
    let mut client = AdminClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let config = |pairs: &[(&str, &str)]| {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect::<std::collections::HashMap<_, _>>()
    };
    let create = |name: &str, partitions, replication_factor, pairs: &[(&str, &str)]| {
        v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replication_factor,
            config: config(pairs),
        }
    };
    for (name, says) in bad_names() {
        let bad = expected(InvalidArgument, "INVALID_TOPIC_EXCEPTION", says);
        let answer = client.create_topic(create(&name, 1, 3, &[])).await;
        bad.check(&format!("create {name:?}"), answer);
    }
    let factor = expected(
        InvalidArgument,
        "INVALID_REPLICATION_FACTOR",
        "choose 1 to 3",
    );
    let partitions = expected(
        InvalidArgument,
        "INVALID_PARTITIONS",
        "1 to 10000 are possible",
    );
    let config_of = |says| expected(InvalidArgument, "INVALID_CONFIG", says);
    let good = ("segment.bytes", "4096");
    for (what, request, expected) in [
        (
            "exists",
            create(TOPIC, 1, 3, &[]),
            expected(AlreadyExists, "TOPIC_ALREADY_EXISTS", TOPIC),
        ),
        ("factor 4", create("never", 1, 4, &[]), factor),
        (
            "10,001 partitions",
            create("never", 10_001, 3, &[]),
            partitions,
        ),
        (
            "2^32 - 1 partitions",
            create("never", u32::MAX, 3, &[]),
            partitions,
        ),
        (
            "unknown",
            create("never", 1, 3, &[good, ("retention", "1")]),
            config_of("known are"),
        ),
        (
            "out of range",
            create("never", 1, 3, &[good, ("min.insync.replicas", "0")]),
            config_of("from 1 to 32"),
        ),
    ] {
        expected.check(
            &format!("create: {what}"),
            client.create_topic(request).await,
        );
    }
    let alter = |name: &str, pairs: &[(&str, &str)], unset: &[&str]| v1::AlterTopicRequest {
        name: name.to_owned(),
        set: config(pairs),
        unset: unset.iter().map(|key| (*key).to_owned()).collect(),
    };
    for (what, request, expected) in [
        (
            "no topic",
            alter("no-such", &[good], &[]),
            unknown("no topic"),
        ),
        (
            "nothing",
            alter(TOPIC, &[], &[]),
            invalid("name settings to set or to unset"),
        ),
        (
            "unknown",
            alter(TOPIC, &[good, ("segment.byte", "9")], &[]),
            config_of("known are"),
        ),
        (
            "range",
            alter(TOPIC, &[good, ("segment.ms", "-1")], &[]),
            config_of("a number from"),
        ),
        (
            "unset unknown",
            alter(TOPIC, &[good], &["retention"]),
            config_of("unknown setting"),
        ),
    ] {
        expected.check(&format!("alter: {what}"), client.alter_topic(request).await);
    }
    let name = "no-such".to_owned();
    let deleted = client
        .delete_topic(v1::DeleteTopicRequest { name: name.clone() })
        .await;
    unknown("no topic").check("delete", deleted);
    let described = client
        .describe_topic(v1::DescribeTopicRequest { name })
        .await;
    unknown("no topic").check("describe", described);
}

/// Each answer comes in its place, and the stream takes what follows.
async fn stream(node: &Endpoint, cases: Vec<(String, v1::ProduceRequest, Expected)>) {
    let mut client = ProducerClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let count = cases.len() as u64;
    let bad = cases.iter().map(|(_, request, _)| request.clone());
    let requests = bad.chain([good()]).zip(0..);
    let requests: Vec<_> = requests
        .map(|(request, request_id)| v1::ProduceStreamRequest {
            request_id,
            request: Some(request),
        })
        .collect();
    let sent = Request::new(tokio_stream::iter(requests));
    let mut answers = client.produce_stream(sent).await.unwrap().into_inner();
    let mut seen = BTreeMap::new();
    while let Some(answer) = timeout(SOON, answers.message()).await.unwrap().unwrap() {
        seen.insert(answer.request_id, answer.result.unwrap());
    }
    for (number, (what, _, expected)) in (0..).zip(&cases) {
        match &seen[&number] {
            Answer::Error(error) => {
                let fits = error.reason == expected.reason && error.message.contains(expected.says);
                assert!(fits, "stream: {what}: {error:?} instead of {expected:?}");
            }
            taken => panic!("stream: {what}: {taken:?}"),
        }
    }
    assert!(
        matches!(&seen[&count], Answer::Response(_)),
        "{:?}",
        seen[&count]
    );
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
        for (what, request, expected) in bad_produces(epoch) {
            expected.check(&format!("{node}: {what}"), client.produce(request).await);
        }
        fetches(node, epoch).await;
        consumes(node).await;
        admin(node).await;
    }
    let after = cluster.client.describe_topic(TOPIC).await.unwrap();
    assert_eq!(after, before, "offsets, epochs and settings stay");
    assert_eq!(cluster.client.list_topics().await.unwrap(), topics);

    for node in &nodes {
        stream(node, bad_produces(epoch)).await;
    }
    let high = |topic: &v1::TopicDescription| topic.partitions[0].high_watermark.unwrap();
    let now = cluster.client.describe_topic(TOPIC).await.unwrap();
    assert_eq!(
        high(&now),
        high(&before) + 3,
        "a good record of each stream"
    );
}
