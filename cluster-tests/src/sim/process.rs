//! A node: its disk, which outlives it, and the process that runs on it, with the shipped replica
//! core over the shipped log. What the broker's shell does around them is done here: recovery
//! before registration, views from each image, flushes, controlled shutdown.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quorate_log::{LogOptions, PartitionLog, RecoveryContext};
use quorate_metadata::{BrokerState, Command, DamagedReplica, RegisterBroker};
use quorate_replication::{
    Action, Context, Event, Faults, PartitionView, ProposalId, ProposalResult, Replica, Status,
    StreamId, StreamRoom,
};
use quorate_types::{BootId, BrokerEpoch, DirectoryId, Endpoint, Incarnation, NodeId, Timestamp};
use rand::Rng;

use super::disk::SimDisk;
use super::sight::Seen;
use super::world::{FOLDER, PARTITION, Scheduled, World, ms};

/// What a proposal is for.
pub(super) enum Asked {
    Registration,
    Replica(ProposalId),
    Shutdown,
}

/// A machine.
pub(super) struct Node<F: Faults> {
    pub(super) disk: SimDisk,
    pub(super) process: Option<Process<F>>,
    /// Processes so far.
    pub(super) lives: u64,
    pub(super) boots: u64,
    /// Boot of the last process.
    pub(super) last_boot: u64,
    /// What the last process had been shown of the quorum's log.
    pub(super) last_image: usize,
    /// The clean-shutdown mark.
    pub(super) clean: Option<BrokerEpoch>,
    /// A sync failed since the process started.
    pub(super) disk_failed: bool,
    /// A sync never ends before.
    pub(super) stalled_until: Duration,
}

/// A process.
pub(super) struct Process<F: Faults> {
    pub(super) life: u64,
    pub(super) incarnation: Incarnation,
    pub(super) clean_epoch: Option<BrokerEpoch>,
    pub(super) damaged: bool,
    pub(super) replica: Option<Replica<SimDisk, F>>,
    pub(super) image: usize,
    pub(super) epoch: Option<BrokerEpoch>,
    pub(super) next_sequence: u64,
    pub(super) waiting: BTreeMap<u64, Asked>,
    pub(super) contact: Duration,
    pub(super) stopping: bool,
    /// Stopped by a signal: what comes meanwhile waits.
    pub(super) paused: bool,
    pub(super) stash: VecDeque<Scheduled>,
    pub(super) subscriptions: Arc<AtomicU64>,
    next_tick: Duration,
}

struct Room<'a>(&'a std::collections::BTreeSet<StreamId>);

impl StreamRoom for Room<'_> {
    fn room(&self, stream: StreamId) -> usize {
        if self.0.contains(&stream) { 0 } else { 1 << 20 }
    }
}

impl<F: Faults> Node<F> {
    pub(super) fn new() -> Self {
        Self {
            disk: SimDisk::default(),
            process: None,
            lives: 0,
            boots: 1,
            last_boot: 1,
            last_image: 0,
            clean: None,
            disk_failed: false,
            stalled_until: Duration::ZERO,
        }
    }
}

