//! Members of a quorum in this process, each with its own directory, port and server.

// Each test binary uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_metadata::{Command, MetadataImage, Outcome};
use quorate_quorum::{Quorum, QuorumConfig, QuorumError, QuorumHandle};
use quorate_types::{ClusterId, DirectoryId, Endpoint, Incarnation, NodeId};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Far more than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// One member: what stays over a restart, and what runs.
pub struct Member {
    pub node: NodeId,
    pub address: SocketAddr,
    pub directory: DirectoryId,
    pub cluster_id: Option<ClusterId>,
    dir: TempDir,
    starts: u64,
    /// Keeps the port while the member is down before its first start.
    reserved: Option<TcpListener>,
    running: Option<Running>,
}

struct Running {
    quorum: Quorum,
    /// Server and connections: they break when it goes.
    server: Runtime,
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

pub type Controllers = Vec<(NodeId, Endpoint)>;

impl Member {
    pub fn new(node: u32) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap());
        Self {
            node: NodeId::new(node),
            address: listener.local_addr().unwrap(),
            directory: DirectoryId::from(uuid::Uuid::new_v4()),
            cluster_id: None,
            dir: tempfile::tempdir().unwrap(),
            starts: 0,
            reserved: Some(listener),
            running: None,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("metadata")
    }

    /// Another, empty disk.
    pub fn wipe(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        self.directory = DirectoryId::from(uuid::Uuid::new_v4());
        self.cluster_id = None;
    }

    pub async fn start(&mut self, controllers: &Controllers) {
        self.try_start(controllers).await.unwrap();
    }

    pub async fn try_start(&mut self, controllers: &Controllers) -> Result<(), QuorumError> {
        self.starts += 1;
        let config = QuorumConfig {
            node: self.node,
            directory: self.directory,
            incarnation: Incarnation {
                start: self.starts,
                random: u64::from(self.node.get()),
            },
            cluster_id: self.cluster_id,
            path: self.path(),
            controllers: controllers.clone(),
            advertise: endpoint(self.address),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            snapshot_every: 100,
            snapshot_keep: 10,
        };
        let quorum = Quorum::start(config, CancellationToken::new()).await?;
        let listener = self.reserved.take().unwrap_or_else(|| listen(self.address));
        let service = quorum.service.clone().into_server();
        let listener = listener.into_std().unwrap();
        let server = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        server.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        self.running = Some(Running { quorum, server });
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn handle(&self) -> QuorumHandle {
        self.running.as_ref().unwrap().quorum.handle.clone()
    }

    /// As a killed process goes: nothing is handed over, connections break.
    pub async fn kill(&mut self) {
        let Running { quorum, server } = self.running.take().unwrap();
        self.cluster_id = quorum.handle.image().cluster_id();
        server.shutdown_background();
        quorum.shutdown().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.server.shutdown_background();
        }
    }
}

pub fn controllers(members: &[Member]) -> Controllers {
    members
        .iter()
        .map(|member| (member.node, endpoint(member.address)))
        .collect()
}

/// Three voters that have a cluster id.
pub async fn three() -> (Vec<Member>, Controllers) {
    let mut members: Vec<Member> = (1..=3).map(Member::new).collect();
    let list = controllers(&members);
    for member in &mut members {
        member.start(&list).await;
    }
    for member in &members {
        wait_for_cluster(&member.handle()).await;
    }
    (members, list)
}

pub async fn wait_for_cluster(handle: &QuorumHandle) {
    let mut images = handle.images();
    let has_id = images.wait_for(|image| image.cluster_id().is_some());
    tokio::time::timeout(LONG, has_id)
        .await
        .expect("a cluster id")
        .unwrap();
}

/// The index of the member that leads.
pub async fn leader(members: &[Member]) -> usize {
    let until = tokio::time::Instant::now() + LONG;
    loop {
        let leads =
            |member: &Member| member.is_running() && member.handle().leadership().borrow().is_self;
        if let Some(leader) = members.iter().position(leads) {
            return leader;
        }
        assert!(tokio::time::Instant::now() < until, "no member leads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Proposes something that changes the image visibly; gives the first id.
pub async fn allocate(handle: &QuorumHandle) -> u64 {
    let outcomes = handle
        .propose(vec![Command::AllocateProducerIds { count: 1 }], LONG)
        .await
        .expect("the proposal is committed");
    match &outcomes[..] {
        [Outcome::ProducerIds { first, .. }] => first.get(),
        other => panic!("unexpected outcomes {other:?}"),
    }
}

/// Waits until all running members have applied the same, and checks that their images agree.
pub async fn agree(members: &[Member]) {
    let running: Vec<QuorumHandle> = members
        .iter()
        .filter(|m| m.is_running())
        .map(Member::handle)
        .collect();
    let until = tokio::time::Instant::now() + LONG;
    loop {
        let images: Vec<_> = running.iter().map(QuorumHandle::image).collect();
        if images
            .windows(2)
            .all(|pair| pair[0].applied() == pair[1].applied())
        {
            let encoded: Vec<Vec<u8>> = images.iter().map(|image| image.encode()).collect();
            assert!(
                encoded.windows(2).all(|pair| pair[0] == pair[1]),
                "images differ"
            );
            let hash = |image: &MetadataImage| image.rolling_hash();
            assert!(
                images
                    .windows(2)
                    .all(|pair| hash(&pair[0]) == hash(&pair[1]))
            );
            return;
        }
        assert!(
            tokio::time::Instant::now() < until,
            "the members do not catch up"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
