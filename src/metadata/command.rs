//! What can be proposed, and what becomes of it.

use std::collections::BTreeMap;

use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, Endpoint, ErrorCode, Incarnation, LeaderEpoch,
    NodeId, Offset, PartitionEpoch, ProducerEpoch, ProducerId, RaftIndex, Term, Timestamp, TopicId,
    TopicName, TopicPartition,
};
use serde::{Deserialize, Serialize};

use crate::group_command::{AlterGroup, GroupCommit, RefusedItem};

/// A place in the metadata log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LogId {
    /// The term of the leader that wrote it.
    pub term: Term,
    /// Its index.
    pub index: RaftIndex,
}

/// Who proposed: a repeat of (origin, sequence) does nothing twice. Starts are counted in the
/// directory, and so the lives of one directory have an order, those of two have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Its life.
    pub incarnation: Incarnation,
}

/// Commands on their way through the log, applied all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Who proposed.
    pub origin: Origin,
    /// Rises with each proposal of an origin; need not be dense.
    pub sequence: u64,
    /// Applied only under this term, where one is given.
    pub required_term: Option<Term>,
    /// The proposer's clock; shown, never decided by.
    pub time: Timestamp,
    /// What to do.
    pub commands: Vec<Command>,
}

/// A replica that recovery found damaged (R9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedReplica {
    /// Of which partition.
    pub partition: TopicPartition,
    /// Where its log is known to have ended; none where nothing tells.
    pub had: Option<Offset>,
    /// Its directory is gone: nothing of the log is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// What was found, in words; empty where that is not told. Shown, never decided by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub found: String,
}

/// A broker's registration (R9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterBroker {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The boot of its machine.
    pub boot: BootId,
    /// The broker epoch of its clean-shutdown mark, where it had one.
    pub clean_epoch: Option<BrokerEpoch>,
    /// Replicas that recovery found damaged.
    pub damaged: Vec<DamagedReplica>,
    /// Where clients reach it.
    pub client: Endpoint,
    /// Where nodes reach it.
    pub internal: Endpoint,
    /// Its rack.
    pub rack: Option<String>,
    /// Lowest feature level that it speaks.
    pub min_level: u32,
    /// Highest feature level that it speaks.
    pub max_level: u32,
}

/// A new topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    /// Its name.
    pub name: TopicName,
    /// Its id, drawn by the proposer.
    pub topic_id: TopicId,
    /// 1–10,000.
    pub partitions: u32,
    /// 1 – number of active brokers.
    pub replication_factor: u32,
    /// Where placement begins, drawn by the proposer.
    pub seed: u64,
    /// Settings by Kafka's names.
    pub config: BTreeMap<String, String>,
}

/// Settings of a topic to change; all are taken or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlterTopic {
    /// Which topic.
    pub topic_id: TopicId,
    /// Settings by Kafka's names.
    pub set: BTreeMap<String, String>,
    /// Settings that go back to their defaults.
    pub unset: Vec<String>,
}

/// A leader's proposal of an ISR (R5, KIP-497, KIP-903).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlterPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// Who proposes.
    pub leader: NodeId,
    /// Its registration.
    pub leader_broker_epoch: BrokerEpoch,
    /// The epoch it leads at.
    pub leader_epoch: LeaderEpoch,
    /// The registration that it saw.
    pub partition_epoch: PartitionEpoch,
    /// The new ISR, each member with its broker epoch.
    pub isr: Vec<(NodeId, BrokerEpoch)>,
    /// What the ISR has acknowledged is on the disks of all of it (R17).
    #[serde(default)]
    pub fsync_established: bool,
}

/// What an unclean election lost, as one replica knows it (R7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportDataLoss {
    /// Which partition.
    pub partition: TopicPartition,
    /// Whose replica.
    pub node: NodeId,
    /// Its registration.
    pub broker_epoch: BrokerEpoch,
    /// The leader epoch of the election.
    pub unclean_epoch: LeaderEpoch,
    /// The first offset that was lost, or given anew.
    pub from: Offset,
    /// The offset after the last that the replica knows of.
    pub to: Option<Offset>,
}

