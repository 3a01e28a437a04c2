//! Latencies in a histogram: microseconds, three significant digits, from 1 µs to an hour.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// One hour; what took longer counts as an hour.
const LONGEST_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// Many latencies, in a bounded space.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self(histogram.expect("the bounds are constants that the histogram accepts"))
    }
}

/// What latencies come to, in milliseconds; none where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half took at most so long.
    pub p50_ms: Option<f64>,
    /// 99 of 100 took at most so long.
    pub p99_ms: Option<f64>,
    /// 999 of 1,000 took at most so long.
    pub p999_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(micros.clamp(1, LONGEST_US));
    }

    /// Counts all of another's.
    pub fn add(&mut self, other: &Self) {
        let added = self.0.add(&other.0);
        added.expect("both histograms have the same constant bounds");
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// How many took longer than this, to the histogram's precision.
    #[cfg(test)]
    pub(crate) fn over(&self, latency: Duration) -> u64 {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
        self.0.count_between(micros + 1, LONGEST_US)
    }

    /// What they come to.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| {
            (self.count() > 0).then(|| self.0.value_at_quantile(quantile) as f64 / 1_000.0)
        };
        Percentiles {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: (self.count() > 0).then(|| self.0.max() as f64 / 1_000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(), Percentiles::default());
        for millis in 1..=1_000 {
            latencies.record(Duration::from_millis(millis));
        }
        let found = latencies.percentiles();
        let near = |found: Option<f64>, wanted: f64| {
            let found = found.unwrap();
            assert!((found - wanted).abs() <= wanted / 500.0, "{found} {wanted}");
        };
        near(found.p50_ms, 500.0);
        near(found.p99_ms, 990.0);
        near(found.p999_ms, 999.0);
        near(found.max_ms, 1_000.0);
    }

    #[test]
    fn added_latencies_count_and_what_is_out_of_bounds_is_cut() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        one.record(Duration::ZERO);
        other.record(Duration::from_secs(86_400));
        one.add(&other);
        assert_eq!(one.count(), 2);
        let longest = one.percentiles().max_ms.unwrap();
        assert!((3_595_000.0..3_605_000.0).contains(&longest), "{longest}");
    }
}
