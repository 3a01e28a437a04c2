//! The door to this node's groups: heartbeats, commits, reads of what is committed. Only of groups
//! whose coordinator this node is; who that is follows from the image.

use std::sync::Arc;
use std::time::Duration;

use quorate_config::COMMIT_BYTES;
use quorate_group::{Answer, GroupError, GroupTiming, Heartbeat};
use quorate_metadata::{MetadataImage, Shard, group_shard};
use quorate_quorum::QuorumHandle;
use quorate_types::{GroupId, NodeId};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::broker::Queue;
use crate::clock::{Clock, ControllerContact};
use crate::group_commits::{CommitCall, Piece, Refused, cut, size};
use crate::group_runner::{Coordinators, GroupMail, GroupRunner, WAITING, elsewhere};

/// How long a read waits for the quorum's word, and for this node's image to catch up.
const READ: Duration = Duration::from_secs(5);
/// A deletion is tried again by whoever asks for it after so long.
const DELETE: Duration = Duration::from_secs(5);

/// The groups that this node coordinates. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    shared: Arc<Shared>,
}

struct Shared {
    quorum: QuorumHandle,
    clock: Clock,
    contact: ControllerContact,
    timing: GroupTiming,
    mail: mpsc::Sender<GroupMail>,
    commit_room: Arc<Semaphore>,
    coordinators: watch::Receiver<Coordinators>,
}

impl Groups {
    /// The door, and what is behind it, to be run.
    pub(crate) fn new(
        quorum: QuorumHandle,
        clock: Clock,
        contact: ControllerContact,
        timing: GroupTiming,
    ) -> (Self, GroupRunner, mpsc::Receiver<GroupMail>) {
        let (mail, inbox) = mpsc::channel(WAITING);
        let (show, coordinators) = watch::channel(Coordinators::default());
        let runner = GroupRunner {
            quorum: quorum.clone(),
            clock,
            contact: contact.clone(),
            timing,
            coordinators: show,
        };
        let shared = Shared {
            quorum,
            clock,
            contact,
            timing,
            mail,
            commit_room: Arc::new(Semaphore::new(COMMIT_BYTES)),
            coordinators,
        };
        let door = Self {
            shared: Arc::new(shared),
        };
        (door, runner, inbox)
    }

    /// Times and bounds of groups.
    pub fn timing(&self) -> &GroupTiming {
        &self.shared.timing
    }

