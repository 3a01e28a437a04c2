//! What a node is started with.

use std::path::PathBuf;
use std::time::Duration;

use quorate_types::{Endpoint, NodeId};

/// The settings of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// This node's number.
    pub node_id: NodeId,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// The voters of the metadata quorum with their internal addresses; the same on every node.
    pub controllers: Vec<(NodeId, Endpoint)>,
    /// Where it listens for clients, `address:port`.
    pub listen: String,
    /// Where it listens for nodes, `address:port`.
    pub internal_listen: String,
    /// Where clients reach it.
    pub advertise: Endpoint,
    /// Where nodes reach it.
    pub internal_advertise: Endpoint,
    /// Its rack, for placement.
    pub rack: Option<String>,
    /// A broker that is silent for so long is fenced (default 3 s).
    pub broker_session_timeout: Duration,
    /// Pause between its heartbeats (default 500 ms).
    pub heartbeat_interval: Duration,
    /// A follower that has not caught up for so long leaves the ISR (default 10 s).
    pub replica_lag_time_max: Duration,
    /// Pause between Raft heartbeats (default 100 ms).
    pub raft_heartbeat: Duration,
    /// Raft election timeout, drawn from here … (default 500 ms)
    pub raft_election_min: Duration,
    /// … to here (default 1 s).
    pub raft_election_max: Duration,
    /// A metadata snapshot is made every so many entries (default 10,000).
    pub snapshot_every_entries: u64,
    /// So many entries are kept behind a snapshot (default 1,000).
    pub snapshot_keep_entries: u64,
    /// Unacknowledged produce bytes held at most (default 128 MiB).
    pub produce_bytes: usize,
    /// How long a produce may wait where its request does not say (default 30 s).
    pub produce_timeout: Duration,
    /// A controlled shutdown gives up after so long (default 10 s).
    pub shutdown_timeout: Duration,
    /// Deleted partitions' directories are kept so long (default 60 s).
    pub delete_grace: Duration,
    /// Added to every sync of a log, for tests (default 0).
    pub test_sync_delay: Duration,
}

impl NodeSettings {
    /// A node with every other setting at its default.
    pub fn new(
        node_id: NodeId,
        data_dir: PathBuf,
        controllers: Vec<(NodeId, Endpoint)>,
        listen: Endpoint,
        internal_listen: Endpoint,
    ) -> Self {
        Self {
            node_id,
            data_dir,
            controllers,
            listen: listen.to_string(),
            internal_listen: internal_listen.to_string(),
            advertise: listen,
            internal_advertise: internal_listen,
            rack: None,
            broker_session_timeout: Duration::from_secs(3),
            heartbeat_interval: Duration::from_millis(500),
            replica_lag_time_max: Duration::from_secs(10),
            raft_heartbeat: Duration::from_millis(100),
            raft_election_min: Duration::from_millis(500),
            raft_election_max: Duration::from_millis(1_000),
            snapshot_every_entries: 10_000,
            snapshot_keep_entries: 1_000,
            produce_bytes: 128 << 20,
            produce_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(10),
            delete_grace: Duration::from_secs(60),
            test_sync_delay: Duration::ZERO,
        }
    }
}
