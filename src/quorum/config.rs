//! What a member of the quorum is told at its start, and why a start can fail.

use std::path::PathBuf;
use std::time::Duration;

use quorate_types::{ClusterId, DirectoryId, Endpoint, Incarnation, NodeId};

use crate::ids::RaftId;

/// Everything the quorum needs to know about this node and its peers.
#[derive(Debug, Clone)]
pub struct QuorumConfig {
    /// This node's number.
    pub node: NodeId,
    /// The id of this data directory.
    pub directory: DirectoryId,
    /// This life of the process.
    pub incarnation: Incarnation,
    /// The cluster that this directory belongs to, from `meta.properties`.
    pub cluster_id: Option<ClusterId>,
    /// `DATA/metadata`; made if it is not there.
    pub path: PathBuf,
    /// The voters of a new cluster, the same list on every node.
    pub controllers: Vec<(NodeId, Endpoint)>,
    /// Where other nodes reach this one.
    pub advertise: Endpoint,
    /// How often a Raft leader is heard at least.
    pub heartbeat: Duration,
    /// The shortest silence after which a voter asks for an election.
    pub election_min: Duration,
    /// The longest; more than `election_min`.
    pub election_max: Duration,
    /// A snapshot is taken after so many entries.
    pub snapshot_every: u64,
    /// So many entries stay in the log behind a snapshot, for members that lag a little.
    pub snapshot_keep: u64,
}

impl QuorumConfig {
    /// This node's name in the quorum.
    pub fn raft_id(&self) -> RaftId {
        RaftId {
            node: self.node,
            directory: self.directory,
        }
    }

    /// Whether this node is listed as a controller.
    pub fn is_controller(&self) -> bool {
        self.controllers.iter().any(|(node, _)| *node == self.node)
    }
}

/// Why the quorum did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuorumError {
    /// A setting does not fit the others.
    #[error("the metadata quorum cannot be set up: {0}")]
    Config(String),
    /// The directory could not be opened, read or made durable.
    #[error("the metadata in {path} cannot be used: {reason}")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// This directory belongs to another cluster than the metadata in it or the peers.
    #[error(
        "this data directory belongs to cluster {ours}, but {who} to cluster {theirs}: \
         check --data-dir and --controllers"
    )]
    ForeignCluster {
        /// The cluster named by `meta.properties` or by the metadata.
        ours: ClusterId,
        /// The other one.
        theirs: ClusterId,
        /// Who belongs to the other one.
        who: String,
    },
    /// `meta.properties` names a cluster, but the Raft log and vote are gone: the node would
    /// have forgotten what it voted for.
    #[error(
        "the metadata in {path} is gone although this directory belongs to cluster {cluster}: put \
         it back, or empty the whole data directory so that the node joins as a new member"
    )]
    Forgotten {
        /// The directory.
        path: PathBuf,
        /// The cluster.
        cluster: ClusterId,
    },
}
