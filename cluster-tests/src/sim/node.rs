//! A node: its disk, which outlives it, its clocks, and the process that runs on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quorate_log::{FlushDone, Ledger};
use quorate_metadata::DamagedReplica;
use quorate_replication::ProposalId;
use quorate_types::{BootId, BrokerEpoch, DirectoryId, Incarnation, NodeId, Term, TopicPartition};
use rand::Rng;

use super::clock::NodeClock;
use super::controller::Active;
use super::cores::{Core, Flush};
use super::disk::SimDisk;
use super::groups::{Host, ProposedGroups};
use super::hosting::Unmade;
use super::quorum::Announced;
use super::schedule::{Scheduled, ms};
use super::session::Session;
use super::trace::note;
use super::world::World;

/// What a proposal is for.
pub(super) enum Asked {
    Registration,
    Replica(TopicPartition, ProposalId),
    /// A replica that cannot be made is told of.
    Unmade(TopicPartition),
    /// By the controller of that term, about that node.
    Controller(Term, Option<NodeId>),
    /// Changes of groups, or commits of offsets.
    Groups(ProposedGroups),
}

/// A machine.
pub(super) struct Node {
    pub(super) disk: SimDisk,
    pub(super) directory: DirectoryId,
    pub(super) process: Option<Process>,
    /// Processes so far.
    pub(super) lives: u64,
    pub(super) boots: u64,
    /// What the last process had been shown of the quorum's log.
    pub(super) last_image: usize,
    /// The machine has no power: it refuses no connection, it is silent.
    pub(super) dark: bool,
    /// A sync failed since the process started.
    pub(super) disk_failed: bool,
    /// It did, and a log may have been marked because of it.
    pub(super) may_be_marked: bool,
    /// Bits have flipped that no start has come across.
    pub(super) flipped: bool,
    /// A sync never ends before.
    pub(super) stalled_until: Duration,
    pub(super) clock: NodeClock,
    /// It stays down for good.
    pub(super) lost: bool,
    /// Its disk was replaced, and the quorum has not heard of it.
    pub(super) wiped: bool,
}

/// A flush that is under way.
pub(super) enum UnderWay {
    ToRun(Flush),
    Ended(FlushDone),
}

/// A replica that a process hosts.
pub(super) struct Slot {
    pub(super) core: Box<dyn Core>,
    pub(super) path: String,
    pub(super) flush: Option<UnderWay>,
    pub(super) flushes: u64,
}

/// A process.
pub(super) struct Process {
    pub(super) life: u64,
    pub(super) incarnation: Incarnation,
    pub(super) directory: DirectoryId,
    pub(super) ledger: Ledger<SimDisk>,
    pub(super) slots: BTreeMap<TopicPartition, Slot>,
    pub(super) unmade: Unmade,
    /// Found damaged by recovery, until the registration that tells of it is applied.
    pub(super) damaged: Vec<DamagedReplica>,
    pub(super) strays_swept: bool,
    /// How much of the quorum's log it has been shown.
    pub(super) image: usize,
    pub(super) epoch: Option<BrokerEpoch>,
    pub(super) next_sequence: u64,
    pub(super) waiting: BTreeMap<u64, Asked>,
    /// By its clock.
    pub(super) contact: Duration,
    pub(super) wants_shutdown: bool,
    /// Stopped by a signal: what comes meanwhile waits.
    pub(super) paused: bool,
    pub(super) stash: VecDeque<Scheduled>,
    pub(super) subscriptions: Arc<AtomicU64>,
    /// Who leads the quorum, as far as it knows.
    pub(super) believes: Announced,
    pub(super) session: Option<Session>,
    /// It takes itself for the active controller.
    pub(super) controller: Option<Active>,
    /// The coordinator of groups, where the run has some.
    pub(super) groups: Option<Box<Host>>,
    pub(super) next_tick: Duration,
    pub(super) tick_number: u64,
}

impl Node {
    pub(super) fn new(id: NodeId, clock: NodeClock) -> Self {
        let mut node = Self {
            disk: SimDisk::default(),
            directory: DirectoryId::from_bytes([0; 16]),
            process: None,
            lives: 0,
            boots: 1,
            last_image: 0,
            dark: false,
            disk_failed: false,
            may_be_marked: false,
            flipped: false,
            stalled_until: Duration::ZERO,
            clock,
            lost: false,
            wiped: false,
        };
        node.take_new_disk(id, 1);
        node
    }

    /// An empty disk, with an identity of its own.
    pub(super) fn take_new_disk(&mut self, id: NodeId, number: u64) {
        self.disk = SimDisk::default();
        Ledger::begin(&self.disk).expect("a disk that does not fail");
        let mut directory = [id.get() as u8; 16];
        directory[8..].copy_from_slice(&number.to_be_bytes());
        self.directory = DirectoryId::from_bytes(directory);
        self.flipped = false;
    }

    /// The machine's present boot.
    pub(super) fn boot(&self, id: NodeId) -> BootId {
        let mut boot = [id.get() as u8; 16];
        boot[..8].copy_from_slice(&self.boots.to_be_bytes());
        BootId::from_bytes(boot)
    }
}

