//! When each record is to be sent, and which of them are measured.
//!
//! Open loop: with a rate, record n is meant for the time n / rate, whatever became of those before
//! it. Closed loop: without a rate, the next record is sent as soon as there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// What is sent so long at first is not measured.
    pub warm_up: Duration,
    /// The measured part ends after so long.
    pub duration: Duration,
    /// It ends after so many records too.
    pub records: Option<u64>,
    /// Records a second over all producers, open loop; none for closed loop. Above 0.
    pub rate: Option<f64>,
}

/// A plan with its beginning; shared by all producers.
#[derive(Debug)]
pub(crate) struct Schedule {
    begin: Instant,
    plan: Plan,
    /// Measured records of a closed loop.
    taken: AtomicU64,
}

impl Schedule {
    pub(crate) fn new(begin: Instant, plan: Plan) -> Self {
        Self {
            begin,
            plan,
            taken: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_open_loop(&self) -> bool {
        self.plan.rate.is_some()
    }

    /// From here on records are measured.
    pub(crate) fn measure_from(&self) -> Instant {
        self.begin + self.plan.warm_up
    }

    /// From here on no records are meant to be sent.
    pub(crate) fn until(&self) -> Instant {
        self.measure_from() + self.plan.duration
    }
}

/// One producer's share of a schedule.
pub(crate) struct Turns {
    schedule: Arc<Schedule>,
    next: u64,
    step: u64,
}

impl Turns {
    /// The share of producer `index` of `producers`.
    pub(crate) fn new(schedule: Arc<Schedule>, index: usize, producers: usize) -> Self {
        Self {
            schedule,
            next: index as u64,
            step: producers.max(1) as u64,
        }
    }

    /// When the next record is to be sent: in an open loop possibly in the past, in a closed loop
    /// now. None after the last.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        let Schedule { begin, plan, taken } = &*self.schedule;
        let Some(rate) = plan.rate else {
            if now >= self.schedule.until() {
                return None;
            }
            if let Some(records) = plan.records
                && now >= self.schedule.measure_from()
                && taken.fetch_add(1, Ordering::Relaxed) >= records
            {
                return None;
            }
            return Some(now);
        };
        let at = *begin + Duration::from_secs_f64(self.next as f64 / rate);
        let before = (plan.warm_up.as_secs_f64() * rate).ceil() as u64;
        let last = plan.records.map(|records| before.saturating_add(records));
        if at >= self.schedule.until() || last.is_some_and(|last| self.next >= last) {
            return None;
        }
        self.next += self.step;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(plan: Plan, producers: usize) -> Vec<Duration> {
        let begin = Instant::now();
        let schedule = Arc::new(Schedule::new(begin, plan));
        let mut times = Vec::new();
        for index in 0..producers {
            let mut turns = Turns::new(Arc::clone(&schedule), index, producers);
            times.extend(std::iter::from_fn(|| turns.next(begin)).map(|at| at - begin));
        }
        times.sort();
        times
    }

    const PLAN: Plan = Plan {
        warm_up: Duration::from_secs(1),
        duration: Duration::from_secs(2),
        records: None,
        rate: Some(10.0),
    };

    #[test]
    fn an_open_loop_does_not_ask_what_time_it_is() {
        let times = all(PLAN, 1);
        assert_eq!(times.len(), 30);
        assert_eq!(times[29], Duration::from_millis(2_900));
        assert_eq!(all(PLAN, 3), times);
    }

    #[test]
    fn so_many_records_are_measured_after_the_warm_up() {
        let plan = Plan {
            records: Some(4),
            ..PLAN
        };
        assert_eq!(all(plan, 2).len(), 10 + 4);
    }

    #[test]
    fn a_closed_loop_ends_by_time_or_by_records() {
        let begin = Instant::now();
        let plan = Plan {
            rate: None,
            records: Some(2),
            ..PLAN
        };
        let schedule = Arc::new(Schedule::new(begin, plan));
        let mut turns = Turns::new(Arc::clone(&schedule), 0, 1);
        // The warm-up does not count.
        for _ in 0..5 {
            assert_eq!(turns.next(begin), Some(begin));
        }
        let measured = schedule.measure_from();
        assert_eq!(turns.next(measured), Some(measured));
        assert!(turns.next(measured).is_some());
        assert_eq!(turns.next(measured), None);
        let plan = Plan { rate: None, ..PLAN };
        let schedule = Arc::new(Schedule::new(begin, plan));
        let mut turns = Turns::new(Arc::clone(&schedule), 0, 1);
        assert_eq!(turns.next(schedule.until()), None);
    }
}
