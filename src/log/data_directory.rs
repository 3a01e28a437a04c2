//! One data directory: its lock, its identity, and the partitions in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, Incarnation, NodeId, TopicName, TopicPartition,
};
use tracing::warn;
use uuid::Uuid;

use crate::dir::{Dir, replace_file};
use crate::error::{LogError, at};
use crate::identity::{META, Meta};
use crate::ledger::{DELETED, FoundPartition, LOGS, Ledger};
use crate::open::RecoveryContext;
use crate::os_dir::{OsDir, SlowDir};

pub(crate) const LOCK: &str = ".lock";

/// An open data directory; the process holds its lock as long as this lives.
pub struct DataDirectory {
    dir: Arc<SlowDir<OsDir>>,
    root: std::path::PathBuf,
    meta: Mutex<Meta>,
    incarnation: Incarnation,
    ledger: Ledger<SlowDir<OsDir>>,
    _lock: Flock<File>,
}

impl DataDirectory {
    /// Opens the directory, or makes it; takes its lock and counts this start. Syncs take
    /// `sync_delay` longer, for tests.
    ///
    /// # Errors
    /// [`LogError::Directory`] when another process uses it, when it is another node's, when it
    /// cannot be written.
    pub fn open(root: &Path, node: NodeId, sync_delay: Duration) -> Result<Self, LogError> {
        let shown = root.display().to_string();
        let refused = |reason: String| LogError::Directory {
            path: shown.clone(),
            reason,
        };
        fs::create_dir_all(root).map_err(|error| refused(format!("cannot be made: {error}")))?;
        let lock = lock(root).map_err(refused)?;
        let dir = Arc::new(SlowDir::new(OsDir::new(root), sync_delay));
        let meta = match fs::read_to_string(root.join(META)) {
            Ok(text) => Meta::from_text(&text).map_err(|why| refused(format!("{META}: {why}")))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ledger::begin(&*dir)
                    .map_err(|error| refused(format!("cannot be written: {error}")))?;
                let directory = DirectoryId::from(Uuid::new_v4());
                let meta = Meta {
                    node,
                    directory,
                    cluster: None,
                };
                replace_file(&*dir, ".", META, meta.to_text().as_bytes())
                    .map_err(|error| refused(format!("cannot be written: {error}")))?;
                meta
            }
            Err(error) => return Err(refused(format!("{META}: {error}"))),
        };
        if meta.node != node {
            return Err(refused(format!(
                "belongs to node {}, this is node {node}: give each node its own directory",
                meta.node
            )));
        }
        let ledger = Ledger::open(Arc::clone(&dir), boot_id()).map_err(|error| match error {
            // The files say themselves what is wrong with them.
            LogError::Io { source, .. } => refused(source.to_string()),
            error => error,
        })?;
        let random = Uuid::new_v4().as_u64_pair().0;
        Ok(Self {
            dir,
            root: root.to_owned(),
            meta: Mutex::new(meta),
            incarnation: Incarnation {
                start: ledger.start(),
                random,
            },
            ledger,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The tree that logs are opened in.
    pub fn dir(&self) -> Arc<SlowDir<OsDir>> {
        Arc::clone(&self.dir)
    }

    /// Drawn when the directory was first made.
    pub fn directory_id(&self) -> DirectoryId {
        self.meta.lock().directory
    }

    /// This life of the process.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The machine's present boot.
    pub fn boot_id(&self) -> BootId {
        self.ledger.boot_id()
    }

    /// The broker epoch of the last life, where that ended cleanly (R9).
    pub fn clean_epoch(&self) -> Option<BrokerEpoch> {
        self.ledger.clean_epoch()
    }

    /// The cluster that the directory belongs to, once known.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.meta.lock().cluster
    }

    /// What a log's opening must know.
    pub fn recovery_context(&self) -> RecoveryContext {
        self.ledger.recovery_context()
    }

    /// Every log has been opened, and what it holds is on the disk: notes so durably for this boot
    /// and takes the clean mark away (R9). To be called before anything is appended; a start that
    /// ends before leaves the next one what it found itself.
    ///
    /// # Errors
    /// Of the disk.
    pub fn logs_opened(&self) -> Result<(), LogError> {
        self.ledger.logs_opened()
    }

    /// Notes durably which cluster the directory belongs to.
    ///
    /// # Errors
    /// [`LogError::Directory`] where it belongs to another.
    pub fn set_cluster_id(&self, cluster: ClusterId) -> Result<(), LogError> {
        let mut meta = self.meta.lock();
        match meta.cluster {
            Some(known) if known == cluster => Ok(()),
            Some(known) => Err(LogError::Directory {
                path: self.root.display().to_string(),
                reason: format!("belongs to cluster {known}, not to {cluster}"),
            }),
            None => {
                let new = Meta {
                    cluster: Some(cluster),
                    ..*meta
                };
                replace_file(&*self.dir, ".", META, new.to_text().as_bytes()).map_err(at(META))?;
                *meta = new;
                Ok(())
            }
        }
    }

    /// Marks, after the last flush, that this life ended cleanly.
    ///
    /// # Errors
    /// Of the disk.
    pub fn write_clean(&self, epoch: BrokerEpoch) -> Result<(), LogError> {
        self.ledger.write_clean(epoch)
    }

    /// The partitions found in it; directories of other shapes are left alone, those of deleted
    /// partitions older than `grace` are removed.
    ///
    /// # Errors
    /// Of the disk.
    pub fn partitions(&self, grace: Duration) -> Result<Vec<FoundPartition>, LogError> {
        for entry in self.dir.list(LOGS).map_err(at(LOGS))? {
            if entry.name.contains(DELETED) {
                self.remove_if_old(&format!("{LOGS}/{}", entry.name), grace);
            }
        }
        self.ledger.partitions()
    }

    fn remove_if_old(&self, path: &str, grace: Duration) {
        let age = fs::metadata(self.root.join(path))
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age >= grace)
            && let Err(error) = self.dir.remove_dir_all(path)
        {
            warn!(path, %error, "a deleted partition's directory stays");
        }
    }

    /// The partitions that have, or had, a log here.
    pub fn hosted(&self) -> BTreeSet<TopicPartition> {
        self.ledger.hosted()
    }

    /// Notes durably that these partitions have a log here: from now on its absence is damage
    /// (R9). To be called before any of them takes a role.
    ///
    /// # Errors
    /// Of the disk; then none of them is noted.
    pub fn note_hosted(
        &self,
        ids: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<(), LogError> {
        self.ledger.note_hosted(ids)
    }

    /// The directory of a partition.
    pub fn partition_path(&self, topic: &TopicName, id: &TopicPartition) -> String {
        self.ledger.partition_path(topic, id)
    }

    /// Renames the partitions' directories so that no start takes them for partitions, durably;
    /// they are removed after a grace time (R14).
    ///
    /// # Errors
    /// Of the disk; one directory that cannot be renamed does not keep the others.
    pub fn set_aside(&self, ids: &BTreeSet<TopicPartition>) -> Result<(), LogError> {
        self.ledger.set_aside(ids)
    }
}

fn lock(root: &Path) -> Result<Flock<File>, String> {
    let path = root.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| format!("cannot be written: {error}"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        format!("is used by another process ({error}): stop it or choose another directory")
    })
}

fn boot_id() -> BootId {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Without one every start counts as a new boot: the careful choice.
    text.trim()
        .parse()
        .unwrap_or_else(|_| BootId::from(Uuid::new_v4()))
}
