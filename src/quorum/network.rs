//! Raft's calls to other members, over gRPC. Every call names sender and receiver; a call that
//! fails is `Unreachable` to openraft, which then backs off instead of retrying in a busy loop.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};
use quorate_proto::internal as proto;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Response, Status};

use crate::codec::{self, SnapshotHead};
use crate::ids::{Peer, RaftId, TypeConfig, Vote};
use crate::peers::{Client, Peers, to_proto, within};

/// What a follower may take for an append: longer than a disk's bad moment. Heartbeats are given
/// up by openraft itself after one interval.
const APPEND: Duration = Duration::from_secs(2);
const SNAPSHOT: Duration = Duration::from_secs(120);
const SNAPSHOT_PIECE: usize = 256 << 10;

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, Bytes>;

/// Makes a [`Link`] to each member that openraft wants to talk to.
pub(crate) struct Network(pub(crate) Peers);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: RaftId, node: &Peer) -> Link {
        Link {
            peers: self.0.clone(),
            target,
            address: node.address.clone(),
        }
    }
}

/// The way to one member.
pub(crate) struct Link {
    peers: Peers,
    target: RaftId,
    address: String,
}

fn unreachable(status: &Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(status))
}

impl Link {
    fn request(&self, payload: Vec<u8>) -> proto::RaftRequest {
        proto::RaftRequest {
            sender: Some(to_proto(self.peers.me())),
            receiver: Some(to_proto(self.target)),
            cluster_id: self.peers.cluster_bytes(),
            payload: payload.into(),
        }
    }

    async fn call<R, F>(
        &self,
        limit: Duration,
        payload: Vec<u8>,
        call: impl FnOnce(Client, proto::RaftRequest) -> F,
    ) -> Result<R, RPCError<TypeConfig>>
    where
        R: DeserializeOwned,
        F: Future<Output = Result<Response<proto::RaftReply>, Status>>,
    {
        let sent = async {
            let client = self.peers.client(&self.address)?;
            let reply = within(limit, call(client, self.request(payload))).await?;
            codec::from_json(&reply.into_inner().payload)
                .map_err(|error| Status::internal(error.to_string()))
        };
        let sent: Result<R, Status> = sent.await;
        let failed = sent.as_ref().err();
        self.peers.called(self.target, &self.address, failed);
        sent.map_err(|status| unreachable(&status))
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: SnapshotOf) -> Result<Vote, Status> {
        let Snapshot {
            meta,
            snapshot: data,
        } = snapshot;
        let length = data.len() as u64;
        let head = SnapshotHead { vote, meta, length };
        let first = proto::SnapshotChunk {
            head: Some(self.request(codec::to_json(&head))),
            data: Bytes::new(),
        };
        let pieces = futures::stream::unfold(data, |mut rest| async move {
            let piece = rest.split_to(rest.len().min(SNAPSHOT_PIECE));
            let chunk = proto::SnapshotChunk {
                head: None,
                data: piece,
            };
            (!chunk.data.is_empty()).then_some((chunk, rest))
        });
        let chunks = futures::stream::iter([first]).chain(pieces);
        let mut client = self.peers.client(&self.address)?;
        let reply = within(SNAPSHOT, client.install_snapshot(chunks)).await?;
        codec::from_json(&reply.into_inner().payload)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    codec::to_json(value)
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let payload = codec::encode_append(&request);
        self.call(APPEND, payload, |mut client, request| async move {
            client.append_entries(request).await
        })
        .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(
            option.hard_ttl(),
            json(&request),
            |mut client, request| async move { client.vote(request).await },
        )
        .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(
            option.hard_ttl(),
            json(&request),
            |mut client, request| async move { client.pre_vote(request).await },
        )
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(status) => Err(unreachable(&status).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(
            option.hard_ttl(),
            json(&request),
            |mut client, request| async move { client.transfer_leader(request).await },
        )
        .await
    }
}
