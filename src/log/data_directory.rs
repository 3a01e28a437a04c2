//! One data directory: its lock, its identity, and the partitions in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, Incarnation, NodeId, PartitionId, TopicId,
    TopicName, TopicPartition,
};
use tracing::warn;
use uuid::Uuid;

use crate::dir::{Dir, replace_file};
use crate::error::{LogError, at};
use crate::identity::{
    BOOT, CLEAN, HOSTED, META, Meta, begin_directory, count_start, note_boot, read_boot,
    read_clean_mark, read_hosted, remove_clean_mark, write_clean_mark, write_hosted,
};
use crate::open::RecoveryContext;
use crate::os_dir::{OsDir, SlowDir};

pub(crate) const LOCK: &str = ".lock";
pub(crate) const LOGS: &str = "logs";
pub(crate) const DELETED: &str = ".deleted-";

/// A partition found in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPartition {
    /// The topic's name, by the directory's.
    pub topic: TopicName,
    /// Which partition.
    pub id: TopicPartition,
    /// Its directory.
    pub path: String,
}

/// An open data directory; the process holds its lock as long as this lives.
pub struct DataDirectory {
    dir: Arc<SlowDir<OsDir>>,
    root: std::path::PathBuf,
    meta: Mutex<Meta>,
    incarnation: Incarnation,
    boot: BootId,
    same_boot: bool,
    clean_epoch: Option<BrokerEpoch>,
    hosted: Mutex<BTreeSet<TopicPartition>>,
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
                begin_directory(&*dir)
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
        dir.create_dir(LOGS).map_err(at(LOGS))?;
        dir.sync_dir(".").map_err(at(&shown))?;
        let start = count_start(&*dir).map_err(|error| refused(error.to_string()))?;
        let hosted = read_hosted(&*dir).map_err(|error| refused(error.to_string()))?;
        if hosted.is_none() {
            warn!(
                directory = shown,
                "{HOSTED} is missing: the partitions found are taken for all there were"
            );
        }
        let boot = boot_id();
        let before = read_boot(&*dir).map_err(at(&shown))?;
        let clean_epoch = read_clean_mark(&*dir).map_err(at(&shown))?;
        let random = Uuid::new_v4().as_u64_pair().0;
        Ok(Self {
            dir,
            root: root.to_owned(),
            meta: Mutex::new(meta),
            incarnation: Incarnation { start, random },
            boot,
            same_boot: before == Some(boot),
            clean_epoch,
            hosted: Mutex::new(hosted.unwrap_or_default()),
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
        self.boot
    }

    /// The broker epoch of the last life, where that ended cleanly (R9).
    pub fn clean_epoch(&self) -> Option<BrokerEpoch> {
        self.clean_epoch
    }

    /// The cluster that the directory belongs to, once known.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.meta.lock().cluster
    }

    /// What a log's opening must know.
    pub fn recovery_context(&self) -> RecoveryContext {
        RecoveryContext {
            same_boot: self.same_boot,
        }
    }

    /// Every log has been opened, and what it holds is on the disk: notes so durably for this boot
    /// and takes the clean mark away (R9). To be called before anything is appended; a start that
    /// ends before leaves the next one what it found itself.
    ///
    /// # Errors
    /// Of the disk.
    pub fn logs_opened(&self) -> Result<(), LogError> {
        if !self.same_boot {
            note_boot(&*self.dir, self.boot).map_err(at(BOOT))?;
        }
        remove_clean_mark(&*self.dir).map_err(at(CLEAN))
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
        write_clean_mark(&*self.dir, epoch).map_err(at(META))
    }

    /// The partitions found in it; directories of other shapes are left alone, those of deleted
    /// partitions older than `grace` are removed.
    ///
    /// # Errors
    /// Of the disk.
    pub fn partitions(&self, grace: Duration) -> Result<Vec<FoundPartition>, LogError> {
        let mut found = Vec::new();
        for entry in self.dir.list(LOGS).map_err(at(LOGS))? {
            let path = format!("{LOGS}/{}", entry.name);
            if entry.name.contains(DELETED) {
                self.remove_if_old(&path, grace);
            } else if let Some((topic, id)) = parse_name(&entry.name) {
                found.push(FoundPartition { topic, id, path });
            } else {
                warn!(path, "not a partition's directory: left alone");
            }
        }
        Ok(found)
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
        self.hosted.lock().clone()
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
        let mut hosted = self.hosted.lock();
        let mut with = hosted.clone();
        with.extend(ids);
        if with != *hosted {
            write_hosted(&*self.dir, &with).map_err(at(HOSTED))?;
            *hosted = with;
        }
        Ok(())
    }

