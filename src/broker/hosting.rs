//! Which partitions this node hosts: opened from disk at the start, made and removed as the image
//! says.

use std::sync::Arc;

use quorate_config::TopicSettings;
use quorate_log::{FoundPartition, LogOptions, PartitionLog};
use quorate_metadata::{Delta, MetadataImage};
use quorate_replication::{Event, PartitionView, Replica};
use quorate_types::{TopicName, TopicPartition};
use tracing::{error, info};

use crate::Disk;
use crate::plane::{Plane, Slot};

fn log_options(settings: &TopicSettings) -> LogOptions {
    LogOptions {
        segment_bytes: settings.segment_bytes,
        segment_ms: settings.segment_ms,
        ..LogOptions::default()
    }
}

impl Plane {
    /// Opens every partition found in the directory; gives the damaged ones (R9).
    pub(crate) fn open_found(&mut self) -> Result<Vec<TopicPartition>, quorate_log::LogError> {
        let mut damaged = Vec::new();
        for FoundPartition {
            topic: name,
            id,
            path,
        } in self.directory.partitions(self.grace)?
        {
            let options = log_options(&TopicSettings::default());
            let (log, report) = PartitionLog::open(
                self.directory.dir(),
                &path,
                options,
                self.directory.recovery_context(),
            )?;
            if let Some(why) = &report.damaged {
                error!(topic = %name, partition = %id.partition, why, "replica is damaged");
                damaged.push(id);
            }
            self.host(id, log);
        }
        Ok(damaged)
    }

    fn host(&mut self, id: TopicPartition, log: PartitionLog<Disk>) {
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
        for id in &delta.deleted {
            self.drop_partition(id, "the topic was deleted");
        }
        let concerned: Vec<TopicPartition> = if delta.brokers.is_empty() {
            delta.partitions
        } else {
            // A broker's state is part of the view of every partition that it has a replica of.
            self.image.partitions().keys().copied().collect()
        };
        self.show(&concerned);
        self.sweep_strays();
    }

    /// Shows the replicas concerned their registration as the image has it now.
    pub(crate) fn show(&mut self, concerned: &[TopicPartition]) {
        for id in concerned {
            let Some(view) = PartitionView::of(&self.image, id, self.me, self.my_epoch) else {
                continue;
            };
            // A new replica is made by an image that shows this very life of the node.
            if view.serving
                && view.registration.has_replica(self.me)
                && !self.slots.contains_key(id)
            {
                self.create(id, &view);
            }
            if let Some(slot) = self.slots.get_mut(id) {
                slot.replica.set_log_options(log_options(&view.settings));
                self.step(*id, Event::View(view));
            }
        }
    }

    fn create(&mut self, id: &TopicPartition, view: &PartitionView) {
        let Some(topic) = self.image.topic(id.topic_id) else {
            return;
        };
        let name: TopicName = topic.name.clone();
        let opened = PartitionLog::open(
            self.directory.dir(),
            &self.directory.partition_path(&name, id),
            log_options(&view.settings),
            self.directory.recovery_context(),
        );
        match opened {
            Ok((log, _)) => self.host(*id, log),
            Err(error) => {
                error!(topic = %name, partition = %id.partition, %error, "replica cannot be made");
            }
        }
    }

    fn drop_partition(&mut self, id: &TopicPartition, why: &str) {
        if let Some(mut slot) = self.slots.remove(id) {
            self.registry.remove(id);
            info!(partition = %id, why, "replica removed");
            let mut actions = Vec::new();
            slot.replica.abandon(&mut actions);
            for action in actions {
                self.carry_out(*id, action);
            }
            slot.hosted.retire();
            drop(slot);
            self.set_aside(id);
        }
    }

    fn set_aside(&self, id: &TopicPartition) {
        if let Err(error) = self.directory.set_aside(id) {
            error!(partition = %id, %error, "a removed replica's directory could not be renamed");
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
        for id in strays {
            self.drop_partition(&id, "stray");
        }
    }
}
