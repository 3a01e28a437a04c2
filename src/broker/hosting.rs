//! Which partitions this node hosts: opened from disk at the start, made and removed as the image
//! says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_config::TopicSettings;
use quorate_log::{FoundPartition, LogError, LogOptions, PartitionLog};
use quorate_metadata::{Command, DamagedReplica, Delta, MetadataImage};
use quorate_replication::{Event, PartitionView, Replica};
use quorate_types::{TopicName, TopicPartition};
use tracing::{error, info, warn};

use crate::Disk;
use crate::plane::{Plane, Slot};

/// Of so many damaged replicas the registration tells what was found; of all of them that they are.
const FOUND_MAX: usize = 100;

fn log_options(settings: &TopicSettings) -> LogOptions {
    LogOptions {
        segment_bytes: settings.segment_bytes,
        segment_ms: settings.segment_ms,
        ..LogOptions::default()
    }
}

/// The disk works, one file does not: that is one replica's damage and not the node's.
fn one_file_fails(error: &LogError) -> bool {
    /// EIO: the medium does not give the sector back.
    const UNREADABLE: i32 = 5;
    match error {
        LogError::Corrupt { .. } => true,
        LogError::Io { source, .. } => source.raw_os_error() == Some(UNREADABLE),
        _ => false,
    }
}

impl Plane {
    /// Opens every partition found in the directory; gives the damaged ones (R9), those among them
    /// whose directories are gone, each with what was found.
    pub(crate) fn open_found(&mut self) -> Result<Vec<DamagedReplica>, LogError> {
        let mut damaged: Vec<DamagedReplica> = Vec::new();
        let mut note = |partition, had, gone, found: &str| {
            let told = damaged.len() < FOUND_MAX;
            let found = if told { found } else { "" }.to_owned();
            damaged.push(DamagedReplica {
                partition,
                had,
                gone,
                found,
            });
        };
        let mut lost = self.directory.hosted();
        for FoundPartition {
            topic: name,
            id,
            path,
        } in self.directory.partitions(self.grace)?
        {
            lost.remove(&id);
            let opened = PartitionLog::open(
                self.directory.dir(),
                &path,
                log_options(&TopicSettings::default()),
                self.directory.recovery_context(),
            );
            let (log, report) = match opened {
                Err(failure) if one_file_fails(&failure) => {
                    let partition = id.partition;
                    error!(topic = %name, %partition, error = %failure, "replica cannot be read");
                    let why = failure.to_string();
                    note(id, None, false, &why);
                    // A further try would read all of it again, on the plane's thread.
                    self.unmade.failed(id, self.clock.now(), false, why);
                    self.unmade.told(&id);
                    continue;
                }
                opened => opened?,
            };
            if let Some(why) = &report.damaged {
                error!(topic = %name, partition = %id.partition, why, "replica is damaged");
                note(id, report.had, false, why);
            }
            self.host(id, log);
        }
        self.directory.note_hosted(self.slots.keys().copied())?;
        self.directory.logs_opened()?;
        for id in lost {
            error!(partition = %id, "replica is damaged: its directory is gone");
            note(id, None, true, "its directory is gone");
        }
        self.damaged.extend(damaged.iter().map(|of| of.partition));
        Ok(damaged)
    }

    /// The registration is applied, and with it the damage that it told of.
    pub(crate) fn damage_told(&mut self) {
        for id in std::mem::take(&mut self.damaged) {
            if let Some(slot) = self.slots.get(&id)
                && let Err(error) = slot.replica.log().damage_told()
            {
                warn!(partition = %slot.replica.log().name(), %error, "the next start reports this replica again");
            }
        }
    }

    fn host(&mut self, id: TopicPartition, log: PartitionLog<Disk>) {
        log.share_tail(Arc::clone(&self.tails));
        let hosted = self.registry.insert(id, log.reader(), log.epochs().clone());
        let subscriptions = Arc::clone(&self.subscriptions);
        let replica = Replica::new(self.me, id, log, self.timing, subscriptions);
        self.slots.insert(id, Slot { replica, hosted });
        self.touched.insert(id);
    }

    /// Reacts to what the new image changed.
    pub(crate) fn take_image(&mut self, image: Arc<MetadataImage>) {
        let old = std::mem::replace(&mut self.image, image);
        let delta = Delta::between(&old, &self.image);
        self.drop_partitions(delta.deleted.iter().copied(), "the topic was deleted");
        let concerned: Vec<TopicPartition> = if delta.brokers.is_empty() {
            delta.partitions
        } else {
            // A broker's state is part of the view of every partition that it has a replica of.
            self.image.partitions().keys().copied().collect()
        };
        self.show(&concerned);
        self.sweep_strays();
        if self.strays_swept {
            let (image, me) = (&self.image, self.me);
            let ours = |id: &TopicPartition| {
                let registration = image.partition(id);
                registration.is_some_and(|of| of.has_replica(me))
            };
            self.unmade.retain(ours);
        }
    }

    /// Shows the replicas concerned their registration as the image has it now.
    pub(crate) fn show(&mut self, concerned: &[TopicPartition]) {
        self.create_missing(concerned);
        for id in concerned {
            let Some(view) = PartitionView::of(&self.image, id, self.me, self.my_epoch) else {
                continue;
            };
            if let Some(slot) = self.slots.get_mut(id) {
                slot.replica.set_log_options(log_options(&view.settings));
                self.step(*id, Event::View(view));
            }
        }
    }

