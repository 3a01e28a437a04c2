//! What a log counts: syncs, how long they take, how many files they cover.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

/// Says what the log's metrics mean; once, when the recorder is there.
pub fn describe() {
    describe_counter!(
        "quorate_log_flushes_total",
        "Group commits: syncs of what was appended since the last, for all partitions at once"
    );
    describe_counter!(
        "quorate_log_flushed_partitions_total",
        "Partitions that group commits covered"
    );
    describe_counter!(
        "quorate_log_flush_errors_total",
        "Partitions whose sync failed (R13)"
    );
    describe_histogram!(
        "quorate_log_flush_duration_seconds",
        Unit::Seconds,
        "How long a group commit takes"
    );
}

pub(crate) struct Flushes {
    flushes: Counter,
    partitions: Counter,
    errors: Counter,
    duration: Histogram,
}

impl Flushes {
    pub(crate) fn new() -> Self {
        Self {
            flushes: counter!("quorate_log_flushes_total"),
            partitions: counter!("quorate_log_flushed_partitions_total"),
            errors: counter!("quorate_log_flush_errors_total"),
            duration: histogram!("quorate_log_flush_duration_seconds"),
        }
    }

    pub(crate) fn done(&self, partitions: usize, errors: usize, took: Duration) {
        self.flushes.increment(1);
        self.partitions.increment(partitions as u64);
        self.errors.increment(errors as u64);
        self.duration.record(took.as_secs_f64());
    }
}
