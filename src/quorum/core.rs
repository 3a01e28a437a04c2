//! What all parts of a running member share, and the two things that only Raft can do: write an
//! entry and confirm leadership.

use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState};
use parking_lot::Mutex;
use quorate_types::{BrokerEpoch, NodeId, RaftIndex, Term};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::QuorumConfig;
use crate::ids::{Metrics, Proposal, Raft, RaftId, TypeConfig, Vote};
use crate::in_flight::InFlight;
use crate::peers::Peers;
use crate::view::View;

/// What fits into one call between members, with room to spare.
const ENVELOPE_BYTES: usize = 4 << 20;

/// Who leads the metadata quorum, as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The newest term that this node has heard of.
    pub term: Term,
    /// Who leads in it.
    pub leader: Option<NodeId>,
    /// This node leads and can propose: its image holds everything that earlier leaders
    /// committed.
    pub is_self: bool,
}

/// A metadata leader whose process was found gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Which node.
    pub node: NodeId,
    /// Its broker's registration then; a later one is another process.
    pub broker_epoch: BrokerEpoch,
    /// When it was found.
    pub at: Instant,
}

/// Where proposals go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) id: RaftId,
    pub(crate) address: String,
}

pub(crate) struct Core {
    pub(crate) config: QuorumConfig,
    pub(crate) raft: Raft,
    pub(crate) view: Arc<View>,
    pub(crate) peers: Peers,
    pub(crate) in_flight: InFlight,
    pub(crate) cancel: CancellationToken,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) leader: watch::Sender<Option<Leader>>,
    pub(crate) failure: watch::Sender<Option<String>>,
    /// What this node found last.
    pub(crate) gone: Mutex<Option<Gone>>,
    /// Why nobody leads, or why this node has not got in, while that lasts.
    pub(crate) outage: Mutex<Option<String>>,
}

/// How an attempt to write an entry ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It is applied; the encoded outcomes.
    Answered { outcomes: Bytes, index: RaftIndex },
    /// Nothing was written; who leads, where that is known.
    NotLeader(Option<Leader>),
    /// Nothing was written.
    Failed(String),
    /// It may be committed, now or later.
    Unknown(String),
}

impl Core {
    pub(crate) fn me(&self) -> RaftId {
        self.peers.me()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        use openraft::async_runtime::WatchReceiver;
        self.raft.metrics().borrow_watched().clone()
    }

    /// The committed vote of the leader that this node follows.
    pub(crate) fn leader_vote(&self) -> Option<(RaftId, Vote)> {
        let vote = self.metrics().vote;
        vote.is_committed()
            .then_some((vote.leader_id.voted_for, vote))
    }

    pub(crate) fn is_voter(&self) -> bool {
        let me = self.me();
        self.metrics()
            .membership_config
            .voter_ids()
            .any(|id| id == me)
    }

    /// Tells the node that it cannot go on.
    pub(crate) fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                tracing::error!(%reason, "the metadata quorum has failed on this node");
                *failure = Some(reason);
            }
            first
        });
    }

    /// Writes an entry where this node leads, and waits until it is applied.
    pub(crate) async fn write(&self, envelope: Bytes) -> Attempt {
        if envelope.len() > ENVELOPE_BYTES {
            return Attempt::Failed(format!(
                "a change of {} bytes is larger than {ENVELOPE_BYTES}",
                envelope.len()
            ));
        }
        match self.raft.client_write(Proposal(envelope)).await {
            Ok(written) => Attempt::Answered {
                outcomes: written.data.0.into(),
                index: RaftIndex::new(written.log_id.index),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Attempt::NotLeader(leader_in(forward))
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Attempt::Unknown("the leader changed while the entry was replicated".to_owned())
            }
            Err(RaftError::APIError(error)) => Attempt::Failed(error.to_string()),
            Err(RaftError::Fatal(error)) => Attempt::Unknown(error.to_string()),
        }
    }

    /// The index that a reader must have applied, confirmed by a quorum; never by a lease.
    pub(crate) async fn confirm(&self) -> Result<RaftIndex, Result<Option<Leader>, String>> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _applied)) => Ok(RaftIndex::new(read.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Ok(leader_in(forward)))
            }
            Err(error) => Err(Err(error.to_string())),
        }
    }

    /// Keeps the leadership watches in step with Raft.
    pub(crate) fn observe(&self, metrics: &Metrics) {
        if let Err(fatal) = &metrics.running_state
            && !self.cancel.is_cancelled()
        {
            self.fail(fatal.to_string());
        }
        if let (Some(ours), Some(theirs)) = (self.config.cluster_id, self.view.image().cluster_id())
            && ours != theirs
        {
            self.fail(format!(
                "this data directory belongs to cluster {ours}, the metadata to cluster {theirs}"
            ));
        }
        let membership = &metrics.membership_config;
        self.peers.keep_only(|id| membership.get_node(id).is_some());
        let leader = metrics.current_leader.and_then(|id| {
            let node = membership.get_node(&id)?;
            Some(Leader {
                id,
                address: node.address.clone(),
            })
        });
        let own_entry_applied = metrics
            .last_applied
            .is_some_and(|applied| applied.committed_leader_id().term == metrics.current_term);
        let is_self = metrics.state == ServerState::Leader
            && metrics.current_leader == Some(self.me())
            && own_entry_applied;
        let leadership = Leadership {
            term: Term::new(metrics.current_term),
            leader: metrics.current_leader.map(|id| id.node),
            is_self,
        };
        set_if_changed(&self.leader, leader);
        if set_if_changed(&self.leadership, leadership) {
            tracing::info!(
                term = %leadership.term,
                leader = leadership.leader.map(NodeId::get),
                is_self,
                "metadata leadership"
            );
        }
    }
}

fn set_if_changed<T: PartialEq>(watch: &watch::Sender<T>, value: T) -> bool {
    watch.send_if_modified(|current| {
        let changed = *current != value;
        *current = value;
        changed
    })
}

fn leader_in(forward: ForwardToLeader<TypeConfig>) -> Option<Leader> {
    Some(Leader {
        id: forward.leader_id?,
        address: forward.leader_node?.address,
    })
}

/// Runs until the member is stopped.
pub(crate) async fn follow_raft(core: Arc<Core>) {
    use openraft::async_runtime::WatchReceiver;
    let mut metrics = core.raft.metrics();
    loop {
        let now = metrics.borrow_and_update().clone();
        core.observe(&now);
        tokio::select! {
            () = core.cancel.cancelled() => return,
            () = core.view.ended.cancelled() => {
                core.fail("entries are not applied any more".to_owned());
                return;
            }
            changed = metrics.changed() => if changed.is_err() {
                if !core.cancel.is_cancelled() {
                    core.fail("Raft has ended".to_owned());
                }
                return;
            },
        }
    }
}
