//! Reading: below the high watermark, from the leader, without passing through the plane.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_log::ReadError;
use quorate_record::Batch;
use quorate_types::{LeaderEpoch, Offset};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::calls::{FetchCall, FetchError, Fetched, Holder, ListedOffset, OffsetPosition};
use crate::fetch_room::{FetchRoom, shrink};
use crate::hosted::{Hosted, Published};
use crate::losses::Losses;
use crate::mailbox::{Mail, Mailbox};
use crate::metrics::Fetches;

/// Checks that this node leads at the epoch that the caller believes in; gives the epoch and its
/// first offset.
fn check_leading(
    state: &Published,
    asked: Option<LeaderEpoch>,
) -> Result<(LeaderEpoch, Offset), FetchError> {
    if let Some(asked) = asked {
        let current = state.leader_epoch;
        if asked < current {
            return Err(FetchError::FencedEpoch { current });
        }
        if asked > current {
            return Err(FetchError::UnknownEpoch { current });
        }
    }
    state.leading.ok_or(FetchError::NotLeader)
}

/// Where the caller's history parts from this log (KIP-320).
fn divergence(
    hosted: &Hosted,
    state: &Published,
    call: &FetchCall,
) -> Option<(LeaderEpoch, Offset)> {
    let last = call.last_fetched_epoch?;
    let (epoch, end) = hosted.epochs.read().end_offset_for(last, state.log_end)?;
    (epoch != last || end < call.offset).then_some((epoch, end))
}

/// R7: a reader learns what an unclean election lost for it. Gives where its read must end.
fn tell_losses(
    hosted: &Hosted,
    state: &Published,
    call: &FetchCall,
    diverging: Option<(LeaderEpoch, Offset)>,
) -> Result<Offset, FetchError> {
    let Some((epoch, _)) = state.unclean else {
        return Ok(state.high_watermark);
    };
    let on_record = hosted.losses.read();
    let losses = Losses {
        unclean_epoch: Some(epoch),
        on_record: &on_record,
    };
    let Some(known) = call.seen_epoch.max(call.last_fetched_epoch) else {
        let told = (call.offset > state.log_end).then(|| losses.beyond_end(call.offset));
        return told.flatten().map_or(Ok(state.high_watermark), Err);
    };
    // Where every epoch of the log is newer than the reader's, nothing that it has read is here.
    let nothing_shared = || {
        let last = call.last_fetched_epoch?;
        let epochs = hosted.epochs.read();
        let newer = epochs.end_offset_for(last, state.log_end).is_none();
        (newer && call.offset > state.log_start).then_some(state.log_start)
    };
    let parts_at = diverging.map(|(_, end)| end).or_else(nothing_shared);
    let end = losses.tell(known, call.offset, parts_at)?;
    if call.offset > state.log_end
        && let Some(lost) = losses.beyond_end(call.offset)
    {
        return Err(lost);
    }
    Ok(end.map_or(state.high_watermark, |end| end.min(state.high_watermark)))
}

pub(crate) async fn fetch(
    hosted: Arc<Hosted>,
    room: &FetchRoom,
    fetches: &Fetches,
    mailbox: &Mailbox,
    mut call: FetchCall,
) -> Result<Fetched, FetchError> {
    let asked = call.max_bytes;
    let mut states = hosted.state.subscribe();
    let deadline = Instant::now() + call.max_wait;
    loop {
        let state = *states.borrow_and_update();
        let (leader_epoch, _) = check_leading(&state, call.current_epoch)?;
        let fetched = |bytes, diverging, room| Fetched {
            bytes,
            room,
            high_watermark: state.high_watermark,
            log_start: state.log_start,
            leader_epoch,
            diverging,
        };
        let diverging = divergence(&hosted, &state, &call);
        let up_to = tell_losses(&hosted, &state, &call, diverging)?;
        if let Some(diverging) = diverging {
            return Ok(fetched(Bytes::new(), Some(diverging), None));
        }
        if call.offset < state.log_start || call.offset > state.log_end {
            return Err(FetchError::OutOfRange {
                offset: call.offset,
                log_start: state.log_start,
                log_end: state.log_end,
            });
        }
        let (bytes, room) = if call.offset < up_to {
            let (granted, mut held) = room.reserve(asked, call.holder).await?;
            call.max_bytes = granted;
            let mut bytes = read(&hosted, fetches, mailbox, &call, up_to).await?;
            let size = bytes.len();
            if size > granted && call.holder != Holder::Paid {
                // One batch that is larger than what was asked for. What waits holds no bytes.
                drop(held.take());
                held = room.try_exactly(size);
                if held.is_none() {
                    drop(bytes);
                    held = room.exactly(size, call.holder).await?;
                    call.max_bytes = size;
                    bytes = read(&hosted, fetches, mailbox, &call, up_to).await?;
                }
            }
            shrink(&mut held, bytes.len());
            (bytes, held)
        } else {
            (Bytes::new(), None)
        };
        let enough = bytes.len() >= call.min_bytes.min(call.max_bytes);
        // Whole batches seldom fill a fetch: where more is there, waiting would bring no more.
        let full = Batch::end_of(&bytes).is_some_and(|end| end < state.high_watermark);
        if enough || full || Instant::now() >= deadline {
            return Ok(fetched(bytes, None, room));
        }
        // A change of any kind is looked at anew; the deadline answers with what is there.
        match timeout_at(deadline, states.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_closed)) => return Err(FetchError::NotLeader),
            Err(_elapsed) => return Ok(fetched(bytes, None, room)),
        }
    }
}

