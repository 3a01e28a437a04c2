//! Listeners and the servers behind them.

use std::time::Duration;

use axum::Router;
use quorate_config::{INTERNAL_CONNECTIONS, NodeSettings, OTHER_REQUEST_BYTES};
use quorate_proto::internal::controller_server::ControllerServer;
use quorate_proto::internal::replication_server::ReplicationServer;
use quorate_proto::v1::FILE_DESCRIPTOR_SET;
use quorate_proto::v1::admin_server::AdminServer;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::consumer_server::ConsumerServer;
use quorate_proto::v1::groups_server::GroupsServer;
use quorate_proto::v1::producer_server::ProducerServer;
use quorate_quorum::RaftService;
use quorate_rpc::{
    AdmissionLimits, ConnectionLimits, ControllerService, Edge, MESSAGE_BYTES, ReplicationService,
    accept, limited, tune_server,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::error::NodeError;

/// A connection that has sent nothing for so long is closed: HTTP/2 clients answer pings, and are
/// heard every few seconds.
const IDLE: Duration = Duration::from_secs(60);
/// The same before its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// Opens a listener.
pub(crate) async fn listen(setting: &'static str, address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| NodeError::Listen {
            setting,
            address: address.to_owned(),
            source,
        })
}

/// Bounds of a port, and its name in figures and logs.
#[derive(Clone, Copy)]
pub(crate) struct Port {
    name: &'static str,
    connections: ConnectionLimits,
    admission: AdmissionLimits,
    streams_per_connection: u32,
}

impl Port {
    pub(crate) fn new(name: &'static str, settings: &NodeSettings) -> Self {
        Self {
            name,
            connections: ConnectionLimits {
                connections: settings.max_connections,
                idle: IDLE,
                first_byte: FIRST_BYTE,
            },
            admission: AdmissionLimits {
                requests: settings.max_requests,
                streams: settings.max_streams,
                request_bytes: settings.request_bytes,
                other_bytes: OTHER_REQUEST_BYTES,
                receive: settings.receive_timeout,
            },
            streams_per_connection: settings.max_streams_per_connection,
        }
    }
}

impl Port {
    /// The nodes' port: what many clients ask of one node comes over one connection to the next.
    pub(crate) fn internal(settings: &NodeSettings) -> Self {
        let port = Self::new("internal", settings);
        let streams = u32::try_from(settings.max_requests).unwrap_or(u32::MAX);
        Self {
            connections: ConnectionLimits {
                connections: INTERNAL_CONNECTIONS,
                ..port.connections
            },
            streams_per_connection: port.streams_per_connection.max(streams),
            ..port
        }
    }
}

/// The services for clients, behind the port's limits; nodes forward to the same ones.
fn client_services(edge: &Edge, port: &Port) -> Router {
    let mut routes = Routes::builder();
    routes
        .add_service(
            ProducerServer::new(edge.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(ConsumerServer::new(edge.clone()).max_encoding_message_size(MESSAGE_BYTES))
        .add_service(AdminServer::new(edge.clone()))
        .add_service(GroupsServer::new(edge.clone()).max_encoding_message_size(MESSAGE_BYTES))
        .add_service(ClusterServer::new(edge.clone()));
    let routes = routes.routes();
    let set = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    const GOOD: &str = "the descriptors were encoded by the build";
    let routes = routes
        .add_service(set().build_v1().expect(GOOD))
        .add_service(set().build_v1alpha().expect(GOOD));
    limited(
        routes.prepare().into_axum_router(),
        port.name,
        port.admission,
    )
}

/// Health is asked for and told whatever the load.
fn with_health<H: Health>(router: Router, health: HealthServer<H>) -> Router {
    let path = format!("/{}/{{*method}}", HealthServer::<H>::NAME);
    router.route_service(&path, health)
}

/// Serves clients until `cancel`.
pub(crate) async fn serve_clients<H: Health>(
    listener: TcpListener,
    port: Port,
    edge: Edge,
    health: HealthServer<H>,
    console: Router,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let router = with_health(client_services(&edge, &port), health).merge(console);
    let server = tune_server(Server::builder()).accept_http1(true);
    serve(server, router, listener, port, cancel).await
}

/// What nodes serve to each other from the start on.
pub(crate) struct Internal {
    pub(crate) raft: RaftService,
    pub(crate) controller: ControllerService,
    pub(crate) replication: ReplicationService,
    pub(crate) edge: Edge,
}

/// Serves nodes until `cancel`. What forwarded requests may take does not touch what keeps the
/// cluster together: Raft, sessions and replication stand beside those limits.
pub(crate) async fn serve_nodes(
    listener: TcpListener,
    port: Port,
    services: Internal,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let forwarded = client_services(&services.edge, &port);
    let mut own = Routes::builder();
    own.add_service(services.raft.into_server())
        .add_service(ControllerServer::new(services.controller))
        .add_service(
            ReplicationServer::new(services.replication)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        );
    let own = own.routes().prepare().into_axum_router().reset_fallback();
    serve(
        tune_server(Server::builder()),
        forwarded.merge(own),
        listener,
        port,
        cancel,
    )
    .await
}

async fn serve(
    server: Server,
    router: Router,
    listener: TcpListener,
    port: Port,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = accept(listener, port.name, port.connections);
    server
        .max_concurrent_streams(port.streams_per_connection)
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(incoming, cancel.cancelled())
        .await
}
