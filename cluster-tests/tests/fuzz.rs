//! What takes bytes from outside, on bytes that were changed at random: batches, and messages of both
//! protocol packages. Nothing may panic, and what is taken must hold what its type promises.
//!
//! No coverage guides the changes: they start from whole samples, one of each kind, and keep a CRC
//! right in half of the cases so that they reach what stands behind it. `FUZZ_SECONDS=300` runs each
//! target longer, `FUZZ_SEED=…` runs one seed again.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_tests::hostile::{at, batch, resealed};
use prost::Message;
use quorate_proto::{internal, v1};
use quorate_record::{Batch, BatchHeader, Compression, ProducerTag};
use quorate_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// What decompressed records may take here.
const LIMIT: usize = 1 << 20;
const CODECS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

fn number(variable: &str) -> Option<u64> {
    let set = std::env::var(variable).ok()?;
    Some(
        set.parse()
            .unwrap_or_else(|_| panic!("{variable}={set}: must be a number")),
    )
}

/// Runs a target on one seed after the other until its time is over; a panic names the seed.
fn fuzz(target: impl Fn(&mut StdRng)) {
    struct Told(u64);
    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("again with FUZZ_SEED={}", self.0);
            }
        }
    }
    if let Some(seed) = number("FUZZ_SEED") {
        let _told = Told(seed);
        return target(&mut StdRng::seed_from_u64(seed));
    }
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(4));
    let (begun, first) = (Instant::now(), rand::rng().next_u64() >> 8);
    let mut seed = first;
    while begun.elapsed() < time {
        let _told = Told(seed);
        target(&mut StdRng::seed_from_u64(seed));
        seed += 1;
    }
    println!("{} runs from seed {first}", seed - first);
    assert!(seed > first, "there was time for one run at least");
}

/// Changes bytes: flips, numbers at the ends of their ranges, cuts, repeats, noise.
fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>, from: usize) {
    for _ in 0..random.random_range(1..6) {
        if bytes.len() <= from + 8 {
            bytes.extend([0; 9]);
        }
        let place = random.random_range(from..bytes.len() - 8);
        match random.random_range(0..6) {
            0 => bytes[place] ^= 1 << random.random_range(0..8),
            1 => bytes[place] = random.random(),
            2 => {
                let ends = [i64::MAX, i64::MIN, -1, 0, i64::from(i32::MAX), 1 << 40];
                let end = ends[random.random_range(0..ends.len())].to_be_bytes();
                let width = [1, 2, 4, 8][random.random_range(0..4)];
                bytes[place..place + width].copy_from_slice(&end[8 - width..]);
            }
            3 => bytes.truncate(place),
            4 => {
                let piece = bytes[place..place + random.random_range(1..8)].to_vec();
                bytes.splice(place..place, piece);
            }
            _ => random.fill_bytes(&mut bytes[place..]),
        }
    }
}

/// A whole batch of any codec.
fn sample(random: &mut StdRng) -> Batch {
    let values: Vec<Vec<u8>> = (0..random.random_range(1..8))
        .map(|_| vec![random.random(); random.random_range(0..200)])
        .collect();
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    batch(CODECS[random.random_range(0..CODECS.len())], 1_000, &values)
}

/// Everything that is done with a batch that was taken.
fn use_batch(batch: &Batch) {
    let header = batch.header().clone();
    assert_eq!(header.size, batch.size());
    assert_eq!(header.record_count, header.last_offset_delta + 1);
    let mut expected = batch.base_offset();
    if let Ok(records) = batch.iter(LIMIT) {
        for record in records.map_while(Result::ok) {
            assert_eq!(record.offset, expected, "offsets rise one by one");
            expected = expected.plus(1);
        }
    }
    assert!(expected <= batch.end_offset());
    for codec in CODECS {
        if let Ok(other) = batch.clone().recompressed(codec, LIMIT) {
            assert_eq!(other.header().compression, codec);
            assert_eq!(other.header().record_count, header.record_count);
        }
    }
    let tag = ProducerTag {
        id: ProducerId::new(7),
        epoch: ProducerEpoch::from_signed(0).unwrap(),
        base_sequence: Sequence::from_signed(0).unwrap(),
    };
    for changed in [
        batch.clone().stamped(Offset::new(5), LeaderEpoch::new(3)),
        batch
            .clone()
            .with_log_append_time(Timestamp::from_millis(9)),
        batch.clone().with_producer(tag),
    ] {
        assert_eq!(Batch::parse(changed.bytes().clone()), Ok(changed));
    }
}

#[test]
fn no_batch_breaks_who_parses_or_reads_it() {
    fuzz(|random| {
        let whole = sample(random);
        let seal = random.random();
        let bytes = if seal {
            // Behind the fields that stand outside the CRC, or before them the length says no.
            resealed(&whole, |bytes| {
                mutate(random, bytes, at::ATTRIBUTES_LOW - 1);
                let length = i32::try_from(bytes.len() - 12).unwrap();
                bytes[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
            })
        } else {
            let mut bytes = whole.bytes().to_vec();
            mutate(random, &mut bytes, 0);
            bytes.into()
        };
        let _refused = BatchHeader::read(&bytes);
        let _none = Batch::end_of(&bytes);
        if let Ok(batch) = Batch::parse(bytes.clone()) {
            use_batch(&batch);
        }
        let several = [&whole.bytes()[..], &bytes, &whole.bytes()[..]].concat();
        for batch in Batch::split(Bytes::from(several)).unwrap_or_default() {
            use_batch(&batch);
        }
    });
}

/// Decodes as one kind of message; what is read must be the same when it is written and read again.
fn decode<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(M::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    }
}

macro_rules! decoders {
    ($($message:ty),* $(,)?) => { [$(decode::<$message> as fn(&[u8])),*] };
}

#[test]
fn no_bytes_break_who_decodes_a_message() {
    let decoders = decoders![
        v1::ProduceRequest,
        v1::ProduceStreamRequest,
        v1::ProduceStreamResponse,
        v1::FetchRequest,
        v1::FetchResponse,
        v1::ConsumeRequest,
        v1::ConsumeResponse,
        v1::ListOffsetsRequest,
        v1::ListOffsetsResponse,
        v1::CreateTopicRequest,
        v1::AlterTopicRequest,
        v1::DescribeTopicResponse,
        v1::ListTopicsResponse,
        v1::DescribeClusterRequest,
        v1::DescribeClusterResponse,
        v1::WatchEventsRequest,
        v1::ClusterEvent,
        v1::LogLevelRequest,
        internal::FollowerMessage,
        internal::LeaderMessage,
        internal::RaftId,
    ];
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
    let samples = [
        produce.encode_to_vec(),
        consume.encode_to_vec(),
        vec![0; 40],
    ];
    fuzz(|random| {
        let mut bytes = samples[random.random_range(0..samples.len())].clone();
        mutate(random, &mut bytes, 0);
        for decode in decoders {
            decode(&bytes);
        }
        if let Ok(request) = v1::ProduceRequest::decode(&*bytes) {
            let _refused = quorate_wire::acks(request.acks);
            let id = request.topic_id.as_deref().unwrap_or_default();
            assert_eq!(quorate_wire::topic_id(id).is_ok(), id.len() == 16);
        }
    });
}
