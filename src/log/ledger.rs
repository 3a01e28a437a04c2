//! What a data directory notes about itself, on whatever [`Dir`]: how often it was started, in which
//! boot, whether the last life ended cleanly, which partitions have a log in it (R9, R14). The
//! simulator runs this very code; what only a real directory has (its lock, its identity) is in
//! [`crate::DataDirectory`].

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_types::{BootId, BrokerEpoch, PartitionId, TopicId, TopicName, TopicPartition};
use tracing::warn;
use uuid::Uuid;

use crate::dir::Dir;
use crate::error::{LogError, at};
use crate::identity::{
    BOOT, CLEAN, HOSTED, STARTS, begin_directory, count_start, note_boot, read_boot,
    read_clean_mark, read_hosted, remove_clean_mark, write_clean_mark, write_hosted,
};
use crate::open::RecoveryContext;

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

/// The notes of a directory that is in use by one process.
pub struct Ledger<D: Dir> {
    dir: Arc<D>,
    start: u64,
    boot: BootId,
    same_boot: bool,
    clean_epoch: Option<BrokerEpoch>,
    hosted: Mutex<BTreeSet<TopicPartition>>,
}

impl<D: Dir> Ledger<D> {
    /// Begins the notes of a directory that has no identity yet.
    ///
    /// # Errors
    /// Of the disk.
    pub fn begin(dir: &D) -> io::Result<()> {
        begin_directory(dir)
    }

    /// Reads the notes and counts this start, in the machine's present `boot`.
    ///
    /// # Errors
    /// Of the disk; where a file that must be there is missing or damaged.
    pub fn open(dir: Arc<D>, boot: BootId) -> Result<Self, LogError> {
        dir.create_dir(LOGS).map_err(at(LOGS))?;
        dir.sync_dir(".").map_err(at("."))?;
        let start = count_start(&*dir).map_err(at(STARTS))?;
        let hosted = read_hosted(&*dir).map_err(at(HOSTED))?;
        if hosted.is_none() {
            warn!("{HOSTED} is missing: the partitions found are taken for all there were");
        }
        let before = read_boot(&*dir).map_err(at(BOOT))?;
        let clean_epoch = read_clean_mark(&*dir).map_err(at(CLEAN))?;
        Ok(Self {
            dir,
            start,
            boot,
            same_boot: before == Some(boot),
            clean_epoch,
            hosted: Mutex::new(hosted.unwrap_or_default()),
        })
    }

    /// How often the directory was started, this start included.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The machine's present boot.
    pub fn boot_id(&self) -> BootId {
        self.boot
    }

    /// The broker epoch of the last life, where that ended cleanly (R9).
    pub fn clean_epoch(&self) -> Option<BrokerEpoch> {
        self.clean_epoch
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

    /// Marks, after the last flush, that this life ended cleanly.
    ///
    /// # Errors
    /// Of the disk.
    pub fn write_clean(&self, epoch: BrokerEpoch) -> Result<(), LogError> {
        write_clean_mark(&*self.dir, epoch).map_err(at(CLEAN))
    }

    /// The partitions found; directories of other shapes are left alone.
    ///
    /// # Errors
    /// Of the disk.
    pub fn partitions(&self) -> Result<Vec<FoundPartition>, LogError> {
        let mut found = Vec::new();
        for entry in self.dir.list(LOGS).map_err(at(LOGS))? {
            let path = format!("{LOGS}/{}", entry.name);
            if let Some((topic, id)) = parse_name(&entry.name) {
                found.push(FoundPartition { topic, id, path });
            } else if !entry.name.contains(DELETED) {
                warn!(path, "not a partition's directory: left alone");
            }
        }
        Ok(found)
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

    /// Renames the partitions' directories so that no start takes them for partitions, durably
    /// (R14). However many they are, the list is written once, and the names are synced once.
    ///
    /// # Errors
    /// Of the disk; one directory that cannot be renamed does not keep the others.
    pub fn set_aside(&self, ids: &BTreeSet<TopicPartition>) -> Result<(), LogError> {
        let mut hosted = self.hosted.lock();
        let without: BTreeSet<_> = hosted.difference(ids).copied().collect();
        if without != *hosted {
            write_hosted(&*self.dir, &without).map_err(at(HOSTED))?;
            *hosted = without;
        }
        let mut renamed = Ok(());
        let mut any = false;
        for entry in self.dir.list(LOGS).map_err(at(LOGS))? {
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
            match self.dir.rename(&path, &aside).map_err(at(&path)) {
                Ok(()) => any = true,
                Err(error) => renamed = renamed.and(Err(error)),
            }
        }
        if any {
            self.dir.sync_dir(LOGS).map_err(at(LOGS))?;
        }
        renamed
    }
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
        let dir = Arc::new(TestDir::new(root.path()));
        Ledger::begin(&*dir).unwrap();
        let ledger = Ledger::open(Arc::clone(&dir), BootId::from_bytes([1; 16])).unwrap();
        let topic = TopicId::from_bytes([5; 16]);
        let ids = |range: std::ops::Range<u32>| -> BTreeSet<TopicPartition> {
            let id = |number| TopicPartition::new(topic, PartitionId::new(number));
            range.map(id).collect()
        };
        for id in ids(0..9) {
            let name = TopicName::new("t").unwrap();
            dir.create_dir(&ledger.partition_path(&name, &id)).unwrap();
        }
        ledger.note_hosted(ids(0..9)).unwrap();
        let before = dir.dir_syncs();
        ledger.set_aside(&ids(2..9)).unwrap();
        assert_eq!(ledger.hosted(), ids(0..2));
        assert_eq!(read_hosted(&*dir).unwrap(), Some(ids(0..2)));
        let left = ledger.partitions().unwrap();
        let left: BTreeSet<_> = left.into_iter().map(|found| found.id).collect();
        assert_eq!(left, ids(0..2));
        // The list's, and that of the names.
        assert_eq!(dir.dir_syncs() - before, 2);
    }
}
