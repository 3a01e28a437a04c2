//! Replication streams: the service that a leader's node offers, and the link that a follower's
//! node opens. Both ends say who they are and whom they mean before anything else.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use quorate_broker::{
    Broker, FollowerOutgoing, LeaderStream, ReplicationTransport, TransportError,
};
use quorate_proto::internal as proto;
use quorate_proto::internal::replication_client::ReplicationClient;
use quorate_proto::internal::replication_server::Replication;
use quorate_quorum::QuorumHandle;
use quorate_types::{Endpoint, Incarnation, NodeId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::channels::{Channels, MESSAGE_BYTES};
use crate::messages::{follower_from_proto, follower_to_proto, leader_from_proto, leader_to_proto};

/// How long the other end's greeting is waited for.
const GREETING: Duration = Duration::from_secs(2);
/// Messages that may wait on the follower's end, each way.
const WAITING: usize = 4_096;
/// Batches that wait to be taken over by the plane, on the follower's end.
const INCOMING: usize = 64;

/// Who this process is towards other nodes.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// This node.
    pub node: NodeId,
    /// This life.
    pub incarnation: Incarnation,
}

fn hello(me: Identity, receiver: NodeId, quorum: &QuorumHandle) -> proto::Hello {
    let cluster = quorum.image().cluster_id();
    proto::Hello {
        node_id: me.node.get(),
        incarnation_start: me.incarnation.start,
        incarnation_random: me.incarnation.random,
        receiver: receiver.get(),
        cluster_id: cluster
            .map(|id| Bytes::copy_from_slice(id.as_bytes()))
            .unwrap_or_default(),
    }
}

/// Checks a greeting: meant for this node, of this cluster, and of no life that is known to be
/// over. Gives who speaks.
fn check(hello: &proto::Hello, me: Identity, quorum: &QuorumHandle) -> Result<NodeId, String> {
    let node = NodeId::new(hello.node_id);
    if hello.receiver != me.node.get() {
        return Err(format!("this is node {}, not {}", me.node, hello.receiver));
    }
    let image = quorum.image();
    if let Some(ours) = image.cluster_id()
        && hello.cluster_id != ours.as_bytes().as_slice()
    {
        return Err(format!("node {node} is of another cluster"));
    }
    let theirs = Incarnation {
        start: hello.incarnation_start,
        random: hello.incarnation_random,
    };
    match image.broker(node) {
        Some(known) if known.incarnation.start > theirs.start && known.incarnation != theirs => {
            Err(format!(
                "node {node} lives as {} now, not as {theirs}",
                known.incarnation
            ))
        }
        _ => Ok(node),
    }
}

/// Serves `quorate.internal.v1.Replication`.
#[derive(Clone)]
pub struct ReplicationService {
    me: Identity,
    broker: Broker,
    quorum: QuorumHandle,
}

impl ReplicationService {
    /// The service of this node.
    pub fn new(me: Identity, broker: Broker, quorum: QuorumHandle) -> Self {
        Self { me, broker, quorum }
    }
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<proto::LeaderMessage, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<proto::FollowerMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let first = timeout(GREETING, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no greeting"))??;
        let greeting = match first.and_then(|message| message.message) {
            Some(proto::follower_message::Message::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("a stream begins with a greeting")),
        };
        let from = check(&greeting, self.me, &self.quorum).map_err(Status::failed_precondition)?;
        let (sender, messages) = mpsc::channel(WAITING);
        // Ends with the follower's side of the stream, or with the broker.
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                match follower_from_proto(message) {
                    Ok(message) => {
                        if sender.send(message).await.is_err() {
                            return;
                        }
                    }
                    Err(status) => {
                        debug!(%from, %status, "a follower's stream ends");
                        return;
                    }
                }
            }
        });
        let outgoing = self.broker.follower_stream(from, messages).await;
        let hello = proto::leader_message::Message::Hello(hello(self.me, from, &self.quorum));
        let greeting = proto::LeaderMessage {
            message: Some(hello),
        };
        let stream = futures::stream::once(async move { Ok(greeting) }).chain(Outgoing(outgoing));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// What the replicas say, as a stream for tonic.
struct Outgoing(FollowerOutgoing);

impl Stream for Outgoing {
    type Item = Result<proto::LeaderMessage, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0
            .poll_recv(cx)
            .map(|message| message.map(|message| Ok(leader_to_proto(message))))
    }
}

/// Opens replication streams to leaders.
pub struct ReplicationLink {
    me: Identity,
    quorum: QuorumHandle,
    channels: Arc<Channels>,
}

impl ReplicationLink {
    /// Streams from this node.
    pub fn new(me: Identity, quorum: QuorumHandle) -> Self {
        Self {
            me,
            quorum,
            channels: Arc::default(),
        }
    }

    async fn connect(&self, to: NodeId, endpoint: &Endpoint) -> Result<LeaderStream, String> {
        let channel = self
            .channels
            .to(endpoint)
            .map_err(|error| error.to_string())?;
        let mut client = ReplicationClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let (outgoing, mut messages) = mpsc::channel(WAITING);
        let (wire, to_send) = mpsc::channel(INCOMING);
        let greeting = proto::follower_message::Message::Hello(hello(self.me, to, &self.quorum));
        let greeting = proto::FollowerMessage {
            message: Some(greeting),
        };
        wire.send(greeting)
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::new(ReceiverStream::new(to_send));
        let answer = client
            .stream(request)
            .await
            .map_err(|status| status.message().to_owned())?;
        let mut incoming = answer.into_inner();
        let first = incoming
            .message()
            .await
            .map_err(|status| status.message().to_owned())?;
        match first.and_then(|message| message.message) {
            Some(proto::leader_message::Message::Hello(hello)) => {
                if check(&hello, self.me, &self.quorum)? != to {
                    return Err(format!("node {} answers", hello.node_id));
                }
            }
            _ => return Err("no greeting".to_owned()),
        }
        // Both end with the broker's ends of the channels, or with the connection.
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                if wire.send(follower_to_proto(message)).await.is_err() {
                    return;
                }
            }
        });
        let (sender, received) = mpsc::channel(INCOMING);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = incoming.message() => message,
                    () = sender.closed() => return,
                };
                let Ok(Some(message)) = message else { return };
                let Ok(message) = leader_from_proto(message) else {
                    return;
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(LeaderStream {
            outgoing,
            incoming: received,
        })
    }
}

#[async_trait]
impl ReplicationTransport for ReplicationLink {
    async fn open(&self, to: NodeId, endpoint: &Endpoint) -> Result<LeaderStream, TransportError> {
        let failed = |reason: String| TransportError { to, reason };
        match timeout(GREETING, self.connect(to, endpoint)).await {
            Ok(opened) => opened.map_err(failed),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }
}
