//! The gRPC side that other members call. A call that is not for this member, or comes from
//! another cluster, is refused before anything is done.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use openraft::errors::RaftError;
use openraft::{ChangeMembers, Snapshot};
use quorate_proto::internal as proto;
use quorate_proto::internal::propose_reply;
use quorate_proto::internal::raft_server::{Raft as RaftRpc, RaftServer};
use serde::Serialize;
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{self, SnapshotHead};
use crate::core::{Attempt, Core, Leader};
use crate::ids::{Peer, RaftId, TypeConfig};
use crate::peers::{MESSAGE_BYTES, cluster_id, raft_id, to_proto};

/// An image is kept in memory whole; one larger than this is not from a sane peer.
const SNAPSHOT_BYTES: u64 = 1 << 30;

/// Serves `quorate.internal.v1.Raft`.
#[derive(Clone)]
pub struct RaftService {
    pub(crate) core: Arc<Core>,
}

impl RaftService {
    /// The service for a tonic server, with the message sizes that members use.
    pub fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    fn check_cluster(&self, theirs: Option<&[u8]>) -> Result<(), Status> {
        match (self.core.peers.cluster(), cluster_id(theirs)?) {
            (Some(ours), Some(theirs)) if ours != theirs => Err(Status::failed_precondition(
                format!("this node belongs to cluster {ours}, the caller to {theirs}"),
            )),
            _ => Ok(()),
        }
    }

    fn check(&self, request: proto::RaftRequest) -> Result<Bytes, Status> {
        raft_id(request.sender)?;
        let receiver = raft_id(request.receiver)?;
        let me = self.core.me();
        if receiver != me {
            return Err(Status::failed_precondition(format!(
                "this call is for {receiver}, here answers {me}"
            )));
        }
        self.check_cluster(request.cluster_id.as_deref())?;
        Ok(request.payload)
    }

    fn check_leads(&self) -> Result<(), Status> {
        if self.core.leadership.borrow().is_self {
            return Ok(());
        }
        Err(Status::failed_precondition(
            "this node does not lead the metadata quorum",
        ))
    }

    async fn join_as_learner(&self, id: RaftId, address: &str) -> Result<(), Status> {
        let membership = self.core.metrics().membership_config;
        if address.is_empty() {
            return Err(Status::invalid_argument("a member needs an address"));
        }
        let mut outdated = BTreeSet::new();
        for (other, node) in membership
            .nodes()
            .filter(|(other, _)| other.node == id.node)
        {
            let votes = membership.voter_ids().any(|voter| voter == *other);
            match (*other == id, node.address == address) {
                (true, true) => return Ok(()),
                (true, false) if votes => {
                    return Err(Status::failed_precondition(format!(
                        "{id} votes at {}, and the address of a voter stays",
                        node.address
                    )));
                }
                // An address is never changed in place, and an older disk of the same node is
                // not coming back. (A voter's place is taken once the new disk has caught up.)
                _ if !votes => {
                    outdated.insert(*other);
                }
                _ => {}
            }
        }
        if !outdated.is_empty() {
            let change = ChangeMembers::RemoveNodes(outdated);
            self.core
                .raft
                .change_membership(change, false)
                .await
                .map_err(membership_error)?;
        }
        let peer = Peer {
            address: address.to_owned(),
        };
        tracing::info!(%id, address, "joins the metadata quorum as an observer");
        self.core
            .raft
            .add_learner(id, peer, false)
            .await
            .map_err(membership_error)?;
        Ok(())
    }
}

fn membership_error<E: std::error::Error>(error: RaftError<TypeConfig, E>) -> Status {
    Status::aborted(error.to_string())
}

