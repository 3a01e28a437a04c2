//! What a load measured, and why one could not be run.

use std::time::Duration;

use quorate_client::ClientError;
use quorate_types::NodeId;
use serde::Serialize;
use tokio::task::JoinError;

use crate::latencies::Percentiles;
use crate::reader::ReadFailed;
use crate::writer::WriterFailed;

/// What a load measured. Its JSON is a contract: names are added, never changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Measured records: acknowledged, or read.
    pub records: u64,
    /// Records of the warm-up, which are not measured.
    pub warm_up_records: u64,
    /// Records that failed or whose fate is unknown, over the whole run with its warm-up; also
    /// those that a rate meant to be sent and that were not.
    pub failed: u64,
    /// The first failure.
    pub first_error: Option<String>,
    /// The measured part: from the end of the warm-up to the last measured record.
    pub seconds: f64,
    /// Measured records a second.
    pub records_per_second: f64,
    /// Their values' (and keys') bytes a second, in 10^6 bytes.
    pub mb_per_second: f64,
    /// Latencies of measured records; of measured fetches where a load only reads.
    #[serde(flatten)]
    pub latency: Percentiles,
    /// The most that the generator was behind an intended time; none in a closed loop.
    pub behind_ms: Option<f64>,
    /// How long the generator waited for room: in the producer's buffer, or below the bound of
    /// records in flight. Summed over producers.
    pub waited_for_room_ms: f64,
    /// Whether it was stopped before its time.
    pub stopped_early: bool,
    /// CPU time of this process in the measured part.
    pub cpu_seconds: f64,
    /// The same for each 10^9 bytes of records.
    pub cpu_seconds_per_gb: Option<f64>,
    /// CPU time of all nodes; none where they cannot be seen from here.
    pub nodes_cpu_seconds: Option<f64>,
    /// The same for each 10^9 bytes of records.
    pub nodes_cpu_seconds_per_gb: Option<f64>,
    /// What a failover load saw beside.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverReport>,
}

/// What a failover load saw beside its latencies.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FailoverReport {
    /// The longest time without an acknowledgement in any partition: one a kill, or without kills
    /// one for each time that leaders changed.
    pub gaps_ms: Vec<f64>,
    /// Each gap: what it was of.
    pub gaps: Vec<Gap>,
    /// Kills that were asked for and not done, or whose gap was not seen to its end.
    pub kills_missing: u64,
    /// Changes of partition leaders that were seen.
    pub leader_changes: u64,
    /// What the check of the log against the history found: acknowledged records that are lost or
    /// moved, records that are doubled, invented or out of order.
    pub violations: u64,
    /// Some of them in words.
    pub violations_seen: Vec<String>,
    /// Acknowledged records that were looked for in the log.
    pub checked: u64,
}

/// One gap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gap {
    /// Its length.
    pub gap_ms: f64,
    /// Partitions whose leader changed, or that acknowledged nothing any more.
    pub partitions: Vec<u32>,
    /// Whether some of them had not acknowledged anything again when the load ended.
    pub open: bool,
    /// The node that was killed, where this load did it.
    pub killed: Option<u32>,
    /// Whether that node ran the active controller.
    pub controller: Option<bool>,
}

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailed {
    /// The cluster did not do what the load needs.
    #[error("{what}: {source}")]
    Client {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        source: ClientError,
    },
    /// Something did not come true in time.
    #[error("waited {seconds} s for {what}: {why}")]
    NotInTime {
        /// What.
        what: &'static str,
        /// How long.
        seconds: u64,
        /// What was seen last.
        why: String,
    },
    /// A node was not killed or started.
    #[error("node {node} was not {what}: {source}")]
    Node {
        /// Which.
        node: NodeId,
        /// What was asked.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A writer has no history.
    #[error(transparent)]
    Writer(#[from] WriterFailed),
    /// The log could not be read back, so nothing was checked.
    #[error("the log could not be checked: {0}")]
    Check(#[from] ReadFailed),
    /// A task of the load died.
    #[error(transparent)]
    Task(#[from] JoinError),
}

impl LoadFailed {
    pub(crate) fn client(what: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |source| Self::Client { what, source }
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

impl Report {
    /// Fills in the rates; `bytes` are those of the measured records.
    pub(crate) fn set_rates(&mut self, bytes: u64, took: Duration) {
        self.seconds = took.as_secs_f64();
        if took > Duration::ZERO {
            self.records_per_second = self.records as f64 / self.seconds;
            self.mb_per_second = bytes as f64 / 1e6 / self.seconds;
        }
        let gb = (bytes > 0).then_some(bytes as f64 / 1e9);
        self.cpu_seconds_per_gb = gb.map(|gb| self.cpu_seconds / gb);
        self.nodes_cpu_seconds_per_gb = gb
            .zip(self.nodes_cpu_seconds)
            .map(|(gb, seconds)| seconds / gb);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(report: &Report) -> Vec<String> {
        let value = serde_json::to_value(report).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_json_keeps_its_names() {
        let always = [
            "behind_ms",
            "cpu_seconds",
            "cpu_seconds_per_gb",
            "failed",
            "first_error",
            "max_ms",
            "mb_per_second",
            "nodes_cpu_seconds",
            "nodes_cpu_seconds_per_gb",
            "p50_ms",
            "p999_ms",
            "p99_ms",
            "records",
            "records_per_second",
            "seconds",
            "stopped_early",
            "waited_for_room_ms",
            "warm_up_records",
        ];
        let mut report = Report::default();
        assert_eq!(names(&report), always);
        report.failover = Some(FailoverReport::default());
        let mut more = always.map(str::to_owned).to_vec();
        let of_failover = [
            "checked",
            "gaps",
            "gaps_ms",
            "kills_missing",
            "leader_changes",
            "violations",
            "violations_seen",
        ];
        more.extend(of_failover.map(str::to_owned));
        more.sort();
        assert_eq!(names(&report), more);
    }

    #[test]
    fn rates_are_of_the_measured_time() {
        let mut report = Report {
            records: 1_000,
            cpu_seconds: 1.0,
            nodes_cpu_seconds: Some(4.0),
            ..Report::default()
        };
        report.set_rates(2_000_000, Duration::from_millis(500));
        assert_eq!(report.records_per_second, 2_000.0);
        assert_eq!(report.mb_per_second, 4.0);
        assert_eq!(report.cpu_seconds_per_gb, Some(500.0));
        assert_eq!(report.nodes_cpu_seconds_per_gb, Some(2_000.0));
        report.set_rates(0, Duration::ZERO);
        assert_eq!(report.cpu_seconds_per_gb, None);
    }
}
