//! What a fetch brought, as responses: decoded, unless whole batches are asked for, and no more at a
//! time than there is room for.

use bytes::Bytes;
use quorate_proto::v1;
use quorate_record::{Batch, BatchError, Compression};
use quorate_types::{ErrorCode, LeaderEpoch, Offset, PartitionId};
use quorate_wire::ErrorInfo;
use tokio::sync::OwnedSemaphorePermit;

use super::CHUNK;
use crate::edge::Edge;
use crate::records::{Decoded, decode_batch};

/// Records of one response: what common clients take by default is 4 MiB a message.
const RESPONSE_BYTES: usize = 1 << 20;
/// What a partition has of the stream's own share of memory.
const OWN_BYTES: usize = CHUNK.0 as usize;
/// What is made of one fetch; what is more is read again.
const READY_BYTES: usize = 4 << 20;
/// Of that, what is decompressed for a client that takes its time: so many times a fetch.
const READY_TIMES: usize = 16;

/// So much may wait decompressed for a client that takes so much at a time.
pub(super) fn ready_bytes(chunk: u32) -> usize {
    let chunk = usize::try_from(chunk).unwrap_or(READY_BYTES);
    chunk
        .saturating_mul(READY_TIMES)
        .clamp(OWN_BYTES, READY_BYTES)
}

/// What a fetch of a partition is for.
pub(super) struct Taking {
    pub(super) edge: Edge,
    pub(super) topic: String,
    pub(super) partition: PartitionId,
    /// The first offset that is wanted, and the one after the last.
    pub(super) next: Offset,
    pub(super) until: Option<Offset>,
    pub(super) as_batches: bool,
    /// Whether something has been said of this partition already.
    pub(super) told: bool,
    /// The epoch of the record before `next`, where it is known.
    pub(super) last_epoch: Option<LeaderEpoch>,
    /// So much may wait decompressed.
    pub(super) ready_bytes: usize,
}

/// What became of it.
pub(super) enum Made {
    Taken(Taken),
    /// Nothing yet: what is decompressed takes so much room, with what it is in. To be fetched again by
    /// who has that.
    Needs(usize),
}

/// What is for the client.
#[derive(Default)]
pub(super) struct Taken {
    /// Each with the epoch of the last record up to there.
    pub(super) ready: Vec<(v1::ConsumeResponse, Option<LeaderEpoch>)>,
    /// Where the next fetch begins, and the epoch of the record before it.
    pub(super) next: Offset,
    pub(super) last_epoch: Option<LeaderEpoch>,
    /// What was fetched takes this, and what was made of it that, until the client has taken it.
    pub(super) room: Option<OwnedSemaphorePermit>,
    pub(super) decoded_room: Option<OwnedSemaphorePermit>,
}