async fn read(
    hosted: &Arc<Hosted>,
    fetches: &Fetches,
    mailbox: &Mailbox,
    call: &FetchCall,
    up_to: Offset,
) -> Result<Bytes, FetchError> {
    let (from, max_bytes) = (call.offset, call.max_bytes);
    if let Some(bytes) = hosted.reader.read_cached(from, up_to, max_bytes) {
        fetches.read(bytes.len(), true);
        return Ok(bytes);
    }
    let log = Arc::clone(hosted);
    let (mailbox, partition) = (mailbox.clone(), call.partition);
    let bytes = blocking(move || {
        let read = log.reader.read(from, up_to, max_bytes);
        let Err(ReadError::Corrupt { .. } | ReadError::Io { .. }) = read else {
            return read;
        };
        // The log may have been cut under the first read: only what fails twice is believed.
        let read = log.reader.read(from, up_to, max_bytes);
        if let Err(error @ (ReadError::Corrupt { .. } | ReadError::Io { .. })) = &read
            && !log.unreadable.swap(true, Ordering::AcqRel)
        {
            // Whoever asks again finds another leader, where there is one.
            let why = error.to_string();
            mailbox.notify(Mail::Unreadable { partition, why });
        }
        read
    })
    .await?;
    fetches.read(bytes.len(), false);
    Ok(bytes)
}

/// Runs a disk read where it may block.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(FetchError::Storage(error.to_string())),
        Err(panicked) => Err(FetchError::Storage(panicked.to_string())),
    }
}

pub(crate) async fn list_offset(
    hosted: Arc<Hosted>,
    looking_up: &Semaphore,
    position: OffsetPosition,
    current_epoch: Option<LeaderEpoch>,
) -> Result<ListedOffset, FetchError> {
    let state = *hosted.state.borrow();
    let (leader_epoch, epoch_start) = check_leading(&state, current_epoch)?;
    let listed = |offset, timestamp| ListedOffset {
        offset,
        timestamp,
        leader_epoch,
    };
    match position {
        OffsetPosition::Earliest => Ok(listed(Some(state.log_start), None)),
        // R10: what is committed is known only from the epoch's first offset on.
        OffsetPosition::Latest if state.high_watermark < epoch_start => {
            Err(FetchError::OffsetNotAvailable)
        }
        OffsetPosition::Latest => Ok(listed(Some(state.high_watermark), None)),
        OffsetPosition::Timestamp(at) => {
            let reader = hosted.reader.clone();
            let up_to = state.high_watermark;
            // A batch may have to be decompressed for it.
            let _turn = looking_up.acquire().await;
            match blocking(move || reader.offset_for_timestamp(at, up_to)).await? {
                Some((offset, timestamp)) => Ok(listed(Some(offset), Some(timestamp))),
                None if up_to < epoch_start => Err(FetchError::OffsetNotAvailable),
                None => Ok(listed(None, None)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hosted::Registry;
    use crate::mailbox::mailbox;
    use quorate_log::{LogOptions, OsDir, PartitionLog, RecoveryContext, SlowDir};
    use quorate_record::{BatchBuilder, Compression};
    use quorate_types::{PartitionId, Timestamp, TopicId, TopicPartition};

    #[tokio::test]
    async fn damage_is_told_once_until_it_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(SlowDir::new(OsDir::new(root.path()), Duration::ZERO));
        let (options, cx) = (LogOptions::default(), RecoveryContext::default());
        let open = || PartitionLog::open(Arc::clone(&dir), "p", options, cx).unwrap();
        let (mut log, _) = open();
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(Timestamp::default(), None, Some(b"value"), &[]);
        let batch = builder.build().stamped(Offset::ZERO, LeaderEpoch::ZERO);
        log.append(&batch, Timestamp::default()).unwrap();
        drop(log);
        let (log, _) = open();
        let partition = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0));
        let registry = Registry::default();
        let hosted = registry.insert(partition, log.reader(), log.epochs().clone());
        let file = root.path().join("p/00000000000000000000.log");
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();

        let (mailbox, mut inbox) = mailbox();
        let fetches = Fetches::new();
        let call = FetchCall {
            partition,
            offset: Offset::ZERO,
            max_bytes: 1 << 20,
            min_bytes: 0,
            max_wait: Duration::ZERO,
            current_epoch: None,
            last_fetched_epoch: None,
            seen_epoch: None,
            holder: Holder::Answer,
        };
        let up_to = Offset::new(1);
        for taken in [true, false] {
            for _ in 0..3 {
                let read = read(&hosted, &fetches, &mailbox, &call, up_to).await;
                assert!(matches!(read, Err(FetchError::Storage(_))), "{read:?}");
            }
            let told = inbox.notices.try_recv();
            assert!(matches!(told, Ok(Mail::Unreadable { .. })), "{taken}");
            assert!(inbox.notices.try_recv().is_err());
            hosted.unreadable.store(false, Ordering::Release);
        }
    }
}
