//! The image: everything that the cluster knows, in persistent maps, so that a clone costs nothing
//! and a new version costs what changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use quorate_config::TopicSettings;
use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, Endpoint, GroupEpoch, GroupId, GroupShard,
    Incarnation, LeaderEpoch, NodeId, Offset, PartitionEpoch, ProducerEpoch, ProducerId, TopicId,
    TopicName, TopicPartition,
};
use serde::{Deserialize, Serialize};

use crate::command::LogId;
use crate::features::{first_level, is_first_level};
use crate::group::{
    Group, Offsets, Shard, StoredGroup, StoredOffsets, load_groups, load_offsets, store_groups,
    store_offsets,
};
use crate::history::{History, StoredHistory};
use crate::origins::{OriginWindow, Origins};
use crate::producers::{ProducerEpochs, StoredProducerEpochs};

/// What a broker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerState {
    /// Registered, or lost: takes no role.
    Fenced,
    /// Takes roles.
    Active,
    /// Gives its roles away.
    ShuttingDown,
}

/// A registered broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Its number.
    pub node: NodeId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its machine's boot.
    pub boot: BootId,
    /// Its registration: the log index of it.
    pub epoch: BrokerEpoch,
    /// What it may do.
    pub state: BrokerState,
    /// This life of it is registered and was neither unfenced nor given up yet: it may come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
    /// Where clients reach it.
    pub client: Endpoint,
    /// Where nodes reach it.
    pub internal: Endpoint,
    /// Its rack.
    pub rack: Option<String>,
    /// Lowest feature level that it speaks.
    #[serde(default = "first_level", skip_serializing_if = "is_first_level")]
    pub min_level: u32,
    /// Highest feature level that it speaks.
    #[serde(default = "first_level", skip_serializing_if = "is_first_level")]
    pub max_level: u32,
}

impl Broker {
    /// Nobody expects anything of it: it was fenced, and has not come back.
    pub fn is_gone(&self) -> bool {
        self.state == BrokerState::Fenced && !self.starting
    }
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// How many partitions it has.
    pub partitions: u32,
    /// Its settings in force.
    pub settings: TopicSettings,
    /// Its settings as they were given.
    pub config: BTreeMap<String, String>,
}

/// A replica's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaAssignment {
    /// On which node.
    pub node: NodeId,
    /// In which directory.
    pub directory: DirectoryId,
}

/// A partition's registration: who has it, who is in sync, who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its replicas; the first is the preferred leader.
    pub replicas: Vec<ReplicaAssignment>,
    /// Replicas that a reassignment adds.
    pub adding: Vec<NodeId>,
    /// Replicas that a reassignment removes.
    pub removing: Vec<NodeId>,
    /// In-sync replicas as committed.
    pub isr: Vec<NodeId>,
    /// Eligible leader replicas (KIP-966).
    pub elr: Vec<NodeId>,
    /// Who leads; none: the partition is offline.
    pub leader: Option<NodeId>,
    /// Who led last.
    pub last_known_leader: Option<NodeId>,
    /// Bumped on every leader change, also to none and to the same.
    pub leader_epoch: LeaderEpoch,
    /// Bumped on every change: the compare-and-set guard.
    pub partition_epoch: PartitionEpoch,
    /// Leader epoch of the last unclean election.
    pub unclean_epoch: Option<LeaderEpoch>,
    /// What unclean elections lost, as far as it was told; the last 16, oldest first.
    pub losses: Vec<DataLoss>,
    /// Where the logs of damaged replicas ended before, at most: an unclean election has lost what is
    /// missing up to there.
    pub damaged_end: Option<Offset>,
    /// What the ISR has acknowledged is on its disks (R9, R17).
    pub fsync_established: bool,
}

/// Offsets of which an unclean election lost what was there, or part of it (R7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataLoss {
    /// The leader epoch of that election.
    pub epoch: LeaderEpoch,
    /// The first offset.
    pub from: Offset,
    /// The offset after the last; none while nobody has come back who knows it.
    pub to: Option<Offset>,
}

