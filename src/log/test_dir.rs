//! A directory that counts its syncs, and whose first sync of everything fails.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::dir::{Dir, Entry, OpenMode};
use crate::os_dir::{OsDir, OsFile};

pub(crate) struct TestDir {
    inner: OsDir,
    dir_syncs: AtomicUsize,
    syncs_of_all: AtomicUsize,
}

impl TestDir {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            inner: OsDir::new(root),
            dir_syncs: AtomicUsize::new(0),
            syncs_of_all: AtomicUsize::new(0),
        }
    }

    pub(crate) fn dir_syncs(&self) -> usize {
        self.dir_syncs.load(Ordering::Relaxed)
    }

    pub(crate) fn syncs_of_all(&self) -> usize {
        self.syncs_of_all.load(Ordering::Relaxed)
    }
}

impl Dir for TestDir {
    type Faults = quorate_types::NoFaults;
    type File = OsFile;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<OsFile> {
        self.inner.open(path, mode)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.dir_syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.inner.list(path)
    }

    fn sync_all(&self) -> io::Result<bool> {
        match self.syncs_of_all.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::Error::other("some file")),
            _ => Ok(true),
        }
    }
}
