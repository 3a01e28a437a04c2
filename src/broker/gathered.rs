//! Many small changes as few proposals: while some are under way, what comes is gathered, and goes
//! with the next. Under load proposals grow, and their number does not (group commit).
//!
//! Bounds: proposals under way, items and bytes of each. What waits is bounded by whoever puts it
//! here.

use std::collections::VecDeque;

/// Proposals of one kind under way at a time, where their order does not matter.
pub(crate) const IN_FLIGHT: usize = 4;
/// Items of one proposal, and about so many bytes; a larger single one goes alone.
const ITEMS: usize = 5_000;
const BYTES: usize = 512 << 10;

/// How much a change takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Size {
    pub(crate) items: usize,
    /// About as it is written in the metadata log.
    pub(crate) bytes: usize,
}

/// Changes that wait for their proposal, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    waiting: VecDeque<(T, Size)>,
    in_flight: usize,
    most: usize,
}

impl<T> Gathered<T> {
    /// With so many proposals under way at most; with one they are applied in their order.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: 0,
            most,
        }
    }

    pub(crate) fn push(&mut self, change: T, size: Size) {
        self.waiting.push_back((change, size));
    }

    /// The changes of the next proposal, where one may go; [`Self::ended`] is owed for it. Those that
    /// `wanted` says nobody waits for any more are left out.
    pub(crate) fn next(&mut self, wanted: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        if self.in_flight >= self.most {
            return None;
        }
        let mut batch = Vec::new();
        let mut size = Size::default();
        while let Some((change, next)) = self.waiting.pop_front() {
            if !wanted(&change) {
                continue;
            }
            let full = size.items + next.items > ITEMS || size.bytes + next.bytes > BYTES;
            if full && !batch.is_empty() {
                self.waiting.push_front((change, next));
                break;
            }
            size.items += next.items;
            size.bytes += next.bytes;
            batch.push(change);
        }
        if batch.is_empty() {
            return None;
        }
        self.in_flight += 1;
        Some(batch)
    }

    /// A proposal has an outcome.
    pub(crate) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;

    const ONE: Size = Size {
        items: 1,
        bytes: 100,
    };

    #[test]
    fn what_comes_while_proposals_are_under_way_goes_as_one() {
        let mut gathered = Gathered::new(IN_FLIGHT);
        let all = |_: &u32| true;
        for number in 0..IN_FLIGHT as u32 {
            gathered.push(number, ONE);
            assert_eq!(gathered.next(all), Some(vec![number]));
        }
        for number in 10..15 {
            gathered.push(number, ONE);
        }
        assert_eq!(gathered.next(all), None, "enough are under way");
        gathered.ended();
        assert_eq!(gathered.next(all), Some(vec![10, 11, 12, 13, 14]));
        assert_eq!(gathered.next(all), None);
    }

    #[test]
    fn a_proposal_has_bounds_and_what_is_larger_goes_alone() {
        let mut gathered = Gathered::new(IN_FLIGHT);
        let large = Size {
            items: 1,
            bytes: BYTES + 1,
        };
        let many = Size {
            items: ITEMS,
            bytes: 0,
        };
        for (number, size) in [(0, ONE), (1, large), (2, many), (3, ONE), (4, ONE)] {
            gathered.push(number, size);
        }
        let mut take = || {
            let batch = gathered.next(|_| true);
            gathered.ended();
            batch.unwrap()
        };
        assert_eq!(take(), [0]);
        assert_eq!(take(), [1]);
        assert_eq!(take(), [2]);
        assert_eq!(take(), [3, 4]);
    }

    #[test]
    fn one_at_a_time_waits_for_the_one_before() {
        let mut gathered = Gathered::new(1);
        for number in 0..3 {
            gathered.push(number, ONE);
        }
        assert_eq!(gathered.next(|number| *number < 1), Some(vec![0]));
        gathered.push(3, ONE);
        assert_eq!(gathered.next(|_| true), None, "the first is not decided");
        gathered.ended();
        assert_eq!(gathered.next(|_| true), Some(vec![3]));
    }

    #[test]
    fn what_nobody_waits_for_is_not_proposed() {
        let mut gathered = Gathered::new(IN_FLIGHT);
        for number in 0..4 {
            gathered.push(number, ONE);
        }
        assert_eq!(gathered.next(|number| number % 2 == 1), Some(vec![1, 3]));
        gathered.push(4, ONE);
        assert_eq!(gathered.next(|_| false), None);
        assert_eq!(gathered.in_flight, 1);
    }
}