impl DataLoss {
    /// Both ranges and what lies between them.
    pub(crate) fn with(&self, other: &Self) -> Self {
        Self {
            epoch: self.epoch,
            from: self.from.min(other.from),
            to: self.to.max(other.to),
        }
    }

    /// Whether all from `from` to `to` is part of it.
    pub fn covers(&self, from: Offset, to: Offset) -> bool {
        self.from <= from && self.to >= Some(to)
    }
}

impl Registration {
    /// In-sync replicas that an `acks=all` produce needs: `min.insync.replicas`, or all there are.
    pub fn effective_min_isr(&self, settings: &TopicSettings) -> usize {
        (settings.min_insync_replicas as usize).min(self.replicas.len())
    }

    /// Whether it is on record that the unclean election at `epoch` lost all from `from` to `to`.
    pub fn tells_of(&self, epoch: LeaderEpoch, from: Offset, to: Offset) -> bool {
        let last = self.losses.last();
        last.is_some_and(|loss| loss.epoch == epoch && loss.covers(from, to))
    }

    /// Whether the node has a replica.
    pub fn has_replica(&self, node: NodeId) -> bool {
        self.replicas.iter().any(|replica| replica.node == node)
    }
}

/// Everything that the cluster knows, as of one place in the metadata log.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataImage {
    pub(crate) applied: LogId,
    pub(crate) hash: u64,
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) feature_level: u32,
    pub(crate) brokers: OrdMap<NodeId, Broker>,
    pub(crate) topics: OrdMap<TopicId, Topic>,
    pub(crate) names: OrdMap<TopicName, TopicId>,
    pub(crate) partitions: OrdMap<TopicPartition, Arc<Registration>>,
    pub(crate) origins: Origins,
    pub(crate) next_producer_id: u64,
    pub(crate) producer_epochs: ProducerEpochs,
    pub(crate) history: History,
    pub(crate) shards: OrdMap<GroupShard, Shard>,
    pub(crate) groups: OrdMap<GroupId, Arc<Group>>,
    pub(crate) offsets: OrdMap<GroupId, Offsets>,
    /// The highest epoch of a group that was deleted: new ones begin above it.
    pub(crate) former_epochs: GroupEpoch,
}

/// The image as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    applied: LogId,
    hash: u64,
    cluster_id: Option<ClusterId>,
    #[serde(default = "first_level", skip_serializing_if = "is_first_level")]
    feature_level: u32,
    brokers: Vec<Broker>,
    topics: Vec<StoredTopic>,
    partitions: Vec<(TopicPartition, Registration)>,
    origins: Vec<((NodeId, DirectoryId), OriginWindow)>,
    next_producer_id: u64,
    #[serde(default, skip_serializing_if = "StoredProducerEpochs::is_empty")]
    producer_epochs: StoredProducerEpochs,
    #[serde(default)]
    history: StoredHistory,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shards: Vec<(GroupShard, Shard)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<StoredGroup>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    offsets: StoredOffsets,
    #[serde(default, skip_serializing_if = "is_first_epoch")]
    former_epochs: GroupEpoch,
}

