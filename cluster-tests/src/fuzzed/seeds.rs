//! Whole samples for each target: what the corpora in `fuzz/corpus` are made of, and what
//! `tests/fuzz.rs` changes.

use std::sync::Arc;

use prost::Message;
use quorate_log::{PartitionLog, RecoveryContext};
use quorate_metadata::{
    AlterPartition, Command, CreateTopic, Envelope, LogId, MetadataImage, Origin, RegisterBroker,
};
use quorate_proto::{internal, v1};
use quorate_record::{BatchBuilder, Compression, ProducerTag, RecordHeader};
use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, Endpoint, Incarnation, LeaderEpoch, NodeId,
    Offset, PartitionEpoch, PartitionId, ProducerEpoch, ProducerId, RaftIndex, Sequence, Term,
    Timestamp, TopicId, TopicName, TopicPartition,
};

use super::recovery::{FOLDER, OPTIONS, packed};
use crate::hostile::{batch, garbage};
use crate::sim::SimDisk;

/// Every way to compress.
pub const CODECS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];
const TOPIC: TopicId = TopicId::from_bytes([9; 16]);
const LIFE: Incarnation = Incarnation {
    start: 1,
    random: 7,
};

/// The samples of a target, each with a name; none of a target that is unknown.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |(number, bytes): (usize, Vec<u8>)| (format!("{number:02}"), bytes);
    let seeds = match target {
        "batch" => of_batches(),
        "messages" => of_messages(),
        "metadata" => of_metadata(),
        "recovery" => of_recovery(),
        _ => Vec::new(),
    };
    seeds.into_iter().enumerate().map(named).collect()
}

fn of_batches() -> Vec<Vec<u8>> {
    let tag = ProducerTag {
        id: ProducerId::new(3),
        epoch: ProducerEpoch::new(1),
        base_sequence: Sequence::new(5),
    };
    let mut all = vec![garbage(1_000, &[b"no record"]).to_vec()];
    for codec in CODECS {
        let mut builder = BatchBuilder::new(codec);
        let headers = [RecordHeader {
            key: "h".into(),
            value: None,
        }];
        for time in [5, 3, 9] {
            let time = Timestamp::from_millis(time);
            builder.push(time, Some(b"key"), Some(&[b'v'; 40]), &headers);
            builder.push(time, None, None, &[]);
        }
        let whole = builder.build();
        all.push(whole.bytes().to_vec());
        let changed = whole
            .with_producer(tag)
            .with_log_append_time(Timestamp::from_millis(77));
        all.push(changed.bytes().to_vec());
    }
    let sealed = |bytes: Vec<u8>| [vec![1], bytes].concat();
    all.into_iter().map(sealed).collect()
}

fn of_messages() -> Vec<Vec<u8>> {
    let record = v1::Record {
        key: Some("key".into()),
        value: Some("value".into()),
        timestamp_ms: Some(-1),
        headers: vec![v1::Header {
            key: "name".to_owned(),
            value: None,
        }],
    };
    let produce = v1::ProduceRequest {
        topic: "topic".to_owned(),
        partition: Some(-1),
        payload: Some(v1::produce_request::Payload::Records(v1::RecordList {
            records: vec![record; 3],
        })),
        topic_id: Some(vec![7; 16].into()),
        ..v1::ProduceRequest::default()
    };
    let start = v1::PartitionStart {
        partition: 3,
        start: Some(v1::partition_start::Start::Offset(i64::MAX)),
        last_fetched_epoch: Some(-1),
    };
    let consume = v1::ConsumeRequest {
        topic: "topic".to_owned(),
        partitions: vec![start; 3],
        ..v1::ConsumeRequest::default()
    };
    let broker = v1::BrokerDescription {
        node_id: 1,
        endpoint: Some(v1::Endpoint {
            host: "host".to_owned(),
            port: 7070,
        }),
        rack: Some("rack".to_owned()),
        ..v1::BrokerDescription::default()
    };
    let partition = v1::PartitionDescription {
        leader: Some(1),
        replicas: vec![1, 2, 3],
        ..v1::PartitionDescription::default()
    };
    let cluster = v1::DescribeClusterResponse {
        brokers: vec![broker; 2],
        topics: vec![v1::TopicDescription {
            name: "topic".to_owned(),
            topic_id: vec![1; 16].into(),
            partitions: vec![partition; 2],
            ..v1::TopicDescription::default()
        }],
        ..v1::DescribeClusterResponse::default()
    };
    let sender = internal::RaftId {
        node_id: 1,
        directory_id: vec![2; 16].into(),
    };
    let chunk = internal::SnapshotChunk {
        head: Some(internal::RaftRequest {
            sender: Some(sender.clone()),
            receiver: Some(sender),
            cluster_id: Some(vec![3; 16].into()),
            payload: vec![4; 9].into(),
        }),
        data: vec![5; 9].into(),
    };
    let follower = internal::FollowerMessage {
        message: Some(internal::follower_message::Message::Subscribe(
            internal::Subscribe {
                subscription_id: 1,
                topic_id: vec![1; 16].into(),
                partition: 2,
                last_fetched_epoch: Some(u32::MAX),
                ..internal::Subscribe::default()
            },
        )),
    };
    let bytes = batch(Compression::None, 1_000, &[b"a", b"b"]);
    let leader = internal::LeaderMessage {
        message: Some(internal::leader_message::Message::Batches(
            internal::Batches {
                topic_id: vec![1; 16].into(),
                bytes: bytes.bytes().clone(),
                ..internal::Batches::default()
            },
        )),
    };
    vec![
        produce.encode_to_vec(),
        consume.encode_to_vec(),
        cluster.encode_to_vec(),
        chunk.encode_to_vec(),
        follower.encode_to_vec(),
        leader.encode_to_vec(),
        vec![0; 40],
    ]
}

