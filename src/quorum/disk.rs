//! The Raft log's bytes in sled, and what makes them durable.
//!
//! sled's `flush` on Linux only starts the write-back, so a second handle on its file is synced
//! after each flush that something relies on, and once when the store is opened. Values are kept
//! in pieces so small that a sled page stays below the size where sled moves it to a file of its
//! own, which it never syncs.
//!
//! sled takes its log for ended at the first byte that does not fit, without a word. What was
//! promised to other members is therefore noted beside it ([`Promised`]), and an opening that finds
//! less refuses.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::{self, decode_entry};
use crate::guarded::{Unanswered, guarded};
use crate::ids::{Entry, RaftLogId, Vote};
use crate::promised::{PROMISED, Promise, Promised};
use crate::sled_tail::{is_unfinished, small_file_fault};

pub(crate) const SEGMENT: usize = 2 << 20;
/// A page has 16 values at most before it is split; sled's limit for a page is SEGMENT / 4.
const PIECE: usize = 16 << 10;
const CACHE: u64 = 4 << 20;
/// How long an opening waits for sled's own threads to let go of the file.
const RELEASED: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(5);
const PURGE_STEP: usize = 1024;

/// sled's settings.
pub(crate) const CONF: &str = "conf";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

pub(crate) struct Disk {
    db: sled::Db,
    log: sled::Tree,
    marks: sled::Tree,
    file: File,
    /// None in a copy that is only read.
    promised: Option<Mutex<Promised>>,
    /// A test may take it away.
    #[cfg(test)]
    pub(crate) power: Option<Arc<crate::fault_tests::power::Power>>,
}

/// What was found when the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<RaftLogId>,
    pub(crate) purged: Option<RaftLogId>,
    pub(crate) last: Option<RaftLogId>,
}

fn other(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

const ADVICE: &str = "put the directory back as it was, or, while the other voters have a quorum, \
                      empty the whole data directory so that the node joins as a new member";

/// Names the file and what to do where the file itself is at fault; other errors may pass.
fn explained(path: &Path, error: io::Error) -> io::Error {
    use io::ErrorKind::{InvalidData, Other, UnexpectedEof};
    if !matches!(error.kind(), InvalidData | Other | UnexpectedEof)
        || error.raw_os_error().is_some()
    {
        return error;
    }
    damaged(format!("{}: {error}; {ADVICE}", path.display()))
}

/// A slow disk is no reason to give the directory up.
fn unanswered(path: &Path, why: &Unanswered) -> io::Error {
    match why {
        Unanswered::Late => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{}: {why}: start again when the disk is less busy; where it never comes to an \
                 end, the file is damaged",
                path.display()
            ),
        ),
        Unanswered::Broken(_) => explained(path, damaged(why.to_string())),
    }
}

/// Removes the page tables that were being written when the process ended. sled gives them their
/// name once they are whole, and yet would take one for the newest.
pub(crate) fn remove_unfinished(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if is_unfinished(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// sled's own words on a damaged `conf` or `snap.` name no file: they are checked before it.
fn check_small_files(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if (name == CONF || name.starts_with("snap."))
            && let Some(why) = small_file_fault(&name, &std::fs::read(entry.path())?)
        {
            return Err(explained(
                &entry.path(),
                damaged(format!("it is damaged: {why}")),
            ));
        }
    }
    Ok(())
}

fn key(index: u64, piece: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    let bytes = key.first_chunk::<8>().filter(|_| key.len() == 10);
    bytes
        .map(|bytes| u64::from_be_bytes(*bytes))
        .ok_or_else(|| damaged(format!("the Raft log has a key of {} bytes", key.len())))
}

/// sled's own threads may hold the file, and its lock, for a moment after the last handle on an
/// earlier opening is gone. No other process can: the data directory's lock keeps it out.
fn open_when_free(config: &sled::Config) -> sled::Result<sled::Db> {
    let until = Instant::now() + RELEASED;
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < until =>
            {
                std::thread::sleep(RELEASE_POLL);
            }
            opened => return opened,
        }
    }
}

