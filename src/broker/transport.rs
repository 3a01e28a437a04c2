//! What the broker needs from the network, defined here and implemented by the edge.

use async_trait::async_trait;
use quorate_replication::{FollowerMessage, LeaderMessage};
use quorate_types::{BrokerEpoch, Endpoint, Incarnation, NodeId, RaftIndex};
use tokio::sync::mpsc;

/// Why a stream to another node could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{to}: {reason}")]
pub struct TransportError {
    /// Whom it was meant for.
    pub to: NodeId,
    /// What failed.
    pub reason: String,
}

/// The follower's end of a replication stream. Either channel's end is the stream's end.
#[derive(Debug)]
pub struct LeaderStream {
    /// To the leader; bounded.
    pub outgoing: mpsc::Sender<FollowerMessage>,
    /// From the leader; bounded.
    pub incoming: mpsc::Receiver<LeaderMessage>,
}

/// Opens replication streams to leaders.
#[async_trait]
pub trait ReplicationTransport: Send + Sync + 'static {
    /// Opens the stream to `to`; both ends have checked node id and incarnation when it returns.
    ///
    /// # Errors
    /// [`TransportError`] where nobody, or somebody else, answers. Bounded in time.
    async fn open(&self, to: NodeId, endpoint: &Endpoint) -> Result<LeaderStream, TransportError>;
}

/// One sign of life to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who lives.
    pub node: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Its registration, once applied.
    pub broker_epoch: Option<BrokerEpoch>,
    /// Index that it has applied.
    pub applied: RaftIndex,
    /// The rolling hash of its image as of `applied`.
    pub image_hash: u64,
    /// It wishes to stop.
    pub wants_shutdown: bool,
    /// Logs recovered, image at its broker epoch.
    pub ready: bool,
    /// Echoed in the reply.
    pub number: u64,
    /// How many partitions it still leads.
    pub led: u32,
}

/// The controller's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// Of which heartbeat.
    pub number: u64,
    /// It leads nothing any more and the others know.
    pub may_stop: bool,
    /// Refused: this node may be the controller.
    pub not_controller: Option<NodeId>,
    /// Why it was not taken.
    pub refused: Option<String>,
    /// What the controller's image had reached: the answer counts once the broker's has, too.
    pub applied: RaftIndex,
    /// The broker's image is not the controller's.
    pub image_differs: Option<ImageDifference>,
}

/// Two images that should be the same by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageDifference {
    /// As of which entry of the metadata log.
    pub index: RaftIndex,
    /// The rolling hash of the controller's image then.
    pub controller: u64,
    /// The rolling hash of the broker's.
    pub broker: u64,
}

/// A broker's session with the active controller. Either channel's end is the session's end.
#[derive(Debug)]
pub struct ControllerSession {
    /// To the controller; bounded.
    pub outgoing: mpsc::Sender<Heartbeat>,
    /// From the controller; bounded.
    pub incoming: mpsc::Receiver<HeartbeatReply>,
}

/// Opens sessions with the controller.
#[async_trait]
pub trait ControllerLink: Send + Sync + 'static {
    /// Opens a session with `to`.
    ///
    /// # Errors
    /// [`TransportError`] where it cannot be reached. Bounded in time.
    async fn open(
        &self,
        to: NodeId,
        endpoint: &Endpoint,
    ) -> Result<ControllerSession, TransportError>;
}