fn of_metadata() -> Vec<Vec<u8>> {
    let endpoint = Endpoint {
        host: "h".to_owned(),
        port: 1,
    };
    let register = |node| {
        Command::RegisterBroker(RegisterBroker {
            node: NodeId::new(node),
            directory: DirectoryId::from_bytes([node as u8; 16]),
            incarnation: LIFE,
            boot: BootId::from_bytes([1; 16]),
            clean_epoch: None,
            damaged: Vec::new(),
            client: endpoint.clone(),
            internal: endpoint.clone(),
            rack: None,
            min_level: 1,
            max_level: 1,
        })
    };
    // A broker epoch is the index of its registration.
    let epoch = BrokerEpoch::new(1);
    let unfence = |node| Command::UnfenceBroker {
        node: NodeId::new(node),
        epoch,
    };
    let create = Command::CreateTopic(CreateTopic {
        name: match TopicName::new("t") {
            Ok(name) => name,
            Err(error) => panic!("a name: {error}"),
        },
        topic_id: TOPIC,
        partitions: 2,
        replication_factor: 2,
        seed: 5,
        config: [("min.insync.replicas".to_owned(), "1".to_owned())].into(),
    });
    let partition = TopicPartition::new(TOPIC, PartitionId::new(0));
    let alter = Command::AlterPartition(AlterPartition {
        partition,
        leader: NodeId::new(1),
        leader_broker_epoch: epoch,
        leader_epoch: LeaderEpoch::ZERO,
        partition_epoch: PartitionEpoch::new(0),
        isr: vec![(NodeId::new(1), epoch)],
        fsync_established: true,
    });
    let fence = Command::FenceBroker {
        node: NodeId::new(2),
        epoch,
        cause: "gone".to_owned(),
    };
    let stop = Command::BeginControlledShutdown {
        node: NodeId::new(1),
        epoch,
    };
    let cluster_id = ClusterId::from_bytes([4; 16]);
    let groups = [
        vec![register(1), register(2)],
        vec![
            Command::BootstrapCluster { cluster_id },
            unfence(1),
            unfence(2),
        ],
        vec![create],
        vec![Command::AllocateProducerIds { count: 10 }, alter],
        vec![fence],
        vec![Command::ElectPreferredLeaders {
            partitions: vec![partition],
        }],
        vec![stop],
        vec![Command::DeleteTopic { topic_id: TOPIC }],
    ];
    let mut image = MetadataImage::new();
    let (mut all, mut lines) = (Vec::new(), Vec::new());
    for (number, commands) in (1..).zip(groups) {
        let envelope = Envelope {
            origin: Origin {
                node: NodeId::new(1),
                directory: DirectoryId::from_bytes([9; 16]),
                incarnation: LIFE,
            },
            sequence: number,
            required_term: None,
            time: Timestamp::from_millis(5),
            commands,
        };
        lines.extend(envelope.encode());
        lines.push(b'\n');
        let at = LogId {
            term: Term::new(1),
            index: RaftIndex::new(number),
        };
        let applied = image.apply(&envelope, at);
        all.extend(applied.outcomes.last().map(|outcome| outcome.encode()));
        all.push(image.encode());
        all.push(lines.clone());
    }
    all
}

/// A log of several segments, two leader epochs and a producer, on a disk of its own.
fn a_log(batches: u64) -> (SimDisk, PartitionLog<SimDisk>) {
    let disk = SimDisk::default();
    let cx = RecoveryContext { same_boot: true };
    let opened = PartitionLog::open(Arc::new(disk.clone()), FOLDER, OPTIONS, cx);
    let (mut log, _) = opened.unwrap_or_else(|error| panic!("a new log: {error}"));
    for number in 0..batches {
        let tag = ProducerTag {
            id: ProducerId::new(3),
            epoch: ProducerEpoch::new(1),
            base_sequence: Sequence::new(2 * number as u32),
        };
        let epoch = LeaderEpoch::new(1 + number as u32 / 3);
        let one = batch(Compression::None, 1_000, &[b"first value", b"second"])
            .with_producer(tag)
            .stamped(Offset::new(2 * number), epoch);
        let appended = log.append(&one, Timestamp::from_millis(1_000));
        appended.unwrap_or_else(|error| panic!("an append: {error}"));
    }
    (disk, log)
}

fn of_recovery() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for batches in [0, 1, 3, 8] {
        for (closed, same_boot) in [(true, false), (false, true)] {
            let (disk, mut log) = a_log(batches);
            if closed {
                let done = log.close();
                done.unwrap_or_else(|error| panic!("a close: {error}"));
            } else {
                if let Some(ticket) = log.start_flush() {
                    let _ended = log.complete_flush(ticket.run());
                }
                let _told = log.mark_damaged("why");
            }
            let files = disk.durable_files(FOLDER);
            all.push(packed(same_boot, &files));
            let logs: Vec<_> = files
                .into_iter()
                .filter(|(name, _)| name.ends_with(".log"))
                .collect();
            all.push(packed(same_boot, &logs));
        }
    }
    all
}