    /// Makes new replicas, by an image that shows this very life of the node. That their logs are
    /// here is noted durably before one of them takes a role: so a directory that is gone later is
    /// known for lost, and not taken for a new replica's (R9).
    fn create_missing(&mut self, concerned: &[TopicPartition]) {
        let mut made = Vec::new();
        for id in concerned {
            if self.slots.contains_key(id) {
                continue;
            }
            let view = PartitionView::of(&self.image, id, self.me, self.my_epoch);
            if self.unmade.waits(id, self.clock.now()) {
                let registration = view.as_ref().map(|view| &view.registration);
                let leads = registration.filter(|of| of.leader == Some(self.me));
                if leads.is_some_and(|of| self.unmade.leads_in_vain(id, of.leader_epoch)) {
                    self.tell_unmade(*id);
                }
                continue;
            }
            if let Some(view) =
                view.filter(|view| view.serving && view.registration.has_replica(self.me))
                && let Some(log) = self.create(id, &view)
            {
                made.push((*id, log));
            }
        }
        if made.is_empty() {
            return;
        }
        match self.directory.note_hosted(made.iter().map(|(id, _)| *id)) {
            Ok(()) => made.into_iter().for_each(|(id, log)| {
                self.unmade.made(&id);
                self.host(id, log);
            }),
            Err(error) => {
                error!(%error, "new replicas cannot be noted: they take no role");
                for (id, _) in made {
                    self.not_made(id, true, error.to_string());
                }
            }
        }
    }

    /// Tries again what could not be made.
    pub(crate) fn try_unmade(&mut self, now: Duration) {
        let due = self.unmade.due(now);
        if due.is_empty() {
            return;
        }
        self.show(&due);
        for id in due {
            self.unmade.put_off(&id, now);
            self.tell_unmade(id);
        }
    }

    /// Tells the quorum, once, of a replica that could not be made: another in-sync one leads
    /// meanwhile. The only one stays where it is: nobody could do better (R13).
    fn tell_unmade(&mut self, id: TopicPartition) {
        let view = PartitionView::of(&self.image, &id, self.me, self.my_epoch);
        let Some(view) = view.filter(|view| view.serving && self.unmade.untold(&id)) else {
            return;
        };
        let isr = &view.registration.isr;
        // Named leader for good, it could only keep the partition from whoever else may lead.
        let in_vain = view.registration.leader == Some(self.me) && self.unmade.is_given_up(&id);
        if !in_vain && isr.iter().all(|member| *member == self.me) {
            return;
        }
        let command = Command::ReportReplicaDamaged {
            partition: id,
            node: self.me,
            broker_epoch: view.my_epoch,
            found: self.unmade.why(&id).to_owned(),
        };
        let proposal = self.unmade.ask(&id);
        self.proposals.propose(id, proposal, command);
    }

    fn not_made(&mut self, id: TopicPartition, again: bool, why: String) {
        self.unmade.failed(id, self.clock.now(), again, why);
        self.tell_unmade(id);
    }

    fn create(&mut self, id: &TopicPartition, view: &PartitionView) -> Option<PartitionLog<Disk>> {
        let name: TopicName = self.image.topic(id.topic_id)?.name.clone();
        let opened = PartitionLog::open(
            self.directory.dir(),
            &self.directory.partition_path(&name, id),
            log_options(&view.settings),
            self.directory.recovery_context(),
        );
        match opened {
            Ok((log, report)) if report.damaged.is_none() => Some(log),
            // It is marked: the next start reports it, and hosts what is left of it.
            Ok((_, report)) => {
                error!(topic = %name, partition = %id.partition, "replica is damaged: restart");
                self.not_made(*id, false, report.damaged.unwrap_or_default());
                None
            }
            Err(error) => {
                error!(topic = %name, partition = %id.partition, %error, "replica cannot be made");
                self.not_made(*id, true, error.to_string());
                None
            }
        }
    }

    fn drop_partitions(&mut self, ids: impl IntoIterator<Item = TopicPartition>, why: &str) {
        let mut dropped = BTreeSet::new();
        for id in ids {
            let Some(mut slot) = self.slots.remove(&id) else {
                continue;
            };
            self.registry.remove(&id);
            info!(
                partition = %slot.replica.log().name(),
                why, "replica removed"
            );
            let mut actions = Vec::new();
            slot.replica.abandon(&mut actions);
            for action in actions {
                self.carry_out(id, action);
            }
            slot.hosted.retire();
            dropped.insert(id);
        }
        self.set_aside(&dropped);
    }

    fn set_aside(&self, ids: &BTreeSet<TopicPartition>) {
        if !ids.is_empty()
            && let Err(error) = self.directory.set_aside(ids)
        {
            error!(%error, "the directory of a removed replica could not be renamed");
        }
    }

    /// R14: only an image at or past the own registration says what is a stray.
    fn sweep_strays(&mut self) {
        let reached = self
            .my_epoch
            .is_some_and(|epoch| self.image.applied().index.get() >= epoch.get());
        if self.strays_swept || !reached {
            return;
        }
        self.strays_swept = true;
        let strays: Vec<TopicPartition> = self
            .slots
            .keys()
            .filter(|id| {
                self.image
                    .partition(id)
                    .is_none_or(|registration| !registration.has_replica(self.me))
            })
            .copied()
            .collect();
        self.drop_partitions(strays, "stray");
        // What was lost here and is no business of this node's any more.
        let mut lost = self.directory.hosted();
        lost.retain(|id| {
            let registration = self.image.partition(id);
            let here = registration.is_some_and(|of| of.has_replica(self.me));
            !self.slots.contains_key(id) && !here
        });
        self.set_aside(&lost);
    }
}
