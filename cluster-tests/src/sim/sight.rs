//! What the checkers see: every living replica's log and state after each step, read from the
//! shipped log, and what was acknowledged and read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use quorate_metadata::Registration;
use quorate_record::{Batch, BatchHeader};
use quorate_replication::Status;
use quorate_types::{LeaderEpoch, NodeId, Offset};

use super::cores::{Core, Positions};
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

/// How far a log's files were found whole.
#[derive(Debug, Clone, Default)]
struct Durable {
    /// The segment that was looked at last.
    segment: String,
    position: usize,
    end: u64,
}

/// What the quorum was not told yet of a replica's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unsaid {
    /// What was in the page cache only may be gone.
    pub cache: bool,
    /// Recovery has found damage.
    pub damage: bool,
}

/// A living replica.
pub struct Seen {
    /// Of which process.
    pub life: u64,
    /// What its disk has lost or may have lost the quorum has not been told yet (R9).
    pub unsaid: Unsaid,
    /// What it is.
    pub status: Status,
    /// Its log, in order.
    pub batches: Vec<SeenBatch>,
    /// How many of them were there at the last look.
    pub known: usize,
    /// Its log's end.
    pub log_end: u64,
    /// Its log's start.
    pub log_start: u64,
    /// What it says is on its disk.
    pub flushed: u64,
    /// What is on its disk, where it was looked at in this step.
    pub durable: Option<u64>,
    /// Its high watermark.
    pub high_watermark: u64,
    /// Truncations of its log in this life.
    pub generation: u64,
    on_disk: Durable,
}

impl Seen {
    /// A replica that was not seen in this life yet.
    pub(super) fn new(life: u64) -> Self {
        Self {
            life,
            unsaid: Unsaid::default(),
            status: Status::Idle,
            batches: Vec::new(),
            known: 0,
            log_end: 0,
            log_start: 0,
            flushed: 0,
            durable: None,
            high_watermark: 0,
            generation: 0,
            on_disk: Durable::default(),
        }
    }

    /// Looks at the replica again.
    pub(super) fn look(&mut self, core: &dyn Core, unsaid: Unsaid, disk: &SimDisk, folder: &str) {
        let Positions {
            start,
            end,
            flushed,
            high_watermark,
            generation,
        } = core.positions();
        let first = self.log_end == 0;
        if generation != self.generation {
            // What was cut and appended again within one step would look the same by its offsets.
            self.batches.clear();
            self.on_disk = Durable::default();
        }
        self.known = self.batches.len();
        let from = self.batches.last().map_or(start, |batch| batch.end);
        read(core, from, end, &mut self.batches);
        self.durable = None;
        if flushed != self.flushed || generation != self.generation || first {
            self.on_disk.advance(disk, folder, start);
            self.durable = Some(self.on_disk.end);
        }
        self.unsaid = unsaid;
        self.status = core.status();
        self.log_start = start;
        self.log_end = end;
        self.flushed = flushed;
        self.high_watermark = high_watermark;
        self.generation = generation;
    }

    /// The batches that were not there at the last look.
    pub fn new_batches(&self) -> &[SeenBatch] {
        &self.batches[self.known..]
    }

