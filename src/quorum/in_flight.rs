//! Sequence numbers of this node's proposals.
//!
//! Invariant: a number that is in use is never more than [`WINDOW`] behind the newest, so a retry
//! always finds its outcome in the image, which keeps the last 1,024 of each origin.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

const WINDOW: u64 = 1_000;

#[derive(Debug, Default)]
pub(crate) struct InFlight {
    used: Mutex<Used>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Used {
    last: u64,
    open: BTreeSet<u64>,
}

/// One proposal's number; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    pub(crate) sequence: u64,
    of: &'a InFlight,
}

impl InFlight {
    /// The next number; waits while the oldest proposal is too far behind.
    pub(crate) async fn enter(&self) -> Ticket<'_> {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if let Some(sequence) = self.try_enter() {
                return Ticket { sequence, of: self };
            }
            left.await;
        }
    }

    fn try_enter(&self) -> Option<u64> {
        let mut used = self.used.lock();
        let next = used.last + 1;
        if used
            .open
            .first()
            .is_some_and(|oldest| next - oldest >= WINDOW)
        {
            return None;
        }
        used.last = next;
        used.open.insert(next);
        Some(next)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.of.used.lock().open.remove(&self.sequence);
        self.of.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_slow_proposal_holds_up_those_that_would_push_it_out_of_the_window() {
        let numbers = InFlight::default();
        let oldest = numbers.enter().now_or_never().unwrap();
        for _ in 1..WINDOW {
            numbers.enter().now_or_never().unwrap();
        }
        assert!(numbers.enter().now_or_never().is_none());
        drop(oldest);
        assert_eq!(numbers.enter().now_or_never().unwrap().sequence, WINDOW + 1);
    }
}
