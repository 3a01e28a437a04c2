//! Proposals from this node: given a sequence number, sent to whoever leads, and tried again under
//! the same number until they are answered or out of time. The image answers a repeat from
//! memory, so nothing is done twice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quorate_metadata::{Command, Envelope, Origin, Outcome};
use quorate_proto::internal as proto;
use quorate_proto::internal::propose_reply;
use quorate_types::{RaftIndex, Term, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status};

use crate::core::{Attempt, Core, Leader};
use crate::outcomes;
use crate::peers::{did_nothing, raft_id, to_proto};

const RETRY: Duration = Duration::from_millis(20);
/// A wrong hint is not followed further than this without a pause.
const HOPS: u32 = 3;

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It is certainly not in the log, and will not be.
    #[error("the metadata quorum did not take the change: {0}")]
    NotCommitted(String),
    /// Time is up; it may be committed, now or later.
    #[error("it is unknown whether the metadata quorum made the change: {0}")]
    Unknown(String),
}

/// Why no read index could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the metadata quorum did not confirm a read: {0}")]
pub struct ReadIndexError(pub(crate) String);

/// What is known about the attempts so far.
struct Progress {
    may_be_committed: bool,
    reason: String,
}

impl Progress {
    fn error(self) -> ProposeError {
        if self.may_be_committed {
            ProposeError::Unknown(self.reason)
        } else {
            ProposeError::NotCommitted(self.reason)
        }
    }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp::from_millis(since.map_or(0, |since| since.as_millis() as i64))
}

impl Core {
    fn envelope(&self, sequence: u64, term: Option<Term>, commands: Vec<Command>) -> Bytes {
        let envelope = Envelope {
            origin: Origin {
                node: self.config.node,
                directory: self.config.directory,
                incarnation: self.config.incarnation,
            },
            sequence,
            required_term: term,
            time: wall_clock(),
            commands,
        };
        Bytes::from(envelope.encode())
    }

