//! What was done to a file or a directory since its last sync, in order.
//!
//! A sync covers what was done before it began, and nothing counts before the sync has ended.

use std::collections::VecDeque;

/// Changes that are not durable yet.
#[derive(Debug)]
pub(super) struct Unsynced<C> {
    changes: VecDeque<C>,
    /// How many changes there ever were.
    made: u64,
}

impl<C> Default for Unsynced<C> {
    fn default() -> Self {
        Self {
            changes: VecDeque::new(),
            made: 0,
        }
    }
}

impl<C> Unsynced<C> {
    pub(super) fn push(&mut self, change: C) {
        self.changes.push_back(change);
        self.made += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Where a sync begins.
    pub(super) fn mark(&self) -> u64 {
        self.made
    }

    /// The changes that a sync begun at `mark` has made durable, the oldest first; some or all of
    /// them may have gone with another sync.
    pub(super) fn synced(&mut self, mark: u64) -> impl Iterator<Item = C> {
        let first = self.made - self.changes.len() as u64;
        let covered = mark.saturating_sub(first) as usize;
        self.changes.drain(..covered.min(self.changes.len()))
    }

    /// Takes all of them, the oldest first.
    pub(super) fn take(&mut self) -> Vec<C> {
        std::mem::take(&mut self.changes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_covers_what_was_done_before_it_began_once() {
        let mut unsynced = Unsynced::default();
        unsynced.push(1);
        let early = unsynced.mark();
        unsynced.push(2);
        let late = unsynced.mark();
        unsynced.push(3);
        assert_eq!(unsynced.synced(late).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(unsynced.synced(early).count(), 0);
        assert_eq!(unsynced.synced(late).count(), 0);
        assert_eq!(unsynced.take(), [3]);
    }
}
