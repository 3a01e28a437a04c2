//! A member of the quorum from its start to its end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use parking_lot::Mutex;
use quorate_types::ClusterId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::{QuorumConfig, QuorumError};
use crate::core::{Core, Leadership, follow_raft};
use crate::failover;
use crate::handle::QuorumHandle;
use crate::ids::{Raft, RaftLogId};
use crate::in_flight::InFlight;
use crate::log_store::{LogCloser, LogStore};
use crate::membership;
use crate::network::Network;
use crate::outage;
use crate::peers::Peers;
use crate::service::RaftService;
use crate::snapshots::Snapshots;
use crate::state_machine::StateMachine;

const PURGE_BATCH: u64 = 64;
const CLOSE: Duration = Duration::from_secs(5);
const CLOSE_POLL: Duration = Duration::from_millis(5);

/// A running member of the metadata quorum.
pub struct Quorum {
    /// The door for everything above.
    pub handle: QuorumHandle,
    /// To be served on the internal listener; nothing happens in the quorum before it is.
    pub service: RaftService,
    tasks: Vec<JoinHandle<()>>,
    closer: LogCloser,
}

fn storage(path: &Path, reason: impl std::fmt::Display) -> QuorumError {
    QuorumError::Storage {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn raft_config(config: &QuorumConfig) -> Result<Config, QuorumError> {
    let millis = |duration: Duration| duration.as_millis() as u64;
    let raft = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election_min),
        election_timeout_max: millis(config.election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        max_in_snapshot_log_to_keep: config.snapshot_keep,
        purge_batch_size: PURGE_BATCH.min(config.snapshot_keep.max(1)),
        enable_pre_vote: Some(true),
        // Both would let a member forget what it has promised.
        allow_log_reversion: Some(false),
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    raft.validate()
        .map_err(|error| QuorumError::Config(error.to_string()))
}

type Opened = (LogStore, LogCloser, StateMachine, Arc<crate::view::View>);

/// Opens log and snapshots and checks that they fit together.
fn open(config: &QuorumConfig) -> Result<Opened, QuorumError> {
    let path = &config.path;
    let error = |error: io::Error| storage(path, error);
    let (log, closer) = LogStore::open(&path.join("log")).map_err(error)?;
    let snapshots = Snapshots::open(path.join("snapshots")).map_err(error)?;
    let (machine, view) = StateMachine::open(snapshots.clone()).map_err(error)?;
    let index = |id: Option<RaftLogId>| id.map(|id| id.index);
    if index(log.purged()) > index(machine.applied()) {
        return Err(storage(
            path,
            format!(
                "the log begins after entry {:?}, but no whole snapshot reaches that far{}; put it \
                 back as it was, or empty the whole data directory so that the node joins as a new \
                 member",
                index(log.purged()),
                damaged_snapshots(&snapshots)
            ),
        ));
    }
    if let Some(cluster) = config.cluster_id
        && log.is_pristine()
        && machine.applied().is_none()
    {
        return Err(QuorumError::Forgotten {
            path: path.clone(),
            cluster,
        });
    }
    if let (Some(ours), Some(theirs)) = (config.cluster_id, view.image().cluster_id()) {
        check_same(ours, theirs, || "the metadata in it".to_owned())?;
    }
    Ok((log, closer, machine, view))
}

/// Which snapshots are not whole, for a message.
fn damaged_snapshots(snapshots: &Snapshots) -> String {
    let checked = snapshots.check().unwrap_or_default();
    let damaged = checked.into_iter().filter_map(|(name, read)| {
        let error = read.err()?;
        Some(format!(" (snapshots/{name}: {error})"))
    });
    damaged.collect()
}

fn check_same(
    ours: ClusterId,
    theirs: ClusterId,
    who: impl FnOnce() -> String,
) -> Result<(), QuorumError> {
    if ours == theirs {
        return Ok(());
    }
    Err(QuorumError::ForeignCluster {
        ours,
        theirs,
        who: who(),
    })
}

impl Quorum {
    /// Opens the metadata and takes part in the quorum, until `cancel` or [`Self::shutdown`].
    ///
    /// # Errors
    /// [`QuorumError`], where this node must not or cannot take part.
    pub async fn start(
        config: QuorumConfig,
        cancel: CancellationToken,
    ) -> Result<Self, QuorumError> {
        if config.controllers.is_empty() {
            return Err(QuorumError::Config("no controllers are listed".to_owned()));
        }
        let raft_config = raft_config(&config)?;
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let (log, closer, machine, view) = opened.map_err(|e| storage(&config.path, e))??;
        let peers = Peers::new(config.raft_id(), config.cluster_id, view.clone());
        if let Some(ours) = peers.cluster() {
            let answers = membership::ask_controllers(&config, &peers).await;
            if let Some((theirs, who)) = membership::foreigner(ours, &answers) {
                check_same(ours, theirs, || who)?;
            }
        }
        let raft = Raft::new(
            config.raft_id(),
            Arc::new(raft_config),
            Network(peers.clone()),
            log,
            machine,
        )
        .await
        .map_err(|error| storage(&config.path, error))?;
        // By now the entries known to be committed are applied.
        if let (Some(ours), Some(theirs)) = (config.cluster_id, view.image().cluster_id())
            && let Err(error) = check_same(ours, theirs, || "the metadata in it".to_owned())
        {
            // What Raft could say besides does not matter any more.
            let _ = raft.shutdown().await;
            return Err(error);
        }
        let core = Arc::new(Core {
            config,
            raft,
            view,
            peers,
            in_flight: InFlight::default(),
            cancel: cancel.child_token(),
            leadership: watch::Sender::new(Leadership::default()),
            leader: watch::Sender::new(None),
            failure: watch::Sender::new(None),
            gone: Mutex::default(),
            outage: Mutex::default(),
        });
        let tasks = vec![
            tokio::spawn(follow_raft(core.clone())),
            tokio::spawn(membership::get_in(core.clone())),
            tokio::spawn(membership::lead(core.clone())),
            tokio::spawn(failover::watch_leader(core.clone())),
            tokio::spawn(outage::explain_outages(core.clone())),
        ];
        Ok(Self {
            handle: QuorumHandle { core: core.clone() },
            service: RaftService { core },
            tasks,
            closer,
        })
    }

    /// Stops taking part and closes the log; leadership is not handed over
    /// ([`QuorumHandle::hand_over`] does that before).
    pub async fn shutdown(self) {
        let core = self.handle.core.clone();
        core.cancel.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the metadata quorum had died");
            }
        }
        if let Err(error) = core.raft.shutdown().await {
            tracing::error!(%error, "Raft did not end cleanly");
        }
        // Raft's own tasks let go of the log a moment after its core has ended.
        let until = Instant::now() + CLOSE;
        while !self.closer.is_closed() && Instant::now() < until {
            sleep(CLOSE_POLL).await;
        }
        if !self.closer.is_closed() {
            tracing::warn!("the Raft log is still in use");
        }
    }
}
