//! Three nodes in one process whose clients ask for more than there is room for: what is refused is
//! told, and the others go on.

use std::time::Duration;

use axum::body::Body;
use quorate_broker::{FetchCall, FetchError, Holder, Queue};
use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{Endpoint, Offset, PartitionId, Timestamp, TopicId, TopicPartition};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::codegen::http;
use tonic::transport::Channel;

use crate::tests::{DEADLINE, ROOM, Running, create_of, eventually, plan, start_with, stop, url};

/// A tenth of the room.
const LARGE: usize = ROOM / 10;
/// A record that a stream's own share has a place for.
const RECORD: usize = 32 << 10;

fn request(partition: i32, size: usize) -> v1::ProduceRequest {
    let record = v1::Record {
        value: Some(vec![7; size].into()),
        ..v1::Record::default()
    };
    let records = v1::RecordList {
        records: vec![record],
    };
    v1::ProduceRequest {
        topic: "t".into(),
        partition: Some(partition),
        payload: Some(v1::produce_request::Payload::Records(records)),
        ..Default::default()
    }
}

fn streamed(
    partitions: &[i32],
    count: u64,
) -> impl tokio_stream::Stream<Item = v1::ProduceStreamRequest> + use<> {
    let partitions = partitions.to_vec();
    tokio_stream::iter((0..count).map(move |number| {
        let partition = partitions[number as usize % partitions.len()];
        v1::ProduceStreamRequest {
            request_id: number,
            request: Some(request(partition, LARGE)),
        }
    }))
}

/// The partitions that a node leads, and the others.
async fn led(at: &Endpoint, partitions: u32) -> (Vec<i32>, Vec<i32>) {
    let topic = eventually("a topic", || create_of(at, partitions, 3)).await;
    let mut led = (Vec::new(), Vec::new());
    for partition in topic.partitions {
        // Its leader is up once a record has gone in.
        eventually("a record is taken", || async {
            let mut client = ProducerClient::new(channel(at).await);
            let taken = client.produce(request(partition.partition, 1)).await;
            taken.map_err(|status| status.to_string())
        })
        .await;
        match partition.leader {
            Some(1) => led.0.push(partition.partition),
            _ => led.1.push(partition.partition),
        }
    }
    led
}

/// Records of the topic.
async fn taken(at: &Endpoint) -> Result<i64, String> {
    let mut admin = AdminClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())?;
    let request = v1::DescribeTopicRequest { name: "t".into() };
    let described = admin.describe_topic(request).await;
    let topic = described.map_err(|e| e.to_string())?.into_inner().topic;
    let partitions = topic.unwrap_or_default().partitions;
    Ok(partitions.iter().filter_map(|p| p.high_watermark).sum())
}

async fn channel(at: &Endpoint) -> Channel {
    let address = tonic::transport::Endpoint::from_shared(url(at)).unwrap();
    address.connect().await.unwrap()
}

/// Sends more than fits by one stream, and wants every answer to be good.
async fn all_are_taken(at: &Endpoint, partitions: &[i32]) {
    const COUNT: u64 = 100;
    let mut client = ProducerClient::connect(url(at)).await.unwrap();
    let answers = client.produce_stream(streamed(partitions, COUNT)).await;
    let mut answers = answers.unwrap().into_inner();
    let answered = timeout(DEADLINE / 2, async {
        let mut count = 0;
        while let Some(answer) = answers.message().await.unwrap() {
            let ok = matches!(
                answer.result,
                Some(v1::produce_stream_response::Result::Response(_))
            );
            assert!(ok, "{answer:?}");
            count += 1;
        }
        count
    });
    assert_eq!(answered.await, Ok(COUNT));
}