impl Disk {
    /// Opens or makes the store, brings all that it read to the disk and checks that the log has
    /// no hole and that nothing is gone that was promised.
    pub(crate) fn open(path: &Path) -> io::Result<(Arc<Self>, Found)> {
        std::fs::create_dir_all(path)?;
        remove_unfinished(path)?;
        check_small_files(path)?;
        let (file, opening) = (path.join("db"), path.to_owned());
        match guarded(move || Self::open_unguarded(&opening)) {
            Ok(opened) => opened,
            Err(why) => Err(unanswered(&file, &why)),
        }
    }

    fn open_unguarded(path: &Path) -> io::Result<(Arc<Self>, Found)> {
        let db = path.join("db");
        let (mut disk, found) = Self::open_sled(path).map_err(|error| explained(&db, error))?;
        // sled writes its settings once and never syncs them.
        File::open(path.join(CONF))?.sync_all()?;
        File::open(path)?.sync_all()?;
        if let Some(parent) = path.parent().filter(|parent| parent.is_dir()) {
            File::open(parent)?.sync_all()?;
        }
        let promise = path.join(PROMISED);
        if let Some(promised) =
            Promised::read(&promise).map_err(|error| explained(&promise, error))?
        {
            disk.check(&found, &promised)
                .map_err(|error| explained(&db, error))?;
        } else if found.vote.is_some() || found.last.is_some() {
            tracing::warn!(
                file = %promise.display(),
                "is missing beside a Raft log: what is in the log is taken for all there was"
            );
        }
        let now = Promise {
            vote: found.vote,
            last: found.last,
        };
        disk.promised = Some(Mutex::new(Promised::begin(&promise, now)?));
        File::open(path)?.sync_all()?;
        Ok((Arc::new(disk), found))
    }

    fn open_sled(path: &Path) -> io::Result<(Self, Found)> {
        let config = sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity(CACHE)
            .segment_size(SEGMENT);
        let db = open_when_free(&config).map_err(other)?;
        let disk = Self {
            log: db.open_tree("log").map_err(other)?,
            marks: db.open_tree("marks").map_err(other)?,
            file: File::options()
                .read(true)
                .write(true)
                .open(path.join("db"))?,
            promised: None,
            #[cfg(test)]
            power: crate::fault_tests::power::of(path),
            db,
        };
        disk.sync()?;
        let found = disk.find()?;
        Ok((disk, found))
    }

    /// What was promised must be there: a vote as new, and the last entry or what it was purged
    /// behind.
    fn check(&self, found: &Found, promised: &Promise) -> io::Result<()> {
        let shown = |what: Option<String>| what.unwrap_or_else(|| "none".to_owned());
        // Two votes of one term for different members do not compare.
        let order = found.vote.partial_cmp(&promised.vote);
        if order.is_none_or(Ordering::is_lt) {
            return Err(damaged(format!(
                "the vote {} was given from here, and the file holds {}: with it this member could \
                 vote twice",
                shown(promised.vote.map(|vote| vote.to_string())),
                shown(found.vote.map(|vote| vote.to_string())),
            )));
        }
        let Some(last) = promised.last else {
            return Ok(());
        };
        if found
            .purged
            .is_some_and(|purged| purged.index >= last.index)
        {
            return Ok(());
        }
        let there = self.read(last.index, last.index + 1, usize::MAX)?;
        if there.first().is_some_and(|entry| entry.log_id == last) {
            return Ok(());
        }
        Err(damaged(format!(
            "the Raft log was acknowledged up to {last}, and the file holds it up to {}",
            shown(found.last.map(|last| last.to_string())),
        )))
    }

