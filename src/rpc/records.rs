//! Records of a request as one batch.

use quorate_proto::v1;
use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag, RecordHeader};
use quorate_types::{ProducerEpoch, ProducerId, Sequence, Timestamp};
use quorate_wire::WireError;

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
        return Err(WireError::Missing("records"));
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
        _ => Err(WireError::Missing(
            "producer_id, producer_epoch or base_sequence",
        )),
    }
}
