//! The plane: the one thread that owns every hosted replica and its log.
//!
//! It takes mail in batches, lets the replicas concerned take it and settle once, carries out their
//! actions, and then publishes what changed. Appends happen here (page cache only); syncs happen on the flusher's
//! thread, whose completions come back as mail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_log::{DataDirectory, FlushDone, Flusher, TailBudget};
use quorate_metadata::{DamagedReplica, MetadataImage};
use quorate_quorum::QuorumHandle;
use quorate_replication::{
    Action, Context, Event, LeaderMessage, ProduceError, Produced, Replica, RequestId, Status,
    StreamId, StreamRoom, Timing,
};
use quorate_types::{BrokerEpoch, NodeId, TopicPartition};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{error, warn};

use crate::Disk;
use crate::broker::BrokerError;
use crate::clock::{Clock, ControllerContact};
use crate::hosted::{Hosted, Published, Registry};
use crate::leader_links::{LeaderLinks, Sent};
use crate::mailbox::{Inbox, Mail, Mailbox};
use crate::metrics::Produces;
use crate::proposals::Proposals;
use crate::stream::FollowerStream;
use crate::unmade::Unmade;

/// Mail taken before changes are published.
const BATCH: usize = 512;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(10);

/// A replica and what readers see of it.
pub(crate) struct Slot {
    pub(crate) replica: Replica<Disk>,
    pub(crate) hosted: Arc<Hosted>,
}

/// A produce that waits for its acknowledgement.
struct Waiting {
    answer: oneshot::Sender<Result<Produced, ProduceError>>,
    /// Bytes and records, and when it was taken: for the figures.
    size: (usize, u32),
    taken: Duration,
    _permit: OwnedSemaphorePermit,
}

struct Streams(BTreeMap<StreamId, FollowerStream>);

impl StreamRoom for Streams {
    fn room(&self, stream: StreamId) -> usize {
        self.0.get(&stream).map_or(0, FollowerStream::room)
    }
}

/// What the plane is made of.
pub(crate) struct PlaneParts {
    pub(crate) me: NodeId,
    pub(crate) timing: Timing,
    pub(crate) grace: Duration,
    pub(crate) directory: Arc<DataDirectory>,
    pub(crate) registry: Registry,
    pub(crate) tails: Arc<TailBudget>,
    pub(crate) links: LeaderLinks,
    pub(crate) quorum: QuorumHandle,
    pub(crate) runtime: Handle,
    pub(crate) mailbox: Mailbox,
    pub(crate) clock: Clock,
    pub(crate) contact: ControllerContact,
}

pub(crate) struct Plane {
    pub(crate) me: NodeId,
    pub(crate) my_epoch: Option<BrokerEpoch>,
    pub(crate) timing: Timing,
    pub(crate) grace: Duration,
    pub(crate) directory: Arc<DataDirectory>,
    pub(crate) registry: Registry,
    pub(crate) tails: Arc<TailBudget>,
    links: LeaderLinks,
    flusher: Flusher<Disk>,
    pub(crate) proposals: Proposals,
    pub(crate) clock: Clock,
    contact: ControllerContact,
    pub(crate) image: Arc<MetadataImage>,
    pub(crate) slots: BTreeMap<TopicPartition, Slot>,
    streams: Streams,
    waiting: BTreeMap<RequestId, Waiting>,
    /// Given after the state that they speak of is published: what is acknowledged is readable.
    answers: Vec<(RequestId, Result<Produced, ProduceError>)>,
    next_request: u64,
    produces: Produces,
    pub(crate) subscriptions: Arc<AtomicU64>,
    /// Replicas stepped since the last publication.
    pub(crate) touched: BTreeSet<TopicPartition>,
    /// Replicas that have taken something and have not settled.
    unsettled: BTreeSet<TopicPartition>,
    /// Bytes of the batches that those have taken.
    gathered: usize,
    actions: Vec<Action<Disk>>,
    /// Links found broken while sending: told to the followers after the step.
    broken: BTreeSet<NodeId>,
    pub(crate) strays_swept: bool,
    /// Found damaged by recovery, until the registration that tells of it is applied.
    pub(crate) damaged: Vec<TopicPartition>,
    pub(crate) unmade: Unmade,
}

