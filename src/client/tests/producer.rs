//! The producer against a server of the test, which notes every batch it is sent and answers as it
//! is told.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Answers, EPOCH, Known, LEADER, client_of, not_here};
use parking_lot::Mutex;
use quorate_client::{Client, ClientError, Delivery, ProducerOptions, ToSend};
use quorate_proto::v1;
use quorate_proto::v1::producer_server::{Producer, ProducerServer};
use quorate_record::Batch;
use quorate_types::ErrorCode;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// A batch as it arrived.
#[derive(Debug, Clone)]
struct Seen {
    id: u64,
    epoch: u16,
    sequence: u32,
    /// Of the first record.
    value: String,
    records: usize,
    /// Whether one of them is "large".
    large: bool,
    /// As the client named it.
    leader_epoch: Option<i32>,
}

/// Answers to the batches, in the order in which they come; none: no answer at all.
type Script = Box<dyn Fn(usize, &Seen) -> Option<Result<i64, &'static str>> + Send + Sync>;

#[derive(Clone)]
struct Fake {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Where the next producer begins: ids rise, and each begins at epoch 0 after the first.
    given: Arc<Mutex<(i64, i32)>>,
    script: Arc<Script>,
    /// Batches are taken so late; refused they are at once.
    taken_after: Duration,
}

#[tonic::async_trait]
impl Producer for Fake {
    async fn produce(
        &self,
        _: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        not_here()
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        assert!(request.metadata().contains_key("quorate-forwarded"));
        let mut requests = request.into_inner();
        let (answers, outgoing) = mpsc::channel(16);
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = requests.message().await {
                let request = message.request.unwrap();
                let Some(v1::produce_request::Payload::Batch(bytes)) = request.payload else {
                    panic!("a client sends batches");
                };
                let batch = Batch::parse(bytes).unwrap();
                let tag = batch.header().producer.unwrap();
                let records = batch.records().unwrap();
                let first = records[0].value.clone().unwrap();
                let seen = Seen {
                    id: tag.id.get(),
                    epoch: tag.epoch.get(),
                    sequence: tag.base_sequence.get(),
                    value: String::from_utf8(first.to_vec()).unwrap(),
                    records: records.len(),
                    large: records
                        .iter()
                        .any(|record| record.value.as_deref() == Some(b"large")),
                    leader_epoch: request.current_leader_epoch,
                };
                let number = fake.seen.lock().len();
                fake.seen.lock().push(seen.clone());
                use v1::produce_stream_response::Result as Answer;
                let result = match (fake.script)(number, &seen) {
                    None => continue,
                    Some(Ok(offset)) => Answer::Response(v1::ProduceResponse {
                        base_offset: Some(offset),
                        ..v1::ProduceResponse::default()
                    }),
                    Some(Err(reason)) => Answer::Error(v1::ProduceError {
                        reason: reason.to_owned(),
                        retriable: ErrorCode::from_name(reason).unwrap().is_retriable(),
                        ..v1::ProduceError::default()
                    }),
                };
                let taken = matches!(result, Answer::Response(_));
                let answer = v1::ProduceStreamResponse {
                    request_id: message.request_id,
                    result: Some(result),
                };
                if taken && !fake.taken_after.is_zero() {
                    let (answers, after) = (answers.clone(), fake.taken_after);
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        let _gone = answers.send(Ok(answer)).await;
                    });
                    continue;
                }
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let mut next = self.given.lock();
        let (producer_id, producer_epoch) = *next;
        *next = (producer_id + 1, 0);
        Ok(Response::new(v1::InitProducerResponse {
            producer_id,
            producer_epoch,
        }))
    }
}

async fn serve(script: Script) -> (Fake, Client) {
    serve_slowly(script, Duration::ZERO).await
}