    /// Proposes wherever the leader is.
    pub(crate) async fn propose(
        &self,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        let deadline = Instant::now() + timeout;
        let busy = |_| ProposeError::NotCommitted("too many changes are under way".to_owned());
        let ticket = timeout_at(deadline, self.in_flight.enter())
            .await
            .map_err(busy)?;
        let envelope = self.envelope(ticket.sequence, None, commands);
        let mut progress = Progress {
            may_be_committed: false,
            reason: "no leader is known".to_owned(),
        };
        let mut leaders = self.leader.subscribe();
        let mut hint = None;
        let mut hops = 0;
        loop {
            let known = leaders.borrow_and_update().clone();
            if let Some(target) = hint.take().or(known) {
                let attempt = tokio::select! {
                    attempt = self.attempt(&target, envelope.clone()) => attempt,
                    () = another_leader(&mut leaders, &target) => {
                        Attempt::Unknown(format!("node {} no longer leads", target.id.node))
                    }
                    () = sleep_until(deadline) => {
                        Attempt::Unknown(format!("no answer from node {}", target.id.node))
                    }
                };
                match attempt {
                    Attempt::Answered { outcomes, .. } => return decode(&outcomes),
                    Attempt::NotLeader(leader) => {
                        progress.reason = format!("node {} does not lead", target.id.node);
                        hint = leader.filter(|leader| leader.id != target.id);
                    }
                    Attempt::Failed(reason) => progress.reason = reason,
                    Attempt::Unknown(reason) => {
                        progress.may_be_committed = true;
                        progress.reason = reason;
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(progress.error());
            }
            if self.cancel.is_cancelled() {
                progress.reason = "this node is stopping".to_owned();
                return Err(progress.error());
            }
            hops += 1;
            if hint.is_some() && hops % HOPS != 0 {
                continue;
            }
            tokio::select! {
                _ = leaders.changed() => {}
                () = sleep_until(deadline.min(Instant::now() + RETRY)) => {}
            }
        }
    }

    /// Proposes only where this node leads in `term`; one attempt.
    pub(crate) async fn propose_in_term(
        &self,
        term: Term,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        let deadline = Instant::now() + timeout;
        let leadership = *self.leadership.borrow();
        if !leadership.is_self || leadership.term != term {
            return Err(ProposeError::NotCommitted(format!(
                "this node does not lead in term {term}"
            )));
        }
        let busy = |_| ProposeError::NotCommitted("too many changes are under way".to_owned());
        let ticket = timeout_at(deadline, self.in_flight.enter())
            .await
            .map_err(busy)?;
        let envelope = self.envelope(ticket.sequence, Some(term), commands);
        match timeout_at(deadline, self.write(envelope)).await {
            Ok(Attempt::Answered { outcomes, .. }) => decode(&outcomes),
            Ok(Attempt::NotLeader(_)) => Err(ProposeError::NotCommitted(
                "this node does not lead any more".to_owned(),
            )),
            Ok(Attempt::Failed(reason)) => Err(ProposeError::NotCommitted(reason)),
            Ok(Attempt::Unknown(reason)) => Err(ProposeError::Unknown(reason)),
            Err(_) => Err(ProposeError::Unknown(
                "no quorum answered in time".to_owned(),
            )),
        }
    }

    async fn attempt(&self, target: &Leader, envelope: Bytes) -> Attempt {
        if target.id == self.me() {
            return self.write(envelope).await;
        }
        match self.forward(target, envelope).await {
            Ok(attempt) => attempt,
            Err(status) if did_nothing(&status) => Attempt::Failed(status.to_string()),
            Err(status) => Attempt::Unknown(status.to_string()),
        }
    }

    async fn forward(&self, target: &Leader, envelope: Bytes) -> Result<Attempt, Status> {
        let request = proto::ProposeRequest {
            sender: Some(to_proto(self.me())),
            cluster_id: self.peers.cluster_bytes(),
            envelope,
        };
        let mut client = self.peers.client(&target.address)?;
        let reply = client.propose(request).await?.into_inner();
        Ok(match reply.result {
            Some(propose_reply::Result::Outcomes(outcomes)) => Attempt::Answered {
                outcomes,
                index: RaftIndex::new(reply.index),
            },
            Some(propose_reply::Result::NotLeader(not)) => {
                let leader = not.leader.map(|id| raft_id(Some(id))).transpose()?;
                let address = not.address;
                Attempt::NotLeader(leader.map(|id| Leader { id, address }))
            }
            None => Attempt::Unknown("the answer has no result".to_owned()),
        })
    }

    /// The index that a reader must have applied to see everything that was committed before.
    pub(crate) async fn read_index(&self, timeout: Duration) -> Result<RaftIndex, ReadIndexError> {
        let deadline = Instant::now() + timeout;
        let mut reason = "no leader is known".to_owned();
        let mut leaders = self.leader.subscribe();
        loop {
            let known = leaders.borrow_and_update().clone();
            if let Some(target) = known {
                tokio::select! {
                    index = self.read_index_at(&target) => match index {
                        Ok(index) => return Ok(index),
                        Err(why) => reason = why,
                    },
                    () = another_leader(&mut leaders, &target) => continue,
                    () = sleep_until(deadline) => reason = "no answer in time".to_owned(),
                }
            }
            if Instant::now() >= deadline || self.cancel.is_cancelled() {
                return Err(ReadIndexError(reason));
            }
            tokio::select! {
                _ = leaders.changed() => {}
                () = sleep_until(deadline.min(Instant::now() + RETRY)) => {}
            }
        }
    }

    /// Whether the node that this one takes for the leader leads, confirmed by a quorum.
    pub(crate) async fn is_led(&self) -> bool {
        let target = self.leader.borrow().clone();
        match target {
            Some(target) => self.read_index_at(&target).await.is_ok(),
            None => false,
        }
    }

    async fn read_index_at(&self, target: &Leader) -> Result<RaftIndex, String> {
        if target.id == self.me() {
            return match self.confirm().await {
                Ok(index) => Ok(index),
                Err(Ok(_leader)) => Err("this node does not lead any more".to_owned()),
                Err(Err(reason)) => Err(reason),
            };
        }
        let request = proto::ReadIndexRequest {
            sender: Some(to_proto(self.me())),
        };
        let text = |status: Status| match status.code() {
            Code::FailedPrecondition => format!("node {} does not lead", target.id.node),
            _ => status.to_string(),
        };
        let mut client = self.peers.client(&target.address).map_err(text)?;
        let reply = client.read_index(request).await.map_err(text)?;
        Ok(RaftIndex::new(reply.into_inner().index))
    }
}

/// Returns once another node than `target` is seen to lead.
async fn another_leader(leaders: &mut watch::Receiver<Option<Leader>>, target: &Leader) {
    while leaders.changed().await.is_ok() {
        let now = leaders.borrow_and_update();
        if now.as_ref().is_some_and(|leader| leader.id != target.id) {
            return;
        }
    }
    // The sender is gone: the attempt or the deadline decides.
    std::future::pending().await
}

fn decode(outcomes: &[u8]) -> Result<Vec<Outcome>, ProposeError> {
    outcomes::decode(outcomes).map_err(|error| ProposeError::Unknown(error.to_string()))
}