    /// The directory of a partition.
    pub fn partition_path(&self, topic: &TopicName, id: &TopicPartition) -> String {
        format!("{LOGS}/{topic}-{}.{}", id.partition, id.topic_id)
    }

    /// Renames the partitions' directories so that no start takes them for partitions, durably;
    /// they are removed after a grace time (R14).
    ///
    /// # Errors
    /// Of the disk; one directory that cannot be renamed does not keep the others.
    pub fn set_aside(&self, ids: &BTreeSet<TopicPartition>) -> Result<(), LogError> {
        let mut hosted = self.hosted.lock();
        set_aside(&*self.dir, &mut hosted, ids)
    }
}

/// However many they are, the list is written once, and the names are synced once.
fn set_aside<D: Dir>(
    dir: &D,
    hosted: &mut BTreeSet<TopicPartition>,
    ids: &BTreeSet<TopicPartition>,
) -> Result<(), LogError> {
    let without: BTreeSet<_> = hosted.difference(ids).copied().collect();
    if without != *hosted {
        write_hosted(dir, &without).map_err(at(HOSTED))?;
        *hosted = without;
    }
    let mut renamed = Ok(());
    let mut any = false;
    for entry in dir.list(LOGS).map_err(at(LOGS))? {
        let Some((_, id)) = parse_name(&entry.name).filter(|(_, id)| ids.contains(id)) else {
            continue;
        };
        let path = format!("{LOGS}/{}", entry.name);
        let aside = format!(
            "{LOGS}/{}.{}{DELETED}{}",
            id.partition,
            id.topic_id,
            Uuid::new_v4().as_simple()
        );
        match dir.rename(&path, &aside).map_err(at(&path)) {
            Ok(()) => any = true,
            Err(error) => renamed = renamed.and(Err(error)),
        }
    }
    if any {
        dir.sync_dir(LOGS).map_err(at(LOGS))?;
    }
    renamed
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

/// `<topic>-<partition>.<topic id>`
pub(crate) fn parse_name(name: &str) -> Option<(TopicName, TopicPartition)> {
    let (place, topic_id) = name.rsplit_once('.')?;
    let (topic, partition) = place.rsplit_once('-')?;
    let topic_id: TopicId = topic_id.parse().ok()?;
    let partition = PartitionId::new(partition.parse().ok()?);
    Some((
        TopicName::new(topic).ok()?,
        TopicPartition::new(topic_id, partition),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn many_partitions_are_set_aside_with_two_syncs() {
        let root = tempfile::tempdir().unwrap();
        let dir = TestDir::new(root.path());
        let topic = TopicId::from_bytes([5; 16]);
        let ids = |range: std::ops::Range<u32>| -> BTreeSet<TopicPartition> {
            let id = |number| TopicPartition::new(topic, PartitionId::new(number));
            range.map(id).collect()
        };
        for id in ids(0..9) {
            let path = format!("{LOGS}/t-{}.{}", id.partition, id.topic_id);
            dir.create_dir(&path).unwrap();
        }
        let mut hosted = ids(0..9);
        set_aside(&dir, &mut hosted, &ids(2..9)).unwrap();
        assert_eq!(hosted, ids(0..2));
        assert_eq!(read_hosted(&dir).unwrap(), Some(ids(0..2)));
        let names = dir.list(LOGS).unwrap();
        let left = names.iter().filter_map(|entry| parse_name(&entry.name));
        assert_eq!(left.map(|(_, id)| id).collect::<BTreeSet<_>>(), ids(0..2));
        // The list's, and that of the names.
        assert_eq!(dir.dir_syncs(), 2);
    }
}