impl Plane {
    /// Opens every partition in the directory; tells which replicas are damaged (R9), and how.
    pub(crate) fn recover(parts: PlaneParts) -> Result<(Self, Vec<DamagedReplica>), BrokerError> {
        let completions = parts.mailbox.clone();
        let flusher = Flusher::start(parts.directory.dir(), move |done| {
            completions.notify(Mail::Flushed(done));
        })?;
        let proposals = Proposals::new(parts.quorum.clone(), parts.runtime, parts.mailbox);
        let mut plane = Self {
            me: parts.me,
            my_epoch: None,
            timing: parts.timing,
            grace: parts.grace,
            directory: parts.directory,
            registry: parts.registry,
            tails: parts.tails,
            links: parts.links,
            flusher,
            proposals,
            clock: parts.clock,
            contact: parts.contact,
            image: Arc::new(MetadataImage::new()),
            slots: BTreeMap::new(),
            streams: Streams(BTreeMap::new()),
            waiting: BTreeMap::new(),
            answers: Vec::new(),
            next_request: 0,
            produces: Produces::new(),
            subscriptions: Arc::new(AtomicU64::new(1)),
            touched: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            gathered: 0,
            actions: Vec::new(),
            broken: BTreeSet::new(),
            strays_swept: false,
            damaged: Vec::new(),
            unmade: Unmade::default(),
        };
        let damaged = plane.open_found()?;
        Ok((plane, damaged))
    }

