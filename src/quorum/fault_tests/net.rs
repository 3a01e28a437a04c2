//! The network between voters: every call is served through [`Watched`], which refuses or swallows
//! it, or does it and loses the answer; and it notes who voted for whom.

use std::collections::HashMap;
use std::sync::Arc;

use openraft::raft::{VoteRequest, VoteResponse};
use parking_lot::Mutex;
use quorate_proto::internal as proto;
use quorate_proto::internal::raft_server::Raft as RaftRpc;
use quorate_types::NodeId;
use tonic::{Request, Response, Status, Streaming};

use super::record::Record;
use crate::codec;
use crate::ids::{RaftId, TypeConfig};
use crate::service::RaftService;

/// What becomes of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Refused,
    Swallowed,
    /// Done, and nobody hears of it.
    AnswerLost,
}

/// What becomes of calls from one node to another; nothing where it is not named.
#[derive(Debug, Default)]
pub(crate) struct Net(Mutex<HashMap<(NodeId, NodeId), Cut>>);

impl Net {
    pub(crate) fn cut(&self, from: NodeId, to: NodeId, how: Cut) {
        self.0.lock().insert((from, to), how);
    }

    pub(crate) fn heal(&self) {
        self.0.lock().clear();
    }

    fn way(&self, from: NodeId, to: NodeId) -> Option<Cut> {
        self.0.lock().get(&(from, to)).copied()
    }
}

/// A voter's service on this network.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) inner: RaftService,
    pub(crate) me: RaftId,
    pub(crate) net: Arc<Net>,
    pub(crate) record: Arc<Record>,
}

fn node_of(sender: Option<&proto::RaftId>) -> NodeId {
    NodeId::new(sender.map_or(0, |id| id.node_id))
}

impl Watched {
    async fn pass<T>(
        &self,
        from: NodeId,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match self.net.way(from, self.me.node) {
            None => call.await,
            Some(Cut::Refused) => Err(Status::unavailable("cut off by the test")),
            Some(Cut::Swallowed) => std::future::pending().await,
            Some(Cut::AnswerLost) => {
                let _lost = call.await;
                std::future::pending().await
            }
        }
    }
}

macro_rules! pass {
    ($self:ident, $request:ident, $method:ident) => {{
        let from = node_of($request.get_ref().sender.as_ref());
        $self.pass(from, $self.inner.$method($request)).await
    }};
}

#[async_trait::async_trait]
impl RaftRpc for Watched {
    async fn append_entries(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        if let Ok(append) = codec::decode_append(request.get_ref().payload.clone()) {
            let leader = append.vote.leader_id;
            self.record.leads(leader.term, leader.voted_for);
        }
        pass!(self, request, append_entries)
    }

    async fn vote(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        let from = node_of(request.get_ref().sender.as_ref());
        let asked: Result<VoteRequest<TypeConfig>, _> =
            codec::from_json(&request.get_ref().payload);
        let answered = async {
            let reply = self.inner.vote(request).await?;
            let answer: Result<VoteResponse<TypeConfig>, _> =
                codec::from_json(&reply.get_ref().payload);
            if let (Ok(asked), Ok(answer)) = (asked, answer)
                && answer.vote_granted
            {
                let candidate = asked.vote.leader_id;
                self.record
                    .votes(self.me, candidate.term, candidate.voted_for);
            }
            Ok(reply)
        };
        self.pass(from, answered).await
    }

    async fn pre_vote(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        pass!(self, request, pre_vote)
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::RaftRequest>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        pass!(self, request, transfer_leader)
    }

    /// A snapshot names its sender only in its first piece: it passes wherever there is a
    /// connection.
    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        self.inner.install_snapshot(request).await
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        pass!(self, request, propose)
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        pass!(self, request, read_index)
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinReply>, Status> {
        pass!(self, request, join)
    }

    async fn identify(
        &self,
        request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyReply>, Status> {
        self.inner.identify(request).await
    }

    type HoldStream = <RaftService as RaftRpc>::HoldStream;

    async fn hold(
        &self,
        request: Request<proto::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        pass!(self, request, hold)
    }
}
