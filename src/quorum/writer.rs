//! The one thread that writes the Raft log: operations are done in the order in which they came,
//! and whatever waits is made durable by one sync (group commit).

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::disk::Disk;
use crate::ids::{Entry, RaftLogId, TypeConfig, Vote};
use crate::log_store::LogState;

/// At most so many operations share a sync.
const GROUP: usize = 256;

pub(crate) enum Write {
    Append(Vec<Entry>, IOFlushed<TypeConfig>),
    Vote(Vote, Done),
    /// Nothing relies on it being durable: it only saves work after a restart.
    Committed(Option<RaftLogId>),
    /// Every entry from this index on goes.
    Truncate(u64, Done),
    Purge(RaftLogId, Done),
}

type Done = oneshot::Sender<io::Result<()>>;

enum Waiting {
    Append(IOFlushed<TypeConfig>),
    Done(Done),
}

impl Waiting {
    fn complete(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // The caller may be gone; then nobody relies on it.
            Self::Done(done) => drop(done.send(result)),
        }
    }
}

/// Errors are told to everyone who waits, each its own copy.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Runs until every sender is gone. After an error nothing is written any more (R13): what the
/// disk holds is then unknown, and the node has to start again.
pub(crate) fn run(disk: Arc<Disk>, state: Arc<Mutex<LogState>>, mut queue: mpsc::Receiver<Write>) {
    let mut failed: Option<io::Error> = None;
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = queue.blocking_recv() {
        #[cfg(test)]
        let _until_the_group_is_done = disk.power.as_ref().map(|power| power.working());
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        let mut waiting = Vec::with_capacity(group.len());
        for write in group.drain(..) {
            if failed.is_none()
                && let Err(error) = perform(&disk, &state, &write)
            {
                failed = Some(error);
            }
            match write {
                Write::Append(_, callback) => waiting.push(Waiting::Append(callback)),
                Write::Vote(_, done) | Write::Truncate(_, done) | Write::Purge(_, done) => {
                    waiting.push(Waiting::Done(done));
                }
                Write::Committed(_) => {}
            }
        }
        if failed.is_none()
            && !waiting.is_empty()
            && let Err(error) = disk.sync()
        {
            failed = Some(error);
        }
        for one in waiting {
            one.complete(failed.as_ref().map_or(Ok(()), |error| Err(copy(error))));
        }
    }
    if failed.is_none()
        && let Err(error) = disk.sync()
    {
        tracing::error!(%error, "the Raft log could not be synced when it was closed");
    }
}

fn perform(disk: &Disk, state: &Mutex<LogState>, write: &Write) -> io::Result<()> {
    match write {
        Write::Append(entries, _) => {
            disk.append(entries)?;
            if let Some(last) = entries.last() {
                state.lock().written(last.log_id.index);
            }
            Ok(())
        }
        Write::Vote(vote, _) => disk.set_vote(vote),
        Write::Committed(committed) => disk.set_committed(committed),
        Write::Truncate(from, _) => disk.truncate(*from),
        Write::Purge(purged, _) => disk.purge(purged),
    }
}
