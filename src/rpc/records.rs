//! Records of a request as one batch, and a batch as records of responses.

use quorate_proto::v1;
use quorate_record::{Batch, BatchBuilder, BatchError, Compression, ProducerTag, RecordHeader};
use quorate_types::{Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};
use quorate_wire::WireError;

/// A batch's records may take so much memory when decompressed here: a client that wants larger
/// ones fetches whole batches and decompresses them itself.
const DECOMPRESSED_MAX: usize = 64 << 20;
/// Fields of a record beside key, value and headers, and what encodes it, take about so much.
const RECORD_OVERHEAD: usize = 32;

/// Some records of a batch, for one response.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) records: Vec<v1::ConsumedRecord>,
    /// The offset after the last of them.
    pub(crate) next: Offset,
}

/// Decodes records of a batch from `from` on and below `until`, in pieces of about `piece` bytes,
/// and so many pieces that they take about `most`. Where there is more, the last piece's `next` is
/// below the batch's end; the others' are the offsets after their last records.
///
/// # Errors
/// [`BatchError`] where the first record that is wanted, or one before it, cannot be read. What can
/// be read before a record that cannot is given.
pub(crate) fn decode_batch(
    batch: &Batch,
    from: Offset,
    until: Option<Offset>,
    piece: usize,
    most: usize,
) -> Result<Vec<Decoded>, BatchError> {
    let (mut pieces, mut total) = (Vec::new(), 0);
    let (mut now, mut size) = (Decoded::default(), 0);
    for record in batch.iter(DECOMPRESSED_MAX)? {
        let record = match record {
            Ok(record) => record,
            Err(error) if now.records.is_empty() && pieces.is_empty() => return Err(error),
            Err(_) => {
                pieces.extend((!now.records.is_empty()).then_some(now));
                return Ok(pieces);
            }
        };
        if record.offset < from {
            continue;
        }
        if until.is_some_and(|until| record.offset >= until) {
            break;
        }
        let bytes = record.key.as_ref().map_or(0, |key| key.len())
            + record.value.as_ref().map_or(0, |value| value.len())
            + record
                .headers
                .iter()
                .map(|header| header.key.len() + header.value.as_ref().map_or(0, |v| v.len()))
                .sum::<usize>()
            + RECORD_OVERHEAD * (1 + record.headers.len());
        if size > 0 && size + bytes > piece {
            total += size;
            pieces.push(std::mem::take(&mut now));
            size = 0;
            if total >= most {
                return Ok(pieces);
            }
        }
        size += bytes;
        now.next = record.offset.plus(1);
        now.records.push(v1::ConsumedRecord {
            offset: record.offset.to_signed(),
            timestamp_ms: record.timestamp.millis(),
            key: record.key,
            value: record.value,
            headers: record
                .headers
                .into_iter()
                .map(|header| v1::Header {
                    key: header.key,
                    value: header.value,
                })
                .collect(),
        });
    }
    let end = batch.end_offset();
    now.next = until.map_or(end, |until| end.min(until)).max(now.next);
    pieces.push(now);
    Ok(pieces)
}

/// Encodes the records of a request as one batch; a record without a time gets `now`.
///
/// # Errors
/// [`WireError`] for an empty list or a producer that is named by half.
pub(crate) fn records_to_batch(
    request: &v1::ProduceRequest,
    records: &[v1::Record],
    now: Timestamp,
) -> Result<Batch, WireError> {
    if records.is_empty() {
        return Err(WireError::NoRecords);
    }
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(tag) = producer(request)? {
        builder = builder.producer(tag);
    }
    for record in records {
        let headers: Vec<RecordHeader> = record
            .headers
            .iter()
            .map(|header| RecordHeader {
                key: header.key.clone(),
                value: header.value.clone(),
            })
            .collect();
        let timestamp = record.timestamp_ms.map_or(now, Timestamp::from_millis);
        builder.push(
            timestamp,
            record.key.as_deref(),
            record.value.as_deref(),
            &headers,
        );
    }
    Ok(builder.build())
}

fn producer(request: &v1::ProduceRequest) -> Result<Option<ProducerTag>, WireError> {
    match (
        request.producer_id,
        request.producer_epoch,
        request.base_sequence,
    ) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(sequence)) => Ok(Some(ProducerTag {
            id: ProducerId::from_signed(id).map_err(|_| WireError::Range("producer_id"))?,
            epoch: i16::try_from(epoch)
                .ok()
                .and_then(|epoch| ProducerEpoch::from_signed(epoch).ok())
                .ok_or(WireError::Range("producer_epoch"))?,
            base_sequence: Sequence::from_signed(sequence)
                .map_err(|_| WireError::Range("base_sequence"))?,
        })),
        _ => Err(WireError::HalfProducer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(values: &[&[u8]]) -> Batch {
        let mut builder = BatchBuilder::new(Compression::Lz4);
        for value in values {
            builder.push(Timestamp::from_millis(5), None, Some(value), &[]);
        }
        builder
            .build()
            .stamped(Offset::new(10), quorate_types::LeaderEpoch::ZERO)
    }

    fn offsets(pieces: &[Decoded]) -> Vec<(Vec<i64>, u64)> {
        let numbers = |piece: &Decoded| piece.records.iter().map(|r| r.offset).collect();
        pieces
            .iter()
            .map(|piece| (numbers(piece), piece.next.get()))
            .collect()
    }

    #[test]
    fn a_batch_is_given_in_pieces_from_the_offset_asked_for() {
        let batch = batch(&[&[1; 100][..]; 5]);
        let from = |from, until, piece, most| {
            let pieces = decode_batch(&batch, Offset::new(from), until, piece, most);
            offsets(&pieces.unwrap())
        };
        assert_eq!(
            from(0, None, 1 << 20, 1 << 20),
            [(vec![10, 11, 12, 13, 14], 15)]
        );
        assert_eq!(
            from(11, None, 300, 1 << 20),
            [(vec![11, 12], 13), (vec![13, 14], 15)]
        );
        // More than is wanted at once: the next read begins where this one ended.
        assert_eq!(from(11, None, 300, 1), [(vec![11, 12], 13)]);
        assert_eq!(
            from(13, Some(Offset::new(14)), 300, 1 << 20),
            [(vec![13], 14)]
        );
        assert_eq!(from(20, None, 300, 1 << 20), [(vec![], 15)]);
    }

    #[test]
    fn what_decompresses_to_too_much_is_refused() {
        let large = batch(&[&vec![0; DECOMPRESSED_MAX + 1][..]]);
        let refused = decode_batch(&large, Offset::ZERO, None, 1, 1);
        assert_eq!(
            refused,
            Err(BatchError::TooLarge {
                limit: DECOMPRESSED_MAX
            })
        );
    }
}
