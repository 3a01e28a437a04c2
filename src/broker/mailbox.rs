//! What reaches the plane, and how much of it may wait.

use std::sync::Arc;

use quorate_log::FlushDone;
use quorate_metadata::MetadataImage;
use quorate_replication::{
    FollowerMessage, LeaderMessage, ProduceError, Produced, ProposalId, ProposalResult, StreamId,
};
use quorate_types::{BrokerEpoch, NodeId, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::calls::ProduceCall;
use crate::leader_links::LinkId;
use crate::stream::FollowerStream;

/// Requests and stream messages that may wait for the plane.
const WAITING: usize = 4_096;

/// Everything the plane reacts to.
#[derive(Debug)]
pub(crate) enum Mail {
    Image(Arc<MetadataImage>),
    Registered(BrokerEpoch),
    Produce {
        call: ProduceCall,
        deadline: std::time::Duration,
        answer: oneshot::Sender<Result<Produced, ProduceError>>,
        /// Held until the answer: bounds the bytes of unanswered produces.
        permit: OwnedSemaphorePermit,
        /// When it was put here.
        sent: std::time::Duration,
    },
    FollowerStreamOpened {
        stream: StreamId,
        outgoing: FollowerStream,
    },
    FollowerStreamClosed {
        stream: StreamId,
    },
    FromFollower {
        stream: StreamId,
        from: NodeId,
        message: FollowerMessage,
    },
    RoomAgain {
        stream: StreamId,
    },
    LeaderStreamOpened {
        leader: NodeId,
        link: LinkId,
        outgoing: mpsc::Sender<FollowerMessage>,
    },
    LeaderStreamClosed {
        leader: NodeId,
        link: LinkId,
    },
    FromLeader {
        from: NodeId,
        link: LinkId,
        message: LeaderMessage,
    },
    /// A reader found a batch damaged on the disk; told once until the plane has taken it.
    Unreadable {
        partition: TopicPartition,
        why: String,
    },
    Flushed(Vec<(TopicPartition, FlushDone)>),
    Proposed {
        partition: TopicPartition,
        id: ProposalId,
        result: ProposalResult,
    },
    /// Flush and close every log; then answer whether all of them closed well.
    Stop(oneshot::Sender<bool>),
}

/// The two ways into the plane. Requests and stream messages wait for room; notices never do,
/// since each is bounded by what exists (one flush, one proposal and one damage a partition, one
/// end a stream), and whoever sends them must not be blocked by a busy plane.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    requests: mpsc::Sender<Mail>,
    notices: mpsc::UnboundedSender<Mail>,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) requests: mpsc::Receiver<Mail>,
    pub(crate) notices: mpsc::UnboundedReceiver<Mail>,
}

pub(crate) fn mailbox() -> (Mailbox, Inbox) {
    let (requests, incoming) = mpsc::channel(WAITING);
    let (notices, noticed) = mpsc::unbounded_channel();
    (
        Mailbox { requests, notices },
        Inbox {
            requests: incoming,
            notices: noticed,
        },
    )
}

impl Mailbox {
    /// Requests and messages that wait, and how many may.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let most = self.requests.max_capacity();
        (most - self.requests.capacity(), most)
    }

    /// Waits for room; `false` when the plane has stopped.
    pub(crate) async fn send(&self, mail: Mail) -> bool {
        self.requests.send(mail).await.is_ok()
    }

    /// Never waits; lost when the plane has stopped.
    pub(crate) fn notify(&self, mail: Mail) {
        let _stopped = self.notices.send(mail);
    }
}
