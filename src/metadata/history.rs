//! What happened lately to each partition, topic and broker: part of the image, so that any node can
//! say why a partition is as it is, also after all of them have restarted.
//!
//! Invariants: never more than [`KEPT`] events of one partition, topic or broker, oldest gone first;
//! nothing of a topic that is gone; equal commands give equal histories. What concerns every
//! partition of a topic is kept once, with the topic.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use quorate_types::{
    BrokerEpoch, LeaderEpoch, NodeId, Offset, RaftIndex, Timestamp, TopicId, TopicName,
    TopicPartition,
};
use serde::{Deserialize, Serialize};

use crate::cause::{Cause, words};
use crate::event::{ClusterEvent, EventKind};
use crate::image::MetadataImage;

/// Events kept of each partition, of each topic and of each broker.
pub(crate) const KEPT: usize = 32;

/// An [`EventKind`] without the names of what it happened to, which are the key it is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Led(NodeId, LeaderEpoch, Box<[NodeId]>),
    UncleanLed(NodeId, LeaderEpoch),
    Lost(LeaderEpoch, Offset, Offset),
    Offline(LeaderEpoch, Box<[NodeId]>),
    Isr(Option<NodeId>, LeaderEpoch, Box<[NodeId]>),
    Damaged(NodeId),
    Created(u32),
    Altered(Arc<str>),
    Registered(BrokerEpoch),
    Unfenced,
    Fenced,
    Stopping,
}

#[derive(Debug, PartialEq, Eq)]
struct Kept {
    index: RaftIndex,
    time: Timestamp,
    what: What,
    cause: Cause,
}

/// The latest events of one thing, oldest first.
type Ring = Arc<[Arc<Kept>]>;

fn push<K: Ord + Clone>(rings: &mut OrdMap<K, Ring>, key: K, kept: Kept) {
    let old = rings.get(&key).map_or(&[][..], |ring| ring);
    let from = (old.len() + 1).saturating_sub(KEPT);
    let ring = old[from..]
        .iter()
        .cloned()
        .chain([Arc::new(kept)])
        .collect();
    rings.insert(key, ring);
}

/// The histories of everything there is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct History {
    partitions: OrdMap<TopicPartition, Ring>,
    topics: OrdMap<TopicId, Ring>,
    brokers: OrdMap<NodeId, Ring>,
}

enum Key {
    Partition(TopicPartition),
    Topic(TopicId),
    Broker(NodeId),
}

impl MetadataImage {
    /// Keeps an event; one about a topic that is gone is nobody's any more.
    pub(crate) fn remember(
        &mut self,
        index: RaftIndex,
        time: Timestamp,
        kind: &EventKind,
        cause: &Cause,
    ) {
        let Some((key, what)) = self.placed(kind) else {
            return;
        };
        let kept = Kept {
            index,
            time,
            what,
            cause: cause.clone(),
        };
        match key {
            Key::Partition(id) => push(&mut self.history.partitions, id, kept),
            Key::Topic(id) => push(&mut self.history.topics, id, kept),
            Key::Broker(node) => push(&mut self.history.brokers, node, kept),
        }
    }

