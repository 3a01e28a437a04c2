//! Batches whose bytes are wrong.

use cluster_tests::hostile::{Expected, at, batch, resealed};
use quorate_proto::v1;
use quorate_proto::v1::produce_request::Payload;
use quorate_record::Compression;
use tonic::Code::InvalidArgument;

use crate::{MESSAGE_MAX, bad_record, corrupt, expected, good};

/// Produces of batches whose bytes are wrong.
pub(crate) fn bad_batches() -> Vec<(String, v1::ProduceRequest, Expected)> {
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
