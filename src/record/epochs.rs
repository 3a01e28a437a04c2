//! Which leader epoch begins where in a log (KIP-101).

use quorate_types::{LeaderEpoch, Offset};

/// The epochs of a log with their first offsets, both strictly rising.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaderEpochCache {
    entries: Vec<(LeaderEpoch, Offset)>,
}

impl LeaderEpochCache {
    /// Notes that `epoch` begins at `first`. An epoch that is not newer than the last one changes
    /// nothing; an epoch that begins where the last one did (which then holds no record)
    /// replaces it.
    pub fn assign(&mut self, epoch: LeaderEpoch, first: Offset) {
        if self.last().is_some_and(|last| epoch <= last) {
            return;
        }
        while self
            .entries
            .last()
            .is_some_and(|(_, start)| *start >= first)
        {
            self.entries.pop();
        }
        self.entries.push((epoch, first));
    }

    /// Notes that the records from `base` to `end` are of `epoch`. What contradicts them goes: an
    /// epoch that was begun there, and never held a record before older ones came from another
    /// replica.
    pub fn note_records(&mut self, epoch: LeaderEpoch, base: Offset, end: Offset) {
        let last = self.entries.last();
        if last.is_some_and(|(last, start)| *last == epoch && *start <= base) {
            return;
        }
        self.entries.retain(|(other, start)| {
            let begun_in_vain = *start <= base && *other > epoch;
            let within = *start > base && *start < end;
            let falls = *start >= end && *other <= epoch;
            !(begun_in_vain || within || falls)
        });
        let next = self.entries.partition_point(|(_, start)| *start <= base);
        match self.entries[..next].last().copied() {
            Some((last, _)) if last == epoch => {}
            Some((_, start)) if start == base => self.entries[next - 1] = (epoch, base),
            _ => self.entries.insert(next, (epoch, base)),
        }
    }

    /// The newest epoch.
    pub fn last(&self) -> Option<LeaderEpoch> {
        self.entries.last().map(|(epoch, _)| *epoch)
    }

    /// All epochs, oldest first.
    pub fn entries(&self) -> &[(LeaderEpoch, Offset)] {
        &self.entries
    }

    /// The largest epoch ≤ `asked`, and where it ends: the next epoch's first offset, or the log's
    /// end (KIP-101's `OffsetsForLeaderEpoch`). None where every epoch is newer.
    pub fn end_offset_for(
        &self,
        asked: LeaderEpoch,
        log_end: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        let next = self.entries.partition_point(|(epoch, _)| *epoch <= asked);
        let (epoch, _) = self.entries[..next].last()?;
        let end = self.entries.get(next).map_or(log_end, |(_, start)| *start);
        Some((*epoch, end))
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let next = self.entries.partition_point(|(_, start)| *start <= offset);
        self.entries[..next].last().map(|(epoch, _)| *epoch)
    }

    /// Forgets every epoch that begins at or above `end` (R4).
    pub fn truncate_to(&mut self, end: Offset) {
        self.entries.retain(|(_, start)| *start < end);
    }

    /// Rebuilds a cache from entries.
    ///
    /// # Errors
    /// The entries back where epochs or offsets do not rise.
    pub fn from_entries(
        entries: Vec<(LeaderEpoch, Offset)>,
    ) -> Result<Self, Vec<(LeaderEpoch, Offset)>> {
        let rises = |pair: &[(LeaderEpoch, Offset)]| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1;
        if entries.windows(2).all(rises) {
            Ok(Self { entries })
        } else {
            Err(entries)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(u32, u64)]) -> LeaderEpochCache {
        let mut cache = LeaderEpochCache::default();
        for (epoch, first) in entries {
            cache.assign(LeaderEpoch::new(*epoch), Offset::new(*first));
        }
        cache
    }

    fn end(cache: &LeaderEpochCache, asked: u32) -> Option<(u32, u64)> {
        let found = cache.end_offset_for(LeaderEpoch::new(asked), Offset::new(100))?;
        Some((found.0.get(), found.1.get()))
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins_and_the_last_at_the_logs_end() {
        let cache = cache(&[(2, 0), (5, 40), (6, 70)]);
        assert_eq!(end(&cache, 1), None);
        assert_eq!(end(&cache, 2), Some((2, 40)));
        assert_eq!(end(&cache, 4), Some((2, 40)));
        assert_eq!(end(&cache, 5), Some((5, 70)));
        assert_eq!(end(&cache, 9), Some((6, 100)));
    }

    #[test]
    fn an_epoch_without_records_is_replaced_by_the_next() {
        let cache = cache(&[(1, 0), (2, 10), (3, 10)]);
        assert_eq!(cache.entries().len(), 2);
        assert_eq!(end(&cache, 2), Some((1, 10)));
    }

    #[test]
    fn records_tell_more_than_an_epoch_that_was_begun_in_vain() {
        let mut cache = cache(&[(1, 0), (9, 10), (12, 20)]);
        let note = |cache: &mut LeaderEpochCache, epoch, base, end| {
            cache.note_records(LeaderEpoch::new(epoch), Offset::new(base), Offset::new(end));
        };
        note(&mut cache, 8, 10, 15);
        note(&mut cache, 8, 15, 20);
        note(&mut cache, 12, 20, 21);
        note(&mut cache, 13, 30, 31);
        let starts: Vec<_> = cache
            .entries()
            .iter()
            .map(|(e, o)| (e.get(), o.get()))
            .collect();
        assert_eq!(starts, [(1, 0), (8, 10), (12, 20), (13, 30)]);
    }

    #[test]
    fn truncation_forgets_what_begins_above() {
        let mut cache = cache(&[(1, 0), (2, 10), (3, 20)]);
        cache.truncate_to(Offset::new(10));
        assert_eq!(cache.last(), Some(LeaderEpoch::new(1)));
        assert_eq!(cache.epoch_at(Offset::new(9)), Some(LeaderEpoch::new(1)));
    }
}
