//! What a broker counts: produces with the stages of their latency, fetches, and what waits.

use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    histogram,
};
use quorate_replication::{ProduceError, Produced};

/// Says what the broker's metrics mean; once, when the recorder is there.
pub fn describe() {
    describe_counter!(
        "quorate_produced_batches_total",
        "Batches acknowledged by the leaders of this node"
    );
    describe_counter!(
        "quorate_produced_records_total",
        "Records acknowledged by the leaders of this node"
    );
    describe_counter!(
        "quorate_produced_bytes_total",
        Unit::Bytes,
        "Bytes of batches acknowledged by the leaders of this node"
    );
    describe_counter!(
        "quorate_produce_errors_total",
        "Batches refused or not acknowledged in time, by code"
    );
    describe_histogram!(
        "quorate_produce_stage_duration_seconds",
        Unit::Seconds,
        "A batch's way: `room` until there is memory for it, `queue` until the leader takes it, \
         `commit` until it is answered (append, sync and replicas)"
    );
    describe_counter!(
        "quorate_fetched_bytes_total",
        Unit::Bytes,
        "Bytes of batches read for consumers"
    );
    describe_counter!(
        "quorate_fetch_reads_total",
        "Reads for consumers, by where the batches were"
    );
    describe_counter!(
        "quorate_group_heartbeats_total",
        "Heartbeats of members whose groups this node coordinates"
    );
    describe_counter!(
        "quorate_group_commit_items_total",
        "Offsets that this node has proposed to the metadata quorum for groups"
    );
    describe_counter!(
        "quorate_group_commit_proposals_total",
        "Entries of the metadata log that those offsets became"
    );
    describe_counter!(
        "quorate_group_changes_total",
        "Changes of groups' members that this node has proposed"
    );
    describe_counter!(
        "quorate_group_change_proposals_total",
        "Entries of the metadata log that those changes became"
    );
    describe_gauge!(
        "quorate_groups_coordinated",
        "Groups with members that this node coordinates"
    );
}

/// The figures of produces.
pub(crate) struct Produces {
    batches: Counter,
    records: Counter,
    bytes: Counter,
    queue: Histogram,
    commit: Histogram,
}

fn stage(name: &'static str) -> Histogram {
    histogram!("quorate_produce_stage_duration_seconds", "stage" => name)
}

impl Produces {
    pub(crate) fn new() -> Self {
        Self {
            batches: counter!("quorate_produced_batches_total"),
            records: counter!("quorate_produced_records_total"),
            bytes: counter!("quorate_produced_bytes_total"),
            queue: stage("queue"),
            commit: stage("commit"),
        }
    }

    pub(crate) fn taken(&self, waited: Duration) {
        self.queue.record(waited.as_secs_f64());
    }

    pub(crate) fn answered(
        &self,
        result: &Result<Produced, ProduceError>,
        (bytes, records): (usize, u32),
        took: Duration,
    ) {
        self.commit.record(took.as_secs_f64());
        match result {
            Ok(_) => {
                self.batches.increment(1);
                self.records.increment(records.into());
                self.bytes.increment(bytes as u64);
            }
            Err(error) => refused(error),
        }
    }
}

/// A produce was refused.
pub(crate) fn refused(error: &ProduceError) {
    counter!("quorate_produce_errors_total", "code" => error.code().name()).increment(1);
}

/// The wait for memory.
pub(crate) fn room() -> Histogram {
    stage("room")
}

/// The figures of fetches.
pub(crate) struct Fetches {
    bytes: Counter,
    memory: Counter,
    disk: Counter,
}

impl Fetches {
    pub(crate) fn new() -> Self {
        let reads = |from: &'static str| counter!("quorate_fetch_reads_total", "from" => from);
        Self {
            bytes: counter!("quorate_fetched_bytes_total"),
            memory: reads("memory"),
            disk: reads("disk"),
        }
    }

    pub(crate) fn read(&self, bytes: usize, from_memory: bool) {
        self.bytes.increment(bytes as u64);
        let reads = if from_memory {
            &self.memory
        } else {
            &self.disk
        };
        reads.increment(1);
    }
}