    /// Whether an opening would find here what was promised. Like one it takes away what a purge
    /// has left: only for a copy.
    pub(crate) fn holds(&self, promised: &Promise) -> io::Result<()> {
        let found = self.find()?;
        self.check(&found, promised)
    }

    /// Opens a copy, to be read: nothing is checked, removed or synced. sled itself recovers, and
    /// writes while it does: never on the original.
    pub(crate) fn open_copy(path: &Path) -> io::Result<Self> {
        let config = sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity(CACHE)
            .segment_size(SEGMENT);
        let db = open_when_free(&config).map_err(other)?;
        Ok(Self {
            log: db.open_tree("log").map_err(other)?,
            marks: db.open_tree("marks").map_err(other)?,
            file: File::open(path.join("db"))?,
            promised: None,
            #[cfg(test)]
            power: None,
            db,
        })
    }

    /// The marks as they are, without a look at the log.
    pub(crate) fn marks(&self) -> io::Result<Found> {
        Ok(Found {
            vote: self.mark(VOTE)?,
            committed: self.mark(COMMITTED)?,
            purged: self.mark(PURGED)?,
            last: None,
        })
    }

    /// Every entry by its index, one after the other in memory: its bytes, and what they say.
    pub(crate) fn each_entry(
        &self,
        mut visit: impl FnMut(u64, usize, io::Result<Entry>) -> bool,
    ) -> io::Result<()> {
        let mut current: Option<(u64, Vec<u8>)> = None;
        let mut tell = |index, whole: Vec<u8>| {
            let size = whole.len();
            visit(index, size, decode_entry(Bytes::from(whole)))
        };
        for pair in self.log.iter() {
            let (found, value) = pair.map_err(other)?;
            let index = index_of(&found)?;
            match &mut current {
                Some((at, whole)) if *at == index => whole.extend_from_slice(&value),
                _ => {
                    if let Some((at, whole)) = current.replace((index, value.to_vec()))
                        && !tell(at, whole)
                    {
                        return Ok(());
                    }
                }
            }
        }
        if let Some((at, whole)) = current {
            tell(at, whole);
        }
        Ok(())
    }

    fn mark<T: serde::de::DeserializeOwned>(&self, name: &[u8]) -> io::Result<Option<T>> {
        let bytes = self.marks.get(name).map_err(other)?;
        bytes.map(|bytes| codec::from_json(&bytes)).transpose()
    }

    fn find(&self) -> io::Result<Found> {
        let purged: Option<RaftLogId> = self.mark(PURGED)?;
        if let Some(purged) = purged {
            // The marker is written first: what is left below it is the rest of a purge.
            self.remove_up_to(purged.index)?;
        }
        let mut last = None;
        let mut expected = purged.map(|purged| purged.index + 1);
        for pair in self.log.iter().keys() {
            let index = index_of(&pair.map_err(other)?)?;
            if last == Some(index) {
                continue;
            }
            if expected.is_some_and(|expected| expected != index) {
                return Err(damaged(format!(
                    "the Raft log has a hole: entry {index} follows {last:?}, purged {purged:?}"
                )));
            }
            last = Some(index);
            expected = Some(index + 1);
        }
        let last = match last {
            Some(index) => self
                .read(index, index + 1, usize::MAX)?
                .last()
                .map(|e| e.log_id),
            None => purged,
        };
        Ok(Found {
            vote: self.mark(VOTE)?,
            committed: self.mark(COMMITTED)?,
            purged,
            last,
        })
    }

    /// Entries from `from` (at most up to `end`, exclusive), until `max_bytes` are reached; at
    /// least one if there is any.
    pub(crate) fn read(&self, from: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut current: Option<(u64, Vec<u8>)> = None;
        for pair in self.log.range(key(from, 0)..key(end, 0)) {
            let (found, value) = pair.map_err(other)?;
            let index = index_of(&found)?;
            match &mut current {
                Some((at, piece)) if *at == index => piece.extend_from_slice(&value),
                _ => {
                    if let Some((_, whole)) = current.take() {
                        entries.push(decode_entry(Bytes::from(whole))?);
                    }
                    if bytes >= max_bytes {
                        return Ok(entries);
                    }
                    current = Some((index, value.to_vec()));
                }
            }
            bytes += value.len();
        }
        if let Some((_, whole)) = current {
            entries.push(decode_entry(Bytes::from(whole))?);
        }
        Ok(entries)
    }