fn is_first_epoch(epoch: &GroupEpoch) -> bool {
    *epoch == GroupEpoch::ZERO
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTopic {
    id: TopicId,
    name: TopicName,
    partitions: u32,
    config: BTreeMap<String, String>,
}

impl Default for MetadataImage {
    fn default() -> Self {
        Self::new()
    }
}

impl MetadataImage {
    /// What is known before the first entry: nothing, and the first feature level.
    pub fn new() -> Self {
        Self {
            applied: LogId::default(),
            hash: 0,
            cluster_id: None,
            feature_level: first_level(),
            brokers: OrdMap::new(),
            topics: OrdMap::new(),
            names: OrdMap::new(),
            partitions: OrdMap::new(),
            origins: OrdMap::new(),
            next_producer_id: 0,
            producer_epochs: ProducerEpochs::default(),
            history: History::default(),
            shards: OrdMap::new(),
            groups: OrdMap::new(),
            offsets: OrdMap::new(),
            former_epochs: GroupEpoch::ZERO,
        }
    }

    /// The last entry in it.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// A hash over every (place, commands, outcomes) so far: equal on all nodes at equal places.
    pub fn rolling_hash(&self) -> u64 {
        self.hash
    }

    /// The cluster's id, once it has one.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// The feature level that decides what commands do; 1 at first.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// All registered brokers.
    pub fn brokers(&self) -> &OrdMap<NodeId, Broker> {
        &self.brokers
    }

    /// One broker.
    pub fn broker(&self, node: NodeId) -> Option<&Broker> {
        self.brokers.get(&node)
    }

    /// All topics.
    pub fn topics(&self) -> &OrdMap<TopicId, Topic> {
        &self.topics
    }

    /// One topic.
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// One topic by its name.
    pub fn topic_by_name(&self, name: &TopicName) -> Option<&Topic> {
        self.names.get(name).and_then(|id| self.topics.get(id))
    }

    /// All partitions.
    pub fn partitions(&self) -> &OrdMap<TopicPartition, Arc<Registration>> {
        &self.partitions
    }

    /// One partition.
    pub fn partition(&self, id: &TopicPartition) -> Option<&Arc<Registration>> {
        self.partitions.get(id)
    }

    /// The newest epoch of a producer id that was given out: what is older is fenced (R11). 0 where
    /// none was asked for beside the id itself.
    pub fn producer_epoch(&self, id: ProducerId) -> ProducerEpoch {
        self.producer_epochs.of(id)
    }

    pub(crate) fn is_active(&self, node: NodeId) -> bool {
        self.broker(node)
            .is_some_and(|broker| broker.state == BrokerState::Active)
    }

    pub(crate) fn to_stored(&self) -> Stored {
        Stored {
            applied: self.applied,
            hash: self.hash,
            cluster_id: self.cluster_id,
            feature_level: self.feature_level,
            brokers: self.brokers.values().cloned().collect(),
            topics: self
                .topics
                .values()
                .map(|topic| StoredTopic {
                    id: topic.id,
                    name: topic.name.clone(),
                    partitions: topic.partitions,
                    config: topic.config.clone(),
                })
                .collect(),
            partitions: self
                .partitions
                .iter()
                .map(|(id, reg)| (*id, (**reg).clone()))
                .collect(),
            origins: self
                .origins
                .iter()
                .map(|(of, window)| (*of, window.clone()))
                .collect(),
            next_producer_id: self.next_producer_id,
            producer_epochs: (&self.producer_epochs).into(),
            history: (&self.history).into(),
            shards: self
                .shards
                .iter()
                .map(|(id, shard)| (*id, *shard))
                .collect(),
            groups: store_groups(&self.groups),
            offsets: store_offsets(&self.offsets),
            former_epochs: self.former_epochs,
        }
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        let topics: OrdMap<TopicId, Topic> = stored
            .topics
            .into_iter()
            .map(|topic| {
                // Settings were checked when the topic was made.
                let settings = TopicSettings::parse(&topic.config).unwrap_or_default();
                let StoredTopic {
                    id,
                    name,
                    partitions,
                    config,
                } = topic;
                (
                    id,
                    Topic {
                        id,
                        name,
                        partitions,
                        settings,
                        config,
                    },
                )
            })
            .collect();
        Self {
            applied: stored.applied,
            hash: stored.hash,
            cluster_id: stored.cluster_id,
            feature_level: stored.feature_level,
            brokers: stored
                .brokers
                .into_iter()
                .map(|broker| (broker.node, broker))
                .collect(),
            names: topics
                .values()
                .map(|topic| (topic.name.clone(), topic.id))
                .collect(),
            topics,
            partitions: stored
                .partitions
                .into_iter()
                .map(|(id, reg)| (id, Arc::new(reg)))
                .collect(),
            origins: stored.origins.into_iter().collect(),
            next_producer_id: stored.next_producer_id,
            producer_epochs: stored.producer_epochs.into(),
            history: stored.history.into(),
            shards: stored.shards.into_iter().collect(),
            groups: load_groups(stored.groups),
            offsets: load_offsets(stored.offsets),
            former_epochs: stored.former_epochs,
        }
    }
}
