//! The only door to files: a small trait, so that the simulator runs the shipped log on a
//! simulated disk. Paths are relative to the directory's root and joined with `/`.

use std::io;

use quorate_types::Faults;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; only read.
    Read,
    /// Made where it does not exist; read, appended to, truncated.
    Append,
    /// It must exist; read and written in place.
    Overwrite,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without the path.
    pub name: String,
    /// A directory, not a file.
    pub is_dir: bool,
}

/// A directory tree on some disk.
///
/// What is written reaches the disk only by [`DirFile::sync_data`], names (made, renamed, removed)
/// only by [`Dir::sync_dir`] of the directory that holds them: a power loss may undo the rest.
pub trait Dir: Send + Sync + 'static {
    /// An open file of this tree.
    type File: DirFile;

    /// Rules that the logs in this tree break on purpose; none but where the simulator proves that
    /// its checkers can fail.
    type Faults: Faults;

    /// Opens a file.
    ///
    /// # Errors
    /// Those of the system; `NotFound` for a missing file in [`OpenMode::Read`].
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Self::File>;

    /// Makes a directory and those above it; nothing happens where it exists.
    ///
    /// # Errors
    /// Those of the system.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Those of the system.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// Renames a file or a directory, replacing a file of the new name.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the system.
    fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// Those of the system.
    fn remove_dir_all(&self, path: &str) -> io::Result<()>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// Those of the system.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;

    /// Syncs everything in the tree at once where the disk can; `false` where it cannot.
    ///
    /// # Errors
    /// Those of the system; they count as errors of every file's sync (R13).
    fn sync_all(&self) -> io::Result<bool> {
        Ok(false)
    }
}

/// An open file.
pub trait DirFile: Send + Sync + 'static {
    /// Writes at the end, all parts one after the other.
    ///
    /// # Errors
    /// Those of the system; some of the bytes may have been written.
    fn append(&self, parts: &[&[u8]]) -> io::Result<()>;

    /// Writes in place, in a file opened with [`OpenMode::Overwrite`].
    ///
    /// # Errors
    /// Those of the system; some of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Reads at a position, as many bytes as are there; fewer than asked only at the end.
    ///
    /// # Errors
    /// Those of the system.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// Those of the system.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is no byte in the file.
    ///
    /// # Errors
    /// Those of the system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes the file's content durable (not its name).
    ///
    /// # Errors
    /// Those of the system: the content since the last success must be taken for lost (R13).
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file; later appends begin there.
    ///
    /// # Errors
    /// Those of the system.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// Reads a whole file; none where it does not exist.
pub(crate) fn read_file<D: Dir>(dir: &D, path: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match dir.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; file.len()? as usize];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Replaces a file so that a crash leaves the old content or the new, and returns when the new is
/// durable.
pub(crate) fn replace_file<D: Dir>(
    dir: &D,
    folder: &str,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let beside = format!("{folder}/{name}.tmp");
    let file = dir.open(&beside, OpenMode::Append)?;
    file.truncate(0)?;
    file.append(&[bytes])?;
    file.sync_data()?;
    drop(file);
    dir.rename(&beside, &format!("{folder}/{name}"))?;
    dir.sync_dir(folder)
}
