//! The door to the quorum: everything above talks to [`QuorumHandle`] and has never heard of Raft.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{ClusterEvent, Command, MetadataImage, Outcome};
use quorate_types::{NodeId, RaftIndex, Term};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::core::{Core, Gone, Leadership};
use crate::ids::RaftId;
use crate::propose::{ProposeError, ReadIndexError};

const READ_INDEX: Duration = Duration::from_secs(5);
const HAND_OVER: Duration = Duration::from_millis(500);

/// A handle on the running quorum; cheap to clone.
#[derive(Clone)]
pub struct QuorumHandle {
    pub(crate) core: Arc<Core>,
}

/// A member of the quorum as `describe` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumMember {
    /// Its name.
    pub id: RaftId,
    /// Where other nodes reach it, `host:port`.
    pub address: String,
    /// Up to where its log is known to be the leader's; only the leader knows.
    pub matched: Option<RaftIndex>,
}

/// The quorum as one member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumDescription {
    /// The newest term that this node has heard of.
    pub term: Term,
    /// Who leads.
    pub leader: Option<RaftId>,
    /// Those that vote, by id.
    pub voters: Vec<QuorumMember>,
    /// Those that only follow, by id.
    pub observers: Vec<QuorumMember>,
    /// The last entry in this node's log.
    pub last_log: Option<RaftIndex>,
    /// The last entry in its newest snapshot.
    pub snapshot: Option<RaftIndex>,
    /// The last entry that is gone from its log.
    pub purged: Option<RaftIndex>,
    /// In words, why no node has led for some seconds, or why this one is not a member yet.
    pub outage: Option<String>,
}

impl QuorumHandle {
    /// Proposes commands, all or none of them, and gives their outcomes; from any node. Tried until
    /// `timeout`; retries do nothing twice.
    ///
    /// # Errors
    /// [`ProposeError`] says whether the commands may still be, or become, committed.
    pub async fn propose(
        &self,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        self.core.propose(commands, timeout).await
    }

    /// Proposes only as the leader of `term`: never forwarded, and refused when it is applied
    /// under another term.
    ///
    /// # Errors
    /// [`ProposeError`] says whether the commands may still be, or become, committed.
    pub async fn propose_in_term(
        &self,
        term: Term,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        self.core.propose_in_term(term, commands, timeout).await
    }

    /// The newest applied image.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.core.view.image()
    }

    /// Newer images as they are applied; some may be skipped, never the newest.
    pub fn images(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.core.view.images()
    }

    /// Waits until the image holds the entry at `index`.
    pub async fn wait_applied(&self, index: RaftIndex) {
        let mut images = self.images();
        if images
            .wait_for(|image| image.applied().index >= index)
            .await
            .is_err()
        {
            // Only when the quorum is gone; then the entry will never come.
            std::future::pending::<()>().await;
        }
    }

    /// Who leads, now and as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.core.leadership.subscribe()
    }

    /// The last metadata leader whose process this node found gone: its broker is gone with it.
    pub fn gone(&self) -> Option<Gone> {
        *self.core.gone.lock()
    }

    /// The rolling hash of this node's image as of the entry at `index`: of the latest 4,096
    /// applied here, and none of others. Two nodes that have one for an index must agree.
    pub fn hash_at(&self, index: RaftIndex) -> Option<u64> {
        self.core.view.hash_at(index)
    }

    /// Tells that this node must not go on ([`Self::failure`]); the first reason stands.
    pub fn fail(&self, reason: String) {
        self.core.fail(reason);
    }

    /// Set once when this node cannot go on (a disk error, an entry it cannot read, another
    /// cluster's peers, an image that differs from the others'): it should stop, and say why.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.core.failure.subscribe()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.core.config.node
    }

    /// The latest 10,000 events, the oldest first.
    pub fn events(&self) -> Vec<ClusterEvent> {
        self.core.view.events()
    }

    /// Events as they are applied.
    pub fn subscribe_events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.core.view.subscribe_events()
    }

    /// The index that a reader must have applied ([`Self::wait_applied`]) to see all that was
    /// committed before this call; from any node, confirmed by a quorum.
    ///
    /// # Errors
    /// [`ReadIndexError`] when no leader confirmed it within 5 s.
    pub async fn read_index(&self) -> Result<RaftIndex, ReadIndexError> {
        self.read_index_within(READ_INDEX).await
    }

    /// As [`Self::read_index`], with another limit.
    ///
    /// # Errors
    /// [`ReadIndexError`] when no leader confirmed it in time.
    pub async fn read_index_within(&self, limit: Duration) -> Result<RaftIndex, ReadIndexError> {
        self.core.read_index(limit).await
    }

    /// Whether a quorum confirms, within `limit` from now on, that this node leads.
    pub async fn confirm_leadership(&self, limit: Duration) -> bool {
        let confirmed = tokio::time::timeout(limit, self.core.confirm()).await;
        matches!(confirmed, Ok(Ok(_)))
    }

    /// Gives the leadership to the voter whose log is longest, if this node has it; returns when
    /// another node leads or no voter took it.
    pub async fn hand_over(&self) {
        let me = self.core.me();
        let metrics = self.core.metrics();
        if metrics.current_leader != Some(me) {
            return;
        }
        let matched = metrics.replication.unwrap_or_default();
        let mut voters: Vec<RaftId> = metrics.membership_config.voter_ids().collect();
        voters.retain(|id| *id != me);
        voters.sort_by_key(|id| std::cmp::Reverse(matched.get(id).copied().flatten()));
        let mut leaders = self.core.leader.subscribe();
        for target in voters {
            let until = Instant::now() + HAND_OVER;
            if self
                .core
                .raft
                .trigger()
                .transfer_leader(target)
                .await
                .is_err()
            {
                return;
            }
            let other = leaders.wait_for(|now| now.as_ref().is_some_and(|now| now.id != me));
            if tokio::time::timeout_at(until, other).await.is_ok() {
                tracing::info!(to = %target, "handed the metadata leadership over");
                return;
            }
        }
    }

    /// The quorum as this node sees it.
    pub fn describe(&self) -> QuorumDescription {
        let metrics = self.core.metrics();
        let membership = &metrics.membership_config;
        let voters: Vec<RaftId> = membership.voter_ids().collect();
        let replication = metrics.replication.as_ref();
        let member = |id: RaftId, address: &str| QuorumMember {
            id,
            address: address.to_owned(),
            matched: match replication.and_then(|matched| matched.get(&id)) {
                Some(matched) => matched.map(|matched| RaftIndex::new(matched.index)),
                None => None,
            },
        };
        let (voting, following) = membership
            .nodes()
            .map(|(id, node)| member(*id, &node.address))
            .partition(|member| voters.contains(&member.id));
        QuorumDescription {
            term: Term::new(metrics.current_term),
            leader: metrics.current_leader,
            voters: voting,
            observers: following,
            last_log: metrics.last_log_index.map(RaftIndex::new),
            snapshot: metrics.snapshot.map(|id| RaftIndex::new(id.index)),
            purged: metrics.purged.map(|id| RaftIndex::new(id.index)),
            outage: self.core.outage.lock().clone(),
        }
    }
}
