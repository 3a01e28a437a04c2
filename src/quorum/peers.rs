//! Connections to the other members: one channel a peer, for Raft and control only, so that a
//! heartbeat never waits behind data. It is made when it is first used, and found dead by HTTP/2
//! keepalive where TCP would wait.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::internal as proto;
use quorate_proto::internal::raft_client::RaftClient;
use quorate_types::{ClusterId, DirectoryId, NodeId};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::ids::RaftId;
use crate::view::View;

const CONNECT: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);
const IDENTIFY: Duration = Duration::from_secs(1);
/// Two refused connections this far apart mean that the process is gone. Soon enough for a
/// container, whose address goes some 50 ms after its process: then nobody refuses any more.
const BETWEEN_PROBES: Duration = Duration::from_millis(10);
const PROBES: u32 = 10;
const PROBE: Duration = Duration::from_millis(200);
/// A call carries at most one append (about 1 MiB) or a piece of a snapshot.
pub(crate) const MESSAGE_BYTES: usize = 16 << 20;

/// More members than a quorum and its observers have.
const SILENT: usize = 1_024;

pub(crate) type Client = RaftClient<Channel>;

/// How this node reaches the others, and what it calls itself towards them.
#[derive(Clone)]
pub(crate) struct Peers {
    me: RaftId,
    configured: Option<ClusterId>,
    view: Arc<View>,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
    /// Members whose last call failed: told once, until they answer again.
    silent: Arc<Mutex<BTreeSet<RaftId>>>,
}

/// Who answers at an address.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: RaftId,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) pristine: bool,
}

impl Peers {
    pub(crate) fn new(me: RaftId, configured: Option<ClusterId>, view: Arc<View>) -> Self {
        Self {
            me,
            configured,
            view,
            channels: Arc::default(),
            silent: Arc::default(),
        }
    }

    pub(crate) fn me(&self) -> RaftId {
        self.me
    }

    /// The cluster that this node belongs to, once there is one.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.view.image().cluster_id().or(self.configured)
    }

    pub(crate) fn cluster_bytes(&self) -> Option<Bytes> {
        self.cluster()
            .map(|id| Bytes::copy_from_slice(id.as_bytes()))
    }

    /// A client for the member at `address`; never blocks.
    pub(crate) fn client(&self, address: &str) -> Result<Client, Status> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|error| Status::invalid_argument(format!("{address}: {error}")))?
                    .connect_timeout(CONNECT)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_ANSWER)
                    .keep_alive_while_idle(true);
                let channel = endpoint.connect_lazy();
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES))
    }

    /// Takes note of how a call of Raft's ended: openraft tells each one that fails, ten a second
    /// while a member is down; here it is one line when it begins and one when it is over.
    pub(crate) fn called(&self, member: RaftId, address: &str, failed: Option<&Status>) {
        let mut silent = self.silent.lock();
        match failed {
            Some(why) => {
                if silent.len() < SILENT && silent.insert(member) {
                    let why = why.message();
                    tracing::warn!(%member, address, why, "a quorum member does not answer");
                }
            }
            None => {
                if silent.remove(&member) {
                    tracing::info!(%member, address, "the quorum member answers again");
                }
            }
        }
    }

    /// Forgets about members that are none any more.
    pub(crate) fn keep_only(&self, is_member: impl Fn(&RaftId) -> bool) {
        self.silent.lock().retain(is_member);
    }

    /// Asks who answers at `address`.
    pub(crate) async fn identify(&self, address: &str) -> Result<Identity, Status> {
        let mut client = self.client(address)?;
        let call = client.identify(proto::IdentifyRequest {});
        let reply = within(IDENTIFY, call).await?.into_inner();
        Ok(Identity {
            id: raft_id(reply.id)?,
            cluster: cluster_id(reply.cluster_id.as_deref())?,
            pristine: reply.pristine,
        })
    }
}

/// Runs a call with a limit on its time.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer in {limit:?}"))),
    }
}

/// Whether the process at `address` is gone: two connections are refused. Silence proves nothing.
/// One that is being ended may break its connections before it closes its door: it is asked a few
/// times.
pub(crate) async fn is_gone(address: &str) -> bool {
    let mut refused = 0;
    for _ in 0..PROBES {
        match connects(address).await {
            Connects::Refused if refused == 1 => return true,
            Connects::Refused => refused += 1,
            Connects::Accepted => refused = 0,
            Connects::Silent => return false,
        }
        tokio::time::sleep(BETWEEN_PROBES).await;
    }
    false
}

enum Connects {
    Refused,
    Accepted,
    Silent,
}

async fn connects(address: &str) -> Connects {
    match tokio::time::timeout(PROBE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Connects::Accepted,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Connects::Refused,
        Ok(Err(_)) | Err(_) => Connects::Silent,
    }
}

pub(crate) fn to_proto(id: RaftId) -> proto::RaftId {
    proto::RaftId {
        node_id: id.node.get(),
        directory_id: Bytes::copy_from_slice(id.directory.as_bytes()),
    }
}

pub(crate) fn raft_id(id: Option<proto::RaftId>) -> Result<RaftId, Status> {
    let id = id.ok_or_else(|| Status::invalid_argument("a member's id is missing"))?;
    Ok(RaftId {
        node: NodeId::new(id.node_id),
        directory: DirectoryId::from_slice(&id.directory_id)
            .ok_or_else(|| Status::invalid_argument("a directory id has 16 bytes"))?,
    })
}

pub(crate) fn cluster_id(bytes: Option<&[u8]>) -> Result<Option<ClusterId>, Status> {
    let read = |bytes| {
        ClusterId::from_slice(bytes)
            .ok_or_else(|| Status::invalid_argument("a cluster id has 16 bytes"))
    };
    bytes.map(read).transpose()
}

/// Whether a call that failed so certainly did nothing: the peer refused it before it read it,
/// or there was no connection.
pub(crate) fn did_nothing(status: &Status) -> bool {
    if matches!(
        status.code(),
        Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented
    ) {
        return true;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}