impl<F: Faults> World<F> {
    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn node(&self, node: NodeId) -> &Node<F> {
        &self.nodes[&node]
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node<F> {
        self.nodes.get_mut(&node).expect("a node of this cluster")
    }

    pub(super) fn process(&self, node: NodeId) -> Option<&Process<F>> {
        self.nodes.get(&node)?.process.as_ref()
    }

    pub(super) fn process_mut(&mut self, node: NodeId) -> Option<&mut Process<F>> {
        self.nodes.get_mut(&node)?.process.as_mut()
    }

    /// The life of the running process; 0 where there is none.
    pub(super) fn life(&self, node: NodeId) -> u64 {
        self.process(node).map_or(0, |process| process.life)
    }

    fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.segment_bytes,
            index_interval_bytes: 200,
            tail_cache_bytes: 1_000,
            ..LogOptions::default()
        }
    }

    /// Starts a node's process: recovery, then registration.
    pub(super) fn start(&mut self, node: NodeId) {
        if self.process(node).is_some() {
            return;
        }
        let options = self.log_options();
        let random = self.rng.random();
        let now = self.now;
        let from = self.node(node).last_image;
        // What its own store had applied; the rest of it comes again.
        let image = self.rng.random_range(0..=from);
        let state = self.node_mut(node);
        state.lives += 1;
        state.disk_failed = false;
        let life = state.lives;
        let incarnation = Incarnation {
            start: life,
            random,
        };
        let subscriptions = Arc::new(AtomicU64::new(life << 32));
        let clean_epoch = state.clean.take();
        let same_boot = state.boots == state.last_boot;
        state.last_boot = state.boots;
        let disk = state.disk.clone();
        disk.fail_syncs(0);
        let mut process = Process {
            life,
            incarnation,
            clean_epoch,
            damaged: false,
            replica: None,
            image,
            epoch: None,
            next_sequence: 0,
            waiting: BTreeMap::new(),
            contact: now,
            stopping: false,
            paused: false,
            stash: VecDeque::new(),
            subscriptions,
            next_tick: now,
        };
        if has_partition(&disk) {
            let cx = RecoveryContext { same_boot };
            let opened = PartitionLog::open(Arc::new(disk), FOLDER, options, cx);
            let (log, report) = opened.expect("a disk that does not fail opens");
            self.note(&format!("node {node} starts life {life}: {report:?}"));
            if let Some(why) = &report.damaged {
                self.violate(format!("recovery of node {node} claims damage: {why}"));
            }
            process.damaged = report.damaged.is_some();
            let subscriptions = Arc::clone(&process.subscriptions);
            process.replica = Some(Replica::new(
                node,
                PARTITION,
                log,
                self.timing,
                subscriptions,
            ));
        } else {
            self.note(&format!("node {node} starts life {life}"));
        }
        self.node_mut(node).process = Some(process);
        self.look(Some(node), None);
        self.show(node);
        let (latest, mut at) = (self.quorum.index(), image);
        let mut lag = Duration::ZERO;
        while at < latest {
            at = (at + self.rng.random_range(1..=20)).min(latest);
            lag += self.delay();
            self.at(lag, Scheduled::ImageArrives { node, index: at });
        }
        let delay = self.delay();
        self.at(delay, Scheduled::Register { node, life });
        self.at(Duration::ZERO, Scheduled::Tick { node, life });
    }

    /// Proposes the node's registration; again until it is decided.
    pub(super) fn register(&mut self, node: NodeId) {
        let boots = self.node(node).boots;
        let Some(process) = self.process(node) else {
            return;
        };
        if process.epoch.is_some() {
            return;
        }
        let endpoint = Endpoint {
            host: "node".into(),
            port: node.get() as u16,
        };
        let damaged = if process.damaged {
            vec![DamagedReplica {
                partition: PARTITION,
                had: None,
                gone: false,
                found: String::new(),
            }]
        } else {
            Vec::new()
        };
        let mut boot = [node.get() as u8; 16];
        boot[..8].copy_from_slice(&boots.to_be_bytes());
        let command = Command::RegisterBroker(RegisterBroker {
            node,
            directory: DirectoryId::from_bytes([node.get() as u8; 16]),
            incarnation: process.incarnation,
            boot: BootId::from_bytes(boot),
            clean_epoch: process.clean_epoch,
            damaged,
            client: endpoint.clone(),
            internal: endpoint,
            rack: None,
            min_level: 1,
            max_level: 1,
        });
        self.propose(node, Asked::Registration, command);
    }

    pub(super) fn registered(&mut self, node: NodeId, epoch: BrokerEpoch) {
        if let Some(process) = self.process_mut(node) {
            process.epoch = Some(epoch);
            if std::mem::take(&mut process.damaged)
                && let Some(replica) = &process.replica
                && let Err(error) = replica.log().damage_told()
            {
                self.note(&format!("node {node}: {error}"));
            }
            self.show(node);
        }
    }

    pub(super) fn image_arrives(&mut self, node: NodeId, index: usize) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if index > process.image {
            process.image = index;
            self.show(node);
            self.stop_if_released(node);
        }
    }

    /// Shows the replica its registration as the node's image has it; makes the replica where the
    /// image shows this very life of the node.
    fn show(&mut self, node: NodeId) {
        let options = self.log_options();
        let timing = self.timing;
        let Some(process) = self.process(node) else {
            return;
        };
        let image = Arc::clone(&self.quorum.images[process.image]);
        let Some(view) = PartitionView::of(&image, &PARTITION, node, process.epoch) else {
            return;
        };
        if view.serving && view.registration.has_replica(node) && process.replica.is_none() {
            let disk = Arc::new(self.node(node).disk.clone());
            let cx = RecoveryContext { same_boot: true };
            // Where the disk fails just now, the next image tries again.
            let Ok((log, _)) = PartitionLog::open(disk, FOLDER, options, cx) else {
                return self.note(&format!("node {node}: no replica can be made"));
            };
            if let Some(process) = self.process_mut(node) {
                let subscriptions = Arc::clone(&process.subscriptions);
                let replica = Replica::new(node, PARTITION, log, timing, subscriptions);
                process.replica = Some(replica);
            }
        }
        self.step(node, Event::View(view));
    }

    pub(super) fn proposed(&mut self, node: NodeId, id: ProposalId, result: ProposalResult) {
        self.note(&format!("node {node}: proposal {} {result:?}", id.0));
        self.step(node, Event::Proposed { id, result });
    }

    pub(super) fn tick(&mut self, node: NodeId) {
        let life = self.life(node);
        self.step(node, Event::Tick);
        let now = self.now;
        let Some(process) = self.process_mut(node) else {
            return;
        };
        let wanted = process
            .replica
            .as_ref()
            .and_then(Replica::next_deadline)
            .map_or(ms(50), |at| at.saturating_sub(now));
        let wait = wanted.clamp(ms(1), ms(50));
        process.next_tick = now + wait;
        self.at(wait, Scheduled::Tick { node, life });
    }

    /// Feeds one event to a node's replica. It settles at once or, as a broker's does that has more
    /// mail, a little later: then perhaps for several events.
    pub(super) fn step(&mut self, node: NodeId, event: Event) {
        self.act(node, Some(event));
        if self.rng.random_bool(self.gathering) {
            let life = self.life(node);
            let wait = Duration::from_micros(self.rng.random_range(0..3_000));
            self.at(wait, Scheduled::Settle { node, life });
        } else {
            self.settle_replica(node);
        }
    }

    pub(super) fn settle_replica(&mut self, node: NodeId) {
        self.act(node, None);
    }

    /// Lets a node's replica take an event, or settle; carries out what it decides, and lets the
    /// checkers look.
    fn act(&mut self, node: NodeId, event: Option<Event>) {
        let mut out = Vec::new();
        let (now, congested) = (self.now, &self.congested);
        let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) else {
            return;
        };
        let Some(replica) = &mut process.replica else {
            return;
        };
        let room = Room(congested);
        let cx = Context {
            now,
            wall: Timestamp::from_millis(now.as_millis() as i64),
            controller_contact: process.contact,
            streams: &room,
        };
        let before = replica.status();
        match event {
            Some(event) => replica.take(&cx, event, &mut out),
            None => replica.settle(&cx, &mut out),
        }
        let after = replica.status();
        // A core wants its next tick sooner: a leader that owes its followers a high watermark.
        let sooner = replica
            .next_deadline()
            .is_some_and(|at| at + ms(1) < process.next_tick);
        let life = process.life;
        if sooner {
            process.next_tick = now;
            self.at(ms(1), Scheduled::Nudge { node, life });
        }
        if before != after {
            self.note(&format!("node {node}: {after:?}"));
            if after == Status::Damaged && !self.node(node).disk_failed {
                self.violate(format!(
                    "node {node} is damaged on a disk that never failed"
                ));
            }
        }
        for action in out {
            self.carry_out(node, life, action);
        }
        self.look(Some(node), None);
    }

    fn carry_out(&mut self, node: NodeId, life: u64, action: Action<SimDisk>) {
        match action {
            Action::ToFollower { stream, message } => self.say_to_follower(node, stream, message),
            Action::ToLeader { leader, message } => self.say_to_leader(node, leader, message),
            Action::Propose { id, command } => self.propose(node, Asked::Replica(id), command),
            Action::Answer { id, result } => self.answered(node, id, result),
            Action::Flush(ticket) => {
                let stalled = self.node(node).stalled_until.saturating_sub(self.now);
                let wait = stalled + self.delay();
                self.at(wait, Scheduled::FlushRuns { node, life, ticket });
            }
            Action::Status => {}
        }
    }

    /// The disk is asked to stop.
    pub(super) fn begin_shutdown(&mut self, node: NodeId) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        let Some(epoch) = process.epoch else { return };
        process.stopping = true;
        self.propose(
            node,
            Asked::Shutdown,
            Command::BeginControlledShutdown { node, epoch },
        );
    }

    /// A node that wished to stop stops once an image shows that it leads nothing.
    fn stop_if_released(&mut self, node: NodeId) {
        let Some(process) = self.process(node).filter(|process| process.stopping) else {
            return;
        };
        let image = &self.quorum.images[process.image];
        let released = image.broker(node).is_some_and(|broker| {
            broker.state == BrokerState::ShuttingDown && Some(broker.epoch) == process.epoch
        });
        let leads = image
            .partition(&PARTITION)
            .is_some_and(|registration| registration.leader == Some(node));
        if !released || leads {
            return;
        }
        let epoch = process.epoch;
        self.note(&format!("node {node} stops cleanly"));
        let Some(process) = self.end_process(node) else {
            return;
        };
        let flushed = self.take_flush(node);
        let closed = process.replica.map(|replica| {
            let mut log = replica.into_log();
            let last = flushed.map(|done| log.complete_flush(done));
            last.unwrap_or(Ok(())).and_then(|()| log.close())
        });
        if let None | Some(Ok(())) = closed {
            self.node_mut(node).clean = epoch;
        }
        let wait = ms(self.rng.random_range(20..500));
        self.at(wait, Scheduled::Start { node });
    }

    /// Ends a process; its files stay as the kernel has them.
    pub(super) fn end_process(&mut self, node: NodeId) -> Option<Process<F>> {
        let process = self.node_mut(node).process.take()?;
        self.node_mut(node).last_image = process.image;
        self.seen.remove(&node);
        self.break_all_of(node);
        self.fail_requests_of(node);
        Some(process)
    }

    pub(super) fn kill(&mut self, node: NodeId) {
        if self.end_process(node).is_some() {
            self.note(&format!("node {node} is killed"));
        }
    }

    pub(super) fn lose_power(&mut self, node: NodeId) {
        drop(self.end_process(node));
        let disk = self.node(node).disk.clone();
        disk.lose_power(&mut self.rng);
        let state = self.node_mut(node);
        state.boots += 1;
        // The mark was synced before the process ended, if it was written at all.
        self.note(&format!("node {node} loses power"));
    }

    /// Looks at a node's replica for the checkers.
    pub(super) fn see(&mut self, node: NodeId) {
        let before = self.seen.remove(&node);
        let state = &self.nodes[&node];
        let Some(process) = &state.process else {
            return;
        };
        if let Some(replica) = &process.replica {
            let seen = Seen::look(
                replica,
                (process.life, process.epoch.is_some()),
                before,
                &state.disk,
                FOLDER,
            );
            self.seen.insert(node, seen);
        }
    }
}

fn has_partition(disk: &SimDisk) -> bool {
    use quorate_log::Dir;
    disk.list("logs").is_ok_and(|names| !names.is_empty())
}
