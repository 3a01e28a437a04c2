//! Which partitions a node hosts, as the broker's shell does it: opened from disk at the start, made
//! and removed as the image says, in the shell's order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quorate_log::{Ledger, LogError, LogOptions, RecoveryContext};
use quorate_metadata::{Command, DamagedReplica, Delta, MetadataImage};
use quorate_replication::{Event, PartitionView};
use quorate_types::{Incarnation, NodeId, TopicPartition};
use rand::Rng;

use super::cores::Making;
use super::node::{Asked, Process, Slot};
use super::schedule::ms;
use super::trace::note;
use super::world::World;

/// Pause between two tries of making a replica.
const TRY_AGAIN: Duration = ms(30);

/// Replicas that could not be made: when they are tried again, and whether the quorum was told.
#[derive(Default)]
pub(super) struct Unmade(BTreeMap<TopicPartition, Wait>);

struct Wait {
    /// By the world's time; none where only a restart helps.
    again_at: Option<Duration>,
    told: bool,
}

impl Unmade {
    fn failed(&mut self, id: TopicPartition, again_at: Option<Duration>) {
        let wait = Wait {
            again_at,
            told: false,
        };
        self.0.entry(id).or_insert(wait).again_at = again_at;
    }

    fn waits(&self, id: &TopicPartition, now: Duration) -> bool {
        let wait = self.0.get(id);
        wait.is_some_and(|wait| wait.again_at.is_none_or(|at| at > now))
    }

    pub(super) fn tell(&mut self, id: &TopicPartition, told: bool) -> bool {
        let wait = self.0.get_mut(id);
        wait.is_some_and(|wait| std::mem::replace(&mut wait.told, told) != told)
    }

    fn due(&self, now: Duration) -> Vec<TopicPartition> {
        let due = self.0.iter().filter(|(_, wait)| {
            wait.again_at.is_some_and(|at| at <= now) || wait.again_at.is_none() && !wait.told
        });
        due.map(|(id, _)| *id).collect()
    }
}

