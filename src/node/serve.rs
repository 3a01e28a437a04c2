//! Listeners and the servers behind them.

use quorate_console::Readiness;
use quorate_proto::internal::controller_server::ControllerServer;
use quorate_proto::internal::replication_server::ReplicationServer;
use quorate_proto::v1::admin_server::AdminServer;
use quorate_proto::v1::cluster_server::ClusterServer;
use quorate_proto::v1::consumer_server::ConsumerServer;
use quorate_proto::v1::producer_server::ProducerServer;
use quorate_quorum::RaftService;
use quorate_rpc::{ControllerService, Edge, MESSAGE_BYTES, ReplicationService, tune_server};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::error::NodeError;

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

/// The services for clients; nodes forward to the same ones.
fn client_services(edge: &Edge) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(
            ProducerServer::new(edge.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(ConsumerServer::new(edge.clone()).max_encoding_message_size(MESSAGE_BYTES))
        .add_service(AdminServer::new(edge.clone()))
        .add_service(ClusterServer::new(edge.clone()));
    routes.routes()
}

/// Serves clients until `cancel`.
pub(crate) async fn serve_clients(
    listener: TcpListener,
    edge: Edge,
    readiness: Readiness,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let router = client_services(&edge)
        .prepare()
        .into_axum_router()
        .merge(quorate_console::router(readiness));
    let server = tune_server(Server::builder()).accept_http1(true);
    serve(server, Routes::from(router), listener, cancel).await
}

/// What nodes serve to each other from the start on.
pub(crate) struct Internal {
    pub(crate) raft: RaftService,
    pub(crate) controller: ControllerService,
    pub(crate) replication: ReplicationService,
    pub(crate) edge: Edge,
}

/// Serves nodes until `cancel`.
pub(crate) async fn serve_nodes(
    listener: TcpListener,
    services: Internal,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let routes = client_services(&services.edge)
        .add_service(services.raft.into_server())
        .add_service(ControllerServer::new(services.controller))
        .add_service(
            ReplicationServer::new(services.replication)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        );
    serve(
        tune_server(Server::builder()),
        routes.prepare(),
        listener,
        cancel,
    )
    .await
}

/// `Server::tcp_nodelay` is not heard of by incoming streams: it is set where they are accepted.
pub(crate) async fn serve(
    mut server: Server,
    routes: Routes,
    listener: TcpListener,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, cancel.cancelled())
        .await
}
