//! Batches whose CRC is right and whose inside makes no sense: the leader takes them, for it does
//! not decode. Whoever reads is told topic, partition, offset and where to read on, can go past them
//! there, and loses nothing around them; a lookup by time still answers.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::Cluster;
use cluster_tests::hostile::{Refusal, at, batch, garbage, resealed};
use quorate_client::{Assignment, ClientError, ConsumerOptions};
use quorate_proto::v1;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::list_offsets_request::Position;
use quorate_proto::v1::partition_start::Start;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::{Batch, Compression};
use quorate_types::{Endpoint, Offset, PartitionId};
use tokio::time::timeout;
use tonic::Code;

const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
const TOPIC: &str = "unreadable";
const SOON: Duration = Duration::from_secs(60);
/// Above what `Consumer.Consume` decompresses, below what our client does.
const SERVER_MAX: usize = 64 << 20;

/// What is in the log: values that can be read, and stretches of offsets that cannot.
#[derive(Default)]
struct Written {
    readable: Vec<(i64, String)>,
    /// First offset that cannot be read, and the offset after the last.
    unreadable: Vec<(i64, i64)>,
    /// The same that only the server refuses: too large for it to decompress.
    large: Vec<(i64, i64)>,
}

async fn produce(node: &Endpoint, bytes: Bytes) -> i64 {
    let mut client = ProducerClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let request = v1::ProduceRequest {
        topic: TOPIC.to_owned(),
        partition: Some(0),
        payload: Some(Payload::Batch(bytes)),
        ..v1::ProduceRequest::default()
    };
    client
        .produce(request)
        .await
        .unwrap()
        .into_inner()
        .base_offset
        .unwrap()
}

/// Two records whose second says that it is the tenth of its batch.
fn offsets_that_jump(time_ms: i64) -> Bytes {
    let good: Batch = batch(Compression::None, time_ms, &[b"before", b"jumped"]);
    resealed(&good, |bytes| {
        // Length, attributes, time delta; then the second record's offset delta, zigzag.
        let second = at::RECORDS + 1 + usize::from(bytes[at::RECORDS] >> 1);
        assert_eq!(
            bytes[second + 3],
            2,
            "the offset delta of the second record is 1"
        );
        bytes[second + 3] = 20;
    })
}

async fn fill(node: &Endpoint) -> Written {
    let mut written = Written::default();
    let mut time = 1_000;
    let large = vec![0; SERVER_MAX + 1];
    let not_lz4 = resealed(&batch(Compression::Lz4, 4_000, &[b"packed"]), |bytes| {
        bytes[at::RECORDS..].fill(0x5a);
    });
    let too_many = resealed(&batch(Compression::None, 5_000, &[b"one"]), |bytes| {
        bytes[at::COUNT..at::COUNT + 4].copy_from_slice(&3_i32.to_be_bytes());
        bytes[at::LAST_OFFSET_DELTA..at::LAST_OFFSET_DELTA + 4]
            .copy_from_slice(&2_i32.to_be_bytes());
    });
    // Each with how many of its records can be read, and how many there are.
    let odd: [(&str, Bytes, usize, i64); 5] = [
        ("garbage", garbage(2_000, &[b"a", b"b", b"c"]), 0, 3),
        ("before", offsets_that_jump(3_000), 1, 2),
        ("not lz4", not_lz4, 0, 1),
        ("one", too_many, 1, 3),
        (
            "large",
            batch(Compression::Zstd, 6_000, &[&large[..]])
                .bytes()
                .clone(),
            0,
            1,
        ),
    ];
    for (number, (name, bytes, readable, count)) in odd.into_iter().enumerate() {
        let good = format!("good {number}");
        let offset = produce(
            node,
            batch(Compression::None, time, &[good.as_bytes()])
                .bytes()
                .clone(),
        );
        written.readable.push((offset.await, good));
        time += 1_000;
        let base = produce(node, bytes).await;
        if readable > 0 {
            written.readable.push((base, name.to_owned()));
        }
        let stretch = (base + readable as i64, base + count);
        if name == "large" {
            written.large.push(stretch);
        } else {
            written.unreadable.push(stretch);
        }
    }
    let last = batch(Compression::None, time + 1_000, &[b"last"]);
    let offset = produce(node, last.bytes().clone()).await;
    written.readable.push((offset, "last".to_owned()));
    written
}

