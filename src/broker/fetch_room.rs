//! Room for what fetches answer, from the read until the client has it. An answer becomes smaller
//! before it waits, and waits (for [`PATIENCE`], holding nothing) before it is refused.
//!
//! A quarter is kept for small answers, and of the rest a quarter for those that cannot be smaller
//! (one large batch or record), so that slow readers that were given much do not shut out others. Where
//! only that is left ([`FetchRoom::is_scarce`]), streams do not keep a large batch for their clients. They
//! do keep a single record above 64 KiB, and a batch for a client that wants it whole.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::calls::{FetchError, Holder};

/// Bytes of a small answer.
const SMALL: usize = 64 << 10;
/// How long an answer waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The room of one node.
pub(crate) struct FetchRoom {
    limit: usize,
    /// Bytes of the room for all, and of that for small answers.
    all: (usize, Arc<Semaphore>),
    small: (usize, Arc<Semaphore>),
}

/// Lets go of what is more than `size` bytes.
pub(crate) fn shrink(held: &mut Option<OwnedSemaphorePermit>, size: usize) {
    if let Some(held) = held {
        drop(held.split(held.num_permits().saturating_sub(size)));
    }
}

/// So many bytes as permits, of a room of `most`: more than all of it is all of it.
fn permits(size: usize, most: usize) -> u32 {
    u32::try_from(size.min(most)).unwrap_or(u32::MAX)
}

impl FetchRoom {
    pub(crate) fn new(limit: usize) -> Self {
        let small = limit / 4;
        let room = |size: usize| (size, Arc::new(Semaphore::new(size)));
        Self {
            limit,
            all: room(limit - small),
            small: room(small),
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are held.
    pub(crate) fn used(&self) -> usize {
        let free = self.all.1.available_permits() + self.small.1.available_permits();
        self.limit.saturating_sub(free)
    }

    /// Room for `wanted` bytes, or for less; small ones wait for it. A stream has its own share for
    /// a small one, and who has paid takes none.
    ///
    /// # Errors
    /// [`FetchError::Throttled`] where there is none in time.
    pub(crate) async fn reserve(
        &self,
        wanted: usize,
        holder: Holder,
    ) -> Result<(usize, Option<OwnedSemaphorePermit>), FetchError> {
        if holder == Holder::Paid {
            return Ok((1, None));
        }
        let (granted, held) = self.share(wanted);
        if held.is_some() || holder == Holder::Stream {
            return Ok((granted, held));
        }
        Ok((granted, self.exactly(granted, holder).await?))
    }

    /// Room for `wanted` bytes, or for less, at once; at least for a small one, which counts as
    /// none here.
    pub(crate) fn share(&self, wanted: usize) -> (usize, Option<OwnedSemaphorePermit>) {
        let mut wanted = wanted;
        while wanted > SMALL {
            if let Some(permit) = self.spare(wanted) {
                return (wanted, Some(permit));
            }
            wanted /= 2;
        }
        (wanted, None)
    }

    /// Room for an answer of `size` bytes, at once or not at all.
    pub(crate) fn try_exactly(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        let ((most, room), (_, small)) = (&self.all, &self.small);
        if size <= SMALL {
            let permit = Arc::clone(small).try_acquire_many_owned(permits(size, SMALL));
            return permit.ok().or_else(|| self.spare(size));
        }
        let permit = Arc::clone(room).try_acquire_many_owned(permits(size, *most));
        permit.ok()
    }

    /// Room for `size` bytes that leaves some for what cannot be smaller.
    fn spare(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        let (most, room) = &self.all;
        // Another may take some in between: it is no more than a part of what is left.
        if room.available_permits() < size.saturating_add(most / 4) {
            return None;
        }
        let permit = Arc::clone(room).try_acquire_many_owned(permits(size, *most));
        permit.ok()
    }

    /// Whether too little is left for another answer of `size` bytes that cannot be smaller.
    pub(crate) fn is_scarce(&self, size: usize) -> bool {
        let (most, room) = &self.all;
        room.available_permits() < size.max(most / 4).min(*most)
    }

    /// Room for an answer of `size` bytes, waited for; none for a small one of a stream.
    ///
    /// # Errors
    /// [`FetchError::Throttled`] where there is none in time.
    pub(crate) async fn exactly(
        &self,
        size: usize,
        holder: Holder,
    ) -> Result<Option<OwnedSemaphorePermit>, FetchError> {
        if holder == Holder::Paid || size <= SMALL && holder == Holder::Stream {
            return Ok(None);
        }
        if let Some(permit) = self.try_exactly(size) {
            return Ok(Some(permit));
        }
        let (most, room) = if size <= SMALL {
            &self.small
        } else {
            &self.all
        };
        let permit = Arc::clone(room).acquire_many_owned(permits(size, *most));
        match timeout(PATIENCE, permit).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => Err(FetchError::Throttled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn answers_become_small_then_wait_then_are_refused() {
        let room = FetchRoom::new(4 * MIB);
        let mut held = Vec::new();
        let mut granted = 0;
        while let Ok((size, permit)) = room.reserve(2 * MIB, Holder::Answer).await {
            assert_eq!(
                permit.as_ref().map(|permit| permit.num_permits()),
                Some(size)
            );
            granted += size;
            held.push(permit);
        }
        assert_eq!(granted, 4 * MIB - 3 * MIB / 4);
        assert_eq!(room.used(), granted);
        // A stream reads on by its own share, but not what is larger.
        let (size, permit) = room.reserve(2 * MIB, Holder::Stream).await.unwrap();
        assert_eq!((size, permit.is_none()), (SMALL, true));
        let large = room.exactly(MIB / 2, Holder::Stream).await.unwrap();
        assert!(large.is_some(), "it cannot be smaller");
        held.push(large);
        let large = room.exactly(MIB, Holder::Stream).await;
        assert_eq!(large.err(), Some(FetchError::Throttled));
        drop(held);
        assert_eq!(room.used(), 0);
        // One that is larger than the room takes all of it.
        let whole = room.exactly(64 * MIB, Holder::Answer).await.unwrap();
        assert_eq!(room.used(), 3 * MIB);
        assert!(room.exactly(SMALL, Holder::Answer).await.is_ok(), "small");
        drop(whole);
    }

    #[tokio::test]
    async fn room_is_scarce_where_a_quarter_or_another_of_that_size_does_not_fit() {
        let room = FetchRoom::new(4 * MIB);
        assert!(!room.is_scarce(64 * MIB), "all of it is free");
        let _held = room.exactly(2 * MIB, Holder::Stream).await.unwrap();
        assert!(!room.is_scarce(MIB));
        assert!(room.is_scarce(MIB + 1));
        let _held = room.exactly(MIB / 2, Holder::Stream).await.unwrap();
        assert!(room.is_scarce(1), "a quarter of 3 MiB is more than is left");
    }

    #[tokio::test]
    async fn what_waits_for_room_gets_it() {
        let room = FetchRoom::new(4 * MIB);
        let first = room.exactly(3 * MIB, Holder::Answer).await.unwrap();
        let (second, ()) = tokio::join!(room.exactly(MIB, Holder::Answer), async { drop(first) });
        let mut second = second.unwrap();
        shrink(&mut second, 10);
        assert_eq!(room.used(), 10);
    }
}
