//! The shipped cores under one set of planted faults, behind a trait object: so that the simulator
//! itself is compiled once, however many sets there are.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use quorate_group::{Coordinator, GroupTiming};
use quorate_log::{
    Dir, Entry, FlushDone, LogError, LogOptions, OpenMode, PartitionLog, ReadError,
    RecoveryContext, RecoveryReport,
};
use quorate_metadata::{Applied, Command, Envelope, LogId, MetadataImage};
use quorate_replication::{
    Action, Context, Event, FollowerMessage, LeaderMessage, ProduceError, Produced, ProposalId,
    Replica, RequestId, Status, StreamId, Timing,
};
use quorate_types::{Faults, NodeId, Offset, TopicPartition};

use super::disk::{SimDisk, SimFile};

/// A flush to be run.
pub(super) type Flush = Box<dyn FnOnce() -> FlushDone>;

/// What a replica wants done: its actions, whatever disk it is on.
pub(super) enum Act {
    ToFollower {
        stream: StreamId,
        message: LeaderMessage,
    },
    ToLeader {
        leader: NodeId,
        message: FollowerMessage,
    },
    Propose {
        id: ProposalId,
        command: Command,
    },
    Answer {
        id: RequestId,
        result: Result<Produced, ProduceError>,
    },
    Flush(Flush),
    Status,
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Positions {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flushed: u64,
    pub(super) high_watermark: u64,
    pub(super) generation: u64,
}

/// One shipped replica over one shipped log.
pub(super) trait Core {
    fn take(&mut self, cx: &Context<'_>, event: Event, out: &mut Vec<Act>);
    fn settle(&mut self, cx: &Context<'_>, out: &mut Vec<Act>);
    fn abandon(&mut self, out: &mut Vec<Act>);
    fn set_log_options(&mut self, options: LogOptions);
    fn status(&self) -> Status;
    fn next_deadline(&self) -> Duration;
    fn positions(&self) -> Positions;
    fn read(&self, from: Offset, to: Offset, max: usize) -> Result<Bytes, ReadError>;
    fn damage_told(&self) -> Result<(), LogError>;
    fn close(self: Box<Self>, flushed: Option<FlushDone>) -> Result<(), LogError>;
}

/// Who opens a replica, and how.
pub(super) struct Making {
    pub(super) me: NodeId,
    pub(super) id: TopicPartition,
    pub(super) timing: Timing,
    pub(super) options: LogOptions,
    pub(super) recovery: RecoveryContext,
    pub(super) subscriptions: Arc<AtomicU64>,
}

type Opened = Result<(Box<dyn Core>, RecoveryReport), LogError>;

/// The shipped code under one set of faults.
#[derive(Clone, Copy)]
pub(super) struct Cores {
    pub(super) open: fn(&SimDisk, &str, Making) -> Opened,
    pub(super) apply: fn(&mut MetadataImage, &Envelope, LogId) -> Applied,
    pub(super) coordinator: fn(NodeId, GroupTiming, Duration) -> Coordinator,
}

impl Cores {
    pub(super) fn of<F: Faults>() -> Self {
        Self {
            open: open::<F>,
            apply: MetadataImage::apply_with::<F>,
            coordinator: Coordinator::new_with::<F>,
        }
    }
}

fn open<F: Faults>(disk: &SimDisk, path: &str, making: Making) -> Opened {
    let dir = Arc::new(FaultyDisk::<F>(disk.clone(), PhantomData));
    let (log, report) = PartitionLog::open(dir, path, making.options, making.recovery)?;
    let Making {
        me,
        id,
        timing,
        subscriptions,
        ..
    } = making;
    let replica = Replica::<_, F>::new(me, id, log, timing, subscriptions);
    let slot = Held {
        replica,
        actions: Vec::new(),
    };
    Ok((Box::new(slot), report))
}

struct Held<F: Faults> {
    replica: Replica<FaultyDisk<F>, F>,
    actions: Vec<Action<FaultyDisk<F>>>,
}

impl<F: Faults> Held<F> {
    fn pass_on(&mut self, out: &mut Vec<Act>) {
        for action in self.actions.drain(..) {
            out.push(match action {
                Action::ToFollower { stream, message } => Act::ToFollower { stream, message },
                Action::ToLeader { leader, message } => Act::ToLeader { leader, message },
                Action::Propose { id, command } => Act::Propose { id, command },
                Action::Answer { id, result } => Act::Answer { id, result },
                Action::Flush(ticket) => Act::Flush(Box::new(move || ticket.run())),
                Action::Status => Act::Status,
            });
        }
    }
}

impl<F: Faults> Core for Held<F> {
    fn take(&mut self, cx: &Context<'_>, event: Event, out: &mut Vec<Act>) {
        self.replica.take(cx, event, &mut self.actions);
        self.pass_on(out);
    }

    fn settle(&mut self, cx: &Context<'_>, out: &mut Vec<Act>) {
        self.replica.settle(cx, &mut self.actions);
        self.pass_on(out);
    }

    fn abandon(&mut self, out: &mut Vec<Act>) {
        self.replica.abandon(&mut self.actions);
        self.pass_on(out);
    }

    fn set_log_options(&mut self, options: LogOptions) {
        self.replica.set_log_options(options);
    }

    fn status(&self) -> Status {
        self.replica.status()
    }

    fn next_deadline(&self) -> Duration {
        self.replica.next_deadline().unwrap_or(Duration::MAX)
    }

    fn positions(&self) -> Positions {
        let log = self.replica.log();
        Positions {
            start: log.log_start().get(),
            end: log.log_end().get(),
            flushed: log.flushed_end().get(),
            high_watermark: log.high_watermark().get(),
            generation: log.generation(),
        }
    }

    fn read(&self, from: Offset, to: Offset, max: usize) -> Result<Bytes, ReadError> {
        self.replica.log().reader().read(from, to, max)
    }

    fn damage_told(&self) -> Result<(), LogError> {
        self.replica.log().damage_told()
    }

    fn close(self: Box<Self>, flushed: Option<FlushDone>) -> Result<(), LogError> {
        let mut log = self.replica.into_log();
        let last = flushed.map(|done| log.complete_flush(done));
        last.unwrap_or(Ok(())).and_then(|()| log.close())
    }
}

/// The simulated disk, with the logs on it under planted faults.
struct FaultyDisk<F>(SimDisk, PhantomData<fn() -> F>);

impl<F: Faults> Dir for FaultyDisk<F> {
    type File = SimFile;
    type Faults = F;

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<SimFile> {
        self.0.open(path, mode)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.0.list(path)
    }
}