/// What waits for room must not keep from going on what holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_forwards_that_fills_the_room_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let at = &plan[0].1;
    let (_, elsewhere) = led(at, 6).await;
    all_are_taken(at, &[0, 1, 2, 3, 4, 5]).await;
    // Whatever holds the room belongs to the stream itself.
    all_are_taken(at, &elsewhere).await;
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_keep_no_room() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |settings| {
        settings.receive_timeout = Duration::from_secs(600);
    })
    .await;
    let at = &plan[0].1;
    let (_, elsewhere) = led(at, 6).await;
    let address = tonic::transport::Endpoint::from_shared(url(at)).unwrap();
    let address = address.initial_stream_window_size(1);
    let mut client = ProducerClient::new(address.connect().await.unwrap());
    let unread = client.produce_stream(streamed(&elsewhere, 3_000)).await;
    // More requests than fit have been carried out, and no answer has been taken.
    eventually("the unread stream goes on", || async {
        match taken(at).await? {
            0..1_000 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let mut other = ProducerClient::connect(url(at)).await.unwrap();
    for partition in 0..6 {
        let request = v1::ProduceRequest {
            timeout_ms: 5_000,
            ..request(partition, LARGE)
        };
        other.produce(request).await.unwrap();
    }
    drop(unread);
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn produces_that_wait_for_room_are_bounded() {
    const COUNT: usize = 60;
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |settings| {
        settings.test_fsync_delay = Duration::from_millis(300);
    })
    .await;
    let at = &plan[0].1;
    let (here, elsewhere) = led(at, 6).await;
    for partition in [here[0], elsewhere[0]] {
        let client = ProducerClient::new(channel(at).await);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..COUNT {
            let mut client = client.clone();
            calls.spawn(async move { client.produce(request(partition, LARGE * 3)).await });
        }
        let refused = async {
            let mut refused = 0;
            // Three fit, and three may wait; a disk this slow takes seconds for all of them.
            while refused < COUNT / 2 {
                match calls.join_next().await.unwrap().unwrap() {
                    Ok(_) => {}
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                        refused += 1;
                    }
                }
            }
        };
        timeout(DEADLINE, refused).await.unwrap();
        while let Some(call) = calls.join_next().await {
            if let Err(status) = call.unwrap() {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            }
        }
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_requests_end_badly_says_so() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let mut client = tonic::client::Grpc::new(channel(&plan[0].1).await);
    client.ready().await.unwrap();
    // A string is no produce.
    let codec = tonic_prost::ProstCodec::<String, v1::ProduceStreamResponse>::default();
    let requests = tonic::Request::new(tokio_stream::iter(["no produce".to_owned()]));
    let path = http::uri::PathAndQuery::from_static("/quorate.v1.Producer/ProduceStream");
    let answers = client.streaming(requests, path, codec).await.unwrap();
    let ended = answers.into_inner().message().await;
    assert!(ended.is_err(), "{ended:?}");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn produces_in_reception_do_not_keep_others_from_asking() {
    const REQUEST_BYTES: usize = 1 << 20;
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |settings| {
        settings.request_bytes = REQUEST_BYTES;
    })
    .await;
    let at = &plan[0].1;
    // The head of a message that is larger than the room, and as much of it as fits.
    let mut begun = vec![0];
    begun.extend((REQUEST_BYTES as u32 * 2).to_be_bytes());
    begun.resize(REQUEST_BYTES, 0);
    let begun = tokio_stream::once(Ok::<_, std::io::Error>(begun));
    let body = Body::from_stream(begun.chain(tokio_stream::pending()));
    let stalled = http::Request::post(url(at) + "/quorate.v1.Producer/ProduceStream")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(body))
        .unwrap();
    let mut raw = channel(at).await;
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut raw, cx))
        .await
        .unwrap();
    let _stalled = tower_service::Service::call(&mut raw, stalled)
        .await
        .unwrap();
    eventually("no produce is taken", || async {
        let mut client = ProducerClient::new(channel(at).await);
        match client.produce(request(0, 10)).await {
            Err(status) if status.code() == Code::ResourceExhausted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut admin = AdminClient::new(channel(at).await);
    admin.list_topics(v1::ListTopicsRequest {}).await.unwrap();
    stop(running).await;
}

/// Long polls for a stream's many partitions leave room for what else is forwarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_many_partitions_leaves_room_for_others() {
    const PARTITIONS: u32 = 200;
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |settings| {
        settings.max_requests = 64;
    })
    .await;
    let at = &plan[0].1;
    let (_, elsewhere) = led(at, PARTITIONS).await;
    let mut consumer = ConsumerClient::new(channel(at).await);
    let request_all = v1::ConsumeRequest {
        topic: "t".into(),
        ..Default::default()
    };
    let mut records = consumer.consume(request_all).await.unwrap().into_inner();
    // The first word of each: all are polled from then on.
    for _ in 0..PARTITIONS {
        let told = timeout(DEADLINE, records.message()).await.unwrap();
        told.unwrap().unwrap();
    }
    let reading = tokio::spawn(async move {
        let mut read = 0;
        while let Ok(Some(response)) = records.message().await {
            read += response.records.len();
            if read == 50 {
                return;
            }
        }
        panic!("the stream ended");
    });
    let mut client = ProducerClient::new(channel(at).await);
    for partition in elsewhere.iter().take(50) {
        client.produce(request(*partition, 10)).await.unwrap();
    }
    timeout(DEADLINE, reading).await.unwrap().unwrap();
    stop(running).await;
}