    /// Takes a member's heartbeat. It is answered within what it may wait, or what a member that joins
    /// or leaves has to wait for the quorum (5 s).
    ///
    /// # Errors
    /// [`GroupError`]; [`GroupError::NotCoordinator`] without a name also where the broker stops.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<Answer, GroupError> {
        let (answer, told) = oneshot::channel();
        self.ask(GroupMail::Heartbeat { beat, answer }, told).await
    }

    /// Deletes a group without members, with its offsets.
    ///
    /// # Errors
    /// [`GroupError`]; after [`GroupError::Undecided`] the group may be gone, now or later.
    pub async fn delete(&self, group: GroupId) -> Result<(), GroupError> {
        let (answer, told) = oneshot::channel();
        let deleted = self.ask(GroupMail::Delete { group, answer }, told);
        match timeout(DELETE, deleted).await {
            Ok(deleted) => deleted.map(|_farewell| ()),
            Err(_elapsed) => Err(GroupError::Undecided),
        }
    }

    async fn ask<T>(
        &self,
        mail: GroupMail,
        told: oneshot::Receiver<Result<T, GroupError>>,
    ) -> Result<T, GroupError> {
        // A runner that has stopped drops the mail, and with it the answer's sender.
        let _stopped = self.shared.mail.send(mail).await;
        let stopped = GroupError::NotCoordinator { coordinator: None };
        told.await.unwrap_or(Err(stopped))
    }

    /// Commits offsets; gives those that were refused, by their places in the call, each for its own
    /// sake. All others are committed.
    ///
    /// # Errors
    /// [`GroupError`] where none was looked at; [`GroupError::Undecided`] where some may be committed,
    /// now or later: a repeat under the same `seq` does nothing twice.
    pub async fn commit(&self, call: CommitCall) -> Result<Refused, GroupError> {
        let shared = &self.shared;
        let takes = size(call.by.as_ref(), &call.offsets)
            .bytes
            .min(COMMIT_BYTES);
        let takes = u32::try_from(takes).unwrap_or(u32::MAX);
        let room = Arc::clone(&shared.commit_room).try_acquire_many_owned(takes);
        let mut room = room.map_err(|_full| GroupError::Throttled)?;
        let pieces = cut(call.offsets);
        let mut waiting = Vec::with_capacity(pieces.len());
        let mut first = 0;
        for offsets in pieces {
            let (answer, told) = oneshot::channel();
            let own = size(call.by.as_ref(), &offsets)
                .bytes
                .min(room.num_permits());
            waiting.push((first, told));
            first += offsets.len();
            let Some(room) = room.split(own) else {
                return Err(GroupError::Throttled);
            };
            let piece = Piece {
                group: call.group.clone(),
                by: call.by.clone(),
                offsets,
                answer,
                room,
            };
            let _stopped = shared.mail.send(GroupMail::Commit(piece)).await;
        }
        let all = async {
            let mut refused = Refused::new();
            for (first, told) in waiting {
                // Where the broker stops meanwhile it may have been proposed.
                let piece = told.await.unwrap_or(Err(GroupError::Undecided))?;
                refused.extend(piece.into_iter().map(|(item, code)| (first + item, code)));
            }
            Ok(refused)
        };
        let all = timeout(call.timeout, all).await;
        all.unwrap_or(Err(GroupError::Undecided))
    }

    /// An image with all that a group had committed when this was called: the quorum has confirmed
    /// that nothing newer was acknowledged, and this node coordinates the group in it.
    ///
    /// # Errors
    /// [`GroupError::NotCoordinator`], [`GroupError::CutOff`]; [`GroupError::Undecided`] where the
    /// quorum does not answer within 5 s.
    pub async fn fetch_offsets(&self, group: &GroupId) -> Result<Arc<MetadataImage>, GroupError> {
        let quorum = &self.shared.quorum;
        self.check(&quorum.image(), group)?;
        let read = async {
            let index = quorum.read_index_within(READ).await.ok()?;
            quorum.wait_applied(index).await;
            Some(quorum.image())
        };
        let read = timeout(READ, read).await.ok().flatten();
        let image = read.ok_or(GroupError::Undecided)?;
        self.check(&image, group)?;
        Ok(image)
    }

    /// Whether this node may speak for a group.
    fn check(&self, image: &MetadataImage, group: &GroupId) -> Result<(), GroupError> {
        let shared = &self.shared;
        let me: NodeId = shared.quorum.node();
        if image.coordinator(group).coordinator != Some(me) {
            return Err(elsewhere(image, me, group));
        }
        let last = shared.contact.last();
        let silent = shared.clock.now().saturating_sub(last);
        // Before the first answer the image may be of long ago.
        if last.is_zero() || silent > shared.timing.contact {
            return Err(GroupError::CutOff);
        }
        Ok(())
    }

    /// Returns once somebody else than at `known` coordinates a group, or the same node anew.
    pub async fn moved(&self, group: &GroupId, known: Shard) {
        let shard = group_shard(group).get() as usize;
        let mut coordinators = self.shared.coordinators.clone();
        let other = |now: &Coordinators| now.get(shard).is_some_and(|now| now.epoch > known.epoch);
        if coordinators.wait_for(other).await.is_err() {
            // The broker has stopped: nothing more will be known here.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn queues(&self) -> [Queue; 2] {
        let shared = &self.shared;
        [
            Queue {
                name: "group_requests",
                used: WAITING.saturating_sub(shared.mail.capacity()),
                limit: WAITING,
            },
            Queue {
                name: "commit_bytes",
                used: COMMIT_BYTES.saturating_sub(shared.commit_room.available_permits()),
                limit: COMMIT_BYTES,
            },
        ]
    }
}
