//! The newest batches of a log in memory, for followers and for readers that keep up; bounded for
//! each log, and for all logs of a node together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use quorate_record::Batch;
use quorate_types::Offset;

/// So many batches of the tail are looked at one by one before the search by halves.
const NEWEST: usize = 8;

/// What the tails of all logs of a node may take together. A log gets an equal share of it; what
/// others hold beyond theirs, since there were fewer logs when they were written last, is missing
/// from its own until they are written again.
#[derive(Debug)]
pub struct TailBudget {
    limit: usize,
    used: AtomicUsize,
    logs: AtomicUsize,
}

impl TailBudget {
    /// For `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            logs: AtomicUsize::new(0),
        })
    }

    /// Bytes that the tails hold now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that they may hold.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn share(&self) -> usize {
        self.limit / self.logs.load(Ordering::Relaxed).max(1)
    }
}

/// The newest batches, contiguous up to the log's end.
#[derive(Debug)]
pub(crate) struct Tail {
    batches: VecDeque<(Offset, Offset, Bytes)>,
    bytes: usize,
    limit: usize,
    budget: Option<Arc<TailBudget>>,
}

impl Tail {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            limit,
            budget: None,
        }
    }

    /// From now on this tail keeps within the budget, too.
    pub(crate) fn share(&mut self, budget: Arc<TailBudget>) {
        self.leave();
        budget.used.fetch_add(self.bytes, Ordering::Relaxed);
        budget.logs.fetch_add(1, Ordering::Relaxed);
        self.budget = Some(budget);
        self.trim();
    }

    fn leave(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
            budget.logs.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn added(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(budget) = &self.budget {
            budget.used.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn removed(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn too_much(&self) -> bool {
        self.bytes > self.limit
            || self
                .budget
                .as_ref()
                .is_some_and(|budget| self.bytes > budget.share() || budget.used() > budget.limit)
    }

    fn trim(&mut self) {
        while self.too_much()
            && let Some((_, _, oldest)) = self.batches.pop_front()
        {
            self.removed(oldest.len());
        }
    }

    pub(crate) fn push(&mut self, batch: &Batch) {
        self.added(batch.size());
        self.batches.push_back((
            batch.base_offset(),
            batch.end_offset(),
            batch.bytes().clone(),
        ));
        self.trim();
    }

    pub(crate) fn truncate_to(&mut self, end: Offset) {
        while self
            .batches
            .back()
            .is_some_and(|(_, batch_end, _)| *batch_end > end)
        {
            if let Some((_, _, newest)) = self.batches.pop_back() {
                self.removed(newest.len());
            }
        }
    }

    /// The place of the first batch that ends above `from`. Most who ask want the newest.
    fn first_after(&self, from: Offset) -> usize {
        let newest = self.batches.iter().rev().take(NEWEST);
        let above = newest.take_while(|(_, end, _)| *end > from).count();
        match above {
            NEWEST => self.batches.partition_point(|(_, end, _)| *end <= from),
            fewer => self.batches.len() - fewer,
        }
    }

    pub(crate) fn read(&self, from: Offset, up_to: Offset, max_bytes: usize) -> Option<Bytes> {
        let (first, _, _) = self.batches.front()?;
        if from < *first {
            return None;
        }
        let start = self.first_after(from);
        let mut total = 0;
        let chosen: Vec<&Bytes> = self
            .batches
            .range(start..)
            .take_while(|(_, end, bytes)| {
                let taken = *end <= up_to && (total == 0 || total + bytes.len() <= max_bytes);
                total += bytes.len();
                taken
            })
            .map(|(_, _, bytes)| bytes)
            .collect();
        match chosen[..] {
            [] => Some(Bytes::new()),
            [one] => Some(one.clone()),
            ref many => {
                let mut out = BytesMut::with_capacity(many.iter().map(|bytes| bytes.len()).sum());
                many.iter().for_each(|bytes| out.extend_from_slice(bytes));
                Some(out.freeze())
            }
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use quorate_record::{BatchBuilder, Compression};
    use quorate_types::{LeaderEpoch, Timestamp};

    use super::*;

    fn batch(base: u64) -> Batch {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(Timestamp::from_millis(1), None, Some(&[7; 100]), &[]);
        builder
            .build()
            .stamped(Offset::new(base), LeaderEpoch::new(1))
    }

    #[test]
    fn tails_keep_within_what_they_may_take_together() {
        let size = batch(0).size();
        let budget = TailBudget::new(4 * size);
        let mut tails: Vec<Tail> = (0..2).map(|_| Tail::new(100 * size)).collect();
        let fill = |tail: &mut Tail, from: u64| {
            for offset in from..from + 10 {
                tail.push(&batch(offset));
            }
        };
        tails[0].share(Arc::clone(&budget));
        fill(&mut tails[0], 0);
        assert_eq!(budget.used(), 4 * size, "one log alone has everything");
        tails[1].share(Arc::clone(&budget));
        fill(&mut tails[1], 0);
        assert_eq!(tails[1].bytes, 0, "the first still holds it all");
        assert_eq!(
            tails[1].read(Offset::new(9), Offset::new(10), 1),
            None,
            "from the disk, then"
        );
        fill(&mut tails[0], 10);
        fill(&mut tails[1], 10);
        assert_eq!(tails[0].bytes, 2 * size);
        assert_eq!(tails[1].bytes, 2 * size);
        tails[1].truncate_to(Offset::new(19));
        assert_eq!(budget.used(), 3 * size);
        drop(tails);
        assert_eq!(budget.used(), 0);
    }
}
