//! Records of a request as one batch, and a batch as records of responses.

use bytes::{Bytes, BytesMut};
use quorate_proto::v1;
use quorate_record::{Batch, BatchBuilder, BatchError, Compression, ProducerTag, RecordHeader};
use quorate_types::{Offset, ProducerId, Sequence, Timestamp};
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
    /// What they take, about.
    pub(crate) bytes: usize,
}

/// Decodes records of a batch from `from` on and below `until`, in pieces of about `piece` bytes,
/// that take `most` bytes at most, or are one record. Where there is more, the last piece's `next` is
/// below the batch's end; the others' are the offsets after their last records. With `copies` records
/// have memory of their own: a few do not keep all that was fetched or decompressed.
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
    copies: bool,
) -> Result<Vec<Decoded>, BatchError> {
    let mut pieces = pieces(batch, from, until, piece, most)?;
    if copies {
        for piece in &mut pieces {
            own(&mut piece.records);
        }
    }
    Ok(pieces)
}

fn pieces(
    batch: &Batch,
    from: Offset,
    until: Option<Offset>,
    piece: usize,
    most: usize,
) -> Result<Vec<Decoded>, BatchError> {
    let (mut pieces, mut total) = (Vec::new(), 0);
    let mut now = Decoded::default();
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
        if now.bytes > 0 && total + now.bytes + bytes > most {
            pieces.push(now);
            return Ok(pieces);
        }
        if now.bytes > 0 && now.bytes + bytes > piece {
            total += now.bytes;
            pieces.push(std::mem::take(&mut now));
        }
        now.bytes += bytes;
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

/// Copies what records refer to into memory of their own.
fn own(records: &mut [v1::ConsumedRecord]) {
    fn fields(record: &mut v1::ConsumedRecord) -> impl Iterator<Item = &mut Bytes> {
        let headers = record.headers.iter_mut();
        let headers = headers.filter_map(|header| header.value.as_mut());
        [&mut record.key, &mut record.value]
            .into_iter()
            .flatten()
            .chain(headers)
    }
    let sizes = records.iter_mut().flat_map(fields).map(|field| field.len());
    let mut memory = BytesMut::with_capacity(sizes.sum());
    for field in records.iter_mut().flat_map(fields) {
        memory.extend_from_slice(field);
        *field = memory.split().freeze();
    }
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
            epoch: quorate_wire::producer_epoch(epoch)?,
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
            let pieces = decode_batch(&batch, Offset::new(from), until, piece, most, true);
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
        assert_eq!(from(11, None, 300, 1), [(vec![11], 12)]);
        assert_eq!(
            from(11, None, 300, 400),
            [(vec![11, 12], 13), (vec![13], 14)]
        );
        assert_eq!(
            from(13, Some(Offset::new(14)), 300, 1 << 20),
            [(vec![13], 14)]
        );
        assert_eq!(from(20, None, 300, 1 << 20), [(vec![], 15)]);
    }

    #[test]
    fn a_record_does_not_keep_the_batch_that_it_was_in() {
        let batch = batch(&[&[1; 10], &[2; 100_000], &[3; 20]]);
        let pieces = decode_batch(&batch, Offset::new(12), None, 1 << 20, 1 << 20, true).unwrap();
        let value = pieces[0].records[0].value.clone().unwrap();
        drop(pieces);
        assert_eq!(value, [3; 20][..]);
        // Alone now: its memory is taken over, not copied, and there is no more of it.
        assert!(value.is_unique());
        assert!(BytesMut::from(value).capacity() < 1_000);
    }

    #[test]
    fn what_decompresses_to_too_much_is_refused() {
        let large = batch(&[&vec![0; DECOMPRESSED_MAX + 1][..]]);
        let refused = decode_batch(&large, Offset::ZERO, None, 1, 1, true);
        assert_eq!(
            refused,
            Err(BatchError::TooLarge {
                limit: DECOMPRESSED_MAX
            })
        );
    }
}
