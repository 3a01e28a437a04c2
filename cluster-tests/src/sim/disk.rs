//! A disk in memory with the habits of a real one: a kill loses nothing, a power loss loses what
//! was not synced, in part, torn in the middle, names apart from contents. A bit can flip at rest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_log::{Dir, DirFile, Entry, OpenMode};
use quorate_types::NoFaults;
use rand::Rng;
use rand::rngs::StdRng;

/// Bytes that reach the disk together or not at all; small, because the files are.
const PAGE: usize = 64;

type Inode = usize;

enum Write {
    At(usize, Vec<u8>),
    Cut(usize),
}

#[derive(Default)]
struct Content {
    /// As every process sees it.
    cached: Vec<u8>,
    /// As it is after the last sync.
    durable: Vec<u8>,
    /// What happened since, in order.
    pending: Vec<Write>,
}

enum NameChange {
    Folder(String),
    Link(String, Inode),
    Unlink(String),
    Rename(String, String),
    RenameFolder(String, String),
}

#[derive(Clone, Default)]
struct Names {
    folders: BTreeSet<String>,
    files: BTreeMap<String, Inode>,
}

#[derive(Default)]
struct State {
    contents: Vec<Content>,
    cached: Names,
    durable: Names,
    /// Changes of names that no sync of their folder has covered, in order.
    pending: Vec<NameChange>,
    failing_syncs: u32,
}

/// A machine's disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

/// A file on a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    inode: Inode,
}

/// The path as it is kept: `./a` is `a`, `.` is the root.
fn plain(path: &str) -> &str {
    match path.strip_prefix("./") {
        Some(rest) => rest,
        None if path == "." => "",
        None => path,
    }
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Cut(len) => content.truncate(*len),
        Write::At(at, bytes) => {
            let end = at + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*at..end].copy_from_slice(bytes);
        }
    }
}

impl NameChange {
    fn is_in(&self, folder: &str) -> bool {
        let path = match self {
            Self::Folder(path)
            | Self::Link(path, _)
            | Self::Unlink(path)
            | Self::Rename(path, _)
            | Self::RenameFolder(path, _) => path,
        };
        folder_of(path) == folder
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Folder(path) => {
                names.folders.insert(path.clone());
            }
            Self::Link(path, inode) => {
                names.files.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.files.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.files.remove(from) {
                    names.files.insert(to.clone(), inode);
                }
            }
            Self::RenameFolder(from, to) => {
                if names.folders.remove(from) {
                    names.folders.insert(to.clone());
                }
                let within: Vec<String> = names
                    .files
                    .keys()
                    .filter(|path| is_within(path, from))
                    .cloned()
                    .collect();
                for path in within {
                    if let Some(inode) = names.files.remove(&path) {
                        names.files.insert(moved(&path, from, to), inode);
                    }
                }
            }
        }
    }

    /// The same in a folder that has been renamed since.
    fn follow(&mut self, from: &str, to: &str) {
        let paths: &mut [&mut String] = match self {
            Self::Folder(a) | Self::Link(a, _) | Self::Unlink(a) => &mut [a],
            Self::Rename(a, b) => &mut [a, b],
            Self::RenameFolder(..) => &mut [],
        };
        for path in paths {
            if is_within(path, from) {
                **path = moved(path, from, to);
            }
        }
    }
}

fn moved(path: &str, from: &str, to: &str) -> String {
    format!("{to}{}", &path[from.len()..])
}

