//! What was sent and what the client has given back: how much more may be sent, and, with
//! `auto_commit`, how far each partition is done. Pure.
//!
//! Bound: a response counts for a few bytes more than it has, so that the credit bounds their number.

use std::collections::{BTreeMap, VecDeque};

use quorate_types::{LeaderEpoch, Offset, TopicPartition};

/// Credit of who asks for none in particular, and at most.
const CREDIT: (u32, u32) = (1 << 20, 64 << 20);
/// What a response counts for beside its records.
const RESPONSE: usize = 128;

/// The bytes that a response counts for.
pub(super) fn counted(length: usize) -> u32 {
    u32::try_from(length.saturating_add(RESPONSE)).unwrap_or(u32::MAX)
}

/// Bytes that may be under way.
#[derive(Debug)]
pub(super) struct Credit {
    /// Sent and not given back.
    used: u64,
    limit: u64,
}

impl Credit {
    /// None where more is asked for than there may be.
    pub(super) fn new(asked: u32) -> Option<Self> {
        let limit = match asked {
            0 => CREDIT.0,
            asked if asked > CREDIT.1 => return None,
            asked => asked,
        };
        Some(Self {
            used: 0,
            limit: limit.into(),
        })
    }

    /// Whether a response may be sent: one may be larger than what is left.
    pub(super) fn is_left(&self) -> bool {
        self.used < self.limit
    }

    pub(super) fn sent(&mut self, bytes: u32) {
        self.used += u64::from(bytes);
    }

    /// A response is not sent after all.
    pub(super) fn unsent(&mut self, bytes: u32) {
        self.used = self.used.saturating_sub(bytes.into());
    }

    /// False where more is given back than was sent.
    #[must_use]
    pub(super) fn given_back(&mut self, bytes: u32) -> bool {
        let left = self.used.checked_sub(bytes.into());
        self.used = left.unwrap_or(0);
        left.is_some()
    }
}

/// How far a partition is done: the next offset, and the epoch of the record before it.
pub(super) type Place = (Offset, Option<LeaderEpoch>);

/// What of it all the client is done with.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// In the order in which it was sent; taken away partitions have none of it.
    sent: VecDeque<(TopicPartition, Place, u64)>,
    /// How many of them are of each partition.
    under_way: BTreeMap<TopicPartition, usize>,
    /// Given back, and less than the first takes.
    given: u64,
    /// Done and not committed.
    done: BTreeMap<TopicPartition, Place>,
    /// On its way to the quorum.
    committing: BTreeMap<TopicPartition, Place>,
    /// Taken away while it was under way; its bytes come back all the same.
    forgotten: BTreeMap<TopicPartition, usize>,
}

impl Progress {
    pub(super) fn sent(&mut self, at: TopicPartition, place: Place, bytes: u32) {
        self.sent.push_back((at, place, bytes.into()));
        *self.under_way.entry(at).or_default() += 1;
    }

    /// What was sent last is not sent after all.
    pub(super) fn unsent(&mut self) {
        if let Some((at, _, _)) = self.sent.pop_back() {
            self.comes_back(&at);
            let left = self.under_way(&at);
            if let Some(forgotten) = self.forgotten.get_mut(&at) {
                *forgotten = left.min(*forgotten);
            }
            self.forgotten.retain(|_, count| *count > 0);
        }
    }

