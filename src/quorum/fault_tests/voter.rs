//! A voter over its lives: what stays is its number, its address and, but where it is wiped, its
//! directory.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::internal::raft_server::RaftServer;
use quorate_types::{ClusterId, DirectoryId, Endpoint, Incarnation, NodeId, RaftIndex};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::net::{Net, Watched};
use super::power::{self, End, Power};
use super::record::Record;
use crate::config::QuorumConfig;
use crate::handle::QuorumHandle;
use crate::ids::RaftId;
use crate::peers::MESSAGE_BYTES;
use crate::quorum::Quorum;

/// A voter that syncs nothing for so long is ended where it stands.
const IDLE: Duration = Duration::from_millis(500);

pub(crate) type Controllers = Vec<(NodeId, Endpoint)>;

pub(crate) struct Voter {
    pub(crate) node: NodeId,
    pub(crate) directory: DirectoryId,
    address: SocketAddr,
    cluster_id: Option<ClusterId>,
    dir: TempDir,
    /// What this life will leave.
    left: TempDir,
    starts: u64,
    snapshot: RaftIndex,
    reserved: Option<TcpListener>,
    life: Option<Life>,
    net: Arc<Net>,
    record: Arc<Record>,
}

struct Life {
    quorum: Quorum,
    power: Arc<Power>,
    /// Server and connections: they break when it goes.
    server: Runtime,
    follower: JoinHandle<()>,
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

impl Voter {
    pub(crate) fn new(node: u32, net: &Arc<Net>, record: &Arc<Record>) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap());
        Self {
            node: NodeId::new(node),
            directory: DirectoryId::from(uuid::Uuid::new_v4()),
            address: listener.local_addr().unwrap(),
            cluster_id: None,
            dir: tempfile::tempdir().unwrap(),
            left: tempfile::tempdir().unwrap(),
            starts: 0,
            snapshot: RaftIndex::ZERO,
            reserved: Some(listener),
            life: None,
            net: Arc::clone(net),
            record: Arc::clone(record),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            host: self.address.ip().to_string(),
            port: self.address.port(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("metadata")
    }

    pub(crate) fn handle(&self) -> Option<QuorumHandle> {
        self.life.as_ref().map(|life| life.quorum.handle.clone())
    }

    pub(crate) async fn start(&mut self, controllers: &Controllers) {
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
            advertise: self.endpoint(),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            snapshot_every: 100,
            snapshot_keep: 10,
        };
        let power = Power::on(&self.path());
        let quorum = Quorum::start(config, CancellationToken::new()).await;
        let quorum = quorum.unwrap_or_else(|error| panic!("node {}: {error}", self.node));
        let begins_at = quorum.handle.image().applied().index;
        if begins_at < self.snapshot {
            let (node, snapshot) = (self.node, self.snapshot);
            self.record.violated(format!(
                "node {node} had a snapshot of {snapshot} and begins at {begins_at}"
            ));
        }
        let watched = Watched {
            inner: quorum.service.clone(),
            me: RaftId {
                node: self.node,
                directory: self.directory,
            },
            net: Arc::clone(&self.net),
            record: Arc::clone(&self.record),
        };
        let service = RaftServer::new(watched)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let listener = self.reserved.take().unwrap_or_else(|| listen(self.address));
        let listener = listener.into_std().unwrap();
        let server = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        server.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let serving = Server::builder().add_service(service);
            serving.serve_with_incoming(incoming).await.unwrap();
        });
        let (record, handle) = (Arc::clone(&self.record), quorum.handle.clone());
        let follower = tokio::spawn(async move { record.follow(handle).await });
        self.life = Some(Life {
            quorum,
            power,
            server,
            follower,
        });
    }

    /// This life ends so at one of its next syncs.
    pub(crate) fn let_end(&mut self, end: End) {
        if let Some(life) = &self.life {
            life.power.end(end, &self.left.path().join("metadata"));
        }
    }

    /// Ends this life so; what it leaves is what the next begins with.
    pub(crate) async fn end(&mut self, end: End) {
        self.let_end(end);
        self.ended().await;
    }

    /// Waits until this life has ended, as it was let.
    pub(crate) async fn ended(&mut self) {
        let Some(life) = self.life.take() else {
            return;
        };
        let until = Instant::now() + IDLE;
        while !life.power.is_off() && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
        let power = Arc::clone(&life.power);
        tokio::task::spawn_blocking(move || power.end_now())
            .await
            .unwrap();
        life.server.shutdown_background();
        let handle = &life.quorum.handle;
        self.cluster_id = handle.image().cluster_id().or(self.cluster_id);
        life.quorum.shutdown().await;
        life.follower.abort();
        power::forget(&self.path());
        let left = std::mem::replace(&mut self.left, tempfile::tempdir().unwrap());
        let stored = left.path().join("metadata/snapshots");
        self.snapshot = newest_snapshot(&stored).max(self.snapshot);
        self.dir = left;
    }

    /// Another, empty disk: another member.
    pub(crate) fn wipe(&mut self) {
        self.wipe_under_its_old_name();
        self.directory = DirectoryId::from(uuid::Uuid::new_v4());
    }

    /// The fault that directory ids are there against: it has forgotten everything but its name.
    pub(crate) fn wipe_under_its_old_name(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        self.cluster_id = None;
        self.snapshot = RaftIndex::ZERO;
    }
}

impl Drop for Voter {
    fn drop(&mut self) {
        power::forget(&self.path());
        if let Some(life) = self.life.take() {
            life.server.shutdown_background();
            life.follower.abort();
        }
    }
}

/// The index of the newest snapshot there, by its name.
fn newest_snapshot(path: &std::path::Path) -> RaftIndex {
    let names = std::fs::read_dir(path).into_iter().flatten().flatten();
    let indexes = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("snapshot-")?
            .rsplit_once('-')?
            .1
            .parse()
            .ok()
    });
    RaftIndex::new(indexes.max().unwrap_or(0))
}
