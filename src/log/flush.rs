//! Group commit: what was appended since the last sync is handed over as a ticket, synced by one
//! thread for all partitions of a directory, and reported back.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use quorate_types::{Offset, TopicPartition};
use tracing::error;

use crate::dir::{Dir, DirFile};
use crate::metrics::Flushes;

/// Above so many dirty files one sync of the whole file system is cheaper than one a file: a
/// thousand `fdatasync` took 51 ms where one `syncfs` took 5.
const SYNC_ALL_ABOVE: usize = 64;

/// What is to be synced for one log.
pub struct FlushTicket<D: Dir> {
    pub(crate) dir: Arc<D>,
    pub(crate) files: Vec<Arc<D::File>>,
    /// A directory whose names changed.
    pub(crate) folder: Option<String>,
    pub(crate) end: Offset,
    pub(crate) generation: u64,
}

/// How a flush ended.
#[derive(Debug)]
pub struct FlushDone {
    /// Everything below is on the disk, where there was no error.
    pub end: Offset,
    /// Truncations of the log before the flush began; completions of an older generation are
    /// ignored.
    pub generation: u64,
    /// The disk's error: what was to be flushed must be taken for lost (R13).
    pub error: Option<io::Error>,
}

impl<D: Dir> FlushTicket<D> {
    /// Syncs; blocks on the disk.
    pub fn run(self) -> FlushDone {
        let error = self.sync().err();
        FlushDone {
            end: self.end,
            generation: self.generation,
            error,
        }
    }

    fn sync(&self) -> io::Result<()> {
        for file in &self.files {
            file.sync_data()?;
        }
        match &self.folder {
            Some(folder) => self.dir.sync_dir(folder),
            None => Ok(()),
        }
    }

    fn done(&self, error: Option<io::Error>) -> FlushDone {
        FlushDone {
            end: self.end,
            generation: self.generation,
            error,
        }
    }
}

/// The thread that syncs for every log of a directory. Ends when it is dropped, after what was
/// submitted.
pub struct Flusher<D: Dir> {
    // At most one ticket a log is under way, so the channel is bounded by the number of logs.
    tickets: Option<mpsc::Sender<(TopicPartition, FlushTicket<D>)>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: Dir> Flusher<D> {
    /// Starts the thread; `completed` is called on it with each group.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        dir: Arc<D>,
        completed: impl Fn(Vec<(TopicPartition, FlushDone)>) + Send + 'static,
    ) -> io::Result<Self> {
        let (tickets, queue) = mpsc::channel::<(TopicPartition, FlushTicket<D>)>();
        let thread = std::thread::Builder::new()
            .name("quorate-flush".to_owned())
            .spawn(move || {
                let flushes = Flushes::new();
                while let Ok(first) = queue.recv() {
                    let mut group = vec![first];
                    group.extend(queue.try_iter());
                    let begun = Instant::now();
                    let done = sync_group(&*dir, group);
                    let errors = done.iter().filter(|(_, done)| done.error.is_some());
                    flushes.done(done.len(), errors.count(), begun.elapsed());
                    completed(done);
                }
            })?;
        Ok(Self {
            tickets: Some(tickets),
            thread: Some(thread),
        })
    }

    /// Hands over a flush.
    pub fn submit(&self, id: TopicPartition, ticket: FlushTicket<D>) {
        if let Some(tickets) = &self.tickets
            && tickets.send((id, ticket)).is_err()
        {
            error!(partition = %id, "the flusher has died");
        }
    }
}

impl<D: Dir> Drop for Flusher<D> {
    fn drop(&mut self) {
        self.tickets = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the flusher has panicked");
        }
    }
}

fn sync_group<D: Dir>(
    dir: &D,
    group: Vec<(TopicPartition, FlushTicket<D>)>,
) -> Vec<(TopicPartition, FlushDone)> {
    let files: usize = group.iter().map(|(_, ticket)| ticket.files.len()).sum();
    if files > SYNC_ALL_ABOVE {
        match dir.sync_all() {
            Ok(true) => {
                return group
                    .into_iter()
                    .map(|(id, ticket)| (id, ticket.done(None)))
                    .collect();
            }
            Ok(false) => {}
            Err(error) => {
                let same = |ticket: &FlushTicket<D>| {
                    ticket.done(Some(io::Error::new(error.kind(), error.to_string())))
                };
                return group
                    .iter()
                    .map(|(id, ticket)| (*id, same(ticket)))
                    .collect();
            }
        }
    }
    group
        .into_iter()
        .map(|(id, ticket)| (id, ticket.run()))
        .collect()
}
