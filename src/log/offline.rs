//! A data directory, one partition's directory or one segment, opened to be looked at and never
//! written: the node's lock is taken as a shared one, so that neither a running node is read nor
//! a node starts meanwhile. No file is made, not even the lock's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use quorate_types::{TopicName, TopicPartition};

use crate::data_directory::LOCK;
use crate::dir::Dir;
use crate::error::{LogError, at};
use crate::identity::META;
use crate::ledger::{DELETED, LOGS, parse_name};
use crate::os_dir::OsDir;
use crate::segment::base_of;

/// What a path was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfflineTarget {
    /// A node's data directory.
    DataDirectory,
    /// One partition's directory, relative to the root.
    Partition(String),
    /// One segment: its partition's directory, relative to the root, and its first offset.
    Segment(String, quorate_types::Offset),
}

/// A directory of `logs`, as its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflinePartition {
    /// Relative to the root.
    pub path: String,
    /// The topic and the partition; none where the name does not say.
    pub id: Option<(TopicName, TopicPartition)>,
}

/// What is being looked at; the lock is held as long as this lives.
#[derive(Debug)]
pub struct Offline {
    root: PathBuf,
    dir: OsDir,
    target: OfflineTarget,
    _lock: Option<Flock<File>>,
}

fn refused(path: &Path, reason: impl Into<String>) -> LogError {
    LogError::Directory {
        path: path.display().to_string(),
        reason: reason.into(),
    }
}

fn is_data_directory(path: &Path) -> bool {
    path.join(META).is_file() || (path.join(LOGS).is_dir() && path.join("metadata").is_dir())
}

impl Offline {
    /// Finds out what `path` is and takes the lock of the data directory that it is or lies in.
    ///
    /// # Errors
    /// [`LogError::Directory`] where there is nothing, where a node runs on it, where it may not
    /// be read, and where it is none of a data directory, a partition's directory and a segment.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let whole = fs::canonicalize(path).map_err(|error| {
            refused(
                path,
                match error.kind() {
                    io::ErrorKind::NotFound => "there is nothing there".to_owned(),
                    _ => format!("cannot be read: {error}"),
                },
            )
        })?;
        let unreadable = |error: io::Error| refused(path, format!("cannot be read: {error}"));
        let (folder, segment) = if whole.is_dir() {
            fs::read_dir(&whole).map_err(unreadable)?;
            (path.to_owned(), None)
        } else {
            File::open(&whole).map_err(unreadable)?;
            let name = whole.file_name().unwrap_or_default().to_string_lossy();
            let Some(base) = base_of(&name, "log") else {
                return Err(refused(
                    path,
                    "is no segment: those are named by 20 digits and .log; name a data directory, \
                     a directory below its logs, or a segment",
                ));
            };
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            (folder.unwrap_or(Path::new(".")).to_owned(), Some(base))
        };
        if segment.is_none() && is_data_directory(&whole) {
            let lock = lock(path)?;
            return Ok(Self::new(folder, OfflineTarget::DataDirectory, lock));
        }
        if segment.is_none() && !is_partition(&whole).map_err(unreadable)? {
            return Err(refused(
                path,
                "is neither a data directory (there is no meta.properties) nor a partition's \
                 directory (there is no segment): check the path",
            ));
        }
        // The data directory above, where the partition was not copied out of it.
        let inner = fs::canonicalize(&folder).map_err(unreadable)?;
        let above = inner.parent().filter(|logs| logs.ends_with(LOGS));
        let data = above
            .and_then(Path::parent)
            .filter(|data| is_data_directory(data));
        let lock = data.map(lock).transpose()?.flatten();
        let target = match segment {
            Some(base) => OfflineTarget::Segment(".".to_owned(), base),
            None => OfflineTarget::Partition(".".to_owned()),
        };
        Ok(Self::new(folder, target, lock))
    }

    fn new(root: PathBuf, target: OfflineTarget, lock: Option<Flock<File>>) -> Self {
        Self {
            dir: OsDir::new(&root),
            root,
            target,
            _lock: lock,
        }
    }

    /// Where [`Self::dir`] begins: what was asked for, or the directory of the segment.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The tree; only to be read.
    pub fn dir(&self) -> &OsDir {
        &self.dir
    }

    /// What it is.
    pub fn target(&self) -> &OfflineTarget {
        &self.target
    }

    /// The directories that a start of the node would open as partitions, or the one asked for.
    ///
    /// # Errors
    /// Of the disk.
    pub fn partitions(&self) -> Result<Vec<OfflinePartition>, LogError> {
        let (OfflineTarget::Partition(path) | OfflineTarget::Segment(path, _)) = &self.target
        else {
            let names = match self.dir.list(LOGS) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                listed => listed.map_err(at(LOGS))?,
            };
            let found = names.iter().filter(|entry| {
                entry.is_dir && !entry.name.contains(DELETED) && parse_name(&entry.name).is_some()
            });
            return Ok(found
                .map(|entry| OfflinePartition {
                    path: format!("{LOGS}/{}", entry.name),
                    id: parse_name(&entry.name),
                })
                .collect());
        };
        let inner = fs::canonicalize(self.root.join(path)).map_err(at(path))?;
        let name = inner.file_name().unwrap_or_default().to_string_lossy();
        Ok(vec![OfflinePartition {
            path: path.clone(),
            id: parse_name(&name),
        }])
    }
}

/// Whether there is a segment, or the name is a partition's.
fn is_partition(path: &Path) -> io::Result<bool> {
    let named = path
        .file_name()
        .is_some_and(|name| parse_name(&name.to_string_lossy()).is_some());
    if named {
        return Ok(true);
    }
    for entry in fs::read_dir(path)? {
        if base_of(&entry?.file_name().to_string_lossy(), "log").is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The node's lock, shared; none where no node ever took it.
fn lock(data: &Path) -> Result<Option<Flock<File>>, LogError> {
    let file = match File::open(data.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(data, format!("{LOCK} cannot be read: {error}"))),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(refused(
            data,
            "is in use by a running node: stop it, or look at a copy",
        )),
        Err((_, error)) => Err(refused(data, format!("{LOCK} cannot be locked: {error}"))),
    }
}
