//! Batches as bytes: built, read back, and refused when they are not whole.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_types::{
    LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, TimestampType,
};

use crate::{Batch, BatchBuilder, BatchError, Compression, ProducerTag, RecordHeader};

fn sample(compression: Compression, records: usize) -> Batch {
    let mut builder = BatchBuilder::new(compression).producer(ProducerTag {
        id: ProducerId::new(4_000),
        epoch: ProducerEpoch::new(2),
        base_sequence: Sequence::new(17),
    });
    for i in 0..records {
        let headers = [RecordHeader {
            key: "h".into(),
            value: Some(Bytes::from_static(b"x")),
        }];
        let value = format!("value {i}");
        builder.push(
            Timestamp::from_millis(1_000 + i as i64),
            Some(b"key"),
            Some(value.as_bytes()),
            &headers,
        );
    }
    builder.build()
}

#[test]
fn every_field_lies_where_the_format_says() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(Timestamp::from_millis(0x0102), None, Some(b"ab"), &[]);
    let batch = builder.build().stamped(Offset::new(5), LeaderEpoch::new(9));
    let bytes = batch.bytes();
    assert_eq!(&bytes[0..8], 5_i64.to_be_bytes());
    assert_eq!(&bytes[8..12], ((bytes.len() - 12) as i32).to_be_bytes());
    assert_eq!(&bytes[12..16], 9_i32.to_be_bytes());
    assert_eq!(bytes[16], 2);
    assert_eq!(&bytes[21..23], [0, 0]);
    assert_eq!(&bytes[23..27], [0; 4]);
    assert_eq!(&bytes[27..35], 0x0102_i64.to_be_bytes());
    assert_eq!(&bytes[35..43], 0x0102_i64.to_be_bytes());
    assert_eq!(&bytes[43..57], [0xff; 14]);
    assert_eq!(&bytes[57..61], 1_i32.to_be_bytes());
    // Length 8 (zigzag 16), attributes, deltas 0 and 0, no key, value of 2 bytes, no headers.
    assert_eq!(&bytes[61..], [16, 0, 0, 0, 1, 4, b'a', b'b', 0]);
}

#[test]
fn records_come_back_from_every_codec() {
    for codec in Compression::ALL {
        let batch = sample(codec, 300).stamped(Offset::new(70), LeaderEpoch::new(3));
        let batch = Batch::parse(batch.bytes().clone()).unwrap();
        let records = batch.records().unwrap();
        assert_eq!(records.len(), 300, "{codec}");
        assert_eq!(records[299].offset, Offset::new(369));
        assert_eq!(records[299].timestamp, Timestamp::from_millis(1_299));
        assert_eq!(records[299].value.as_deref(), Some(&b"value 299"[..]));
        assert_eq!(records[0].headers[0].key, "h");
    }
}

#[test]
fn stamping_leaves_the_crc_alone_and_log_append_time_renews_it() {
    let batch = sample(Compression::None, 2);
    let stamped = batch.clone().stamped(Offset::new(8), LeaderEpoch::new(1));
    assert_eq!(batch.header().crc, stamped.header().crc);
    let timed = stamped.with_log_append_time(Timestamp::from_millis(99));
    let read = Batch::parse(timed.bytes().clone()).unwrap();
    assert_eq!(read.header().timestamp_type, TimestampType::LogAppendTime);
    assert!(
        read.records()
            .unwrap()
            .iter()
            .all(|r| r.timestamp.millis() == 99)
    );
}

#[test]
fn a_batch_under_another_producer_is_whole() {
    let tag = ProducerTag {
        id: ProducerId::new(9),
        epoch: ProducerEpoch::new(1),
        base_sequence: Sequence::new(40),
    };
    let batch = sample(Compression::Lz4, 3).with_producer(tag);
    let read = Batch::parse(batch.bytes().clone()).unwrap();
    assert_eq!(read.header().producer, Some(tag));
    assert_eq!(read, batch);
}

#[test]
fn a_count_that_does_not_fit_the_last_delta_is_refused() {
    let mut bytes = sample(Compression::None, 3).bytes().to_vec();
    bytes[60] = 2;
    assert!(matches!(
        Batch::parse(bytes.into()),
        Err(BatchError::RecordCount {
            count: 2,
            last_delta: 2
        })
    ));
}

#[test]
fn another_codec_takes_no_attribute_away() {
    let mut bytes = sample(Compression::None, 3).bytes().to_vec();
    // LogAppendTime, part of a transaction, a marker.
    bytes[22] |= 0x38;
    crate::header::seal(&mut bytes);
    let batch = Batch::parse(bytes.into()).unwrap();
    let packed = batch.recompressed(Compression::Zstd, 1 << 20).unwrap();
    let header = packed.header();
    assert!(header.is_transactional && header.is_control);
    assert_eq!(header.timestamp_type, TimestampType::LogAppendTime);
}

#[test]
fn every_flipped_bit_behind_the_epoch_is_noticed() {
    let good = sample(Compression::None, 2).bytes().to_vec();
    for at in (8..12).chain(16..good.len()) {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(Batch::parse(bytes.into()).is_err(), "byte {at} bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Batch::split(bytes.into());
    }

    #[test]
    fn garbage_inside_a_valid_crc_is_an_error_or_records(
        garbage in proptest::collection::vec(any::<u8>(), 1..200), codec in 0_u8..5,
    ) {
        let mut bytes = sample(Compression::None, 1).bytes()[..61].to_vec();
        bytes[22] = codec;
        bytes.extend(garbage);
        crate::header::seal(&mut bytes);
        let batch = Batch::parse(bytes.into()).unwrap();
        let _ = batch.records();
    }

    #[test]
    fn batches_one_after_the_other_are_split(sizes in proptest::collection::vec(1_usize..5, 1..5)) {
        let batches: Vec<_> = sizes.iter().map(|n| sample(Compression::None, *n)).collect();
        let joined: Vec<u8> = batches.iter().flat_map(|b| b.bytes().to_vec()).collect();
        prop_assert_eq!(Batch::split(joined.clone().into()).unwrap(), batches);
        prop_assert!(Batch::split(Bytes::from(joined).slice(..60)).is_err());
    }
}
