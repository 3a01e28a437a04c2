//! What happened, for people: derived from applied commands, the same on every node.

use quorate_types::{
    BrokerEpoch, LeaderEpoch, NodeId, Offset, PartitionId, RaftIndex, Timestamp, TopicName,
};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Its place in the metadata log.
    pub index: RaftIndex,
    /// By the proposer's clock.
    pub time: Timestamp,
    /// What.
    pub kind: EventKind,
    /// Why, in words.
    pub cause: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EventKind {
    /// A process began its life as a broker.
    BrokerRegistered { node: NodeId, epoch: BrokerEpoch },
    /// A broker may take roles.
    BrokerUnfenced { node: NodeId },
    /// A broker is taken for gone.
    BrokerFenced { node: NodeId },
    /// A broker wishes to stop.
    BrokerShuttingDown { node: NodeId },
    /// A partition has a leader at a new epoch.
    LeaderElected {
        topic: TopicName,
        partition: PartitionId,
        leader: NodeId,
        epoch: LeaderEpoch,
        isr: Vec<NodeId>,
    },
    /// A partition has a leader that is not sure to hold all that was acknowledged (R7).
    UncleanLeaderElected {
        topic: TopicName,
        partition: PartitionId,
        leader: NodeId,
        epoch: LeaderEpoch,
    },
    /// Records from one offset up to another are lost by the unclean election at that epoch, or some
    /// of them.
    DataLost {
        topic: TopicName,
        partition: PartitionId,
        epoch: LeaderEpoch,
        from: Offset,
        to: Offset,
    },
    /// A partition has none.
    PartitionOffline {
        topic: TopicName,
        partition: PartitionId,
        epoch: LeaderEpoch,
        isr: Vec<NodeId>,
    },
    /// The in-sync replicas changed under the same leader.
    IsrChanged {
        topic: TopicName,
        partition: PartitionId,
        leader: Option<NodeId>,
        epoch: LeaderEpoch,
        isr: Vec<NodeId>,
    },
    /// What commands do may be new from here on.
    FeatureLevelRaised { level: u32 },
    /// A topic was made.
    TopicCreated { topic: TopicName, partitions: u32 },
    /// A topic's settings changed.
    TopicAltered { topic: TopicName, settings: String },
    /// A topic is gone.
    TopicDeleted { topic: TopicName },
    /// A replica's disk failed or lost data.
    ReplicaDamaged {
        node: NodeId,
        topic: TopicName,
        partition: PartitionId,
    },
}

impl EventKind {
    /// Its name, as clients see it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BrokerRegistered { .. } => "broker-registered",
            Self::BrokerUnfenced { .. } => "broker-unfenced",
            Self::BrokerFenced { .. } => "broker-fenced",
            Self::BrokerShuttingDown { .. } => "broker-shutting-down",
            Self::LeaderElected { .. } => "leader-elected",
            Self::UncleanLeaderElected { .. } => "unclean-leader-elected",
            Self::DataLost { .. } => "data-lost",
            Self::PartitionOffline { .. } => "partition-offline",
            Self::IsrChanged { .. } => "isr-changed",
            Self::FeatureLevelRaised { .. } => "feature-level-raised",
            Self::TopicCreated { .. } => "topic-created",
            Self::TopicAltered { .. } => "topic-altered",
            Self::TopicDeleted { .. } => "topic-deleted",
            Self::ReplicaDamaged { .. } => "replica-damaged",
        }
    }
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |isr: &[NodeId]| {
            isr.iter()
                .map(NodeId::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        match self {
            Self::BrokerRegistered { node, epoch } => {
                write!(f, "broker {node} registered with epoch {epoch}")
            }
            Self::BrokerUnfenced { node } => write!(f, "broker {node} unfenced"),
            Self::BrokerFenced { node } => write!(f, "broker {node} fenced"),
            Self::BrokerShuttingDown { node } => write!(f, "broker {node} is shutting down"),
            Self::LeaderElected {
                topic,
                partition,
                leader,
                epoch,
                isr,
            } => write!(
                f,
                "{topic}-{partition}: broker {leader} leads at epoch {epoch}, isr {}",
                list(isr)
            ),
            Self::UncleanLeaderElected {
                topic,
                partition,
                leader,
                epoch,
            } => write!(
                f,
                "{topic}-{partition}: broker {leader} leads at epoch {epoch} by an unclean election: \
                 acknowledged records may be lost"
            ),
            Self::DataLost {
                topic,
                partition,
                epoch,
                from,
                to,
            } => write!(
                f,
                "{topic}-{partition}: the unclean election at epoch {epoch} lost records of the offsets \
                 {from} to {}",
                to.get().saturating_sub(1)
            ),
            Self::PartitionOffline {
                topic,
                partition,
                epoch,
                isr,
            } => {
                write!(
                    f,
                    "{topic}-{partition}: no leader at epoch {epoch}, isr {}",
                    list(isr)
                )
            }
            Self::IsrChanged {
                topic,
                partition,
                isr,
                ..
            } => {
                write!(f, "{topic}-{partition}: isr {}", list(isr))
            }
            Self::FeatureLevelRaised { level } => write!(f, "feature level {level}"),
            Self::TopicCreated { topic, partitions } => {
                write!(f, "topic {topic} created with {partitions} partitions")
            }
            Self::TopicAltered { topic, settings } => write!(f, "topic {topic}: {settings}"),
            Self::TopicDeleted { topic } => write!(f, "topic {topic} deleted"),
            Self::ReplicaDamaged {
                node,
                topic,
                partition,
            } => {
                write!(
                    f,
                    "{topic}-{partition}: the replica of broker {node} is damaged"
                )
            }
        }
    }
}