/// Reads all by `Consumer.Consume`, over each refusal.
async fn by_stream(node: &Endpoint, end: i64) -> (Vec<(i64, String)>, Vec<(i64, i64)>) {
    let mut client = ConsumerClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let (mut read, mut refused, mut next) = (Vec::new(), Vec::new(), 0);
    while next < end {
        let request = v1::ConsumeRequest {
            topic: TOPIC.to_owned(),
            partitions: vec![v1::PartitionStart {
                partition: 0,
                start: Some(Start::Offset(next)),
                ..v1::PartitionStart::default()
            }],
            until_end: true,
            ..v1::ConsumeRequest::default()
        };
        let mut stream = client.consume(request).await.unwrap().into_inner();
        loop {
            match timeout(SOON, stream.message()).await.unwrap() {
                Ok(Some(answer)) => {
                    next = answer.next_offset;
                    read.extend(answer.records.into_iter().map(|record| {
                        let value = String::from_utf8(record.value.unwrap().to_vec());
                        (record.offset, value.unwrap())
                    }));
                }
                Ok(None) => break,
                Err(status) => {
                    let refusal = Refusal::from(status);
                    assert_eq!(refusal.code, Code::DataLoss, "{refusal:?}");
                    assert_eq!(refusal.reason, "CORRUPT_MESSAGE", "{refusal:?}");
                    let of = |key: &str| refusal.metadata[key].as_str();
                    assert_eq!((of("topic"), of("partition")), (TOPIC, "0"));
                    let place = ["offset", "next_offset"].map(|key| of(key).parse().unwrap());
                    assert_eq!(place[0], next, "nothing before it is left out");
                    assert!(
                        refusal.message.contains("read on from offset"),
                        "{refusal:?}"
                    );
                    refused.push((place[0], place[1]));
                    next = place[1];
                    break;
                }
            }
        }
    }
    (read, refused)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn consume(node: &Endpoint, more: &[&str]) -> Output {
    Command::new(BINARY)
        .args(["consume", TOPIC, "--from", "beginning", "--exit-at-end"])
        .args([
            "--bootstrap",
            &node.to_string(),
            "--format",
            "{offset} {value}",
        ])
        .args(more)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_told_what_cannot_be_decoded_and_go_past_it() {
    let cluster = Cluster::start(Path::new(BINARY)).await;
    let created = cluster
        .client
        .create_topic(TOPIC, 1, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.addresses();
    let written = fill(&nodes[0]).await;
    let end = written.readable.last().unwrap().0 + 1;

    let mut refused = written.unreadable.clone();
    refused.extend(&written.large);
    for node in &nodes {
        assert_eq!(
            by_stream(node, end).await,
            (written.readable.clone(), refused.clone())
        );
    }

    // A time of each kind of batch, by records that can be read and by those that cannot.
    for second in 1..=7 {
        let position = Position::TimestampMs(second * 1_000);
        let partition = PartitionId::new(0);
        let found = cluster.client.list_offset(TOPIC, partition, position).await;
        assert!(found.unwrap().is_some(), "{second} s");
    }

    // Our client: stops with the place, or tells and goes on. It decompresses more than a node.
    let from = |offset: i64| Assignment {
        topic: TOPIC.to_owned(),
        partition: PartitionId::new(0),
        offset: Offset::from_signed(offset).unwrap(),
    };
    for skip_corrupt in [false, true] {
        let options = ConsumerOptions {
            skip_corrupt,
            ..ConsumerOptions::default()
        };
        let mut consumer = cluster.client.consumer(vec![from(0)], options);
        let (mut read, mut told, mut at) = (Vec::new(), Vec::new(), Offset::ZERO);
        while at.to_signed() < end {
            match timeout(SOON, consumer.poll()).await.unwrap() {
                Some(Ok(consumed)) => {
                    at = consumed.next;
                    read.extend(
                        consumed
                            .records
                            .into_iter()
                            .map(|record| record.offset.to_signed()),
                    );
                }
                Some(Err(ClientError::Corrupt {
                    topic,
                    partition,
                    offset,
                    next,
                    ..
                })) => {
                    assert_eq!((topic.as_str(), partition.get()), (TOPIC, 0));
                    told.push((offset.to_signed(), next.to_signed()));
                    at = next;
                }
                Some(Err(error)) => panic!("{error}"),
                // Without the option, the way past it is a new consumer.
                None => consumer = cluster.client.consumer(vec![from(at.to_signed())], options),
            }
        }
        let mut expected: Vec<i64> = written.readable.iter().map(|(offset, _)| *offset).collect();
        expected.extend(written.large.iter().map(|(offset, _)| *offset));
        expected.sort_unstable();
        assert_eq!((read, told), (expected, written.unreadable.clone()));
    }

    // The command says the way past them, or goes it.
    let stopped = consume(&nodes[1], &[]);
    let said = text(&stopped.stderr);
    let (offset, next) = written.unreadable[0];
    assert_eq!(stopped.status.code(), Some(1), "{said}");
    assert_eq!(text(&stopped.stdout), "0 good 0\n");
    for words in [
        format!("{TOPIC}-0: the records from offset {offset} to {next}"),
        format!("--partition 0 --from {next}"),
        "--skip-corrupt".to_owned(),
    ] {
        assert!(said.contains(&words), "{words} in {said}");
    }
    let skipped = consume(&nodes[1], &["--skip-corrupt"]);
    let said = text(&skipped.stderr);
    assert_eq!(skipped.status.code(), Some(0), "{said}");
    assert_eq!(
        said.matches("skipped: ").count(),
        written.unreadable.len(),
        "{said}"
    );
    let lines = text(&skipped.stdout);
    for (offset, value) in &written.readable {
        assert!(
            lines.contains(&format!("{offset} {value}\n")),
            "{offset} {value}"
        );
    }
}