    fn comes_back(&mut self, at: &TopicPartition) {
        if let Some(count) = self.under_way.get_mut(at) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(at);
            }
        }
    }

    fn under_way(&self, at: &TopicPartition) -> usize {
        self.under_way.get(at).copied().unwrap_or(0)
    }

    /// Where a partition begins of which nothing is committed: so that its next reader begins there,
    /// too, where nothing comes of it before.
    pub(super) fn begun(&mut self, at: TopicPartition, place: Offset) {
        self.done.insert(at, (place, None));
    }

    /// The client is done with so many bytes more, in the order in which they were sent.
    pub(super) fn given_back(&mut self, bytes: u32) {
        self.given += u64::from(bytes);
        while let Some((at, place, bytes)) = self.sent.front().copied()
            && bytes <= self.given
        {
            self.given -= bytes;
            self.sent.pop_front();
            self.comes_back(&at);
            match self.forgotten.get_mut(&at) {
                Some(1) => {
                    self.forgotten.remove(&at);
                }
                Some(more) => *more -= 1,
                None => {
                    self.done.insert(at, place);
                }
            }
        }
    }

    /// What is to be committed, where nothing is on its way.
    pub(super) fn commit(&mut self) -> Option<BTreeMap<TopicPartition, Place>> {
        if !self.committing.is_empty() || self.done.is_empty() {
            return None;
        }
        self.committing = std::mem::take(&mut self.done);
        Some(self.committing.clone())
    }

    /// What was on its way has arrived, or is to be tried again.
    pub(super) fn committed(&mut self, done: bool) {
        let committing = std::mem::take(&mut self.committing);
        if !done {
            for (at, place) in committing {
                // Newer wins.
                self.done.entry(at).or_insert(place);
            }
        }
    }

    /// Whether all that was sent of a partition is done and committed.
    pub(super) fn is_settled(&self, at: &TopicPartition) -> bool {
        let forgotten = self.forgotten.get(at).copied().unwrap_or(0);
        self.under_way(at) == forgotten
            && !self.done.contains_key(at)
            && !self.committing.contains_key(at)
    }

    /// What was sent of a partition and not given back does not count any more.
    pub(super) fn abandon(&mut self, at: &TopicPartition) {
        let sent = self.under_way(at);
        if sent > 0 {
            self.forgotten.insert(*at, sent);
        }
    }

    /// The partition is lost: nothing of it is committed any more.
    pub(super) fn lose(&mut self, at: &TopicPartition) {
        self.abandon(at);
        self.done.remove(at);
        self.committing.remove(at);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use quorate_types::{PartitionId, TopicId};

    use super::*;

    fn at(number: u32) -> TopicPartition {
        TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(number))
    }

    fn place(offset: u64) -> Place {
        (Offset::new(offset), None)
    }

    #[test]
    fn credit_bounds_what_is_under_way() {
        assert!(Credit::new(CREDIT.1 + 1).is_none());
        let mut credit = Credit::new(100).unwrap();
        credit.sent(90);
        assert!(credit.is_left());
        credit.sent(1_000);
        assert!(!credit.is_left());
        assert!(credit.given_back(990));
        assert!(!credit.is_left());
        assert!(credit.given_back(1));
        assert!(credit.is_left());
        assert!(!credit.given_back(100), "more than there was");
        assert!(Credit::new(0).unwrap().is_left());
    }

    #[test]
    fn what_is_given_back_whole_is_done_in_order() {
        let mut progress = Progress::default();
        progress.sent(at(0), place(5), 100);
        progress.sent(at(1), place(7), 50);
        progress.sent(at(0), place(9), 100);
        progress.given_back(99);
        assert_eq!(progress.commit(), None);
        progress.given_back(51);
        let first = progress.commit().unwrap();
        assert_eq!(first, [(at(0), place(5)), (at(1), place(7))].into());
        assert!(!progress.is_settled(&at(1)), "on its way");
        progress.given_back(100);
        assert_eq!(progress.commit(), None, "one at a time");
        progress.committed(false);
        let again = progress.commit().unwrap();
        assert_eq!(again, [(at(0), place(9)), (at(1), place(7))].into());
        progress.committed(true);
        assert!(progress.is_settled(&at(0)) && progress.is_settled(&at(1)));
    }

    #[test]
    fn what_was_sent_before_a_partition_was_taken_away_does_not_count_when_it_is_back() {
        let mut progress = Progress::default();
        progress.sent(at(0), place(5), 100);
        progress.lose(&at(0));
        assert!(progress.is_settled(&at(0)));
        // It is the member's again, from an earlier place.
        progress.sent(at(0), place(2), 10);
        assert!(!progress.is_settled(&at(0)));
        progress.given_back(100);
        assert_eq!(progress.commit(), None);
        progress.given_back(10);
        assert_eq!(progress.commit().unwrap(), [(at(0), place(2))].into());
    }
    #[test]
    fn what_was_not_sent_after_all_is_not_waited_for() {
        let mut progress = Progress::default();
        progress.sent(at(0), place(5), 100);
        progress.sent(at(0), place(6), 10);
        progress.lose(&at(0));
        progress.unsent();
        progress.given_back(100);
        assert_eq!(progress.commit(), None);
        // What comes afterwards counts.
        progress.sent(at(0), place(7), 10);
        progress.given_back(10);
        assert_eq!(progress.commit().unwrap(), [(at(0), place(7))].into());
        let mut credit = Credit::new(10).unwrap();
        credit.sent(10);
        credit.unsent(10);
        assert!(credit.is_left());
        assert!(!credit.given_back(1));
    }
}