    /// The epoch that it leads at.
    pub fn leads_at(&self) -> Option<LeaderEpoch> {
        match self.status {
            Status::Leader { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Whether the log has this very batch, or had it below its start.
    pub fn holds(&self, acked: &Acked) -> bool {
        if acked.end <= self.log_start {
            return true;
        }
        let batch = self.batch_at(acked.base);
        batch.is_some_and(|batch| batch.end == acked.end && batch.payload == acked.payload)
    }

    /// The batch that begins there.
    pub fn batch_at(&self, base: u64) -> Option<&SeenBatch> {
        let at = self.batches.binary_search_by_key(&base, |batch| batch.base);
        at.ok().map(|at| &self.batches[at])
    }
}

/// Reads what is new; ends early where a file cannot be read any more.
fn read(core: &dyn Core, mut from: u64, end: u64, into: &mut Vec<SeenBatch>) {
    while from < end {
        let read = core.read(Offset::new(from), Offset::new(end), 64 << 10);
        let Ok(batches) = read.map(|bytes| Batch::split(bytes).expect("a log holds batches"))
        else {
            return;
        };
        for batch in &batches {
            from = batch.end_offset().get();
            into.push(SeenBatch::of(batch));
        }
    }
}

impl Durable {
    /// Goes on to where the run of whole batches ends that a power loss would leave. Reads the files
    /// by itself: recovery is not asked.
    fn advance(&mut self, disk: &SimDisk, folder: &str, log_start: u64) {
        let mut ended = false;
        let from = self.segment.clone();
        if from.is_empty() {
            self.end = log_start;
        }
        disk.look_at_durable(folder, &from, |name, bytes| {
            let Some(base) = name.strip_suffix(".log") else {
                return;
            };
            if ended {
                return;
            }
            if name != self.segment {
                let begins = base.parse::<u64>();
                // Segments below the log's start may be there still.
                let below = self.end == log_start;
                let follows =
                    begins == Ok(self.end) || below && begins.is_ok_and(|base| base <= log_start);
                if !follows {
                    ended = true;
                    return;
                }
                self.segment = name.to_owned();
                self.position = 0;
            }
            while let Some(batch) = batch_at(bytes, self.position) {
                if batch.base_offset().get() > self.end {
                    ended = true;
                    return;
                }
                self.position += batch.size();
                self.end = self.end.max(batch.end_offset().get());
            }
        });
    }
}

fn batch_at(bytes: &[u8], at: usize) -> Option<Batch> {
    let size = BatchHeader::size_of(bytes.get(at..)?).ok()?;
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

/// An answer with success, as it is given.
pub struct Answered {
    /// From which node.
    pub node: NodeId,
    /// What.
    pub acked: Acked,
    /// The leader epoch that the request named.
    pub asked_epoch: Option<LeaderEpoch>,
    /// It was to be on every in-sync replica (`acks=all`).
    pub all: bool,
}

/// What a consumer got.
pub struct Consumed {
    /// From which node.
    pub node: NodeId,
    /// Up to which offset.
    pub end: u64,
}

/// A subscription that a leader has accepted.
pub struct Accepted {
    /// The leader.
    pub node: NodeId,
    /// The leader epoch that the follower subscribed at.
    pub asked_epoch: LeaderEpoch,
}

/// What else happened in a step.
pub enum Deed {
    /// A leader has accepted a subscription.
    Accepted(Accepted),
    /// Nothing to speak of.
    None,
    /// A consumer was given records.
    Consumed(Consumed),
    /// A client was told that its batch is in the log.
    Answered(Answered),
}

/// An unclean election: the invariants hold from its epoch on.
#[derive(Debug, Clone, Copy)]
pub struct Unclean {
    /// Its leader epoch.
    pub epoch: LeaderEpoch,
    /// What lies from there on and is of an older epoch may be lost; none while its leader was not
    /// seen.
    pub from: Option<u64>,
}

/// One partition after a step.
pub struct Sight<'a> {
    /// Whose replica has stepped; none where the quorum has applied something.
    pub changed: Option<NodeId>,
    /// What is acknowledged may be in page caches only.
    pub page_cache: bool,
    /// Living replicas.
    pub replicas: &'a BTreeMap<NodeId, Seen>,
    /// The registration as committed.
    pub committed: Option<&'a Registration>,
    /// Everything acknowledged so far that binds.
    pub acked: &'a [Acked],
    /// Changes where something was taken from those.
    pub history: u64,
    /// The last unclean election.
    pub unclean: Option<Unclean>,
    /// What else happened.
    pub deed: Deed,
}

impl Sight<'_> {
    /// The replica that has stepped.
    pub fn stepped(&self) -> Option<(NodeId, &Seen)> {
        let node = self.changed?;
        Some((node, self.replicas.get(&node)?))
    }
}
