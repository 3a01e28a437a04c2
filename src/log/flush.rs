//! Group commit: what was appended since the last sync is handed over as a ticket, synced by one
//! thread for all partitions of a directory, and reported back. Where the disk is slow it has
//! helpers: a disk takes several syncs at a time, and no log should wait for those before it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_types::{Offset, TopicPartition};
use tracing::{error, warn};

use crate::dir::{Dir, DirFile};
use crate::metrics::Flushes;

/// Above so many dirty files one sync of the whole file system is cheaper than one a file: a
/// thousand `fdatasync` took 51 ms where one `syncfs` took 5.
const SYNC_ALL_ABOVE: usize = 64;

/// Where one log's sync takes so long, starting threads for the others is cheap beside it.
const SLOW: Duration = Duration::from_millis(1);

/// Logs of a slow disk that are synced at a time.
const AT_A_TIME: usize = 8;

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
                let mut disk = Manner::default();
                while let Ok(first) = queue.recv() {
                    let mut group = vec![first];
                    group.extend(queue.try_iter());
                    let begun = Instant::now();
                    let done = sync_group(&*dir, group, &mut disk);
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

    /// Returns when everything submitted has been completed. Nothing more is taken.
    pub fn finish(&mut self) {
        self.tickets = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the flusher has panicked");
        }
    }
}

impl<D: Dir> Drop for Flusher<D> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What earlier groups have shown of the disk.
#[derive(Default)]
struct Manner {
    /// It was slow the last time.
    slow: bool,
    /// A sync of everything has met an error, and was told of it once: it may have been that of a
    /// log of another group, whose own sync would then succeed. A file's sync has the file's error.
    one_by_one: bool,
}

fn sync_group<D: Dir>(
    dir: &D,
    group: Vec<(TopicPartition, FlushTicket<D>)>,
    disk: &mut Manner,
) -> Vec<(TopicPartition, FlushDone)> {
    let files: usize = group.iter().map(|(_, ticket)| ticket.files.len()).sum();
    if files > SYNC_ALL_ABOVE && !disk.one_by_one {
        match dir.sync_all() {
            Ok(true) => {
                return group
                    .into_iter()
                    .map(|(id, ticket)| (id, ticket.done(None)))
                    .collect();
            }
            Ok(false) => {}
            Err(error) => {
                disk.one_by_one = true;
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
    sync_each(group, &mut disk.slow)
}

/// Syncs one log after the other, or several at a time where the disk was `slow` the last time;
/// notes whether it was this time.
fn sync_each<D: Dir>(
    group: Vec<(TopicPartition, FlushTicket<D>)>,
    slow: &mut bool,
) -> Vec<(TopicPartition, FlushDone)> {
    let helpers = match *slow {
        true => group.len().min(AT_A_TIME) - 1,
        false => 0,
    };
    let done = Mutex::new((Vec::with_capacity(group.len()), Duration::ZERO));
    let rest = Mutex::new(group.into_iter());
    let work = || {
        loop {
            let next = rest.lock().next();
            let Some((id, ticket)) = next else { return };
            let begun = Instant::now();
            let ended = ticket.run();
            let (done, longest) = &mut *done.lock();
            done.push((id, ended));
            *longest = begun.elapsed().max(*longest);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            let named = thread::Builder::new().name("quorate-flush-help".to_owned());
            if let Err(error) = named.spawn_scoped(scope, work) {
                // The work is done all the same, by fewer.
                warn!(%error, "no thread to help the flusher");
                break;
            }
        }
        work();
    });
    let (done, longest) = done.into_inner();
    *slow = longest >= SLOW;
    done
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;
    use crate::dir::OpenMode;
    use crate::os_dir::{OsDir, SlowDir};
    use crate::test_dir::TestDir;
    use quorate_types::{PartitionId, TopicId};

    const DELAY: Duration = Duration::from_millis(40);

    fn group<D: Dir>(dir: &Arc<D>, logs: u32) -> Vec<(TopicPartition, FlushTicket<D>)> {
        let ticket = |number: u32| {
            let file = dir.open(&number.to_string(), OpenMode::Append).unwrap();
            file.append(&[b"a"]).unwrap();
            let id = TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(number));
            let ticket = FlushTicket {
                dir: Arc::clone(dir),
                files: vec![Arc::new(file)],
                folder: (number == 1).then(|| "missing".to_owned()),
                end: Offset::new(u64::from(number)),
                generation: 0,
            };
            (id, ticket)
        };
        (0..logs).map(ticket).collect()
    }

    #[test]
    fn after_an_error_of_some_file_each_file_is_asked_for_its_own() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(TestDir::new(root.path()));
        let mut disk = Manner::default();
        let many = SYNC_ALL_ABOVE as u32 + 1;
        let failed = |done: &[(TopicPartition, FlushDone)]| {
            let failed = done.iter().filter(|(_, done)| done.error.is_some());
            failed.count()
        };
        let first = sync_group(&*dir, group(&dir, many), &mut disk);
        assert_eq!(failed(&first), first.len());
        let second = sync_group(&*dir, group(&dir, many), &mut disk);
        // The one whose folder is missing.
        assert_eq!(failed(&second), 1);
        assert_eq!(dir.syncs_of_all(), 1);
    }

    #[test]
    fn the_logs_of_a_slow_disk_do_not_wait_for_each_other() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(SlowDir::new(OsDir::new(root.path()), DELAY));
        let mut disk = Manner::default();
        assert_eq!(sync_group(&*dir, group(&dir, 2), &mut disk).len(), 2);
        assert!(disk.slow);
        let begun = Instant::now();
        let mut done = sync_group(&*dir, group(&dir, 8), &mut disk);
        assert!(begun.elapsed() < DELAY * 7, "{:?}", begun.elapsed());
        done.sort_by_key(|(id, _)| *id);
        let ends: Vec<_> = done.iter().map(|(_, done)| done.end.get()).collect();
        assert_eq!(ends, (0..8).collect::<Vec<_>>());
        // An error is that of its own log alone (R13).
        let failed = done.iter().filter(|(_, done)| done.error.is_some());
        assert_eq!(
            failed.map(|(_, done)| done.end.get()).collect::<Vec<_>>(),
            [1]
        );
    }
}