impl Taking {
    /// Makes responses of what a fetch brought, which takes `room`, unless there is `paid` for all of it.
    ///
    /// # Errors
    /// What the log has lost of what was read; what cannot be read.
    pub(super) async fn take(
        &mut self,
        fetched: v1::FetchResponse,
        room: Option<OwnedSemaphorePermit>,
        paid: Option<OwnedSemaphorePermit>,
    ) -> Result<Made, ErrorInfo> {
        let mut taken = Taken {
            next: self.next,
            last_epoch: self.last_epoch,
            room,
            ..Taken::default()
        };
        if let Some(diverging) = fetched.diverging {
            let mut error = ErrorInfo::new(
                ErrorCode::OffsetOutOfRange,
                format!(
                    "{}-{}: the log was truncated to offset {} below what was read (KIP-320)",
                    self.topic, self.partition, diverging.end_offset
                ),
            );
            let end = diverging.end_offset.to_string();
            error.metadata.insert("diverging_offset".to_owned(), end);
            return Err(error);
        }
        let response = v1::ConsumeResponse {
            partition: self.partition.to_signed(),
            next_offset: self.next.to_signed(),
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
            leader_epoch: fetched.leader_epoch,
            ..v1::ConsumeResponse::default()
        };
        if fetched.batches.is_empty() {
            if !self.told {
                taken.ready.push((response, taken.last_epoch));
            }
            return Ok(Made::Taken(taken));
        }
        let batches = Batch::split(Bytes::clone(&fetched.batches));
        let batches = batches.map_err(|error| self.corrupt(&error.to_string(), None))?;
        if self.as_batches {
            if let Some(last) = batches.last() {
                taken.next = last.end_offset();
                taken.last_epoch = Some(last.leader_epoch());
            }
            let response = v1::ConsumeResponse {
                next_offset: taken.next.to_signed(),
                batches: fetched.batches,
                ..response
            };
            taken.ready.push((response, taken.last_epoch));
            return Ok(Made::Taken(taken));
        }
        let is_compressed = |batch: &Batch| batch.header().compression != Compression::None;
        // Where room is scarce a large batch is not held while the client takes its time: so many
        // records are copied out as there is room for besides, and the rest is read again.
        let held = taken.room.as_ref().map_or(0, |room| room.num_permits());
        let scarce = held > OWN_BYTES && self.edge.broker().room_is_scarce(held);
        let all_copied = scarce || batches.iter().all(is_compressed);
        // What is copied, or decompressed, takes memory of its own.
        let has_paid = paid.is_some();
        let (most, mut room) = if has_paid {
            (self.ready_bytes, paid)
        } else if scarce || batches.iter().any(is_compressed) {
            self.edge.broker().stream_room(self.ready_bytes)
        } else {
            (READY_BYTES, None)
        };
        let mut copied = 0;
        for batch in batches {
            if copied >= most {
                break;
            }
            let left = most - copied;
            let compressed = is_compressed(&batch);
            let (epoch, end, size) = (batch.leader_epoch(), batch.end_offset(), batch.size());
            let copies = scarce || compressed;
            let decoded = match self.decode(batch, copies, left).await {
                Ok(decoded) => decoded,
                // What is before it is given first; the next read comes back to it.
                Err(_) if !taken.ready.is_empty() => break,
                Err(why) => return Err(self.corrupt(&why.to_string(), Some(end))),
            };
            if copies {
                let bytes: usize = decoded.iter().map(|piece| piece.bytes).sum();
                if bytes > left && !has_paid {
                    // A record that is larger than what there was room for.
                    if !taken.ready.is_empty() {
                        break;
                    }
                    if compressed {
                        // What waits for room holds nothing.
                        return Ok(Made::Needs(bytes.saturating_add(size)));
                    }
                    room = taken.room.take();
                }
                copied += bytes;
            }
            for Decoded { records, next, .. } in decoded {
                self.next = self.next.max(next);
                let response = v1::ConsumeResponse {
                    records,
                    next_offset: self.next.to_signed(),
                    ..response.clone()
                };
                taken.ready.push((response, Some(epoch)));
            }
            taken.last_epoch = Some(epoch);
            if self.next < end {
                // The rest of the batch, or what cannot be decoded in it, is for the next read.
                break;
            }
        }
        shrink(&mut room, copied);
        taken.decoded_room = room;
        if all_copied {
            // The records do not refer to what was fetched.
            taken.room = None;
        }
        taken.next = self.next;
        Ok(Made::Taken(taken))
    }

    /// Decodes what is wanted of a batch, so that it takes about `most` bytes, or is one record.
    async fn decode(
        &self,
        batch: Batch,
        copies: bool,
        most: usize,
    ) -> Result<Vec<Decoded>, BatchError> {
        let (from, until) = (self.next, self.until);
        let piece = RESPONSE_BYTES.min(most);
        let compressed = batch.header().compression != Compression::None;
        let decode = move || decode_batch(&batch, from, until, piece, most, copies);
        if !compressed {
            return decode();
        }
        let _turn = self.edge.decoding().acquire().await;
        let decoding = tokio::task::spawn_blocking(decode);
        decoding.await.unwrap_or_else(|died| {
            Err(BatchError::Records(if died.is_panic() {
                "decoding failed"
            } else {
                "the node stops"
            }))
        })
    }

    /// What cannot be decoded, with its place and, where it is known, how to get past it.
    fn corrupt(&self, why: &str, end: Option<Offset>) -> ErrorInfo {
        let message = format!(
            "{}-{}, offset {}: the records cannot be decoded: {why}",
            self.topic, self.partition, self.next
        );
        let mut error = ErrorInfo::new(ErrorCode::CorruptMessage, message);
        if let Some(end) = end {
            let end = end.to_string();
            error.message = format!("{}; read on from offset {end} to skip them", error.message);
            error.metadata.insert("next_offset".to_owned(), end);
        }
        error
    }
}

/// Lets go of what is more than `size` bytes.
fn shrink(held: &mut Option<OwnedSemaphorePermit>, size: usize) {
    if let Some(held) = held {
        drop(held.split(held.num_permits().saturating_sub(size)));
    }
}
