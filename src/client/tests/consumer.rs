//! What a consumer reads may change while it reads: nothing of before is returned after the call.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod fake;

use fake::log::Log;
use fake::{DEADLINE, Known, LEADER, client_of};
use quorate_client::{Assignment, Consumed, Consumer, ConsumerOptions, TopicPartition};
use quorate_types::{Offset, PartitionId};
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", PartitionId::new(partition))
}

fn from(partition: u32, offset: u64) -> Assignment {
    Assignment {
        topic: "t".into(),
        partition: PartitionId::new(partition),
        offset: Offset::new(offset),
    }
}

/// Of `partitions` partitions with 1,000 records each; reads those that are given.
async fn consumer(partitions: usize, assigned: Vec<Assignment>) -> (Log, Consumer) {
    let log = Log::new();
    for partition in 0..partitions {
        log.append(partition as i32, 1_000);
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let known = Known {
        node: LEADER,
        leader_port: port,
        partitions,
    };
    let server = tonic::transport::Server::builder()
        .add_service(known.service())
        .add_service(log.service())
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let options = ConsumerOptions {
        buffered: 4,
        ..ConsumerOptions::default()
    };
    (log, client_of(port).consumer(assigned, options))
}

async fn next(consumer: &mut Consumer) -> Consumed {
    let polled = timeout(DEADLINE, consumer.poll()).await;
    polled.expect("something is read").unwrap().unwrap()
}

/// The next records, once more wait in the buffer behind them.
async fn next_of_many(log: &Log, consumer: &mut Consumer) -> Consumed {
    let fetches = log.fetches();
    let first = next(consumer).await;
    log.fetched(fetches + 4).await;
    first
}

#[tokio::test]
async fn after_a_seek_nothing_of_before_is_returned() {
    let (log, mut consumer) = consumer(1, vec![from(0, 0)]).await;
    next_of_many(&log, &mut consumer).await;
    for to in [550, 3, 700] {
        consumer.seek(&at(0), Offset::new(to)).unwrap();
        assert_eq!(consumer.position(&at(0)), Some(Offset::new(to)));
        let read = next_of_many(&log, &mut consumer).await;
        assert_eq!(read.records[0].offset, Offset::new(to));
        assert_eq!(consumer.position(&at(0)), Some(read.next));
    }
    assert!(consumer.seek(&at(1), Offset::ZERO).is_err());
}

#[tokio::test]
async fn a_paused_partition_goes_on_behind_what_was_returned() {
    let (log, mut consumer) = consumer(2, vec![from(0, 0), from(1, 0)]).await;
    let mut ends = [0, 0];
    let paused = next_of_many(&log, &mut consumer).await;
    let (paused, end) = (paused.partition, paused.next);
    let other = 1 - paused.get();
    consumer.pause(&at(paused.get())).unwrap();
    while ends[other as usize] < 1_000 {
        let read = next(&mut consumer).await;
        assert_eq!(read.partition.get(), other);
        ends[other as usize] = read.next.get();
    }
    consumer.resume(&at(paused.get())).unwrap();
    loop {
        let read = next(&mut consumer).await;
        if read.partition == paused {
            assert_eq!(read.records[0].offset, end);
            break;
        }
    }
    assert!(consumer.pause(&at(7)).is_err());
}

#[tokio::test]
async fn partitions_come_and_go_while_others_are_read() {
    let (log, mut consumer) = consumer(2, vec![from(0, 0)]).await;
    next_of_many(&log, &mut consumer).await;
    consumer.assign([from(1, 90)]);
    assert!(consumer.unassign(&at(0)));
    assert!(!consumer.unassign(&at(0)));
    let read = next(&mut consumer).await;
    assert_eq!(read.partition.get(), 1);
    assert_eq!(read.records[0].offset, Offset::new(90));
    // Assigned anew, it begins where it is said.
    consumer.assign([from(1, 10)]);
    assert_eq!(next(&mut consumer).await.records[0].offset, Offset::new(10));
    consumer.unassign(&at(1));
    assert!(consumer.poll().await.is_none());
}
