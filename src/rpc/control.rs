//! Sessions with the active controller, and the probe that asks whether a process lives.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use quorate_broker::{
    ControllerLink, ControllerSession, Heartbeat, HeartbeatReply, ImageDifference, TransportError,
};
use quorate_controller::{ControllerHandle, ProbeResult, Prober};
use quorate_proto::internal as proto;
use quorate_proto::internal::controller_client::ControllerClient;
use quorate_proto::internal::controller_server::Controller;
use quorate_proto::internal::raft_client::RaftClient;
use quorate_types::{BrokerEpoch, Endpoint, Incarnation, NodeId, RaftIndex};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::channels::Channels;

/// A probe is answered within so long.
const PROBE: Duration = Duration::from_millis(250);
/// A session is opened within so long.
const OPEN: Duration = Duration::from_secs(1);
/// Heartbeats and answers that may wait.
const WAITING: usize = 16;

/// Serves `quorate.internal.v1.Controller`.
#[derive(Clone)]
pub struct ControllerService {
    controller: ControllerHandle,
}

impl ControllerService {
    /// The service of this node's controller.
    pub fn new(controller: ControllerHandle) -> Self {
        Self { controller }
    }

    async fn answer(
        &self,
        connection: quorate_controller::ConnectionId,
        beat: proto::Heartbeat,
    ) -> Option<proto::HeartbeatAnswer> {
        let number = beat.number;
        let heartbeat = quorate_controller::Heartbeat {
            node: NodeId::new(beat.node_id),
            incarnation: Incarnation {
                start: beat.incarnation_start,
                random: beat.incarnation_random,
            },
            broker_epoch: beat.broker_epoch.map(BrokerEpoch::new),
            applied: RaftIndex::new(beat.applied_index),
            wants_shutdown: beat.wants_shutdown,
            ready: beat.ready,
        };
        let hash = beat.image_hash;
        let answer = match self.controller.heartbeat(connection, heartbeat, hash).await {
            Ok(told) => {
                let told = told?;
                let differs = told.image_differs.map(|differs| proto::ImageDifference {
                    index: differs.index.get(),
                    controller_hash: differs.controller,
                    broker_hash: differs.broker,
                });
                proto::HeartbeatAnswer {
                    number,
                    may_stop: told.answer.may_stop,
                    applied_index: told.applied.get(),
                    image_differs: differs,
                    ..proto::HeartbeatAnswer::default()
                }
            }
            Err(not_active) => proto::HeartbeatAnswer {
                number,
                refused: true,
                reason: not_active.to_string(),
                not_controller: not_active.leader.map(NodeId::get),
                ..proto::HeartbeatAnswer::default()
            },
        };
        Some(answer)
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::HeartbeatAnswer, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::Heartbeat>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut beats = request.into_inner();
        let connection = self.controller.open_session();
        let (answers, outgoing) = mpsc::channel(WAITING);
        let service = self.clone();
        // Ends with the broker's side of the stream; how it ended is what matters then.
        tokio::spawn(async move {
            let reset = loop {
                match beats.message().await {
                    Ok(Some(beat)) => {
                        let Some(answer) = service.answer(connection, beat).await else {
                            continue;
                        };
                        if answers.send(Ok(answer)).await.is_err() {
                            break true;
                        }
                    }
                    Ok(None) => break false,
                    Err(_reset) => break true,
                }
            };
            service.controller.session_ended(connection, reset).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Opens sessions with the controller, on a connection that carries nothing else.
#[derive(Default)]
pub struct ControlLink {
    channels: Channels,
}

#[async_trait]
impl ControllerLink for ControlLink {
    async fn open(
        &self,
        to: NodeId,
        endpoint: &Endpoint,
    ) -> Result<ControllerSession, TransportError> {
        let failed = |reason: String| TransportError { to, reason };
        let channel = self
            .channels
            .to(endpoint)
            .map_err(|error| failed(error.to_string()))?;
        let (outgoing, mut beats) = mpsc::channel::<Heartbeat>(WAITING);
        let (wire, to_send) = mpsc::channel(WAITING);
        let request = Request::new(ReceiverStream::new(to_send));
        let mut client = ControllerClient::new(channel);
        let answer = timeout(OPEN, client.session(request))
            .await
            .map_err(|_| failed("no answer in time".to_owned()))?
            .map_err(|status| failed(status.message().to_owned()))?;
        let mut answers = answer.into_inner();
        // Both end with the broker's ends of the channels, or with the connection.
        tokio::spawn(async move {
            while let Some(beat) = beats.recv().await {
                if wire.send(to_proto(&beat)).await.is_err() {
                    return;
                }
            }
        });
        let (sender, incoming) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let answer = tokio::select! {
                    answer = answers.message() => answer,
                    () = sender.closed() => return,
                };
                let Ok(Some(answer)) = answer else { return };
                if sender.send(from_proto(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(ControllerSession { outgoing, incoming })
    }
}

fn to_proto(beat: &Heartbeat) -> proto::Heartbeat {
    proto::Heartbeat {
        node_id: beat.node.get(),
        incarnation_start: beat.incarnation.start,
        incarnation_random: beat.incarnation.random,
        broker_epoch: beat.broker_epoch.map(BrokerEpoch::get),
        applied_index: beat.applied.get(),
        wants_shutdown: beat.wants_shutdown,
        ready: beat.ready,
        number: beat.number,
        led: beat.led,
        image_hash: Some(beat.image_hash),
    }
}

fn from_proto(answer: proto::HeartbeatAnswer) -> HeartbeatReply {
    HeartbeatReply {
        number: answer.number,
        may_stop: answer.may_stop,
        not_controller: answer.not_controller.map(NodeId::new),
        refused: answer.refused.then_some(answer.reason),
        applied: RaftIndex::new(answer.applied_index),
        image_differs: answer.image_differs.map(|differs| ImageDifference {
            index: RaftIndex::new(differs.index),
            controller: differs.controller_hash,
            broker: differs.broker_hash,
        }),
    }
}

/// Asks an internal address whether somebody lives there.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpProber;

#[async_trait]
impl Prober for TcpProber {
    async fn probe(&self, to: &Endpoint) -> ProbeResult {
        match timeout(PROBE, ask(to)).await {
            Ok(result) => result,
            Err(_) => ProbeResult::Silent,
        }
    }
}

async fn ask(to: &Endpoint) -> ProbeResult {
    match TcpStream::connect((to.host.as_str(), to.port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return ProbeResult::Refused;
        }
        Err(_) => return ProbeResult::Silent,
        Ok(connected) => drop(connected),
    }
    // A connection of its own: one that broke a moment ago would answer for the past.
    let Ok(mut client) = RaftClient::connect(format!("http://{to}")).await else {
        return ProbeResult::Silent;
    };
    let Ok(answer) = client.identify(proto::IdentifyRequest {}).await else {
        return ProbeResult::Silent;
    };
    let identity = answer.into_inner();
    match identity.id {
        Some(id) => ProbeResult::Alive {
            node: NodeId::new(id.node_id),
            incarnation: Incarnation {
                start: identity.incarnation_start,
                random: identity.incarnation_random,
            },
        },
        None => ProbeResult::Silent,
    }
}