impl State {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.cached);
        self.pending.push(change);
    }

    fn may_sync(&mut self) -> io::Result<()> {
        if self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            return Err(io::Error::other("simulated failure of a sync"));
        }
        Ok(())
    }
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next syncs fail; the pages are dropped, as a kernel does.
    pub fn fail_syncs(&self, count: u32) {
        self.state().failing_syncs = count;
    }

    /// The power goes: of what was not synced some is there, torn at any page, and some is not.
    pub fn lose_power(&self, rng: &mut StdRng) {
        let mut state = self.state();
        state.failing_syncs = 0;
        let pending = std::mem::take(&mut state.pending);
        let kept = rng.random_range(0..=pending.len());
        for change in &pending[..kept] {
            change.apply(&mut state.durable);
        }
        let folders = state.durable.folders.clone();
        state.durable.files.retain(|path, _| {
            let folder = folder_of(path);
            folder.is_empty() || folders.contains(folder)
        });
        state.cached = state.durable.clone();
        for content in &mut state.contents {
            let pending = std::mem::take(&mut content.pending);
            if pending.is_empty() {
                // Also where a sync failed: what it dropped is in the cache only.
                if content.cached != content.durable {
                    content.cached.clone_from(&content.durable);
                }
                continue;
            }
            let kept = rng.random_range(0..=pending.len());
            for write in &pending[..kept] {
                apply(&mut content.durable, write);
            }
            if let Some(Write::At(at, bytes)) = pending.get(kept) {
                // The write under way: its pages get there in any order, or not at all.
                let size = rng.random_range(0..=bytes.len());
                for (page, written) in bytes[..size].chunks(PAGE).enumerate() {
                    let at = at + page * PAGE;
                    let written = if rng.random_bool(0.7) { written } else { &[] };
                    apply(&mut content.durable, &Write::At(at, written.to_vec()));
                }
            }
            content.cached.clone_from(&content.durable);
        }
    }

    /// What a power loss at this moment would leave for certain of a folder's files, by name, from
    /// the name `from` on.
    pub fn look_at_durable(&self, folder: &str, from: &str, mut look: impl FnMut(&str, &[u8])) {
        let state = self.state();
        if !state.durable.folders.contains(folder) {
            return;
        }
        let first = format!("{folder}/{from}");
        for (path, inode) in state.durable.files.range(first..) {
            if !is_within(path, folder) {
                return;
            }
            look(&path[folder.len() + 1..], &state.contents[*inode].durable);
        }
    }

    /// The same, copied.
    pub fn durable_files(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        self.look_at_durable(folder, "", |name, bytes| {
            files.push((name.to_owned(), bytes.to_vec()));
        });
        files
    }

    /// A file's bytes as a process sees them.
    pub fn bytes_of(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        let inode = state.cached.files.get(path);
        inode.map_or_else(Vec::new, |inode| state.contents[*inode].cached.clone())
    }

    /// Flips one bit of a file, on the disk and as it is read.
    pub fn flip(&self, path: &str, byte: usize, bit: u32) {
        let mut state = self.state();
        let Some(inode) = state.cached.files.get(path).copied() else {
            return;
        };
        let content = &mut state.contents[inode];
        for bytes in [&mut content.cached, &mut content.durable] {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 1 << bit;
            }
        }
    }
}

impl Dir for SimDisk {
    type File = SimFile;
    type Faults = NoFaults;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<SimFile> {
        let path = plain(path);
        let mut state = self.state();
        let inode = match (state.cached.files.get(path).copied(), mode) {
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::Overwrite) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, OpenMode::Append) => {
                let folder = folder_of(path);
                if !folder.is_empty() && !state.cached.folders.contains(folder) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inode = state.contents.len();
                state.contents.push(Content::default());
                state.change(NameChange::Link(path.to_owned(), inode));
                inode
            }
        };
        drop(state);
        Ok(SimFile {
            disk: self.clone(),
            inode,
        })
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let path = plain(path);
        let mut state = self.state();
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if !state.cached.folders.contains(&path[..at]) {
                state.change(NameChange::Folder(path[..at].to_owned()));
            }
        }
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let path = plain(path);
        let mut state = self.state();
        state.may_sync()?;
        let pending = std::mem::take(&mut state.pending);
        for change in pending {
            if change.is_in(path) {
                change.apply(&mut state.durable);
            } else {
                state.pending.push(change);
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (plain(from), plain(to));
        let mut state = self.state();
        if state.cached.folders.contains(from) {
            for change in &mut state.pending {
                change.follow(from, to);
            }
            state.change(NameChange::RenameFolder(from.to_owned(), to.to_owned()));
        } else if state.cached.files.contains_key(from) {
            state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        } else {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let path = plain(path);
        let mut state = self.state();
        if !state.cached.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, _path: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let path = plain(path);
        let state = self.state();
        let prefix = match path {
            "" => String::new(),
            _ => format!("{path}/"),
        };
        let child = |full: &str| {
            let name = full.strip_prefix(&prefix)?;
            (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
        };
        let folders = state.cached.folders.range(prefix.clone()..);
        let folders = folders.take_while(|full| full.starts_with(&prefix));
        let files = state.cached.files.range(prefix.clone()..);
        let files = files.take_while(|(full, _)| full.starts_with(&prefix));
        let mut entries: Vec<Entry> = folders
            .map(|full| (full, true))
            .chain(files.map(|(full, _)| (full, false)))
            .filter_map(|(full, is_dir)| child(full).map(|name| Entry { name, is_dir }))
            .collect();
        entries.sort();
        Ok(entries)
    }
}

impl DirFile for SimFile {
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = &mut state.contents[self.inode];
        let write = Write::At(content.cached.len(), parts.concat());
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = &mut state.contents[self.inode];
        let write = Write::At(at as usize, bytes.to_vec());
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let cached = &state.contents[self.inode].cached;
        let from = cached.len().min(at as usize);
        let len = buf.len().min(cached.len() - from);
        buf[..len].copy_from_slice(&cached[from..from + len]);
        Ok(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().contents[self.inode].cached.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let synced = state.may_sync();
        let content = &mut state.contents[self.inode];
        let pending = std::mem::take(&mut content.pending);
        if synced.is_ok() {
            for write in &pending {
                apply(&mut content.durable, write);
            }
        }
        synced
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = &mut state.contents[self.inode];
        let write = Write::Cut(len as usize);
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }
}