/// A change of the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Command {
    /// Names the cluster; the first one wins.
    BootstrapCluster {
        /// Drawn by the first leader.
        cluster_id: ClusterId,
    },
    /// A process begins its life as a broker.
    RegisterBroker(RegisterBroker),
    /// The broker may take roles.
    UnfenceBroker {
        /// Which node.
        node: NodeId,
        /// Which registration.
        epoch: BrokerEpoch,
    },
    /// The broker is gone: out of every ISR, its leaderships move (R8).
    FenceBroker {
        /// Which node.
        node: NodeId,
        /// Which registration.
        epoch: BrokerEpoch,
        /// Why, in words.
        cause: String,
    },
    /// The broker wishes to stop: its leaderships move, it leaves ISRs.
    BeginControlledShutdown {
        /// Which node.
        node: NodeId,
        /// Which registration.
        epoch: BrokerEpoch,
    },
    /// A new topic.
    CreateTopic(CreateTopic),
    /// Settings of a topic change.
    AlterTopic(AlterTopic),
    /// A topic goes, with its data.
    DeleteTopic {
        /// Which.
        topic_id: TopicId,
    },
    /// A leader changes its ISR.
    AlterPartition(AlterPartition),
    /// A replica's disk failed or lost data while it ran (R13).
    ReportReplicaDamaged {
        /// Which partition.
        partition: TopicPartition,
        /// Whose replica.
        node: NodeId,
        /// Its registration.
        broker_epoch: BrokerEpoch,
        /// What was found, in words. Shown, never decided by.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        found: String,
    },
    /// What an unclean election lost (R7).
    ReportDataLoss(ReportDataLoss),
    /// A leader cannot do its work (R6).
    ResignLeadership {
        /// Which partition.
        partition: TopicPartition,
        /// Who resigns.
        leader: NodeId,
        /// The epoch it leads at.
        leader_epoch: LeaderEpoch,
    },
    /// First replicas get their partitions back where they are in sync; a partition without a leader
    /// goes to any in-sync replica.
    ElectPreferredLeaders {
        /// Which partitions.
        partitions: Vec<TopicPartition>,
    },
    /// The feature level rises, where every registered broker speaks it.
    SetFeature {
        /// The new level.
        level: u32,
    },
    /// Groups change (each judged by itself).
    AlterGroups {
        /// The changes, in order.
        changes: Vec<AlterGroup>,
    },
    /// Offsets are committed (each judged by itself).
    CommitOffsets {
        /// The commits, in order.
        commits: Vec<GroupCommit>,
    },
    /// A block of producer ids for one node to give out.
    AllocateProducerIds {
        /// 1–10,000.
        count: u32,
    },
    /// The next epoch of a producer id, for whoever has the newest (KIP-360).
    BumpProducerEpoch {
        /// An id that was given out.
        id: ProducerId,
        /// The newest epoch that was given out: 0 with the id itself.
        epoch: ProducerEpoch,
    },
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// By Kafka's name.
    #[serde(with = "code_by_name")]
    pub code: ErrorCode,
    /// In words.
    pub message: String,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The broker is registered.
    Registered {
        /// Its epoch: the index of its registration.
        epoch: BrokerEpoch,
    },
    /// The topic exists.
    Created {
        /// Its id.
        topic_id: TopicId,
    },
    /// Producer ids for the proposer.
    ProducerIds {
        /// The first.
        first: ProducerId,
        /// How many, one after the other.
        count: u32,
    },
    /// An epoch that only the proposer has.
    ProducerEpoch {
        /// Of this id: another one than was named where that has no epochs left, or its newest is
        /// not known any more.
        id: ProducerId,
        /// The epoch.
        epoch: ProducerEpoch,
    },
    /// Each item was judged by itself, and done where it is not among these.
    Judged {
        /// Those that changed nothing.
        refused: Vec<RefusedItem>,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

impl Outcome {
    pub(crate) fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused(Refusal {
            code,
            message: message.into(),
        })
    }
}

pub(crate) mod code_by_name {
    use quorate_types::ErrorCode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(code: &ErrorCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(code.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ErrorCode, D::Error> {
        let name = String::deserialize(from)?;
        ErrorCode::from_name(&name).ok_or_else(|| D::Error::custom("unknown error code"))
    }
}