/// A batch of records of 32 KiB that compress to almost nothing; a topic takes 1 MiB a batch.
async fn produce_zeros(at: &Endpoint, records: usize, compression: Compression) {
    let mut builder = BatchBuilder::new(compression);
    for _ in 0..records {
        builder.push(Timestamp::from_millis(1), None, Some(&[0; RECORD]), &[]);
    }
    let request = v1::ProduceRequest {
        payload: Some(v1::produce_request::Payload::Batch(
            builder.build().bytes().clone(),
        )),
        ..request(0, 0)
    };
    eventually("a batch is taken", || {
        let request = request.clone();
        async move {
            let mut client = ProducerClient::new(channel(at).await);
            let taken = client.produce(request).await;
            taken.map_err(|status| status.to_string())
        }
    })
    .await;
}

pub(crate) fn fetch_bytes(running: &Running) -> Queue {
    let queues = running.broker.queues();
    let named = |queue: &&Queue| queue.name == "fetch_bytes";
    *queues.iter().find(named).unwrap()
}

/// Whatever was asked for, whole batches come: they count as what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_larger_than_was_asked_for_have_room() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |settings| {
        settings.fetch_bytes = 8 << 20;
        settings.produce_bytes = 8 << 20;
    })
    .await;
    let at = &plan[0].1;
    let topic = eventually("a topic", || create_of(at, 1, 1)).await;
    produce_zeros(at, 30, Compression::None).await;
    let topic_id = TopicId::from_slice(&topic.topic_id).unwrap();
    let call = FetchCall {
        partition: TopicPartition::new(topic_id, PartitionId::new(0)),
        offset: Offset::ZERO,
        max_bytes: 1,
        min_bytes: 1,
        max_wait: Duration::ZERO,
        current_epoch: None,
        last_fetched_epoch: None,
        seen_epoch: None,
        holder: Holder::Answer,
    };
    let fetches = (0..20).map(|_| running[0].broker.fetch(call.clone()));
    let mut unread = Vec::new();
    for fetched in futures::future::join_all(fetches).await {
        match fetched {
            Ok(fetched) => unread.push(fetched),
            Err(error) => assert_eq!(error, FetchError::Throttled),
        }
    }
    let held: usize = unread.iter().map(|fetched| fetched.bytes.len()).sum();
    let room = fetch_bytes(&running[0]);
    assert!(
        unread.len() >= 4 && held == room.used && held <= room.limit,
        "{held} of {room:?}"
    );
    drop(unread);
    assert_eq!(fetch_bytes(&running[0]).used, 0);
    stop(running).await;
}

