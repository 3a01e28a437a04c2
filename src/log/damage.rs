//! The mark of a damaged replica (R9): a file in the partition's directory, from before anything is
//! cut because of it until the cluster has taken note. Without it a process that ends in between
//! would find a log that is whole, only shorter.

use crate::checkpoint::{frame, unframe};
use crate::dir::{Dir, read_file, replace_file};
use crate::error::{LogError, at};
use crate::partition_log::PartitionLog;
use crate::truncate::remove_if_there;

pub(crate) const DAMAGED_FILE: &str = "damaged";

pub(crate) fn mark_damaged<D: Dir>(dir: &D, folder: &str, why: &str) -> Result<(), LogError> {
    replace_file(dir, folder, DAMAGED_FILE, &frame(why.as_bytes())).map_err(at(folder))
}

/// Why the replica was found damaged, where the cluster may not know yet. That the file is there
/// is what counts, whatever is in it.
pub(crate) fn damage_mark<D: Dir>(dir: &D, folder: &str) -> Result<Option<String>, LogError> {
    let path = format!("{folder}/{DAMAGED_FILE}");
    let file = read_file(dir, &path).map_err(at(&path))?;
    Ok(file.map(|file| {
        let why = unframe(&file).map(String::from_utf8_lossy);
        why.map_or_else(|| "it was damaged".to_owned(), |why| why.into_owned())
    }))
}

impl<D: Dir> PartitionLog<D> {
    /// Marks the replica as damaged, durably: the next opening checks every batch, cuts the log
    /// where it is damaged, and reports it.
    ///
    /// # Errors
    /// Of the disk.
    pub fn mark_damaged(&self, why: &str) -> Result<(), LogError> {
        mark_damaged(&*self.dir, &self.path, why)
    }

    /// The cluster has taken note that this replica was damaged: it is out of the ISR, and what it
    /// holds from now on is taken for what it is.
    ///
    /// # Errors
    /// Of the disk; the next opening then reports the damage again.
    pub fn damage_told(&self) -> Result<(), LogError> {
        remove_if_there(&*self.dir, &format!("{}/{DAMAGED_FILE}", self.path))?;
        self.dir.sync_dir(&self.path).map_err(at(&self.path))
    }
}
