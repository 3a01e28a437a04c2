//! The mark of a damaged replica (R9): a file in the partition's directory, from before anything is
//! cut because of it until the cluster has taken note. Without it a process that ends in between
//! would find a log that is whole, only shorter.

use quorate_types::Offset;

use crate::checkpoint::{frame, unframe};
use crate::dir::{Dir, read_file, replace_file};
use crate::error::{LogError, at};
use crate::open::SET_ASIDE;
use crate::partition_log::PartitionLog;
use crate::truncate::remove_if_there;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamageMark {
    /// What was found.
    pub(crate) why: String,
    /// Where the log ended before, where that is known.
    pub(crate) had: Option<Offset>,
}

pub(crate) const DAMAGED_FILE: &str = "damaged";

pub(crate) fn mark_damaged<D: Dir>(
    dir: &D,
    folder: &str,
    why: &str,
    had: Option<Offset>,
) -> Result<(), LogError> {
    let had = had.map_or_else(String::new, |had| had.to_string());
    let body = format!("{had}\n{why}");
    replace_file(dir, folder, DAMAGED_FILE, &frame(body.as_bytes())).map_err(at(folder))
}

/// Why the replica was found damaged, where the cluster may not know yet. That the file is there
/// is what counts, whatever is in it.
pub(crate) fn damage_mark<D: Dir>(dir: &D, folder: &str) -> Result<Option<DamageMark>, LogError> {
    let path = format!("{folder}/{DAMAGED_FILE}");
    let file = read_file(dir, &path).map_err(at(&path))?;
    Ok(file.map(|file| {
        let body = unframe(&file).map(|body| String::from_utf8_lossy(body).into_owned());
        let body = body.unwrap_or_else(|| "\nit was damaged".to_owned());
        let (had, why) = body.split_once('\n').unwrap_or(("", &body));
        DamageMark {
            why: why.to_owned(),
            had: had.parse().ok().map(Offset::new),
        }
    }))
}

impl<D: Dir> PartitionLog<D> {
    /// Marks the replica as damaged, durably: the next opening checks every batch, cuts the log
    /// where it is damaged, and reports it.
    ///
    /// # Errors
    /// Of the disk.
    pub fn mark_damaged(&self, why: &str) -> Result<(), LogError> {
        mark_damaged(&*self.dir, &self.path, why, Some(self.log_end))
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

    pub(crate) fn set_aside_files(&self) -> Result<Vec<String>, LogError> {
        let names = self.dir.list(&self.path).map_err(at(&self.path))?;
        let names = names.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| name.ends_with(SET_ASIDE)).collect())
    }

    /// Whether recovery has cut from this log what may have been acknowledged, and kept it.
    pub fn has_set_aside(&self) -> bool {
        self.has_set_aside
    }

    /// Removes what recovery has cut and kept: the log has it from another replica again.
    ///
    /// # Errors
    /// Of the disk.
    pub fn discard_set_aside(&mut self) -> Result<(), LogError> {
        for name in self.set_aside_files()? {
            remove_if_there(&*self.dir, &format!("{}/{name}", self.path))?;
        }
        self.has_set_aside = false;
        Ok(())
    }
}