/// Records that decompress to far more than was fetched are given whole, a little at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decompressed_records_have_room_and_slow_readers_leave_some() {
    slow_readers_leave_room(64, Compression::Lz4, 1 << 20).await;
}

/// The first keep a batch each, until a quarter of the room is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_large_batches_leave_room() {
    slow_readers_leave_room(16, Compression::None, 4 << 20).await;
}

/// Reads batches of so many records beside readers that do not go on.
async fn slow_readers_leave_room(records_each: usize, compression: Compression, room: usize) {
    const SLOW: usize = 10;
    const BATCHES: usize = 4;
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |settings| {
        settings.fetch_bytes = room;
    })
    .await;
    let at = &plan[0].1;
    eventually("a topic", || create_of(at, 1, 1)).await;
    for _ in 0..BATCHES {
        produce_zeros(at, records_each, compression).await;
    }
    let request = v1::ConsumeRequest {
        topic: "t".into(),
        start: Some(v1::consume_request::Start::Position(
            v1::Position::Earliest.into(),
        )),
        until_end: true,
        ..Default::default()
    };
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut client = ConsumerClient::new(channel(at).await);
        let mut records = client.consume(request.clone()).await.unwrap().into_inner();
        let first = timeout(DEADLINE, records.message()).await.unwrap();
        assert!(first.unwrap().is_some());
        slow.push(records);
    }
    let mut client = ConsumerClient::new(channel(at).await);
    let mut records = client.consume(request).await.unwrap().into_inner();
    let mut next = 0;
    while let Some(response) = timeout(DEADLINE, records.message()).await.unwrap().unwrap() {
        for record in response.records {
            assert_eq!((record.offset, record.value.unwrap().len()), (next, RECORD));
            next += 1;
        }
    }
    assert_eq!(next as usize, BATCHES * records_each);
    drop(slow);
    eventually("room is given back", || async {
        match fetch_bytes(&running[0]).used {
            0 => Ok(()),
            used => Err(format!("{used} bytes are held")),
        }
    })
    .await;
    stop(running).await;
}

/// A record that takes all the room when it is decompressed waits for it without what it was in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_takes_all_room_is_given() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |settings| {
        settings.fetch_bytes = 4 << 20;
    })
    .await;
    let at = &plan[0].1;
    eventually("a topic", || create_of(at, 1, 1)).await;
    // Hardly compressible, so that the batch is more than the stream's own share, and then zeros.
    let mut value: Vec<u8> = (0..25_000_u32)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    value.resize(3 << 20, 0);
    let mut builder = BatchBuilder::new(Compression::Lz4);
    builder.push(Timestamp::from_millis(1), None, Some(&value), &[]);
    let batch = builder.build().bytes().clone();
    assert!(batch.len() > 64 << 10, "{}", batch.len());
    let produced = v1::ProduceRequest {
        payload: Some(v1::produce_request::Payload::Batch(batch)),
        ..request(0, 0)
    };
    eventually("the batch is taken", || {
        let produced = produced.clone();
        async move {
            let taken = ProducerClient::new(channel(at).await)
                .produce(produced)
                .await;
            taken.map_err(|status| status.to_string())
        }
    })
    .await;
    let request = v1::ConsumeRequest {
        topic: "t".into(),
        until_end: true,
        start: Some(v1::consume_request::Start::Position(
            v1::Position::Earliest.into(),
        )),
        ..Default::default()
    };
    let mut client = ConsumerClient::new(channel(at).await);
    let mut records = client.consume(request).await.unwrap().into_inner();
    let mut sizes = Vec::new();
    while let Some(response) = timeout(DEADLINE, records.message()).await.unwrap().unwrap() {
        let each = response.records.into_iter();
        sizes.extend(each.map(|record| record.value.unwrap().len()));
    }
    assert_eq!(sizes, [value.len()]);
    stop(running).await;
}
