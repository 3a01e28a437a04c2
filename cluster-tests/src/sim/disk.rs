//! A disk in memory with the habits of a real one: a kill loses nothing, a power loss loses what
//! was not synced, in part, torn in the middle, names apart from contents.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_log::{Dir, DirFile, Entry, OpenMode};
use rand::Rng;
use rand::rngs::StdRng;

/// Bytes that reach the disk together or not at all; small, because the files are.
const PAGE: usize = 64;

type Inode = u64;

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
}

#[derive(Clone, Default)]
struct Names {
    folders: BTreeSet<String>,
    files: BTreeMap<String, Inode>,
}

#[derive(Default)]
struct State {
    contents: BTreeMap<Inode, Content>,
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

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
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
            | Self::Rename(path, _) => path,
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
        }
    }
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

    fn content(&mut self, inode: Inode) -> &mut Content {
        self.contents.entry(inode).or_default()
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
        for content in state.contents.values_mut() {
            let pending = std::mem::take(&mut content.pending);
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
            content.cached = content.durable.clone();
        }
    }

    /// What a power loss at this moment would leave for certain of a folder's files, by name.
    pub fn durable_files(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let state = self.state();
        let known = state.durable.folders.contains(folder);
        let files = state.durable.files.iter();
        files
            .filter(|(path, _)| known && folder_of(path) == folder)
            .map(|(path, inode)| {
                let name = path[folder.len() + 1..].to_owned();
                (name, state.contents[inode].durable.clone())
            })
            .collect()
    }
}

impl Dir for SimDisk {
    type File = SimFile;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<SimFile> {
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
                let inode = state.contents.len() as Inode;
                state.content(inode);
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
        let mut state = self.state();
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if !state.cached.folders.contains(&path[..at]) {
                state.change(NameChange::Folder(path[..at].to_owned()));
            }
        }
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        state.may_sync()?;
        let pending = std::mem::take(&mut state.pending);
        let (covered, rest): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|change| change.is_in(path));
        for change in covered {
            change.apply(&mut state.durable);
        }
        state.pending = rest;
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.cached.files.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
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
        let state = self.state();
        let child = |full: &str| {
            (folder_of(full) == path && !full.is_empty()).then(|| match path {
                "" => full.to_owned(),
                _ => full[path.len() + 1..].to_owned(),
            })
        };
        let folders = state.cached.folders.iter().map(|path| (path, true));
        let files = state.cached.files.keys().map(|path| (path, false));
        let mut entries: Vec<Entry> = folders
            .chain(files)
            .filter_map(|(path, is_dir)| child(path).map(|name| Entry { name, is_dir }))
            .collect();
        entries.sort();
        Ok(entries)
    }
}

impl DirFile for SimFile {
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = state.content(self.inode);
        let write = Write::At(content.cached.len(), parts.concat());
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = state.content(self.inode);
        let write = Write::At(at as usize, bytes.to_vec());
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        let cached = &state.content(self.inode).cached;
        let from = cached.len().min(at as usize);
        let len = buf.len().min(cached.len() - from);
        buf[..len].copy_from_slice(&cached[from..from + len]);
        Ok(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().content(self.inode).cached.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let synced = state.may_sync();
        let content = state.content(self.inode);
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
        let content = state.content(self.inode);
        let write = Write::Cut(len as usize);
        apply(&mut content.cached, &write);
        content.pending.push(write);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_log::{LogOptions, PartitionLog, RecoveryContext};
    use quorate_record::{BatchBuilder, Compression};
    use quorate_types::{LeaderEpoch, Offset, Timestamp};
    use rand::SeedableRng;

    use super::*;

    fn disk_with(synced: &[u8], unsynced: &[u8]) -> SimDisk {
        let disk = SimDisk::default();
        disk.create_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        let file = disk.open("d/f", OpenMode::Append).unwrap();
        file.append(&[synced]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir("d").unwrap();
        file.append(&[unsynced]).unwrap();
        disk
    }

    #[test]
    fn what_was_synced_survives_a_power_loss_and_the_rest_may_be_torn() {
        let (mut whole, mut none, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = disk_with(b"synced", &[7; 300]);
            disk.lose_power(&mut StdRng::seed_from_u64(seed));
            let left = disk.durable_files("d")[0].1.clone();
            assert!(left.starts_with(b"synced"));
            match &left[6..] {
                [] => none += 1,
                rest if rest == [7; 300] => whole += 1,
                _ => torn += 1,
            }
        }
        assert!(whole > 0 && none > 0 && torn > 0, "{whole} {none} {torn}");
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_gone_with_its_synced_content() {
        let mut gone = 0;
        for seed in 0..50 {
            let disk = disk_with(b"a", b"");
            let file = disk.open("d/new", OpenMode::Append).unwrap();
            file.append(&[b"b"]).unwrap();
            file.sync_data().unwrap();
            assert_eq!(disk.durable_files("d").len(), 1);
            disk.lose_power(&mut StdRng::seed_from_u64(seed));
            gone += u32::from(disk.list("d").unwrap().len() == 1);
        }
        assert!(gone > 0 && gone < 50, "{gone}");
    }

    #[test]
    fn what_a_failed_sync_dropped_is_never_durable() {
        let disk = disk_with(b"a", b"b");
        let file = disk.open("d/f", OpenMode::Append).unwrap();
        disk.fail_syncs(1);
        assert!(file.sync_data().is_err());
        file.append(&[b"c"]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(disk.durable_files("d")[0].1, b"a\0c");
        let mut cached = [0; 3];
        file.read_at(&mut cached, 0).unwrap();
        assert_eq!(&cached, b"abc");
    }

    #[test]
    fn a_log_opened_after_a_failed_sync_is_on_the_disk() {
        let disk = SimDisk::default();
        let open = || {
            let cx = RecoveryContext { same_boot: true };
            let disk = Arc::new(disk.clone());
            PartitionLog::open(disk, "logs/t-0", LogOptions::default(), cx)
                .unwrap()
                .0
        };
        let mut log = open();
        let mut batch = BatchBuilder::new(Compression::None);
        batch.push(Timestamp::from_millis(0), None, Some(b"v"), &[]);
        let now = Timestamp::from_millis(0);
        let batch = batch.build().stamped(Offset::ZERO, LeaderEpoch::new(1));
        log.append(&batch, now).unwrap();
        disk.fail_syncs(1);
        assert!(log.start_flush().unwrap().run().error.is_some());
        // Killed before it could be told.
        drop(log);
        assert_eq!(open().flushed_end(), Offset::new(1));
        disk.lose_power(&mut StdRng::seed_from_u64(1));
        assert_eq!(open().log_end(), Offset::new(1));
    }
}
