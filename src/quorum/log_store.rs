//! The Raft log as openraft wants it: readable at once, durable when the callback says so.
//!
//! Invariants: all writes go through one thread in order; entries leave the cache only after
//! sled has them, so a reader always finds an entry that the log contains; a vote is durable
//! before it can be read.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::codec::entry_size;
use crate::disk::Disk;
use crate::ids::{Entry, RaftLogId, TypeConfig, Vote};
use crate::writer::{self, Write};

/// The newest entries stay in memory up to this size; followers that keep up never touch sled.
const CACHED_BYTES: usize = 8 << 20;
/// One append carries about this much at most.
const READ_BYTES: usize = 1 << 20;
const QUEUE: usize = 1024;

/// What is known of the log without reading it, and its newest entries.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    vote: Option<Vote>,
    committed: Option<RaftLogId>,
    purged: Option<RaftLogId>,
    last: Option<RaftLogId>,
    cache: BTreeMap<u64, Entry>,
    cached_bytes: usize,
}

impl LogState {
    /// sled has everything up to `index`: the oldest entries may leave the cache.
    pub(crate) fn written(&mut self, index: u64) {
        while self.cached_bytes > CACHED_BYTES
            && let Some(oldest) = self.cache.first_entry().filter(|e| *e.key() <= index)
        {
            self.cached_bytes -= entry_size(&oldest.remove());
        }
    }

    fn forget(&mut self, range: impl RangeBounds<u64>) {
        let gone: Vec<u64> = self.cache.range(range).map(|(index, _)| *index).collect();
        for index in gone {
            if let Some(entry) = self.cache.remove(&index) {
                self.cached_bytes -= entry_size(&entry);
            }
        }
    }
}

/// A handle on the log; openraft's core, its replication tasks and the state machine's worker
/// have one each.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    state: Arc<Mutex<LogState>>,
    queue: mpsc::Sender<Write>,
}

/// Keeps the writer thread; the log is closed when every [`LogStore`] is gone and this is joined.
pub(crate) struct LogCloser {
    disk: Arc<Disk>,
    thread: JoinHandle<()>,
}

impl LogCloser {
    /// Whether nobody but the writer thread can reach the log any more, and that one has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.thread.is_finished() && Arc::strong_count(&self.disk) == 1
    }
}

impl LogStore {
    /// Opens the log in `path` and starts its writer thread.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, LogCloser)> {
        let (disk, found) = Disk::open(path)?;
        let state = Arc::new(Mutex::new(LogState {
            vote: found.vote,
            committed: found.committed,
            purged: found.purged,
            last: found.last,
            ..LogState::default()
        }));
        let (queue, receiver) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("raft-log-writer".to_owned())
            .spawn({
                let (disk, state) = (disk.clone(), state.clone());
                move || writer::run(disk, state, receiver)
            })?;
        let closer = LogCloser {
            disk: disk.clone(),
            thread,
        };
        Ok((Self { disk, state, queue }, closer))
    }

    /// Whether neither an entry nor a vote was ever kept here.
    pub(crate) fn is_pristine(&self) -> bool {
        let state = self.state.lock();
        state.vote.is_none() && state.last.is_none()
    }

    /// Up to where the log was purged.
    pub(crate) fn purged(&self) -> Option<RaftLogId> {
        self.state.lock().purged
    }

    async fn write(&self, write: Write) -> io::Result<()> {
        self.queue.send(write).await.map_err(|_| stopped())
    }

    async fn write_durably(
        &self,
        write: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Write,
    ) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.write(write(done)).await?;
        result.await.map_err(|_| stopped())?
    }

    /// Entries of `from..end` that the log has, until `max_bytes` are reached but one at least.
    async fn read(&self, from: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let (from, end, cached, first_cached) = {
            let state = self.state.lock();
            let from = from.max(state.purged.map_or(0, |purged| purged.index + 1));
            let end = end.min(state.last.map_or(0, |last| last.index + 1));
            if from >= end {
                return Ok(Vec::new());
            }
            let first_cached = state.cache.keys().next().copied().unwrap_or(u64::MAX);
            let mut bytes = 0;
            // Where reading begins below the cache the limit is counted again further down.
            let cached: Vec<Entry> = state
                .cache
                .range(from..end)
                .map(|(_, entry)| entry)
                .take_while(|entry| {
                    let room = bytes < max_bytes;
                    bytes += entry_size(entry);
                    room
                })
                .cloned()
                .collect();
            (from, end, cached, first_cached)
        };
        if from >= first_cached {
            return Ok(cached);
        }
        let below = end.min(first_cached);
        let disk = self.disk.clone();
        let read = tokio::task::spawn_blocking(move || disk.read(from, below, max_bytes));
        let mut entries = read.await.map_err(io::Error::other)??;
        // Nothing there: the log begins with the cache.
        let whole = entries
            .last()
            .is_none_or(|entry| entry.log_id.index + 1 == below);
        let mut bytes: usize = entries.iter().map(entry_size).sum();
        if whole {
            for entry in cached {
                if bytes >= max_bytes {
                    break;
                }
                bytes += entry_size(&entry);
                entries.push(entry);
            }
        }
        check_consecutive(&entries)?;
        Ok(entries)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the Raft log's writer has ended")
}

fn check_consecutive(entries: &[Entry]) -> io::Result<()> {
    for pair in entries.windows(2) {
        if pair[0].log_id.index + 1 != pair[1].log_id.index {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the Raft log has a hole after {}: {} follows",
                    pair[0].log_id, pair[1].log_id
                ),
            ));
        }
    }
    Ok(())
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<openraft::LogState<TypeConfig>, io::Error> {
        let state = self.state.lock();
        Ok(openraft::LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write_durably(|done| Write::Vote(*vote, done)).await?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.state.lock().committed = committed;
        self.write(Write::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        check_consecutive(&entries)?;
        {
            let mut state = self.state.lock();
            for entry in &entries {
                state.cached_bytes += entry_size(entry);
                state.cache.insert(entry.log_id.index, entry.clone());
            }
            if let Some(last) = entries.last() {
                state.last = Some(last.log_id);
            }
        }
        self.write(Write::Append(entries, callback)).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        {
            let mut state = self.state.lock();
            state.forget(from..);
            if state.last > last {
                state.last = last.max(state.purged);
            }
        }
        self.write_durably(|done| Write::Truncate(from, done)).await
    }

    async fn purge(&mut self, purged: RaftLogId) -> Result<(), io::Error> {
        {
            let mut state = self.state.lock();
            state.forget(..=purged.index);
            state.purged = Some(purged);
            if state.last.is_none_or(|last| last.index < purged.index) {
                state.last = Some(purged);
            }
        }
        self.write_durably(|done| Write::Purge(purged, done)).await
    }
}