    /// What happened, and to what.
    fn placed(&self, kind: &EventKind) -> Option<(Key, What)> {
        let topic_key = |topic: &TopicName| self.names.get(topic).copied().map(Key::Topic);
        let key = |topic: &TopicName, partition| {
            let id = self.names.get(topic).copied()?;
            Some(Key::Partition(TopicPartition::new(id, partition)))
        };
        let members = |isr: &Vec<NodeId>| isr.clone().into_boxed_slice();
        let (key, what) = match kind {
            EventKind::BrokerRegistered { node, epoch } => {
                (Some(Key::Broker(*node)), What::Registered(*epoch))
            }
            EventKind::BrokerUnfenced { node } => (Some(Key::Broker(*node)), What::Unfenced),
            EventKind::BrokerFenced { node } => (Some(Key::Broker(*node)), What::Fenced),
            EventKind::BrokerShuttingDown { node } => (Some(Key::Broker(*node)), What::Stopping),
            EventKind::LeaderElected {
                topic,
                partition,
                leader,
                epoch,
                isr,
            } => (
                key(topic, *partition),
                What::Led(*leader, *epoch, members(isr)),
            ),
            EventKind::UncleanLeaderElected {
                topic,
                partition,
                leader,
                epoch,
            } => (key(topic, *partition), What::UncleanLed(*leader, *epoch)),
            EventKind::DataLost {
                topic,
                partition,
                epoch,
                from,
                to,
            } => (key(topic, *partition), What::Lost(*epoch, *from, *to)),
            EventKind::PartitionOffline {
                topic,
                partition,
                epoch,
                isr,
            } => (key(topic, *partition), What::Offline(*epoch, members(isr))),
            EventKind::IsrChanged {
                topic,
                partition,
                leader,
                epoch,
                isr,
            } => (
                key(topic, *partition),
                What::Isr(*leader, *epoch, members(isr)),
            ),
            EventKind::ReplicaDamaged {
                node,
                topic,
                partition,
            } => (key(topic, *partition), What::Damaged(*node)),
            EventKind::TopicCreated { topic, partitions } => {
                (topic_key(topic), What::Created(*partitions))
            }
            EventKind::TopicAltered { topic, settings } => {
                (topic_key(topic), What::Altered(words(settings)))
            }
            EventKind::TopicDeleted { .. } | EventKind::FeatureLevelRaised { .. } => return None,
        };
        Some((key?, what))
    }

    /// The last 32 events of the partition itself and the last 32 of its topic, oldest first; none
    /// where there is no such partition.
    pub fn partition_history(&self, id: &TopicPartition) -> Vec<ClusterEvent> {
        let Some(topic) = self.topic(id.topic_id) else {
            return Vec::new();
        };
        let of_topic = self.history.topics.get(&id.topic_id).into_iter();
        let of_partition = self.history.partitions.get(id).into_iter();
        let mut kept: Vec<&Kept> = of_topic
            .chain(of_partition)
            .flat_map(|ring| ring.iter())
            .map(|kept| &**kept)
            .collect();
        // Stable: what an entry did to the topic comes before what followed for the partition.
        kept.sort_by_key(|kept| kept.index);
        kept.into_iter()
            .filter_map(|kept| kept.of_topic(&topic.name, id))
            .collect()
    }

    /// The last 32 events of a broker, oldest first.
    pub fn broker_history(&self, node: NodeId) -> Vec<ClusterEvent> {
        let ring = self.history.brokers.get(&node).into_iter();
        ring.flat_map(|ring| ring.iter())
            .filter_map(|kept| kept.of_broker(node))
            .collect()
    }
}

impl Kept {
    fn event(&self, kind: EventKind) -> ClusterEvent {
        ClusterEvent {
            index: self.index,
            time: self.time,
            kind,
            cause: self.cause.to_string(),
        }
    }

    fn of_topic(&self, topic: &TopicName, id: &TopicPartition) -> Option<ClusterEvent> {
        let (topic, partition) = (topic.clone(), id.partition);
        let kind = match &self.what {
            What::Led(leader, epoch, isr) => EventKind::LeaderElected {
                topic,
                partition,
                leader: *leader,
                epoch: *epoch,
                isr: isr.to_vec(),
            },
            What::UncleanLed(leader, epoch) => EventKind::UncleanLeaderElected {
                topic,
                partition,
                leader: *leader,
                epoch: *epoch,
            },
            What::Lost(epoch, from, to) => EventKind::DataLost {
                topic,
                partition,
                epoch: *epoch,
                from: *from,
                to: *to,
            },
            What::Offline(epoch, isr) => EventKind::PartitionOffline {
                topic,
                partition,
                epoch: *epoch,
                isr: isr.to_vec(),
            },
            What::Isr(leader, epoch, isr) => EventKind::IsrChanged {
                topic,
                partition,
                leader: *leader,
                epoch: *epoch,
                isr: isr.to_vec(),
            },
            What::Damaged(node) => EventKind::ReplicaDamaged {
                node: *node,
                topic,
                partition,
            },
            What::Created(partitions) => EventKind::TopicCreated {
                topic,
                partitions: *partitions,
            },
            What::Altered(settings) => EventKind::TopicAltered {
                topic,
                settings: settings.to_string(),
            },
            What::Registered(_) | What::Unfenced | What::Fenced | What::Stopping => return None,
        };
        Some(self.event(kind))
    }

