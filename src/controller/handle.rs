//! The door to the controller for the network's edge.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_liveness::{ConnectionId, Heartbeat, HeartbeatAnswer};
use quorate_quorum::QuorumHandle;
use quorate_types::{NodeId, RaftIndex};
use tokio::sync::{mpsc, oneshot};

use crate::agreement::Difference;

/// Heartbeats and ends of connections that may wait.
const WAITING: usize = 1_024;
/// Below the pause between two heartbeats, so that none waits for another's answer.
const CONFIRM: Duration = Duration::from_millis(400);

/// This node is not the active controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node is not the active controller")]
pub struct NotActive {
    /// Who may be.
    pub leader: Option<NodeId>,
}

/// What a broker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// By liveness.
    pub answer: HeartbeatAnswer,
    /// What the controller's image had reached. One that was frozen may have been replaced meanwhile:
    /// the answer counts once its own image shows that (R6).
    pub applied: RaftIndex,
    /// Its image is not the controller's: it must stop.
    pub image_differs: Option<Difference>,
}

pub(crate) enum Mail {
    Heartbeat {
        connection: ConnectionId,
        beat: Heartbeat,
        hash: Option<u64>,
        answer: oneshot::Sender<Told>,
    },
    Ended {
        connection: ConnectionId,
        reset: bool,
    },
}

/// Brings heartbeats to the controller of this node. Cheap to clone.
#[derive(Clone)]
pub struct ControllerHandle {
    mail: mpsc::Sender<Mail>,
    quorum: QuorumHandle,
    connections: Arc<AtomicU64>,
}

impl ControllerHandle {
    pub(crate) fn new(quorum: QuorumHandle) -> (Self, mpsc::Receiver<Mail>) {
        let (mail, inbox) = mpsc::channel(WAITING);
        (
            Self {
                mail,
                quorum,
                connections: Arc::new(AtomicU64::new(1)),
            },
            inbox,
        )
    }

    /// Names a new connection that will carry heartbeats.
    pub fn open_session(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// Brings a heartbeat, with the rolling hash of the broker's image as of the index that it has
    /// applied; its answer says that this node was the active controller after the
    /// heartbeat was sent. None where no quorum confirms that: one that was frozen must not tell
    /// its broker that all is well (R6).
    ///
    /// # Errors
    /// [`NotActive`] where this node does not lead.
    pub async fn heartbeat(
        &self,
        connection: ConnectionId,
        beat: Heartbeat,
        hash: Option<u64>,
    ) -> Result<Option<Told>, NotActive> {
        let (answer, answered) = oneshot::channel();
        let sent = self
            .mail
            .send(Mail::Heartbeat {
                connection,
                beat,
                hash,
                answer,
            })
            .await;
        if sent.is_ok()
            && let Ok(told) = answered.await
        {
            let confirmed = self.quorum.confirm_leadership(CONFIRM).await;
            return Ok(confirmed.then_some(told));
        }
        let leadership = self.quorum.leadership();
        let known = leadership.borrow();
        Err(NotActive {
            leader: known.leader.filter(|_| !known.is_self),
        })
    }

    /// Tells that a connection has ended, by reset or in good order.
    pub async fn session_ended(&self, connection: ConnectionId, reset: bool) {
        let _stopped = self.mail.send(Mail::Ended { connection, reset }).await;
    }
}
