//! The image as a Raft state machine: applies committed entries, makes and takes snapshots.
//!
//! Invariant: an entry that this version cannot read, or a feature level that it does not speak,
//! stops the node; going on would let the images drift apart.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use quorate_metadata::{ClusterEvent, Envelope, LogId, MetadataImage, check_level};
use quorate_types::{RaftIndex, Term};

use crate::ids::{RaftLogId, Reply, SnapshotMeta, StoredMembership, TypeConfig};
use crate::outcomes;
use crate::snapshots::{Snapshots, StoredSnapshot};
use crate::view::{View, hash_of};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Bytes>;

pub(crate) struct StateMachine {
    image: MetadataImage,
    applied: Option<RaftLogId>,
    membership: StoredMembership,
    snapshots: Snapshots,
    view: Arc<View>,
}

pub(crate) fn position(id: &RaftLogId) -> LogId {
    LogId {
        term: Term::new(id.committed_leader_id().term),
        index: RaftIndex::new(id.index),
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn decode_image(bytes: &[u8]) -> io::Result<MetadataImage> {
    MetadataImage::decode(bytes).map_err(invalid)
}

impl StateMachine {
    /// Begins with the newest whole snapshot, or with nothing.
    pub(crate) fn open(snapshots: Snapshots) -> io::Result<(Self, Arc<View>)> {
        let stored = snapshots.load()?;
        let (image, meta) = match stored {
            Some(stored) => (decode_image(&stored.image)?, stored.meta),
            None => (MetadataImage::new(), SnapshotMeta::default()),
        };
        let view = Arc::new(View::new(&image));
        let machine = Self {
            image,
            applied: meta.last_log_id,
            membership: meta.last_membership,
            snapshots,
            view: view.clone(),
        };
        Ok((machine, view))
    }

    /// The last entry in the image.
    pub(crate) fn applied(&self) -> Option<RaftLogId> {
        self.applied
    }

    /// An entry of Raft's own. The first of all, which makes the quorum, is at index 0: that is
    /// where an empty image stands.
    fn apply_own(&mut self, id: &RaftLogId) {
        if id.index > 0 {
            self.image.apply_blank(position(id));
        }
    }

    /// The image so far.
    pub(crate) fn image(&self) -> &MetadataImage {
        &self.image
    }

    /// Who takes part, as of the last entry.
    pub(crate) fn membership(&self) -> &StoredMembership {
        &self.membership
    }

    pub(crate) fn apply_entry(
        &mut self,
        id: RaftLogId,
        payload: EntryPayload<crate::ids::Proposal, crate::ids::RaftId, crate::ids::Peer>,
        events: &mut Vec<ClusterEvent>,
    ) -> io::Result<Reply> {
        let mut reply = Reply::default();
        match payload {
            EntryPayload::Blank => self.apply_own(&id),
            EntryPayload::Membership(membership) => {
                self.apply_own(&id);
                self.membership = StoredMembership::new(Some(id), membership);
            }
            EntryPayload::Normal(proposal) => {
                let envelope = Envelope::decode(&proposal.0).map_err(invalid)?;
                let applied = self.image.apply(&envelope, position(&id));
                check_level(self.image.feature_level()).map_err(invalid)?;
                events.extend(applied.events);
                reply = Reply(outcomes::encode(&applied.outcomes));
            }
        }
        self.applied = Some(id);
        Ok(reply)
    }
}

/// openraft's core outlives a state machine that panicked; somebody has to notice.
impl Drop for StateMachine {
    fn drop(&mut self) {
        self.view.ended.cancel();
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut events = Vec::new();
        let mut hashes = Vec::new();
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(entry.log_id, entry.payload, &mut events)?;
            hashes.push(hash_of(&self.image));
            answers.extend(responder.map(|responder| (responder, reply)));
        }
        // Who has its answer finds it in the image.
        self.view.publish(&self.image, events, hashes);
        for (responder, reply) in answers {
            responder.send(reply);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            image: self.image.clone(),
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let image = decode_image(&snapshot)?;
        save(self.snapshots.clone(), meta.clone(), snapshot).await?;
        self.image = image;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let hash = hash_of(&self.image);
        self.view.publish(&self.image, Vec::new(), vec![hash]);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshots = self.snapshots.clone();
        let stored = tokio::task::spawn_blocking(move || snapshots.load()).await;
        let stored = stored.map_err(io::Error::other)??;
        Ok(stored.map(|stored| Snapshot {
            meta: stored.meta,
            snapshot: stored.image,
        }))
    }
}

async fn save(snapshots: Snapshots, meta: SnapshotMeta, image: Bytes) -> io::Result<()> {
    let stored = StoredSnapshot { meta, image };
    tokio::task::spawn_blocking(move || snapshots.save(&stored))
        .await
        .map_err(io::Error::other)?
}

/// Turns the image of one moment into a snapshot while newer entries are applied.
pub(crate) struct Builder {
    image: MetadataImage,
    meta: SnapshotMeta,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let image = self.image.clone();
        let encoded = tokio::task::spawn_blocking(move || Bytes::from(image.encode())).await;
        let encoded = encoded.map_err(io::Error::other)?;
        save(self.snapshots.clone(), self.meta.clone(), encoded.clone()).await?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: encoded,
        })
    }
}