async fn serve_slowly(script: Script, taken_after: Duration) -> (Fake, Client) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fake = Fake {
        seen: Arc::default(),
        given: Arc::new(Mutex::new((42, 0))),
        script: Arc::new(script),
        taken_after,
    };
    let known = Known {
        node: LEADER,
        leader_port: port,
        partitions: 1,
    };
    let server = tonic::transport::Server::builder()
        .add_service(known.service())
        .add_service(ProducerServer::new(fake.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (fake, client_of(port))
}

/// One batch a record.
fn options(delivery_timeout: Duration) -> ProducerOptions {
    ProducerOptions {
        linger: Duration::ZERO,
        batch_bytes: 1,
        delivery_timeout,
        ..ProducerOptions::default()
    }
}

async fn send(producer: &quorate_client::Producer, value: &str) -> Delivery {
    let record = ToSend {
        value: Some(value.as_bytes()),
        ..ToSend::default()
    };
    producer.send("t", record).await.unwrap()
}

#[tokio::test]
async fn what_may_be_in_the_log_is_never_sent_under_another_sequence() {
    // The first two are never answered; what comes under the next epoch is.
    let script: Script = Box::new(|_, seen| (seen.epoch > 0).then_some(Ok(9)));
    let (fake, client) = serve(script).await;
    let producer = client.producer(options(Duration::from_millis(300)));
    let (a, b) = (send(&producer, "a").await, send(&producer, "b").await);
    assert!(matches!(a.wait().await, Err(ClientError::TimedOut(_))));
    assert!(matches!(b.wait().await, Err(ClientError::TimedOut(_))));
    let c = send(&producer, "c").await;
    assert_eq!(c.wait().await.unwrap().offset, Some(9));
    let seen = fake.seen.lock().clone();
    let sequences: Vec<_> = seen
        .iter()
        .map(|seen| (seen.epoch, seen.sequence, &seen.value))
        .collect();
    // Tried again, perhaps, but always as what they were.
    assert!(sequences.contains(&(0, 0, &"a".into())) && sequences.contains(&(0, 1, &"b".into())));
    for (epoch, sequence, value) in sequences {
        let expected = match value.as_str() {
            "a" => (0, 0),
            "b" => (0, 1),
            _ => (1, 0),
        };
        assert_eq!((epoch, sequence), expected, "{value}");
    }
    assert!(seen.iter().all(|seen| seen.leader_epoch == Some(EPOCH)));
}

#[tokio::test]
async fn a_batch_that_is_refused_for_good_does_not_take_the_next_with_it() {
    let script: Script = Box::new(|_, seen| {
        Some(match (seen.value.as_str(), seen.epoch, seen.sequence) {
            ("large", ..) => Err("MESSAGE_TOO_LARGE"),
            (_, 0, 1) => Err("OUT_OF_ORDER_SEQUENCE_NUMBER"),
            _ => Ok(3),
        })
    });
    let (_fake, client) = serve(script).await;
    let producer = client.producer(options(Duration::from_secs(20)));
    let (large, next) = (
        send(&producer, "large").await,
        send(&producer, "next").await,
    );
    let code = large.wait().await.unwrap_err().code().unwrap();
    assert_eq!(code.name(), "MESSAGE_TOO_LARGE");
    assert_eq!(next.wait().await.unwrap().offset, Some(3));
}

/// Records that are gathered into one batch.
async fn together(client: &Client, values: &[&str]) -> Vec<Delivery> {
    let producer = client.producer(ProducerOptions::default());
    let mut sent = Vec::new();
    for value in values {
        sent.push(send(&producer, value).await);
    }
    producer.flush().await;
    sent
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_split_until_it_fits() {
    let script: Script = Box::new(|_, seen| {
        Some(match seen.records {
            3.. => Err("MESSAGE_TOO_LARGE"),
            _ => Ok(100 + i64::from(seen.sequence)),
        })
    });
    let (fake, client) = serve(script).await;
    let sent = together(&client, &["a", "b", "c", "d", "e", "f", "g"]).await;
    for (offset, delivery) in (100..).zip(&sent) {
        assert_eq!(delivery.wait().await.unwrap().offset, Some(offset));
    }
    // Under their own sequences: nothing was given up.
    assert!(fake.seen.lock().iter().all(|seen| seen.epoch == 0));
}

#[tokio::test]
async fn only_the_record_that_is_too_large_fails() {
    let script: Script = Box::new(|_, seen| {
        Some(match (seen.records, seen.value.as_str()) {
            (2.., _) | (_, "large") => Err("MESSAGE_TOO_LARGE"),
            _ => Ok(0),
        })
    });
    let (_fake, client) = serve(script).await;
    let sent = together(&client, &["a", "b", "large", "c", "d"]).await;
    for (number, delivery) in sent.iter().enumerate() {
        let code = delivery.wait().await.err().and_then(|error| error.code());
        let expected = (number == 2).then_some(ErrorCode::MessageTooLarge);
        assert_eq!(code, expected, "record {number}");
    }
}

/// A leader that looks at sequences, and takes two records a batch, "large" ones never.
fn two_records_a_batch() -> Script {
    let next = Mutex::new((0, 0));
    Box::new(move |_, seen| {
        let mut next = next.lock();
        if seen.records > 2 || seen.large {
            return Some(Err("MESSAGE_TOO_LARGE"));
        }
        if seen.epoch > next.0 {
            *next = (seen.epoch, 0);
        }
        match (seen.epoch, seen.sequence) {
            at if at == *next => next.1 += u32::try_from(seen.records).unwrap(),
            (epoch, sequence) if epoch == next.0 && sequence < next.1 => {}
            _ => return Some(Err("OUT_OF_ORDER_SEQUENCE_NUMBER")),
        }
        Some(Ok(i64::from(seen.sequence)))
    })
}

#[tokio::test]
async fn what_is_too_large_takes_nothing_with_it_while_other_batches_wait_for_their_answers() {
    let (fake, client) = serve_slowly(two_records_a_batch(), Duration::from_millis(10)).await;
    let producer = client.producer(ProducerOptions {
        linger: Duration::ZERO,
        batch_bytes: 600,
        ..ProducerOptions::default()
    });
    let mut sent = Vec::new();
    for number in 0..300 {
        let value = if number % 100 == 7 { "large" } else { "small" };
        sent.push(send(&producer, value).await);
    }
    producer.flush().await;
    for (number, delivery) in sent.iter().enumerate() {
        let code = delivery.wait().await.map_err(|error| error.code());
        let expected = (number % 100 == 7).then_some(Some(ErrorCode::MessageTooLarge));
        assert_eq!(code.err(), expected, "record {number}");
    }
    let epochs = fake.seen.lock().iter().map(|seen| seen.epoch).max();
    assert_eq!(epochs, Some(3), "one for each that was given up");
}

#[tokio::test]
async fn what_could_not_be_delivered_tells_the_last_answer() {
    let (_fake, client) = serve(Box::new(|_, _| Some(Err("NOT_ENOUGH_REPLICAS")))).await;
    let producer = client.producer(options(Duration::from_millis(300)));
    let delivery = send(&producer, "a").await;
    let failed = delivery.wait().await.unwrap_err().to_string();
    assert!(failed.contains("NOT_ENOUGH_REPLICAS"), "{failed}");
    let trouble = producer.trouble().unwrap();
    assert!(trouble.contains("NOT_ENOUGH_REPLICAS"), "{trouble}");
}

#[tokio::test]
async fn a_leader_that_does_not_answer_is_asked_again_long_before_the_record_expires() {
    let script: Script = Box::new(|number, _| (number > 0).then_some(Ok(5)));
    let (fake, client) = serve(script).await;
    let producer = client.producer(ProducerOptions {
        request_timeout: Duration::from_millis(50),
        ..options(Duration::from_secs(60))
    });
    let sent = send(&producer, "a").await;
    let acked = tokio::time::timeout(Duration::from_secs(30), sent.wait()).await;
    assert_eq!(acked.unwrap().unwrap().offset, Some(5));
    assert_eq!(places(&fake), [place(42, 0, 0, "a"), place(42, 0, 0, "a")]);
}

#[tokio::test]
async fn a_delivery_ends_when_its_producer_is_dropped() {
    let (_fake, client) = serve(Box::new(|_, _| None)).await;
    let producer = client.producer(options(Duration::from_secs(60)));
    let delivery = send(&producer, "a").await;
    drop(producer);
    let ended = tokio::time::timeout(Duration::from_secs(10), delivery.wait()).await;
    assert!(matches!(ended, Ok(Err(ClientError::Closed))));
}

/// What came, by producer and sequence.
fn places(fake: &Fake) -> Vec<(u64, u16, u32, String)> {
    let seen = fake.seen.lock().clone();
    seen.into_iter()
        .map(|seen| (seen.id, seen.epoch, seen.sequence, seen.value))
        .collect()
}

fn place(id: u64, epoch: u16, sequence: u32, value: &str) -> (u64, u16, u32, String) {
    (id, epoch, sequence, value.to_owned())
}

#[tokio::test]
async fn after_its_last_epoch_a_producer_goes_on_under_another_id() {
    let script: Script = Box::new(|_, seen| {
        Some(match seen.large {
            true => Err("MESSAGE_TOO_LARGE"),
            false => Ok(i64::from(seen.sequence)),
        })
    });
    let (fake, client) = serve(script).await;
    *fake.given.lock() = (42, 32_766);
    let producer = client.producer(options(Duration::from_secs(20)));
    for value in ["large", "a", "large", "b"] {
        let sent = send(&producer, value).await.wait().await;
        assert_eq!(sent.is_ok(), value != "large", "{value}: {sent:?}");
    }
    let expected = [
        place(42, 32_766, 0, "large"),
        place(42, 32_767, 0, "a"),
        place(42, 32_767, 1, "large"),
        place(43, 0, 0, "b"),
    ];
    assert_eq!(places(&fake), expected);
}

#[tokio::test]
async fn what_waits_when_the_epochs_end_goes_under_the_next_id_in_order() {
    // Taken one after the other, each producer and epoch from 0 on; "large" never.
    let next = Mutex::new(std::collections::BTreeMap::new());
    let script: Script = Box::new(move |_, seen| {
        if seen.large {
            return Some(Err("MESSAGE_TOO_LARGE"));
        }
        let mut next = next.lock();
        let expected = next.entry((seen.id, seen.epoch)).or_insert(0);
        if seen.sequence > *expected {
            return Some(Err("OUT_OF_ORDER_SEQUENCE_NUMBER"));
        }
        *expected = (*expected).max(seen.sequence + 1);
        Some(Ok(0))
    });
    let (fake, client) = serve(script).await;
    *fake.given.lock() = (42, 32_767);
    let producer = client.producer(options(Duration::from_secs(20)));
    let mut sent = Vec::new();
    for value in ["a", "large", "b", "c", "d", "e", "f"] {
        sent.push((value, send(&producer, value).await));
    }
    producer.flush().await;
    for (value, sent) in sent {
        assert_eq!(sent.wait().await.is_ok(), value != "large", "{value}");
    }
    let places = places(&fake);
    let under = |id| {
        let theirs = places.iter().filter(move |place| place.0 == id);
        theirs.map(|place| place.3.as_str()).collect::<Vec<_>>()
    };
    // Tried again, perhaps, but never behind what follows.
    let mut after = under(43);
    after.dedup();
    assert_eq!(after, ["b", "c", "d", "e", "f"]);
    assert!(under(42).starts_with(&["a", "large"]), "{places:?}");
}

#[tokio::test]
async fn a_producer_that_is_not_known_any_more_begins_anew() {
    let script: Script = Box::new(|_, seen| {
        Some(match (seen.epoch, seen.sequence) {
            (0, 1) => Err("UNKNOWN_PRODUCER_ID"),
            _ => Ok(5),
        })
    });
    let (fake, client) = serve(script).await;
    let producer = client.producer(options(Duration::from_secs(20)));
    for value in ["a", "b", "c"] {
        send(&producer, value).await.wait().await.unwrap();
    }
    let expected = [
        place(42, 0, 0, "a"),
        place(42, 0, 1, "b"),
        place(42, 1, 0, "b"),
        place(42, 1, 1, "c"),
    ];
    assert_eq!(places(&fake), expected);
}

#[tokio::test]
async fn what_was_tried_before_its_producer_was_forgotten_is_not_sent_as_another() {
    // The first try of "b" is not answered: it may have been taken.
    let script: Script = Box::new(|number, seen| match (seen.epoch, seen.sequence) {
        (0, 1) if number == 1 => None,
        (0, 1) => Some(Err("UNKNOWN_PRODUCER_ID")),
        _ => Some(Ok(5)),
    });
    let (fake, client) = serve(script).await;
    let producer = client.producer(ProducerOptions {
        request_timeout: Duration::from_millis(50),
        ..options(Duration::from_secs(20))
    });
    send(&producer, "a").await.wait().await.unwrap();
    let tried = send(&producer, "b").await.wait().await.unwrap_err();
    let told = tried.to_string();
    assert!(matches!(tried, ClientError::TimedOut(_)), "{told}");
    assert!(told.contains("UNKNOWN_PRODUCER_ID"), "{told}");
    send(&producer, "c").await.wait().await.unwrap();
    let expected = [
        place(42, 0, 0, "a"),
        place(42, 0, 1, "b"),
        place(42, 0, 1, "b"),
        place(42, 1, 0, "c"),
    ];
    assert_eq!(places(&fake), expected);
}

#[tokio::test]
async fn a_producer_whose_id_was_taken_over_never_takes_the_next_epoch() {
    let script: Script = Box::new(|_, seen| {
        Some(match seen.sequence {
            0 => Ok(0),
            _ => Err("INVALID_PRODUCER_EPOCH"),
        })
    });
    let (fake, client) = serve(script).await;
    let producer = client.producer(options(Duration::from_secs(20)));
    send(&producer, "a").await.wait().await.unwrap();
    let mut sent = Vec::new();
    for value in ["b", "c", "d"] {
        sent.push(send(&producer, value).await);
    }
    for sent in sent {
        let code = sent.wait().await.unwrap_err().code();
        assert_eq!(code, Some(ErrorCode::InvalidProducerEpoch));
    }
    let places = places(&fake);
    let same = places.iter().all(|place| (place.0, place.1) == (42, 0));
    assert!(same, "{places:?}");
}

#[tokio::test]
async fn a_producer_that_was_silent_for_long_begins_anew_before_it_is_forgotten() {
    let (fake, client) = serve(Box::new(|_, _| Some(Ok(5)))).await;
    let producer = client.producer(options(Duration::from_secs(20)));
    for (value, minutes) in [("a", 0), ("b", 29), ("c", 31), ("d", 0)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(minutes * 60)).await;
        tokio::time::resume();
        send(&producer, value).await.wait().await.unwrap();
    }
    let expected = [
        place(42, 0, 0, "a"),
        place(42, 0, 1, "b"),
        place(42, 1, 0, "c"),
        place(42, 1, 1, "d"),
    ];
    // Its stream may have broken meanwhile: then it is sent again, as what it was.
    let mut places = places(&fake);
    places.dedup();
    assert_eq!(places, expected);
}
