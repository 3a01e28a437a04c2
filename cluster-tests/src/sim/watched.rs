//! The partitions as the checkers watch them: each has checkers of its own, which look after every
//! step that touches it.

use std::collections::BTreeMap;

use quorate_metadata::{Delta, MetadataImage};
use quorate_replication::Status;
use quorate_types::{LeaderEpoch, NodeId, TopicPartition};

use super::invariants::{self, Checker};
use super::sight::{Acked, Deed, Seen, Sight, Unclean, Unsaid};
use super::trace::note;
use super::world::World;

/// One partition.
pub(super) struct Watched {
    pub(super) seen: BTreeMap<NodeId, Seen>,
    /// What was acknowledged with `acks=all` and binds.
    pub(super) acked: Vec<Acked>,
    /// Counts the times that something was taken from those.
    history: u64,
    /// The last unclean election, as far as it is known.
    pub(super) unclean: Option<Unclean>,
    /// What was acknowledged before an unclean election, and is not sure to be there since: with
    /// the election's epoch.
    pub(super) doubtful: Vec<(LeaderEpoch, Acked)>,
    checkers: Vec<Box<dyn Checker>>,
    /// What is acknowledged may be in page caches only.
    pub(super) page_cache: bool,
    /// A replica was damaged or its disk replaced: what it had is told by nobody.
    pub(super) damaged: bool,
    /// What lies below was given up by retention, on some replica.
    pub(super) given_up: u64,
    /// How far consumers have read.
    pub(super) consumed: u64,
}

impl Watched {
    fn new() -> Self {
        Self {
            seen: BTreeMap::new(),
            acked: Vec::new(),
            history: 0,
            unclean: None,
            doubtful: Vec::new(),
            checkers: invariants::all(),
            page_cache: false,
            damaged: false,
            given_up: 0,
            consumed: 0,
        }
    }
}

impl Watched {
    /// A client was told that its batch is in the log.
    pub(super) fn acknowledge(&mut self, acked: Acked) {
        match self.unclean {
            // By a leader that does not know yet that it was passed over.
            Some(unclean) if acked.epoch < unclean.epoch => {
                self.doubtful.push((unclean.epoch, acked));
            }
            _ => self.acked.push(acked),
        }
    }

    /// An unclean election: what was acknowledged before is in doubt until its leader is seen.
    fn begin_unclean(&mut self, epoch: LeaderEpoch) {
        let before = std::mem::take(&mut self.acked);
        self.doubtful
            .extend(before.into_iter().map(|acked| (epoch, acked)));
        self.history += 1;
        self.unclean = Some(Unclean { epoch, from: None });
    }

    /// The leader of an unclean election, or a later one, is seen: what it holds binds again.
    fn end_doubt(&mut self, node: NodeId) {
        let (Some(unclean), Some(seen)) = (&mut self.unclean, self.seen.get(&node)) else {
            return;
        };
        if unclean.from.is_some() || seen.leads_at() < Some(unclean.epoch) {
            return;
        }
        let started = match seen.status {
            Status::Leader { epoch_start, .. } => epoch_start.get(),
            _ => seen.log_end,
        };
        let mut from = started;
        for (election, acked) in std::mem::take(&mut self.doubtful) {
            // A disk that fails right then takes what it had not synced.
            if seen.holds(&acked) && acked.end <= seen.flushed {
                self.acked.push(acked);
            } else {
                from = from.min(acked.base);
                self.doubtful.push((election, acked));
            }
        }
        self.acked.sort_by_key(|acked| acked.base);
        unclean.from = Some(from);
        self.history += 1;
    }
}

impl World {
    /// The quorum has applied something.
    pub(super) fn committed(&mut self, old: &MetadataImage, new: &MetadataImage, delta: &Delta) {
        for id in &delta.deleted {
            self.partitions.remove(id);
            self.end_producers(*id);
        }
        for id in &delta.partitions {
            let Some(registration) = new.partition(id) else {
                continue;
            };
            let watched = self.partitions.entry(*id).or_insert_with(Watched::new);
            watched.page_cache = !registration.fsync_established;
            let before = old.partition(id);
            let unclean = registration.unclean_epoch;
            if let Some(epoch) = unclean
                && watched.unclean.map(|unclean| unclean.epoch) != Some(epoch)
            {
                watched.begin_unclean(epoch);
                self.counts.unclean += 1;
            }
            if before.is_some_and(|before| before.leader_epoch != registration.leader_epoch) {
                self.counts.elections += 1;
            }
            note!(
                self,
                Some(*id),
                "registration: leader {:?} epoch {} isr {:?} elr {:?} partition epoch {}{}",
                registration.leader.map(NodeId::get),
                registration.leader_epoch,
                numbers(&registration.isr),
                numbers(&registration.elr),
                registration.partition_epoch,
                if registration.fsync_established {
                    ", on disks"
                } else {
                    ""
                }
            );
            self.look(*id, None, Deed::None);
        }
    }

    /// Looks at the replica that has stepped.
    pub(super) fn look_at(&mut self, id: TopicPartition, node: NodeId) {
        let Some(watched) = self.partitions.get_mut(&id) else {
            self.deeds.clear();
            return;
        };
        let state = &self.nodes[&node];
        let Some(process) = &state.process else {
            return;
        };
        let Some(slot) = process.slots.get(&id) else {
            return;
        };
        let seen = watched.seen.entry(node);
        let seen = seen.or_insert_with(|| Seen::new(process.life));
        let generation = seen.generation;
        // Of what its disk lost the quorum hears by its registration (R9).
        let unsaid = Unsaid {
            cache: process.epoch.is_none() || state.disk_failed,
            damage: process.damaged.iter().any(|of| of.partition == id),
        };
        seen.look(&*slot.core, unsaid, &state.disk, &slot.path);
        let cut = u64::from(seen.generation > generation);
        let mixed = seen.log_end << 20 ^ seen.high_watermark << 10 ^ seen.flushed;
        watched.given_up = watched.given_up.max(seen.log_start);
        watched.end_doubt(node);
        self.counts.truncations += cut;
        self.trace.mix(mixed);
        let mut deeds = std::mem::take(&mut self.deeds);
        if deeds.is_empty() {
            self.look(id, Some(node), Deed::None);
        }
        for deed in deeds.drain(..) {
            self.look(id, Some(node), deed);
        }
        self.deeds = deeds;
    }

    /// Lets every checker of a partition look.
    pub(super) fn look(&mut self, id: TopicPartition, changed: Option<NodeId>, deed: Deed) {
        let Some(watched) = self.partitions.get_mut(&id) else {
            return;
        };
        let registration = self.quorum.latest().partition(&id);
        let sight = Sight {
            changed,
            page_cache: watched.page_cache,
            replicas: &watched.seen,
            committed: registration.map(|registration| &**registration),
            acked: &watched.acked,
            history: watched.history,
            unclean: watched.unclean,
            deed,
        };
        let mut found = None;
        for checker in &mut watched.checkers {
            if let Err(why) = checker.check(&sight) {
                found.get_or_insert_with(|| format!("{}: {why}", checker.name()));
            }
        }
        if let Some(what) = found {
            self.violate(Some(id), what);
        }
    }
}

fn numbers(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.get()).collect()
}