impl World {
    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[&node]
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        self.nodes.get_mut(&node).expect("a node of this cluster")
    }

    pub(super) fn process(&self, node: NodeId) -> Option<&Process> {
        self.nodes.get(&node)?.process.as_ref()
    }

    pub(super) fn process_mut(&mut self, node: NodeId) -> Option<&mut Process> {
        self.nodes.get_mut(&node)?.process.as_mut()
    }

    /// The life of the running process; 0 where there is none.
    pub(super) fn life(&self, node: NodeId) -> u64 {
        self.process(node).map_or(0, |process| process.life)
    }

    /// What a node's monotonic clock shows.
    pub(super) fn clock_of(&self, node: NodeId) -> Duration {
        self.nodes[&node].clock.now(self.now)
    }

    pub(super) fn start_later(&mut self, node: NodeId) {
        let wait = ms(self.rng.random_range(1..60));
        self.at(wait, Scheduled::Start { node });
    }

    /// Starts a node's process: recovery, then registration.
    pub(super) fn start(&mut self, node: NodeId) {
        if self.process(node).is_some() || self.node(node).lost {
            return;
        }
        if !self.recover(node) {
            return self.start_later(node);
        }
        self.counts.starts += 1;
        for id in self.open_slots(node) {
            self.look_at(id, node);
        }
        let life = self.life(node);
        let image = self.process(node).map_or(0, |process| process.image);
        self.show_all(node);
        let (latest, mut at) = (self.quorum.index(), image);
        let mut lag = Duration::ZERO;
        while at < latest {
            at = (at + self.rng.random_range(1..=20)).min(latest);
            lag += self.delay();
            let index = at;
            self.at(lag, Scheduled::ImageArrives { node, life, index });
        }
        let delay = self.delay();
        self.at(delay, Scheduled::Register { node, life });
        self.next_beat(node);
        self.groups_start(node);
        self.tick_within(node, Duration::ZERO);
        let announced = self.quorum.announced;
        let delay = self.delay();
        self.at(
            delay,
            Scheduled::TermLearned {
                node,
                life,
                announced,
            },
        );
    }

    fn open_slots(&self, node: NodeId) -> Vec<TopicPartition> {
        let process = self.process(node);
        process.map_or_else(Vec::new, |process| process.slots.keys().copied().collect())
    }

    /// Ends a process; its files stay as the kernel has them.
    pub(super) fn end_process(&mut self, node: NodeId) -> Option<Process> {
        let process = self.node_mut(node).process.take()?;
        self.node_mut(node).last_image = process.image;
        for id in process.slots.keys() {
            if let Some(watched) = self.partitions.get_mut(id) {
                watched.seen.remove(&node);
            }
        }
        self.break_all_of(node);
        self.fail_requests_of(node);
        self.end_session(node, &process);
        if self.quorum.announced.leader == Some(node) {
            self.leader_is_missed();
        }
        Some(process)
    }

    pub(super) fn kill(&mut self, node: NodeId) {
        if self.end_process(node).is_some() {
            note!(self, None, "node {node} is killed");
        }
    }

    pub(super) fn lose_power(&mut self, node: NodeId) {
        self.node_mut(node).dark = true;
        // What a leader that was replaced uncleanly has acknowledged since, and not synced, nobody
        // knows any more.
        let image = self.quorum.latest();
        for (id, watched) in &mut self.partitions {
            let unclean = image
                .partition(id)
                .is_some_and(|of| of.unclean_epoch.is_some());
            let seen = watched.seen.get(&node);
            watched.damaged |= unclean && seen.is_some_and(|seen| seen.flushed < seen.log_end);
        }
        drop(self.end_process(node));
        let disk = self.node(node).disk.clone();
        disk.lose_power(&mut self.rng);
        self.node_mut(node).boots += 1;
        note!(self, None, "node {node} loses power");
    }

    pub(super) fn pause(&mut self, node: NodeId, time: Duration) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if !process.paused {
            process.paused = true;
            let life = process.life;
            note!(self, None, "node {node} is paused");
            self.at(time, Scheduled::Resume { node, life });
            if self.quorum.announced.leader == Some(node) {
                self.leader_is_missed();
            }
        }
    }

    /// The process goes on: what came meanwhile comes now, in its order.
    pub(super) fn resume(&mut self, node: NodeId) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.paused = false;
        let stash = std::mem::take(&mut process.stash);
        note!(self, None, "node {node} goes on");
        for event in stash {
            self.handle(event);
        }
    }

    /// Closes every log and marks the end as clean, where all closed well.
    pub(super) fn stop_cleanly(&mut self, node: NodeId) {
        let epoch = self.process(node).and_then(|process| process.epoch);
        note!(self, None, "node {node} stops cleanly");
        let Some(process) = self.end_process(node) else {
            return;
        };
        let mut closed = true;
        for (id, slot) in process.slots {
            let last = slot.flush.map(|under_way| match under_way {
                UnderWay::ToRun(run) => run(),
                UnderWay::Ended(done) => done,
            });
            if let Err(error) = slot.core.close(last) {
                note!(self, Some(id), "node {node}: not closed: {error}");
                closed = false;
            }
        }
        if let (true, Some(epoch)) = (closed, epoch)
            && let Err(error) = process.ledger.write_clean(epoch)
        {
            note!(self, None, "node {node}: no clean mark: {error}");
        }
        self.start_later(node);
    }
}
