//! Produces that are wrong, one by one and on a stream.

use std::collections::BTreeMap;

use cluster_tests::hostile::Expected;
use quorate_proto::v1;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::produce_stream_response::Result as Answer;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::Endpoint;
use tokio::time::timeout;
use tonic::Code::{InvalidArgument, Unavailable};
use tonic::Request;

use crate::batches::bad_batches;
use crate::{SOON, bad_names, expected, good, invalid, unknown};

/// Produces that are wrong, and what they must get.
pub(crate) fn bad_produces(epoch: i32) -> Vec<(String, v1::ProduceRequest, Expected)> {
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

/// Each answer comes in its place, and the stream takes what follows.
pub(crate) async fn stream(node: &Endpoint, cases: Vec<(String, v1::ProduceRequest, Expected)>) {
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