fn unreadable(error: std::io::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Raft on this node has stopped or failed.
fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn reply<T: Serialize>(value: &T) -> Response<proto::RaftReply> {
    Response::new(proto::RaftReply {
        payload: codec::to_json(value).into(),
    })
}

#[async_trait::async_trait]
impl RaftRpc for RaftService {
    async fn append_entries(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let payload = self.check(request.into_inner())?;
        let append = codec::decode_append(payload).map_err(unreadable)?;
        let answer = self
            .core
            .raft
            .append_entries(append)
            .await
            .map_err(stopped)?;
        Ok(reply(&answer))
    }

    async fn vote(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let payload = self.check(request.into_inner())?;
        let vote = codec::from_json(&payload).map_err(unreadable)?;
        Ok(reply(&self.core.raft.vote(vote).await.map_err(stopped)?))
    }

    async fn pre_vote(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let payload = self.check(request.into_inner())?;
        let vote = codec::from_json(&payload).map_err(unreadable)?;
        Ok(reply(
            &self.core.raft.pre_vote(vote).await.map_err(stopped)?,
        ))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let payload = self.check(request.into_inner())?;
        let transfer = codec::from_json(&payload).map_err(unreadable)?;
        let answer = self.core.raft.handle_transfer_leader(transfer).await;
        Ok(reply(&answer.map_err(stopped)?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?;
        let head = first
            .and_then(|chunk| chunk.head)
            .ok_or_else(|| Status::invalid_argument("a snapshot begins with its head"))?;
        let payload = self.check(head)?;
        let head: SnapshotHead = codec::from_json(&payload).map_err(unreadable)?;
        if head.length > SNAPSHOT_BYTES {
            return Err(Status::invalid_argument("the snapshot is too large"));
        }
        let length = head.length as usize;
        let mut data = BytesMut::new();
        while let Some(chunk) = chunks.message().await? {
            data.extend_from_slice(&chunk.data);
            if data.len() > length {
                break;
            }
        }
        if data.len() != length {
            return Err(Status::data_loss(format!(
                "the snapshot has {} bytes instead of {length}",
                data.len()
            )));
        }
        let snapshot = Snapshot {
            meta: head.meta,
            snapshot: data.freeze(),
        };
        let installed = self
            .core
            .raft
            .install_full_snapshot(head.vote, snapshot)
            .await;
        Ok(reply(&installed.map_err(stopped)?.vote))
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        let request = request.into_inner();
        raft_id(request.sender)?;
        self.check_cluster(request.cluster_id.as_deref())?;
        // One that cannot be read would stop every node once it is committed.
        quorate_metadata::Envelope::decode(&request.envelope)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.core.write(request.envelope).await {
            Attempt::Answered { outcomes, index } => Ok(Response::new(proto::ProposeReply {
                index: index.get(),
                result: Some(propose_reply::Result::Outcomes(outcomes)),
            })),
            Attempt::NotLeader(leader) => Ok(Response::new(proto::ProposeReply {
                index: 0,
                result: Some(propose_reply::Result::NotLeader(not_leader(leader))),
            })),
            Attempt::Failed(reason) => Err(Status::failed_precondition(reason)),
            Attempt::Unknown(reason) => Err(Status::aborted(reason)),
        }
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        raft_id(request.into_inner().sender)?;
        match self.core.confirm().await {
            Ok(index) => Ok(Response::new(proto::ReadIndexReply { index: index.get() })),
            Err(Ok(_leader)) => Err(Status::failed_precondition("this node does not lead")),
            Err(Err(reason)) => Err(Status::unavailable(reason)),
        }
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinReply>, Status> {
        let request = request.into_inner();
        let id = raft_id(request.sender)?;
        self.check_cluster(request.cluster_id.as_deref())?;
        self.check_leads()?;
        self.join_as_learner(id, &request.address).await?;
        Ok(Response::new(proto::JoinReply {}))
    }

    async fn identify(
        &self,
        _request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyReply>, Status> {
        let initialized = self.core.raft.is_initialized().await.map_err(stopped)?;
        Ok(Response::new(proto::IdentifyReply {
            id: Some(to_proto(self.core.me())),
            cluster_id: self.core.peers.cluster_bytes(),
            pristine: !initialized,
            incarnation_start: self.core.config.incarnation.start,
            incarnation_random: self.core.config.incarnation.random,
        }))
    }

    type HoldStream = Pin<Box<dyn Stream<Item = Result<proto::HoldReply, Status>> + Send>>;

    async fn hold(
        &self,
        request: Request<proto::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        raft_id(request.into_inner().sender)?;
        let cancel = self.core.cancel.clone();
        let silence = futures::stream::unfold(cancel, |cancel| async move {
            cancel.cancelled().await;
            None
        });
        Ok(Response::new(Box::pin(silence)))
    }
}

fn not_leader(leader: Option<Leader>) -> propose_reply::NotLeader {
    propose_reply::NotLeader {
        leader: leader.as_ref().map(|leader| to_proto(leader.id)),
        address: leader.map(|leader| leader.address).unwrap_or_default(),
    }
}
