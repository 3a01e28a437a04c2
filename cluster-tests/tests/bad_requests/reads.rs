//! Fetches, lists of offsets and consumes that are wrong.

use quorate_proto::v1;
use quorate_proto::v1::consume_request::Start;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::list_offsets_request::{Latest, Position};
use quorate_proto::v1::partition_start::Start as PartitionStart;
use quorate_types::Endpoint;
use tokio::time::timeout;
use tonic::Code::{OutOfRange, Unavailable};

use crate::{SOON, TOPIC, expected, invalid, unknown};

pub(crate) async fn fetches(node: &Endpoint, epoch: i32) {
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

pub(crate) async fn consumes(node: &Endpoint) {
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
