//! What the checkers see: every living replica's log and state after each step, read from the
//! shipped log, and what was acknowledged and read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use quorate_log::PartitionLog;
use quorate_metadata::Registration;
use quorate_record::{Batch, BatchHeader};
use quorate_replication::{Faults, Replica, Status};
use quorate_types::{LeaderEpoch, NodeId};

use super::disk::SimDisk;

/// A batch as a log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBatch {
    /// First offset.
    pub base: u64,
    /// Offset after the last.
    pub end: u64,
    /// The epoch it was appended in.
    pub epoch: LeaderEpoch,
    /// Over its bytes.
    pub hash: u64,
    /// Over what the client sent: offset and epoch apart.
    pub payload: u32,
    /// Producer id, epoch, first sequence.
    pub producer: Option<(u64, u16, u32)>,
}

impl SeenBatch {
    fn of(batch: &Batch) -> Self {
        let mut hash = DefaultHasher::new();
        hash.write(batch.bytes());
        Self {
            base: batch.base_offset().get(),
            end: batch.end_offset().get(),
            epoch: batch.leader_epoch(),
            hash: hash.finish(),
            payload: payload_of(batch),
            producer: batch
                .header()
                .producer
                .map(|tag| (tag.id.get(), tag.epoch.get(), tag.base_sequence.get())),
        }
    }
}

/// The checksum that a client's batch keeps wherever it is appended.
pub fn payload_of(batch: &Batch) -> u32 {
    let stored = &batch.bytes()[17..21];
    stored
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// A living replica.
pub struct Seen {
    /// Of which process.
    pub life: u64,
    /// The process is registered.
    pub registered: bool,
    /// What it is.
    pub status: Status,
    /// Its log by first offset.
    pub batches: BTreeMap<u64, SeenBatch>,
    /// Batches from here on were not there at the last look.
    pub new_from: u64,
    /// Its log's end.
    pub log_end: u64,
    /// What it says is on its disk.
    pub flushed: u64,
    /// What is on its disk, where it was looked at in this step.
    pub durable: Option<u64>,
    /// Its high watermark.
    pub high_watermark: u64,
    /// Truncations of its log in this life.
    pub generation: u64,
}

impl Seen {
    /// Looks at a replica; `before` is what was seen of the same process.
    pub fn look<F: Faults>(
        replica: &Replica<SimDisk, F>,
        (life, registered): (u64, bool),
        before: Option<Self>,
        disk: &SimDisk,
        folder: &str,
    ) -> Self {
        let log = replica.log();
        let generation = log.generation();
        let before = before.filter(|seen| seen.life == life && seen.generation == generation);
        let (mut batches, from, flushed_before) = match before {
            Some(seen) => (seen.batches, seen.log_end, Some(seen.flushed)),
            None => (BTreeMap::new(), log.log_start().get(), None),
        };
        read(log, from, &mut batches);
        let flushed = log.flushed_end().get();
        Self {
            life,
            registered,
            status: replica.status(),
            batches,
            new_from: from,
            log_end: log.log_end().get(),
            flushed,
            durable: (flushed_before != Some(flushed)).then(|| durable_end(disk, folder)),
            high_watermark: log.high_watermark().get(),
            generation,
        }
    }

    /// The batches that were not there at the last look.
    pub fn new_batches(&self) -> impl Iterator<Item = &SeenBatch> {
        self.batches.range(self.new_from..).map(|(_, batch)| batch)
    }

    /// Whether the log has this very batch.
    pub fn holds(&self, acked: &Acked) -> bool {
        self.batches
            .get(&acked.base)
            .is_some_and(|batch| batch.end == acked.end && batch.payload == acked.payload)
    }
}

fn read(log: &PartitionLog<SimDisk>, mut from: u64, into: &mut BTreeMap<u64, SeenBatch>) {
    let reader = log.reader();
    while from < log.log_end().get() {
        let bytes = reader
            .read(quorate_types::Offset::new(from), log.log_end(), 64 << 10)
            .expect("a log can be read");
        for batch in Batch::split(bytes).expect("a log holds batches") {
            from = batch.end_offset().get();
            into.insert(batch.base_offset().get(), SeenBatch::of(&batch));
        }
    }
}

/// Where the run of whole batches ends that a power loss would leave. Reads the files by itself:
/// recovery is not asked.
fn durable_end(disk: &SimDisk, folder: &str) -> u64 {
    let mut end = 0;
    for (name, bytes) in disk.durable_files(folder) {
        let Some(base) = name.strip_suffix(".log") else {
            continue;
        };
        if base.parse() != Ok(end) {
            break;
        }
        let mut at = 0;
        while let Some(batch) = batch_at(&bytes, at) {
            if batch.base_offset().get() != end {
                return end;
            }
            at += batch.size();
            end = batch.end_offset().get();
        }
    }
    end
}

fn batch_at(bytes: &[u8], at: usize) -> Option<Batch> {
    let size = BatchHeader::size_of(&bytes[at..]).ok()?;
    let batch = bytes.get(at..at + size)?;
    Batch::parse(batch.to_vec().into()).ok()
}

/// A batch that was acknowledged with `acks=all`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// First offset.
    pub base: u64,
    /// Offset after the last.
    pub end: u64,
    /// See [`SeenBatch::payload`].
    pub payload: u32,
    /// By the leader of which epoch.
    pub epoch: LeaderEpoch,
}

/// What a consumer got.
pub struct Consumed {
    /// From which node.
    pub node: NodeId,
    /// Up to which offset.
    pub end: u64,
}

/// The world after a step.
pub struct Sight<'a> {
    /// Whose replica has stepped; none where the quorum has applied something.
    pub changed: Option<NodeId>,
    /// The topic's `durability` is `page-cache`.
    pub page_cache: bool,
    /// Living replicas.
    pub replicas: &'a BTreeMap<NodeId, Seen>,
    /// The registration as committed.
    pub committed: Option<&'a Registration>,
    /// Everything acknowledged so far.
    pub acked: &'a [Acked],
    /// What was read in this step.
    pub consumed: Option<Consumed>,
}

impl Sight<'_> {
    /// The replica that has stepped.
    pub fn stepped(&self) -> Option<(NodeId, &Seen)> {
        let node = self.changed?;
        Some((node, self.replicas.get(&node)?))
    }
}
