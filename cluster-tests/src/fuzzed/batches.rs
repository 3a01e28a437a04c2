//! Bytes as a batch: parsed, iterated, recompressed, stamped, and split off its neighbours.

use bytes::Bytes;
use quorate_record::{Batch, BatchHeader, Compression, ProducerTag};
use quorate_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

use super::seeds::CODECS;
use crate::hostile::{at, batch, seal};

/// What decompressed records may take here, in bytes.
const LIMIT: usize = 1 << 20;

/// The first byte says whether the rest is put under a length and a CRC that fit, so that changes
/// reach what stands behind them.
///
/// # Panics
/// Where a batch that was taken is not what it promises.
pub fn batches(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if first & 1 != 0 && bytes.len() >= at::RECORDS {
        let length = i32::try_from(bytes.len() - at::LENGTH - 4).unwrap_or(i32::MAX);
        bytes[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
        seal(&mut bytes);
    }
    let bytes = Bytes::from(bytes);
    let _refused = BatchHeader::read(&bytes);
    let _none = Batch::end_of(&bytes);
    if let Ok(batch) = Batch::parse(bytes.clone()) {
        use_batch(&batch);
    }
    let whole = batch(Compression::None, 1_000, &[b"whole"]);
    let several = [&whole.bytes()[..], &bytes, &whole.bytes()[..]].concat();
    for batch in Batch::split(Bytes::from(several)).unwrap_or_default() {
        use_batch(&batch);
    }
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
        epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::ZERO,
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