    /// Runs until told to stop or until every mailbox is gone.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mail = Vec::with_capacity(BATCH);
        let mut ticked = self.clock.now();
        loop {
            let first = tokio::select! {
                biased;
                notice = inbox.notices.recv() => match notice {
                    Some(notice) => Some(notice),
                    None => return,
                },
                request = inbox.requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                _ = tick.tick() => None,
            };
            mail.extend(first);
            while let Ok(notice) = inbox.notices.try_recv() {
                mail.push(notice);
            }
            while mail.len() < BATCH
                && let Ok(request) = inbox.requests.try_recv()
            {
                mail.push(request);
            }
            let mut batch = mail.drain(..);
            while let Some(mail) = batch.next() {
                if let Mail::Stop(stopped) = mail {
                    let _gone = stopped.send(self.stop(batch, &mut inbox));
                    return;
                }
                self.take(mail);
            }
            drop(batch);
            self.settle();
            // Looked at by the clock, not by the interval: mail without end must not starve it.
            let now = self.clock.now();
            if now.saturating_sub(ticked) >= TICK {
                ticked = now;
                self.tick(now);
            }
            self.tell_broken();
            self.publish();
            self.answer();
        }
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Image(image) => self.take_image(image),
            Mail::Registered(epoch) => {
                self.my_epoch = Some(epoch);
                self.damage_told();
                let all: Vec<_> = self.slots.keys().copied().collect();
                self.show(&all);
            }
            Mail::Produce {
                call,
                deadline,
                answer,
                permit,
                sent,
            } => {
                let partition = call.partition;
                let now = self.clock.now();
                self.produces.taken(now.saturating_sub(sent));
                if !self.slots.contains_key(&partition) {
                    let _gone = answer.send(Err(ProduceError::NotLeader));
                    return;
                }
                self.next_request += 1;
                let id = RequestId(self.next_request);
                self.waiting.insert(
                    id,
                    Waiting {
                        answer,
                        size: (call.batch.size(), call.batch.header().record_count),
                        taken: now,
                        _permit: permit,
                    },
                );
                self.gathered += call.batch.size();
                let produce = quorate_replication::Produce {
                    id,
                    batch: call.batch,
                    acks: call.acks,
                    deadline,
                    current_epoch: call.current_epoch,
                };
                self.feed(partition, Event::Produce(produce));
            }
            Mail::FollowerStreamOpened { stream, outgoing } => {
                self.streams.0.insert(stream, outgoing);
            }
            Mail::FollowerStreamClosed { stream } => {
                self.streams.0.remove(&stream);
                self.step_all(|| Event::FollowerStreamClosed { stream });
            }
            Mail::FromFollower {
                stream,
                from,
                message,
            } => {
                // The end of a stream overtakes what it still held: nothing of that counts.
                if self.streams.0.contains_key(&stream) {
                    let partition = message.partition();
                    let event = Event::FromFollower {
                        stream,
                        from,
                        message,
                    };
                    self.feed(partition, event);
                }
            }
            Mail::RoomAgain { stream } => {
                let all: Vec<_> = self.slots.keys().copied().collect();
                for partition in all {
                    self.feed(partition, Event::RoomAgain { stream });
                }
            }
            Mail::LeaderStreamOpened {
                leader,
                link,
                outgoing,
            } => {
                if self.links.opened(leader, link, outgoing) {
                    self.step_all(|| Event::LeaderStreamOpened { leader });
                }
            }
            Mail::LeaderStreamClosed { leader, link } => {
                if self.links.closed(leader, link) {
                    self.step_all(|| Event::LeaderStreamClosed { leader });
                }
            }
            Mail::FromLeader {
                from,
                link,
                message,
            } => {
                if self.links.is_current(from, link) {
                    if let LeaderMessage::Batches(batches) = &message {
                        self.gathered += batches.bytes.len();
                    }
                    self.feed(message.partition(), Event::FromLeader { from, message });
                }
            }
            Mail::Unreadable { partition, why } => {
                if let Some(slot) = self.slots.get(&partition) {
                    slot.hosted.unreadable.store(false, Ordering::Release);
                }
                self.step(partition, Event::Unreadable { why });
            }
            Mail::Flushed(done) => {
                for (partition, done) in done {
                    self.feed(partition, Event::Flushed(done));
                }
            }
            Mail::Proposed {
                partition,
                id,
                result,
            } => {
                self.unmade.proposed(&partition, id, &result);
                self.step(partition, Event::Proposed { id, result });
            }
            Mail::Stop(_) => unreachable!("the loop takes Stop itself"),
        }
    }

    /// Steps one hosted replica, which settles at once.
    pub(crate) fn step(&mut self, partition: TopicPartition, event: Event) {
        self.unsettled.remove(&partition);
        self.act(partition, |replica, cx, out| replica.step(cx, event, out));
    }

    /// Gives a hosted replica one of the many events of the data's way; it settles once for all of
    /// those in the mail at hand, or where a full message for its followers has been gathered.
    fn feed(&mut self, partition: TopicPartition, event: Event) {
        self.act(partition, |replica, cx, out| replica.take(cx, event, out));
        self.unsettled.insert(partition);
        if self.gathered >= self.timing.push_bytes {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.gathered = 0;
        while let Some(partition) = self.unsettled.pop_first() {
            self.act(partition, |replica, cx, out| replica.settle(cx, out));
        }
    }

    /// Lets a hosted replica act and carries out what it decides; what is for one that is not
    /// hosted (any more) is dropped.
    fn act(
        &mut self,
        partition: TopicPartition,
        act: impl FnOnce(&mut Replica<Disk>, &Context<'_>, &mut Vec<Action<Disk>>),
    ) {
        let Some(slot) = self.slots.get_mut(&partition) else {
            return;
        };
        let cx = Context {
            now: self.clock.now(),
            wall: Clock::wall(),
            controller_contact: self.contact.last(),
            streams: &self.streams,
        };
        act(&mut slot.replica, &cx, &mut self.actions);
        self.touched.insert(partition);
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.carry_out(partition, action);
        }
        self.actions = actions;
    }

    fn step_all(&mut self, event: impl Fn() -> Event) {
        let all: Vec<_> = self.slots.keys().copied().collect();
        for partition in all {
            self.step(partition, event());
        }
    }

    pub(crate) fn carry_out(&mut self, partition: TopicPartition, action: Action<Disk>) {
        match action {
            Action::ToFollower { stream, message } => {
                if let Some(outgoing) = self.streams.0.get(&stream)
                    && !outgoing.send(message)
                {
                    warn!(
                        ?stream,
                        "follower's stream ended: it is closed or far behind"
                    );
                    // The edge notices that its end yields nothing more and tells of the close.
                    self.streams.0.remove(&stream);
                }
            }
            Action::ToLeader { leader, message } => {
                let endpoint = self.image.broker(leader).map(|broker| &broker.internal);
                if self.links.send(leader, endpoint, message) == Sent::Broken {
                    self.broken.insert(leader);
                }
            }
            Action::Propose { id, command } => self.proposals.propose(partition, id, command),
            Action::Answer { id, result } => self.answers.push((id, result)),
            Action::Flush(ticket) => self.flusher.submit(partition, ticket),
            Action::Status => {
                if let Some(slot) = self.slots.get(&partition) {
                    *slot.hosted.epochs.write() = slot.replica.log().epochs().clone();
                    *slot.hosted.losses.write() = slot.replica.losses().to_vec();
                }
            }
        }
    }

    /// Tells followers of streams that broke while they were sending; their backoff opens anew.
    fn tell_broken(&mut self) {
        for leader in std::mem::take(&mut self.broken) {
            self.step_all(|| Event::LeaderStreamClosed { leader });
        }
    }

    fn tick(&mut self, now: Duration) {
        let due: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.replica.next_deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for partition in due {
            self.step(partition, Event::Tick);
        }
        self.try_unmade(now);
    }

    fn publish(&mut self) {
        for partition in std::mem::take(&mut self.touched) {
            let Some(slot) = self.slots.get(&partition) else {
                continue;
            };
            let state = published(&slot.replica);
            slot.hosted.state.send_if_modified(|old| {
                let changed = *old != state;
                *old = state;
                changed
            });
        }
    }

    fn answer(&mut self) {
        let now = self.clock.now();
        for (id, result) in self.answers.drain(..) {
            if let Some(waiting) = self.waiting.remove(&id) {
                let took = now.saturating_sub(waiting.taken);
                self.produces.answered(&result, waiting.size, took);
                let _gone = waiting.answer.send(result);
            }
        }
    }

    /// Closes every log; says whether all of them closed well. Of the mail that is left only the
    /// ends of flushes are taken: an error that one of them met no later sync is told of (R13).
    fn stop(&mut self, left: impl Iterator<Item = Mail>, inbox: &mut Inbox) -> bool {
        self.settle();
        self.publish();
        self.answer();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            let _gone = waiting.answer.send(Err(ProduceError::LeadershipLost));
        }
        self.flusher.finish();
        let noticed = std::iter::from_fn(|| inbox.notices.try_recv().ok());
        let mut flushed: BTreeMap<TopicPartition, FlushDone> = left
            .chain(noticed)
            .filter_map(|mail| match mail {
                Mail::Flushed(done) => Some(done),
                _ => None,
            })
            .flatten()
            .collect();
        let mut closed = true;
        for (id, slot) in std::mem::take(&mut self.slots) {
            self.registry.remove(&id);
            slot.hosted.retire();
            let mut log = slot.replica.into_log();
            let name = log.name().to_owned();
            let last = flushed.remove(&id).map(|done| log.complete_flush(done));
            if let Err(error) = last.unwrap_or(Ok(())).and_then(|()| log.close()) {
                error!(partition = %name, %error, "a log could not be closed cleanly");
                closed = false;
            }
        }
        closed
    }
}

fn published(replica: &Replica<Disk>) -> Published {
    let log = replica.log();
    let (leading, leader_epoch) = match replica.status() {
        Status::Leader {
            epoch, epoch_start, ..
        } => (Some((epoch, epoch_start)), epoch),
        Status::Follower { epoch, .. } => (None, epoch),
        Status::Idle | Status::Damaged => (None, log.last_epoch().unwrap_or_default()),
    };
    Published {
        leading,
        leader_epoch,
        log_start: log.log_start(),
        log_end: log.log_end(),
        high_watermark: log.high_watermark(),
        unclean: replica.unclean_epoch().map(|epoch| {
            let loss = replica.losses().last().copied();
            (epoch, loss)
        }),
    }
}
