//! Topics, and producer ids.

use quorate_config::TopicSettings;
use quorate_types::{
    Durability, ErrorCode, LeaderEpoch, NodeId, PartitionEpoch, PartitionId, ProducerId, TopicId,
    TopicPartition,
};

use crate::apply::Change;
use crate::cause::Reason;
use crate::command::{AlterTopic, CreateTopic, Outcome};
use crate::election::Unclean;
use crate::event::EventKind;
use crate::image::{BrokerState, Registration, ReplicaAssignment, Topic};
use crate::placement::place;

/// Partitions of one topic at most.
const PARTITIONS_MAX: u32 = 10_000;
/// Producer ids of one block at most.
const PRODUCER_IDS_MAX: u32 = 10_000;

impl Change<'_> {
    pub(crate) fn create_topic(&mut self, create: &CreateTopic) -> Outcome {
        if self.image.names.contains_key(&create.name) {
            let message = format!("topic {} exists", create.name);
            return Outcome::refused(ErrorCode::TopicAlreadyExists, message);
        }
        if self.image.topics.contains_key(&create.topic_id) {
            let message = format!("topic id {} is taken", create.topic_id);
            return Outcome::refused(ErrorCode::InvalidRequest, message);
        }
        if create.partitions == 0 || create.partitions > PARTITIONS_MAX {
            let message = format!(
                "{} partitions: 1 to {PARTITIONS_MAX} are possible",
                create.partitions
            );
            return Outcome::refused(ErrorCode::InvalidPartitions, message);
        }
        let settings = match TopicSettings::parse(&create.config) {
            Ok(settings) => settings,
            Err(invalid) => {
                return Outcome::refused(ErrorCode::InvalidConfig, invalid.to_string());
            }
        };
        let factor = create.replication_factor as usize;
        let active: Vec<(NodeId, Option<&str>)> = self
            .image
            .brokers
            .values()
            .filter(|broker| broker.state == BrokerState::Active)
            .map(|broker| (broker.node, broker.rack.as_deref()))
            .collect();
        if factor == 0 || factor > active.len() {
            let message = format!(
                "replication factor {factor} with {} active brokers: choose 1 to {0}, or start more",
                active.len()
            );
            return Outcome::refused(ErrorCode::InvalidReplicationFactor, message);
        }
        let placed = place(&active, create.partitions, factor, create.seed);
        let topic = Topic {
            id: create.topic_id,
            name: create.name.clone(),
            partitions: create.partitions,
            settings: settings.clone(),
            config: create.config.clone(),
        };
        self.image.names.insert(topic.name.clone(), topic.id);
        self.image.topics.insert(topic.id, topic);
        let made = EventKind::TopicCreated {
            topic: create.name.clone(),
            partitions: create.partitions,
        };
        self.tell(made, Reason::Asked);
        for (partition, nodes) in (0..).map(PartitionId::new).zip(placed) {
            let registration = self.first_registration(&nodes, &settings);
            let id = TopicPartition::new(create.topic_id, partition);
            self.store(id, registration, Reason::Created);
        }
        Outcome::Created {
            topic_id: create.topic_id,
        }
    }

    fn first_registration(&self, nodes: &[NodeId], settings: &TopicSettings) -> Registration {
        let assigned = |node: &NodeId| {
            let broker = self.image.broker(*node)?;
            Some(ReplicaAssignment {
                node: *node,
                directory: broker.directory,
            })
        };
        Registration {
            replicas: nodes.iter().filter_map(assigned).collect(),
            adding: Vec::new(),
            removing: Vec::new(),
            isr: nodes.to_vec(),
            elr: Vec::new(),
            leader: nodes.first().copied(),
            last_known_leader: None,
            leader_epoch: LeaderEpoch::ZERO,
            partition_epoch: PartitionEpoch::ZERO,
            unclean_epoch: None,
            losses: Vec::new(),
            damaged_end: None,
            // An empty log is on every disk.
            fsync_established: settings.durability == Durability::Fsync,
        }
    }

    /// Takes new settings. What the partitions' registrations say under the old ones and not under
    /// the new is taken back with them: page caches keep nothing over a power loss (R17), and whoever
    /// is outside an ISR that is large enough now may miss what it acknowledges (KIP-966).
    pub(crate) fn alter_topic(&mut self, alter: &AlterTopic) -> Outcome {
        let Some(old) = self.image.topics.get(&alter.topic_id) else {
            let message = format!("there is no topic {}", alter.topic_id);
            return Outcome::refused(ErrorCode::UnknownTopicId, message);
        };
        let mut topic = old.clone();
        for key in &alter.unset {
            if !TopicSettings::KEYS.contains(&key.as_str()) {
                let known = TopicSettings::KEYS.join(", ");
                let message = format!("{key}: unknown setting; known are {known}");
                return Outcome::refused(ErrorCode::InvalidConfig, message);
            }
            if alter.set.contains_key(key) {
                let message = format!("{key}: both set and unset");
                return Outcome::refused(ErrorCode::InvalidConfig, message);
            }
            topic.config.remove(key);
        }
        topic.config.extend(alter.set.clone());
        topic.settings = match TopicSettings::parse(&topic.config) {
            Ok(settings) => settings,
            Err(invalid) => {
                return Outcome::refused(ErrorCode::InvalidConfig, invalid.to_string());
            }
        };
        if topic == *old {
            return Outcome::Done;
        }
        let set = alter
            .set
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let unset = alter.unset.iter().map(|key| format!("{key} by default"));
        let settings = set.chain(unset).collect::<Vec<_>>().join(", ");
        let settled = topic.settings.clone();
        let durability_changes = settled.durability != old.settings.durability;
        let altered = EventKind::TopicAltered {
            topic: topic.name.clone(),
            settings,
        };
        let partitions = (0..topic.partitions).map(PartitionId::new);
        let ids = partitions.map(|number| TopicPartition::new(alter.topic_id, number));
        self.image.topics.insert(topic.id, topic);
        self.tell(altered, Reason::Asked);
        for id in ids {
            let Some(old) = self.image.partitions.get(&id).cloned() else {
                continue;
            };
            let mut new = Registration::clone(&old);
            if settled.durability == Durability::PageCache && !self.planted.keep_established {
                new.fsync_established = false;
            }
            if new.isr.len() >= new.effective_min_isr(&settled) {
                new.elr.clear();
            }
            self.elect_where_offline(id, &mut new, None, Unclean::AsSet);
            // Also where nothing else changes: a proposal made under the old durability must not be
            // taken under the new (R17).
            if durability_changes || new != *old {
                self.store(id, new, Reason::Altered);
            }
        }
        Outcome::Done
    }

    pub(crate) fn delete_topic(&mut self, topic_id: TopicId) -> Outcome {
        let Some(topic) = self.image.topics.remove(&topic_id) else {
            let message = format!("there is no topic {topic_id}");
            return Outcome::refused(ErrorCode::UnknownTopicId, message);
        };
        self.image.names.remove(&topic.name);
        for partition in 0..topic.partitions {
            let id = TopicPartition::new(topic_id, PartitionId::new(partition));
            self.image.partitions.remove(&id);
            self.image.history.forget(&id);
        }
        self.image.history.forget_topic(topic_id);
        self.forget_in_groups(topic_id);
        self.tell(EventKind::TopicDeleted { topic: topic.name }, Reason::Asked);
        Outcome::Done
    }

    pub(crate) fn allocate_producer_ids(&mut self, count: u32) -> Outcome {
        if count == 0 || count > PRODUCER_IDS_MAX {
            let message = format!("{count} producer ids: 1 to {PRODUCER_IDS_MAX} are possible");
            return Outcome::refused(ErrorCode::InvalidRequest, message);
        }
        let first = self.image.next_producer_id;
        self.image.next_producer_id += u64::from(count);
        Outcome::ProducerIds {
            first: ProducerId::new(first),
            count,
        }
    }
}
