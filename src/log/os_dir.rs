//! Directories of the operating system, and the same with slow syncs for tests.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_types::NoFaults;

use crate::dir::{Dir, DirFile, Entry, OpenMode};

/// A directory tree of the operating system.
#[derive(Debug, Clone)]
pub struct OsDir {
    root: PathBuf,
    /// Open as long as the tree is used: the kernel tells each open file once of a write that
    /// failed since it was opened, and one opened later not of what another was told before.
    syncs: Option<Arc<File>>,
}

impl OsDir {
    /// The tree below `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let syncs = File::open(&root).ok().map(Arc::new);
        Self { root, syncs }
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// Names the file in an error of the system.
fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Dir for OsDir {
    type Faults = NoFaults;
    type File = OsFile;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<OsFile> {
        let path = self.path(path);
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Append => {
                options.append(true).create(true);
            }
            OpenMode::Overwrite => {
                options.write(true);
            }
        }
        let file = options.open(&path).map_err(named(&path))?;
        Ok(OsFile { file })
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        fs::create_dir_all(&path).map_err(named(&path))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        File::open(&path)
            .and_then(|dir| dir.sync_all())
            .map_err(named(&path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let from = self.path(from);
        fs::rename(&from, self.path(to)).map_err(named(&from))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        fs::remove_file(&path).map_err(named(&path))
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        fs::remove_dir_all(&path).map_err(named(&path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let path = self.path(path);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path).map_err(named(&path))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry {
                name,
                is_dir: entry.file_type()?.is_dir(),
            });
        }
        entries.sort();
        Ok(entries)
    }

    #[cfg(target_os = "linux")]
    fn sync_all(&self) -> io::Result<bool> {
        match &self.syncs {
            Some(root) => nix::unistd::syncfs(root).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }
}

/// A file of the operating system.
#[derive(Debug)]
pub struct OsFile {
    file: File,
}

impl DirFile for OsFile {
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut file = &self.file;
        if let [part] = parts {
            return file.write_all(part);
        }
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buf.len() {
            match self.file.read_at(&mut buf[read..], at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// A directory whose syncs take longer, as those of a slow disk do: for tests.
#[derive(Debug, Clone)]
pub struct SlowDir<D> {
    inner: D,
    delay: Duration,
}

impl<D> SlowDir<D> {
    /// Adds `delay` to every sync; zero changes nothing.
    pub fn new(inner: D, delay: Duration) -> Self {
        Self { inner, delay }
    }

    fn wait(&self) {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
    }
}

impl<D: Dir> Dir for SlowDir<D> {
    type Faults = D::Faults;
    type File = SlowFile<D::File>;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Self::File> {
        Ok(SlowFile {
            inner: self.inner.open(path, mode)?,
            delay: self.delay,
        })
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.wait();
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
        self.wait();
        self.inner.sync_all()
    }
}

/// A file of a [`SlowDir`].
#[derive(Debug)]
pub struct SlowFile<F> {
    inner: F,
    delay: Duration,
}

impl<F: DirFile> DirFile for SlowFile<F> {
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.append(parts)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.inner.write_at(bytes, at)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        self.inner.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
}
