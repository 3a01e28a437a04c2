//! A running node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, describe_counter};
use quorate_broker::{Broker, BrokerConfig, LifecycleConfig, ShutdownOutcome};
use quorate_config::NodeSettings;
use quorate_console::{Metrics, Readiness};
use quorate_controller::LivenessTiming;
use quorate_group::GroupTiming;
use quorate_log::DataDirectory;
use quorate_proto::v1::consumer_server::ConsumerServer;
use quorate_proto::v1::groups_server::GroupsServer;
use quorate_proto::v1::producer_server::ProducerServer;
use quorate_quorum::{Quorum, QuorumConfig, QuorumHandle};
use quorate_replication::Timing;
use quorate_rpc::{
    ControlLink, ControllerService, Edge, EdgeConfig, Identity, LogControl, ReplicationLink,
    ReplicationService, TcpProber,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{error, info, warn};

use crate::error::NodeError;
use crate::figures::Figures;
use crate::serve::{Internal, Port, listen, serve_clients, serve_nodes};

/// How long open calls may take to end when a server stops.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// How often `grpc.health.v1` is brought up to date.
const HEALTH: Duration = Duration::from_millis(100);

/// What belongs to the process rather than to the node; each may be missing.
#[derive(Clone, Default)]
pub struct NodeTools {
    /// Tells and changes what is logged.
    pub log_level: Option<LogControl>,
    /// What is counted.
    pub metrics: Option<Metrics>,
}

/// A running node. [`Node::run`] ends it.
pub struct Node {
    settings: NodeSettings,
    directory: Arc<DataDirectory>,
    quorum: Quorum,
    pub(crate) broker: Broker,
    edge: Edge,
    client_address: SocketAddr,
    clients: Part,
    internal: Part,
    controller: JoinHandle<()>,
    helpers: JoinSet<()>,
    cancel: CancellationToken,
}

/// A server with its own end.
struct Part {
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    cancel: CancellationToken,
}

impl Part {
    /// Takes no more calls; those that are open have a moment, at most until `until`, streams
    /// without end are cut.
    async fn stop(mut self, until: Instant) {
        self.cancel.cancel();
        let until = until.min(Instant::now() + LAST_CALLS);
        if timeout_at(until, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Node {
    /// Starts a node; it registers with the cluster by itself as soon as there is one.
    ///
    /// # Errors
    /// [`NodeError`], naming what cannot be used.
    pub async fn start(settings: NodeSettings, tools: NodeTools) -> Result<Self, NodeError> {
        let (root, node, delay) = (
            settings.data_dir.clone(),
            settings.node_id,
            settings.test_fsync_delay,
        );
        if tools.metrics.is_some() {
            describe_metrics();
        }
        // Before the directory is touched: a start that a taken port refuses changes nothing there.
        let clients = listen("--listen", &settings.listen).await?;
        let nodes = listen("--internal-listen", &settings.internal_listen).await?;
        let opened =
            tokio::task::spawn_blocking(move || DataDirectory::open(&root, node, delay)).await;
        let died = |reason: String| NodeError::Died {
            part: "opening the directory",
            reason,
        };
        let directory = Arc::new(opened.map_err(|panicked| died(panicked.to_string()))??);
        let client_address = clients.local_addr().map_err(|source| NodeError::Listen {
            setting: "--listen",
            address: settings.listen.clone(),
            source,
        })?;
        let cancel = CancellationToken::new();
        let quorum =
            Quorum::start(quorum_config(&settings, &directory), cancel.child_token()).await?;
        let handle = quorum.handle.clone();
        let timing = LivenessTiming::new(settings.broker_session_timeout);
        let (controller, controller_task) = quorate_controller::start(
            handle.clone(),
            Arc::new(TcpProber),
            timing,
            cancel.child_token(),
        );
        let me = Identity {
            node: settings.node_id,
            incarnation: directory.incarnation(),
        };
        let broker = Broker::start(
            broker_config(&settings),
            Arc::clone(&directory),
            handle.clone(),
            Arc::new(ReplicationLink::new(me, handle.clone())),
            Arc::new(ControlLink::default()),
        )?;
        let edge = Edge::new(
            settings.node_id,
            broker.clone(),
            handle.clone(),
            EdgeConfig {
                default_timeout: settings.produce_timeout,
                answer_timeout: settings.receive_timeout,
                // Each node forwards to few others: most of their places stay free.
                forwarded_polls: (settings.max_requests / 16).max(1),
                // Members that wait leave as many places to everything else.
                waiting_members: (settings.max_requests / 2).max(1),
                topic_defaults: settings.topic_defaults.clone(),
                log_level: tools.log_level,
                ..EdgeConfig::default()
            },
        );
        let services = Internal {
            raft: quorum.service.clone(),
            controller: ControllerService::new(controller),
            replication: ReplicationService::new(me, broker.clone(), handle.clone()),
            edge: edge.clone(),
        };
        let internal_cancel = CancellationToken::new();
        let internal = Part {
            task: tokio::spawn(serve_nodes(
                nodes,
                Port::internal(&settings),
                services,
                internal_cancel.clone(),
            )),
            cancel: internal_cancel,
        };
        let asked = broker.clone();
        let readiness: Readiness = Arc::new(move || asked.ready());
        let mut helpers = JoinSet::new();
        let (reporter, health) = tonic_health::server::health_reporter();
        let told = tell_health(reporter, Arc::clone(&readiness));
        let until = cancel.child_token();
        helpers.spawn(async move {
            until.run_until_cancelled(told).await;
        });
        let metrics = tools.metrics.map(|metrics| {
            let (upkeep, until) = (metrics.clone().upkeep(), cancel.child_token());
            helpers.spawn(async move {
                until.run_until_cancelled(upkeep).await;
            });
            let (counted, until) = (count_events(handle.clone()), cancel.child_token());
            helpers.spawn(async move {
                until.run_until_cancelled(counted).await;
            });
            let figures = Figures::new(settings.node_id, broker.clone(), handle.clone());
            let render: quorate_console::Figures = Arc::new(move || figures.render());
            (metrics, render)
        });
        let console = quorate_console::router(readiness, metrics);
        let clients_cancel = CancellationToken::new();
        let clients = Part {
            task: tokio::spawn(serve_clients(
                clients,
                Port::new("clients", &settings),
                edge.clone(),
                health,
                console,
                clients_cancel.clone(),
            )),
            cancel: clients_cancel,
        };
        info!(node = %settings.node_id, clients = %client_address, "node started");
        helpers.spawn(keep_cluster_id(
            handle,
            Arc::clone(&directory),
            cancel.child_token(),
        ));
        Ok(Self {
            settings,
            directory,
            quorum,
            broker,
            edge,
            client_address,
            clients,
            internal,
            controller: controller_task,
            helpers,
            cancel,
        })
    }

    /// Where it listens for clients.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Whether it takes part in the cluster.
    ///
    /// # Errors
    /// Why it does not.
    pub fn ready(&self) -> Result<(), String> {
        self.broker.ready()
    }

    /// Runs until `stop`, then shuts down in order; ends earlier, with an error, when a part of the
    /// node dies.
    ///
    /// # Errors
    /// [`NodeError::Died`].
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), NodeError> {
        let died = tokio::select! {
            () = stop.cancelled() => None,
            died = self.death() => Some(died),
        };
        match died {
            None => {
                self.shut_down().await;
                Ok(())
            }
            // What is broken is not asked to end well: the next start recovers.
            Some(died) => {
                error!(error = %died, "the node stops");
                Err(died)
            }
        }
    }

    /// Returns when an essential part has ended by itself.
    async fn death(&mut self) -> NodeError {
        let mut failure = self.quorum.handle.failure();
        let died = |part, reason: String| NodeError::Died { part, reason };
        let ended = |ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>| {
            match ended {
                Ok(Ok(())) => "it ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panicked) => panicked.to_string(),
            }
        };
        tokio::select! {
            reason = failure.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                died("the metadata quorum", reason.unwrap_or_default())
            }
            reason = self.broker.died() => died("the broker", reason),
            result = &mut self.clients.task => died("the clients' server", ended(result)),
            result = &mut self.internal.task => died("the nodes' server", ended(result)),
            result = &mut self.controller => {
                died("the controller", result.err().map_or_else(String::new, |e| e.to_string()))
            }
        }
    }

    async fn shut_down(self) {
        let within = self.settings.shutdown_timeout;
        // All the waits for others share it: without a quorum each of them would last its longest.
        let until = Instant::now() + within + LAST_CALLS;
        info!("shutting down: leaderships move away");
        if self.broker.controlled_shutdown(within).await == ShutdownOutcome::TimedOut {
            warn!(
                ?within,
                "the controller did not let this node go in time; stopping all the same"
            );
        }
        if timeout_at(until, self.quorum.handle.hand_over())
            .await
            .is_err()
        {
            warn!("nobody took the metadata leadership over in time");
        }
        let left = until.min(Instant::now() + LAST_CALLS);
        if timeout_at(left, self.edge.end_subscriptions())
            .await
            .is_err()
        {
            warn!("members of groups that this node speaks for could not leave in time");
        }
        self.clients.stop(until).await;
        if let Some(epoch) = self.broker.stop().await {
            // After the last flush: the next start finds everything where it was.
            if let Err(error) = self.directory.write_clean(epoch) {
                error!(%error, "the clean-shutdown mark could not be written");
            }
        }
        self.cancel.cancel();
        let _ended = self.helpers.join_all().await;
        self.quorum.shutdown().await;
        self.internal.stop(until).await;
        info!("stopped");
    }
}

fn quorum_config(settings: &NodeSettings, directory: &DataDirectory) -> QuorumConfig {
    QuorumConfig {
        node: settings.node_id,
        directory: directory.directory_id(),
        incarnation: directory.incarnation(),
        cluster_id: directory.cluster_id(),
        path: settings.data_dir.join("metadata"),
        controllers: settings.controllers.clone(),
        advertise: settings.internal_advertise.clone(),
        heartbeat: settings.raft_heartbeat,
        election_min: settings.raft_election_min,
        election_max: settings.raft_election_max,
        snapshot_every: settings.snapshot_every_entries,
        snapshot_keep: settings.snapshot_keep_entries,
    }
}

fn broker_config(settings: &NodeSettings) -> BrokerConfig {
    BrokerConfig {
        node: settings.node_id,
        timing: Timing {
            replica_lag_time_max: settings.replica_lag_time_max,
            session_timeout: settings.broker_session_timeout,
            heartbeat_interval: settings.heartbeat_interval,
            producer_id_expiration: settings.producer_id_expiration,
            ..Timing::default()
        },
        lifecycle: LifecycleConfig {
            heartbeat_interval: settings.heartbeat_interval,
            session_timeout: settings.broker_session_timeout,
            controllers: settings.controllers.clone(),
        },
        client: settings.advertise.clone(),
        internal: settings.internal_advertise.clone(),
        delete_grace: settings.delete_grace,
        rack: settings.rack.clone(),
        produce_bytes: settings.produce_bytes,
        fetch_bytes: settings.fetch_bytes,
        tail_cache_bytes: settings.tail_cache_bytes,
        groups: GroupTiming {
            heartbeat_interval: settings.group_heartbeat_interval,
            session: (
                settings.group_session_timeout_min,
                settings.group_session_timeout,
                settings.group_session_timeout_max,
            ),
            max_members: settings.group_max_members,
            max_groups: settings.max_groups,
            offsets_retention: settings.offsets_retention,
            contact: settings.broker_session_timeout,
        },
    }
}

/// Says what is counted, and in which units.
fn describe_metrics() {
    quorate_rpc::describe_metrics();
    quorate_broker::describe_metrics();
    quorate_log::describe_metrics();
    describe_counter!(
        "quorate_cluster_events_total",
        "Elections, ISR changes, fencings and the like that this node has applied, by kind"
    );
}

/// Counts what happens in the cluster.
async fn count_events(quorum: QuorumHandle) {
    let mut events = quorum.subscribe_events();
    loop {
        match events.recv().await {
            Ok(event) => {
                let kind = event.kind.name();
                counter!("quorate_cluster_events_total", "kind" => kind).increment(1);
            }
            Err(RecvError::Lagged(missed)) => {
                counter!("quorate_cluster_events_total", "kind" => "missed").increment(missed);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells `grpc.health.v1` whether the node takes part: for the node as a whole, and for the services
/// that need it to.
async fn tell_health(reporter: HealthReporter, readiness: Readiness) {
    let mut told = None;
    let mut tick = tokio::time::interval(HEALTH);
    loop {
        tick.tick().await;
        let status = match readiness() {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        if told == Some(status) {
            continue;
        }
        told = Some(status);
        for service in [
            "",
            ProducerServer::<Edge>::NAME,
            ConsumerServer::<Edge>::NAME,
            GroupsServer::<Edge>::NAME,
        ] {
            reporter.set_service_status(service, status).await;
        }
    }
}

/// Notes the cluster's id in the directory once the metadata names it.
async fn keep_cluster_id(
    quorum: QuorumHandle,
    directory: Arc<DataDirectory>,
    cancel: CancellationToken,
) {
    let mut images = quorum.images();
    let named = async {
        let image = images.wait_for(|image| image.cluster_id().is_some()).await;
        image.ok().and_then(|image| image.cluster_id())
    };
    let Some(Some(id)) = cancel.run_until_cancelled(named).await else {
        return;
    };
    let noted = tokio::task::spawn_blocking(move || directory.set_cluster_id(id)).await;
    match noted {
        Ok(Ok(())) => info!(cluster = %id, "member of the cluster"),
        Ok(Err(error)) => error!(%error, "the cluster's id could not be kept"),
        Err(error) => error!(%error, "keeping the cluster's id failed"),
    }
}