    /// Adds entries, all or none of them. Not durable before [`Self::sync`].
    pub(crate) fn append(&self, entries: &[Entry]) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for entry in entries {
            let bytes = codec::encode_entry(entry);
            for (number, piece) in bytes.chunks(PIECE).enumerate() {
                let number = u16::try_from(number)
                    .map_err(|_| damaged(format!("an entry of {} bytes", bytes.len())))?;
                batch.insert(&key(entry.log_id.index, number), piece);
            }
        }
        self.log.apply_batch(batch).map_err(other)?;
        if let (Some(promised), Some(last)) = (&self.promised, entries.last()) {
            promised.lock().appended(last.log_id);
        }
        Ok(())
    }

    pub(crate) fn set_vote(&self, vote: &Vote) -> io::Result<()> {
        self.set_mark(VOTE, codec::to_json(vote))?;
        if let Some(promised) = &self.promised {
            promised.lock().voted(*vote);
        }
        Ok(())
    }

    pub(crate) fn set_committed(&self, committed: &Option<RaftLogId>) -> io::Result<()> {
        match committed {
            Some(committed) => self.set_mark(COMMITTED, codec::to_json(committed)),
            None => self.marks.remove(COMMITTED).map(drop).map_err(other),
        }
    }

    fn set_mark(&self, name: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.marks.insert(name, value).map(drop).map_err(other)
    }

    /// Takes away every entry from index `from` on, all or none of them.
    pub(crate) fn truncate(&self, from: u64) -> io::Result<()> {
        if let Some(promised) = &self.promised {
            let before = from.checked_sub(1);
            let before = before.map(|index| self.read(index, from, usize::MAX));
            let before = before.transpose()?.unwrap_or_default();
            let before = before.last().map(|entry| entry.log_id);
            promised.lock().cut(from, before)?;
        }
        let mut batch = sled::Batch::default();
        for pair in self.log.range(key(from, 0)..).keys() {
            batch.remove(pair.map_err(other)?);
        }
        self.log.apply_batch(batch).map_err(other)
    }

    /// Takes away every entry up to `purged`, after the marker that says so is durable.
    pub(crate) fn purge(&self, purged: &RaftLogId) -> io::Result<()> {
        self.set_mark(PURGED, codec::to_json(purged))?;
        self.sync()?;
        self.remove_up_to(purged.index)
    }

    fn remove_up_to(&self, index: u64) -> io::Result<()> {
        loop {
            let mut batch = sled::Batch::default();
            let mut found = 0;
            for pair in self.log.range(..key(index + 1, 0)).keys().take(PURGE_STEP) {
                batch.remove(pair.map_err(other)?);
                found += 1;
            }
            if found == 0 {
                return Ok(());
            }
            self.log.apply_batch(batch).map_err(other)?;
        }
    }

    /// On return, everything written before the call is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(power) = &self.power {
            power.before_sync()?;
        }
        self.db.flush().map_err(other)?;
        self.file.sync_data()?;
        #[cfg(test)]
        if let Some(power) = &self.power {
            power.after_sync()?;
        }
        match &self.promised {
            Some(promised) => promised.lock().kept(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_empty_a_directory_for_a_slow_disk() {
        let late = unanswered(Path::new("db"), &Unanswered::Late);
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(!late.to_string().contains("empty"), "{late}");
        let broken = unanswered(Path::new("db"), &Unanswered::Broken("gone".to_owned()));
        assert!(broken.to_string().contains(ADVICE), "{broken}");
    }
}