    fn of_broker(&self, node: NodeId) -> Option<ClusterEvent> {
        let kind = match &self.what {
            What::Registered(epoch) => EventKind::BrokerRegistered {
                node,
                epoch: *epoch,
            },
            What::Unfenced => EventKind::BrokerUnfenced { node },
            What::Fenced => EventKind::BrokerFenced { node },
            What::Stopping => EventKind::BrokerShuttingDown { node },
            _ => return None,
        };
        Some(self.event(kind))
    }
}

impl History {
    /// The topic is gone.
    pub(crate) fn forget_topic(&mut self, topic: TopicId) {
        self.topics.remove(&topic);
    }

    /// The partition is gone.
    pub(crate) fn forget(&mut self, id: &TopicPartition) {
        self.partitions.remove(id);
    }
}

/// Index, time (ms), what, and the number of its cause.
type StoredEvent = (RaftIndex, Timestamp, What, usize);

/// The histories as they are stored: each cause once, in the order of its first use.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredHistory {
    causes: Vec<Cause>,
    partitions: Vec<(TopicPartition, Vec<StoredEvent>)>,
    topics: Vec<(TopicId, Vec<StoredEvent>)>,
    brokers: Vec<(NodeId, Vec<StoredEvent>)>,
}

/// Numbers causes.
#[derive(Default)]
struct Causes<'a> {
    numbers: BTreeMap<&'a Cause, usize>,
    listed: Vec<Cause>,
}

impl<'a> Causes<'a> {
    fn stored<K: Ord + Clone>(&mut self, rings: &'a OrdMap<K, Ring>) -> Vec<(K, Vec<StoredEvent>)> {
        let mut stored = Vec::with_capacity(rings.len());
        for (key, ring) in rings {
            let mut events = Vec::with_capacity(ring.len());
            for kept in ring.iter() {
                let number = *self.numbers.entry(&kept.cause).or_insert_with(|| {
                    self.listed.push(kept.cause.clone());
                    self.listed.len() - 1
                });
                events.push((kept.index, kept.time, kept.what.clone(), number));
            }
            stored.push((key.clone(), events));
        }
        stored
    }
}

fn restored<K: Ord + Clone>(
    causes: &[Cause],
    stored: Vec<(K, Vec<StoredEvent>)>,
) -> OrdMap<K, Ring> {
    let ring = |events: Vec<StoredEvent>| -> Ring {
        let kept = events.into_iter().filter_map(|(index, time, what, cause)| {
            // The snapshot's checksum holds, so there is one.
            let cause = causes.get(cause)?.clone();
            Some(Arc::new(Kept {
                index,
                time,
                what,
                cause,
            }))
        });
        kept.collect()
    };
    stored
        .into_iter()
        .map(|(key, events)| (key, ring(events)))
        .collect()
}

impl From<&History> for StoredHistory {
    fn from(history: &History) -> Self {
        let mut causes = Causes::default();
        let partitions = causes.stored(&history.partitions);
        let topics = causes.stored(&history.topics);
        let brokers = causes.stored(&history.brokers);
        Self {
            causes: causes.listed,
            partitions,
            topics,
            brokers,
        }
    }
}

impl From<StoredHistory> for History {
    fn from(stored: StoredHistory) -> Self {
        Self {
            partitions: restored(&stored.causes, stored.partitions),
            topics: restored(&stored.causes, stored.topics),
            brokers: restored(&stored.causes, stored.brokers),
        }
    }
}