impl World {
    pub(super) fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.plan.segment_bytes,
            index_interval_bytes: 200,
            tail_cache_bytes: 1_000,
            ..LogOptions::default()
        }
    }

    /// Opens what the disk holds and puts the process in place; false where the disk fails just now.
    pub(super) fn recover(&mut self, node: NodeId) -> bool {
        let random = self.rng.random();
        // What its own store had applied; the rest of it comes again.
        let image = self.rng.random_range(0..=self.node(node).last_image);
        let clock = self.clock_of(node);
        let groups = self.host_groups(node, clock);
        let state = self.node_mut(node);
        let boot = state.boot(node);
        state.dark = false;
        state.disk.fail_syncs(0);
        let Ok(ledger) = Ledger::open(Arc::new(state.disk.clone()), boot) else {
            return false;
        };
        state.disk_failed = false;
        state.lives += 1;
        let life = state.lives;
        let incarnation = Incarnation {
            start: ledger.start(),
            random,
        };
        let process = Process {
            life,
            incarnation,
            directory: state.directory,
            ledger,
            slots: BTreeMap::new(),
            unmade: Unmade::default(),
            damaged: Vec::new(),
            strays_swept: false,
            image,
            epoch: None,
            next_sequence: 0,
            waiting: BTreeMap::new(),
            contact: clock,
            wants_shutdown: false,
            paused: false,
            stash: VecDeque::new(),
            subscriptions: Arc::new(AtomicU64::new(life << 32)),
            believes: Default::default(),
            session: None,
            controller: None,
            groups,
            next_tick: Duration::ZERO,
            tick_number: 0,
        };
        note!(self, None, "node {node} starts life {life}");
        match self.open_found(node, process) {
            Ok(process) => {
                self.node_mut(node).process = Some(process);
                true
            }
            Err(error) => {
                note!(self, None, "node {node} does not start: {error}");
                false
            }
        }
    }

    fn open_found(&mut self, node: NodeId, mut process: Process) -> Result<Process, LogError> {
        let mut lost = process.ledger.hosted();
        let recovery = process.ledger.recovery_context();
        let of = |partition, had, gone, found: &str| DamagedReplica {
            partition,
            had,
            gone,
            found: found.to_owned(),
        };
        for found in process.ledger.partitions()? {
            let (id, path) = (found.id, found.path);
            lost.remove(&id);
            let making = self.making(node, id, recovery, &process.subscriptions);
            let disk = &self.nodes[&node].disk;
            match (self.cores.open)(disk, &path, making) {
                Err(LogError::Corrupt { reason, .. }) => {
                    note!(
                        self,
                        Some(id),
                        "node {node} cannot read its replica: {reason}"
                    );
                    self.damage_is_found(node, id, &reason);
                    process.damaged.push(of(id, None, false, &reason));
                    process.unmade.failed(id, None);
                    process.unmade.tell(&id, true);
                }
                Err(error) => return Err(error),
                Ok((core, report)) => {
                    note!(self, Some(id), "node {node} opens its replica: {report:?}");
                    if let Some(why) = &report.damaged {
                        self.damage_is_found(node, id, why);
                        process.damaged.push(of(id, report.had, false, why));
                    }
                    process.slots.insert(id, Slot::new(core, path));
                }
            }
        }
        process.ledger.note_hosted(process.slots.keys().copied())?;
        process.ledger.logs_opened()?;
        for id in lost {
            self.damage_is_found(node, id, "its directory is gone");
            process
                .damaged
                .push(of(id, None, true, "its directory is gone"));
        }
        self.node_mut(node).flipped = false;
        Ok(process)
    }

    /// Recovery tells of damage: there must have been some.
    fn damage_is_found(&mut self, node: NodeId, id: TopicPartition, why: &str) {
        self.counts.damaged += 1;
        if let Some(watched) = self.partitions.get_mut(&id) {
            watched.damaged = true;
        }
        // Found once, it is found again until the quorum was told.
        let state = self.node(node);
        let expected = state.flipped || state.may_be_marked;
        if self.marked.insert((node, id)) && !expected {
            let what = format!("recovery of node {node} claims damage: {why}");
            self.violate(Some(id), what);
        }
    }

    fn making(
        &self,
        me: NodeId,
        id: TopicPartition,
        recovery: RecoveryContext,
        subscriptions: &Arc<AtomicU64>,
    ) -> Making {
        Making {
            me,
            id,
            timing: self.plan.timing,
            options: self.log_options(),
            recovery,
            subscriptions: Arc::clone(subscriptions),
        }
    }

    pub(super) fn image_arrives(&mut self, node: NodeId, index: usize) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if index <= process.image {
            return;
        }
        let old = std::mem::replace(&mut process.image, index);
        let old = Arc::clone(&self.quorum.images[old]);
        let new = Arc::clone(&self.quorum.images[index]);
        if let Some(process) = self.process(node)
            && let (Some(mine), Some(now)) = (process.epoch, new.broker(node))
            && now.epoch > mine
            && now.incarnation != process.incarnation
        {
            // A process whose place another one has taken stops, and is started again.
            note!(self, None, "node {node} was registered by another life");
            self.kill(node);
            return self.start_later(node);
        }
        self.image_for_controller(node, &new);
        let delta = Delta::between(&old, &new);
        self.drop_partitions(node, delta.deleted.iter().copied().collect());
        let concerned: Vec<TopicPartition> = if delta.brokers.is_empty() {
            delta.partitions
        } else {
            // A broker's state is part of the view of every partition that it has a replica of.
            new.partitions().keys().copied().collect()
        };
        self.show(node, &new, &concerned);
        self.sweep_strays(node, &new);
        self.applied_is_told(node);
        self.groups_see_image(node);
    }

    /// Shows every replica its registration anew.
    pub(super) fn show_all(&mut self, node: NodeId) {
        let Some(process) = self.process(node) else {
            return;
        };
        let image = Arc::clone(&self.quorum.images[process.image]);
        let hosted: Vec<_> = process.slots.keys().copied().collect();
        self.show(node, &image, &hosted);
    }

    /// Shows the replicas concerned their registration as the image has it; makes those that are
    /// missing.
    fn show(&mut self, node: NodeId, image: &MetadataImage, concerned: &[TopicPartition]) {
        self.create_missing(node, image, concerned);
        let options = self.log_options();
        for id in concerned {
            let Some(process) = self.process_mut(node) else {
                return;
            };
            let epoch = process.epoch;
            if let Some(slot) = process.slots.get_mut(id)
                && let Some(view) = PartitionView::of(image, id, node, epoch)
            {
                slot.core.set_log_options(options);
                self.step(node, *id, Event::View(view));
            }
        }
    }

    /// Makes new replicas, by an image that shows this very life of the node; that they are here is
    /// noted durably before one of them takes a role (R9).
    fn create_missing(&mut self, node: NodeId, image: &MetadataImage, ids: &[TopicPartition]) {
        let mut made = Vec::new();
        for id in ids {
            let Some(process) = self.process(node) else {
                return;
            };
            if process.slots.contains_key(id) || process.unmade.waits(id, self.now) {
                continue;
            }
            let view = PartitionView::of(image, id, node, process.epoch);
            if view.is_some_and(|view| view.serving && view.registration.has_replica(node))
                && let Some(slot) = self.create(node, image, *id)
            {
                made.push((*id, slot));
            }
        }
        let Some(process) = self.process_mut(node).filter(|_| !made.is_empty()) else {
            return;
        };
        match process.ledger.note_hosted(made.iter().map(|(id, _)| *id)) {
            Ok(()) => {
                for (id, slot) in made {
                    process.unmade.0.remove(&id);
                    process.slots.insert(id, slot);
                }
            }
            Err(error) => {
                note!(
                    self,
                    None,
                    "node {node}: new replicas cannot be noted: {error}"
                );
                for (id, _) in made {
                    self.not_made(node, image, id, true);
                }
            }
        }
    }

    fn create(&mut self, node: NodeId, image: &MetadataImage, id: TopicPartition) -> Option<Slot> {
        let name = image.topic(id.topic_id)?.name.clone();
        let process = self.process(node)?;
        let path = process.ledger.partition_path(&name, &id);
        let recovery = process.ledger.recovery_context();
        let making = self.making(node, id, recovery, &process.subscriptions);
        match (self.cores.open)(&self.node(node).disk, &path, making) {
            Ok((core, report)) if report.damaged.is_none() => {
                note!(self, Some(id), "node {node} makes its replica");
                Some(Slot::new(core, path))
            }
            // It is marked: the next start reports it, and hosts what is left of it.
            Ok((_, report)) => {
                let why = report.damaged.unwrap_or_default();
                self.damage_is_found(node, id, &why);
                self.not_made(node, image, id, false);
                None
            }
            Err(error) => {
                note!(
                    self,
                    Some(id),
                    "node {node}: no replica can be made: {error}"
                );
                self.not_made(node, image, id, true);
                None
            }
        }
    }

    fn not_made(&mut self, node: NodeId, image: &MetadataImage, id: TopicPartition, again: bool) {
        let again_at = again.then_some(self.now + TRY_AGAIN);
        if let Some(process) = self.process_mut(node) {
            process.unmade.failed(id, again_at);
        }
        self.tell_unmade(node, image, id);
    }

    /// Tells the quorum, once, of a replica that could not be made, unless it is the only one (R13).
    fn tell_unmade(&mut self, node: NodeId, image: &MetadataImage, id: TopicPartition) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        let view = PartitionView::of(image, &id, node, process.epoch);
        let Some(view) = view.filter(|view| view.serving) else {
            return;
        };
        let alone = view.registration.isr.iter().all(|member| *member == node);
        if alone || !process.unmade.tell(&id, true) {
            return;
        }
        let command = Command::ReportReplicaDamaged {
            partition: id,
            node,
            broker_epoch: view.my_epoch,
            found: "it could not be made".to_owned(),
        };
        self.propose(node, Asked::Unmade(id), None, command);
    }

    /// Tries again what could not be made.
    pub(super) fn try_unmade(&mut self, node: NodeId) {
        let now = self.now;
        let Some(process) = self.process(node) else {
            return;
        };
        let due = process.unmade.due(now);
        if due.is_empty() {
            return;
        }
        let image = Arc::clone(&self.quorum.images[process.image]);
        self.show(node, &image, &due);
        for id in due {
            self.tell_unmade(node, &image, id);
        }
    }

    fn drop_partitions(&mut self, node: NodeId, ids: BTreeSet<TopicPartition>) {
        let mut dropped = BTreeSet::new();
        for id in ids {
            let slot = self.process_mut(node).and_then(|p| p.slots.remove(&id));
            let Some(mut slot) = slot else {
                continue;
            };
            note!(self, Some(id), "node {node}: replica removed");
            let mut actions = Vec::new();
            slot.core.abandon(&mut actions);
            for action in actions {
                self.carry_out(node, id, action);
            }
            if let Some(watched) = self.partitions.get_mut(&id) {
                watched.seen.remove(&node);
            }
            dropped.insert(id);
        }
        self.set_aside(node, &dropped);
    }

    fn set_aside(&mut self, node: NodeId, ids: &BTreeSet<TopicPartition>) {
        if ids.is_empty() {
            return;
        }
        let Some(process) = self.process(node) else {
            return;
        };
        if let Err(error) = process.ledger.set_aside(ids) {
            note!(
                self,
                None,
                "node {node}: a replica's directory stays: {error}"
            );
        }
    }

    /// R14: only an image at or past the own registration says what is a stray.
    fn sweep_strays(&mut self, node: NodeId, image: &MetadataImage) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        let reached = process
            .epoch
            .is_some_and(|epoch| image.applied().index.get() >= epoch.get());
        if process.strays_swept || !reached {
            return;
        }
        process.strays_swept = true;
        let here = |id: &TopicPartition| {
            let registration = image.partition(id);
            registration.is_some_and(|of| of.has_replica(node))
        };
        let strays = process.slots.keys().filter(|id| !here(id));
        let strays: BTreeSet<_> = strays.copied().collect();
        self.drop_partitions(node, strays);
        let Some(process) = self.process_mut(node) else {
            return;
        };
        // What was lost here and is no business of this node's any more.
        let mut lost = process.ledger.hosted();
        lost.retain(|id| !process.slots.contains_key(id) && !here(id));
        process.unmade.0.retain(|id, _| here(id));
        self.set_aside(node, &lost);
    }
}
