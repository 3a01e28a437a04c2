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

    /// Where a partition's leader is.
    pub fn leader(&self, topic: &str, partition: PartitionId) -> Option<Endpoint> {
        let partitions = &self.topics.get(topic)?.partitions;
        let leader = partitions.get(partition.get() as usize)?.leader?;
        self.brokers.get(&leader).cloned()
    }
}
