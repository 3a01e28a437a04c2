//! What the client knows of the cluster.

use std::collections::BTreeMap;

use quorate_proto::v1;
use quorate_types::{Endpoint, NodeId, PartitionId, TopicId};

/// A partition's leader as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// At which epoch.
    pub leader_epoch: i32,
}

/// A topic as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its id.
    pub id: TopicId,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

/// The cluster as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Where the nodes are.
    pub brokers: BTreeMap<NodeId, Endpoint>,
    /// The topics that were asked about.
    pub topics: BTreeMap<String, TopicInfo>,
}

impl Metadata {
    pub(crate) fn from_proto(response: v1::DescribeClusterResponse) -> Self {
        let endpoint = |broker: &v1::BrokerDescription| {
            let endpoint = broker.endpoint.as_ref()?;
            let port = u16::try_from(endpoint.port).ok()?;
            Some((
                NodeId::new(broker.node_id),
                Endpoint {
                    host: endpoint.host.clone(),
                    port,
                },
            ))
        };
        let topic = |topic: v1::TopicDescription| {
            let partition = |partition: &v1::PartitionDescription| PartitionInfo {
                leader: partition.leader.map(NodeId::new),
                leader_epoch: partition.leader_epoch,
            };
            let id = TopicId::from_slice(&topic.topic_id)?;
            let partitions = topic.partitions.iter().map(partition).collect();
            Some((topic.name, TopicInfo { id, partitions }))
        };
        Self {
            brokers: response.brokers.iter().filter_map(endpoint).collect(),
            topics: response.topics.into_iter().filter_map(topic).collect(),
        }
    }

    /// Where a partition's leader is, and the epoch that it leads at.
    pub fn leader(&self, topic: &str, partition: PartitionId) -> Option<(Endpoint, i32)> {
        let partitions = &self.topics.get(topic)?.partitions;
        let known = partitions.get(partition.get() as usize)?;
        let endpoint = self.brokers.get(&known.leader?)?;
        Some((endpoint.clone(), known.leader_epoch))
    }

    /// Keeps what `before` knew better: an answer from a node that is behind, or was cut off, must
    /// not lead back to a former leader.
    pub(crate) fn keep_newer(&mut self, before: &Self) {
        for (name, topic) in &mut self.topics {
            let Some(known) = before.topics.get(name).filter(|known| known.id == topic.id) else {
                continue;
            };
            for (partition, known) in topic.partitions.iter_mut().zip(&known.partitions) {
                if known.leader_epoch > partition.leader_epoch {
                    *partition = *known;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_answer_does_not_bring_a_former_leader_back() {
        let metadata = |topic: u8, leader, leader_epoch| {
            let partition = PartitionInfo {
                leader: Some(NodeId::new(leader)),
                leader_epoch,
            };
            let topic = TopicInfo {
                id: TopicId::from_bytes([topic; 16]),
                partitions: vec![partition],
            };
            Metadata {
                brokers: BTreeMap::new(),
                topics: [("t".to_owned(), topic)].into(),
            }
        };
        let merged = |mut new: Metadata, before: &Metadata| {
            new.keep_newer(before);
            new.topics["t"].partitions[0].leader_epoch
        };
        let known = metadata(1, 2, 5);
        assert_eq!(merged(metadata(1, 1, 4), &known), 5);
        assert_eq!(merged(metadata(1, 3, 6), &known), 6);
        // Deleted and made again: another topic.
        assert_eq!(merged(metadata(9, 1, 0), &known), 0);
    }
}
