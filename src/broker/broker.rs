//! The broker as the edges use it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_group::GroupTiming;
use quorate_log::{DataDirectory, LogError, TailBudget};
use quorate_metadata::RegisterBroker;
use quorate_quorum::QuorumHandle;
use quorate_record::Batch;
use quorate_replication::{FollowerMessage, ProduceError, StreamId, Timing};
use quorate_types::{
    BrokerEpoch, Endpoint, Incarnation, LeaderEpoch, NodeId, Offset, TopicPartition,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span};

use crate::calls::{
    FetchCall, FetchError, Fetched, Holder, ListedOffset, OffsetPosition, PendingProduce,
    ProduceCall, Waiter,
};
use crate::clock::{Clock, ControllerContact};
use crate::fetch;
use crate::fetch_room::FetchRoom;
use crate::groups::Groups;
use crate::hosted::{HostedPartition, Registry};
use crate::leader_links::LeaderLinks;
use crate::lifecycle::{Lifecycle, LifecycleConfig, ShutdownOutcome, is_active};
use crate::mailbox::{Mail, Mailbox, mailbox};
use crate::metrics::Fetches;
use crate::plane::{Plane, PlaneParts};
use crate::stream::{FollowerOutgoing, follower_stream};
use crate::transport::{ControllerLink, ReplicationTransport};

/// What a broker is started with.
pub struct BrokerConfig {
    /// This node.
    pub node: NodeId,
    /// Timings of the protocol.
    pub timing: Timing,
    /// Timings of registration and session.
    pub lifecycle: LifecycleConfig,
    /// Where clients reach this node.
    pub client: Endpoint,
    /// Where nodes reach this node.
    pub internal: Endpoint,
    /// Directories of deleted partitions are kept so long.
    pub delete_grace: Duration,
    /// Its rack, if any.
    pub rack: Option<String>,
    /// Bytes of batches that may wait for acknowledgement; further produces wait for room, and so
    /// many bytes of those that come one by one, not in a stream.
    pub produce_bytes: usize,
    /// Bytes of answers to fetches that may be under way; further ones are small, then wait.
    pub fetch_bytes: usize,
    /// Bytes of the newest batches of all partitions together that are kept in memory.
    pub tail_cache_bytes: usize,
    /// Times and bounds of consumer groups.
    pub groups: GroupTiming,
}

/// Why a broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The logs could not be opened.
    #[error("recovering the logs failed: {0}")]
    Recovery(#[from] LogError),
    /// The thread could not be started.
    #[error("starting a thread failed: {0}")]
    Thread(#[from] std::io::Error),
}

/// Batches that are brought under their topic's codec at a time, and what the records of one may
/// take meanwhile.
const RECOMPRESSING: usize = 4;
/// Lookups by timestamp at a time: each may decompress a batch.
const LOOKING_UP: usize = 4;
const DECOMPRESSED_MAX: usize = 64 << 20;

struct Shared {
    incarnation: Incarnation,
    node: NodeId,
    session_timeout: Duration,
    registry: Registry,
    mailbox: Mailbox,
    quorum: QuorumHandle,
    clock: Clock,
    contact: ControllerContact,
    produce_room: Arc<Semaphore>,
    /// Bytes of produces that wait for room and are counted nowhere else.
    produce_waiting: Semaphore,
    produce_bytes: usize,
    room_wait: metrics::Histogram,
    fetches: Fetches,
    fetch_room: FetchRoom,
    groups: Groups,
    tails: Arc<TailBudget>,
    /// Lookups by timestamp at a time.
    looking_up: Semaphore,
    /// Batches that are brought under their topic's codec at a time.
    recompressing: Semaphore,
    next_stream: std::sync::atomic::AtomicU64,
    epoch: watch::Receiver<Option<BrokerEpoch>>,
    wants_shutdown: watch::Sender<bool>,
    may_stop: watch::Receiver<bool>,
    failure: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
    plane: Mutex<Option<std::thread::JoinHandle<()>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Something bounded that fills up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// What it holds.
    pub name: &'static str,
    /// How much it holds.
    pub used: usize,
    /// How much it may.
    pub limit: usize,
}

/// A running broker. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

impl Broker {
    /// Begins to recover the logs; registers with the quorum and serves when that is done, while
    /// the rest of the node, Raft above all, is served already. The internal listener must be open.
    /// What goes wrong later is told by [`Self::died`].
    ///
    /// # Errors
    /// [`BrokerError`] when the system gives no thread.
    pub fn start(
        config: BrokerConfig,
        directory: Arc<DataDirectory>,
        quorum: QuorumHandle,
        transport: Arc<dyn ReplicationTransport>,
        link: Arc<dyn ControllerLink>,
    ) -> Result<Self, BrokerError> {
        let (mailbox, inbox) = mailbox();
        let clock = Clock::new();
        let contact = ControllerContact::default();
        let registry = Registry::default();
        let cancel = CancellationToken::new();
        let tails = TailBudget::new(config.tail_cache_bytes);
        let runtime = Handle::current();
        let parts = PlaneParts {
            me: config.node,
            timing: config.timing,
            grace: config.delete_grace,
            directory: Arc::clone(&directory),
            registry: registry.clone(),
            tails: Arc::clone(&tails),
            links: LeaderLinks::new(transport, runtime.clone(), mailbox.clone(), cancel.clone()),
            quorum: quorum.clone(),
            runtime,
            mailbox: mailbox.clone(),
            clock,
            contact: contact.clone(),
        };
        let (recovered, recovery) = oneshot::channel();
        let plane = std::thread::Builder::new()
            .name("quorate-plane".to_owned())
            .spawn(move || match Plane::recover(parts) {
                Ok((plane, damaged)) => {
                    let _gone = recovered.send(Ok(damaged));
                    let local = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build();
                    match local {
                        Ok(local) => local.block_on(plane.run(inbox)),
                        Err(error) => error!(%error, "the plane has no runtime"),
                    }
                }
                Err(error) => {
                    let _gone = recovered.send(Err(error));
                }
            })?;
        let (failed, failure) = watch::channel(None);
        let (epoch, epoch_seen) = watch::channel(None);
        let (wants_shutdown, shutdown_wanted) = watch::channel(false);
        let (may_stop, released) = watch::channel(false);
        let lifecycle = Lifecycle {
            registration: RegisterBroker {
                node: config.node,
                directory: directory.directory_id(),
                incarnation: directory.incarnation(),
                boot: directory.boot_id(),
                clean_epoch: directory.clean_epoch(),
                damaged: Vec::new(),
                client: config.client,
                internal: config.internal,
                rack: config.rack,
                min_level: quorate_metadata::MIN_LEVEL,
                max_level: quorate_metadata::MAX_LEVEL,
            },
            link,
            quorum: quorum.clone(),
            registry: registry.clone(),
            clock,
            contact: contact.clone(),
            cancel: cancel.clone(),
            epoch,
            wants_shutdown: shutdown_wanted,
            may_stop,
            config: config.lifecycle.clone(),
        };
        let live = async move {
            match recovery.await {
                Ok(Ok(damaged)) => lifecycle.run(damaged).await,
                Ok(Err(error)) => {
                    failed.send_replace(Some(error.to_string()));
                }
                Err(_died) => {
                    failed.send_replace(Some("a log could not be recovered".to_owned()));
                }
            }
        };
        let (groups, coordinator, asked) =
            Groups::new(quorum.clone(), clock, contact.clone(), config.groups);
        let coordinate = coordinator.run(asked, cancel.clone());
        let tasks = vec![
            tokio::spawn(coordinate.instrument(info_span!("groups"))),
            tokio::spawn(live.instrument(info_span!("lifecycle"))),
            tokio::spawn(
                follow_metadata(
                    quorum.clone(),
                    epoch_seen.clone(),
                    mailbox.clone(),
                    cancel.clone(),
                )
                .instrument(info_span!("metadata")),
            ),
        ];
        Ok(Self {
            shared: Arc::new(Shared {
                incarnation: directory.incarnation(),
                node: config.node,
                session_timeout: config.lifecycle.session_timeout,
                registry,
                mailbox,
                quorum,
                clock,
                contact,
                produce_room: Arc::new(Semaphore::new(config.produce_bytes)),
                produce_waiting: Semaphore::new(config.produce_bytes),
                produce_bytes: config.produce_bytes,
                room_wait: crate::metrics::room(),
                fetches: Fetches::new(),
                tails,
                fetch_room: FetchRoom::new(config.fetch_bytes),
                groups,
                looking_up: Semaphore::new(LOOKING_UP),
                recompressing: Semaphore::new(RECOMPRESSING),
                next_stream: std::sync::atomic::AtomicU64::new(1),
                epoch: epoch_seen,
                wants_shutdown,
                may_stop: released,
                failure,
                cancel,
                plane: Mutex::new(Some(plane)),
                tasks: Mutex::new(tasks),
            }),
        })
    }

    /// Room for a produce of `size` bytes, here or on its way to another node; to be held until it
    /// is answered.
    ///
    /// # Errors
    /// [`ProduceError::Throttled`] where there is none within `patience`, or too much waits already.
    pub async fn produce_room(
        &self,
        size: usize,
        patience: Duration,
        waiter: Waiter,
    ) -> Result<OwnedSemaphorePermit, ProduceError> {
        let shared = &self.shared;
        let permits = u32::try_from(size.min(shared.produce_bytes)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&shared.produce_room).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        let refused = |error| {
            crate::metrics::refused(&error);
            Err(error)
        };
        let _counted = match waiter {
            Waiter::OneByOne => None,
            Waiter::Counted => match shared.produce_waiting.try_acquire_many(permits) {
                Ok(counted) => Some(counted),
                Err(_full) => return refused(ProduceError::Throttled),
            },
        };
        let begun = shared.clock.now();
        let room = Arc::clone(&shared.produce_room).acquire_many_owned(permits);
        let room = timeout(patience, room).await;
        let waited = shared.clock.now().saturating_sub(begun);
        shared.room_wait.record(waited.as_secs_f64());
        match room {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => refused(ProduceError::LeadershipLost),
            Err(_elapsed) => refused(ProduceError::Throttled),
        }
    }

    /// Hands a batch to the leader, in the order of the calls that one task awaits one after the
    /// other; the batch has `room` already. The answer comes within the call's timeout (R3).
    pub async fn submit(
        &self,
        mut call: ProduceCall,
        room: OwnedSemaphorePermit,
    ) -> PendingProduce {
        let shared = &self.shared;
        let (answer, pending) = oneshot::channel();
        let deadline = shared.clock.now() + call.timeout;
        let packed = self.under_topic_codec(&call.partition, call.batch, room, deadline);
        let permit = match packed.await {
            Ok((batch, permit)) => {
                call.batch = batch;
                permit
            }
            Err(error) => {
                crate::metrics::refused(&error);
                let _gone = answer.send(Err(error));
                return PendingProduce { answer: pending };
            }
        };
        // A plane that has stopped drops the mail, and with it the answer's sender.
        shared
            .mailbox
            .send(Mail::Produce {
                call,
                deadline,
                answer,
                permit,
                sent: shared.clock.now(),
            })
            .await;
        PendingProduce { answer: pending }
    }

    /// `compression.type`: the batch under the topic's codec, where it has one, with room for what
    /// it has become.
    async fn under_topic_codec(
        &self,
        partition: &TopicPartition,
        batch: Batch,
        permit: OwnedSemaphorePermit,
        deadline: Duration,
    ) -> Result<(Batch, OwnedSemaphorePermit), ProduceError> {
        let image = self.shared.quorum.image();
        let settings = image.topic(partition.topic_id).map(|topic| &topic.settings);
        let Some((codec, limit)) = settings.and_then(|settings| {
            let codec = settings.compression?;
            Some((codec, settings.max_message_bytes))
        }) else {
            return Ok((batch, permit));
        };
        if codec == batch.header().compression {
            return Ok((batch, permit));
        }
        let turn = self.shared.recompressing.acquire().await;
        let packed =
            tokio::task::spawn_blocking(move || batch.recompressed(codec, DECOMPRESSED_MAX)).await;
        drop(turn);
        let batch = match packed {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Err(ProduceError::InvalidRecord(error.to_string())),
            Err(_died) => return Err(ProduceError::LeadershipLost),
        };
        let size = batch.size();
        if size > limit as usize {
            return Err(ProduceError::TooLarge { size, limit });
        }
        let shared = &self.shared;
        let permit = match grown(&shared.produce_room, permit, size.min(shared.produce_bytes)) {
            Some(permit) => permit,
            None => {
                let patience = deadline.saturating_sub(shared.clock.now());
                self.produce_room(size, patience, Waiter::Counted).await?
            }
        };
        Ok((batch, permit))
    }

    /// Reads records below the high watermark.
    ///
    /// # Errors
    /// [`FetchError`]; bounded by the call's `max_wait`.
    pub async fn fetch(&self, call: FetchCall) -> Result<Fetched, FetchError> {
        let hosted = self
            .shared
            .registry
            .get(&call.partition)
            .ok_or(FetchError::NotLeader)?;
        let shared = &self.shared;
        let (room, fetches) = (&shared.fetch_room, &shared.fetches);
        fetch::fetch(hosted, room, fetches, &shared.mailbox, call).await
    }

    /// Room for an answer of `size` bytes that has come from another node.
    ///
    /// # Errors
    /// [`FetchError::Throttled`] where there is none in time.
    pub async fn fetch_room(
        &self,
        size: usize,
        holder: Holder,
    ) -> Result<Option<OwnedSemaphorePermit>, FetchError> {
        self.shared.fetch_room.exactly(size, holder).await
    }

    /// Room for up to `wanted` bytes that a stream makes of what it has fetched: at least 64 KiB,
    /// which are its own share and are not counted.
    pub fn stream_room(&self, wanted: usize) -> (usize, Option<OwnedSemaphorePermit>) {
        self.shared.fetch_room.share(wanted)
    }

    /// Whether a stream that has fetched `size` bytes is to hold no more than its own share of them
    /// while its client takes its time.
    pub fn room_is_scarce(&self, size: usize) -> bool {
        self.shared.fetch_room.is_scarce(size)
    }

    /// Looks an offset up.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn list_offset(
        &self,
        partition: TopicPartition,
        position: OffsetPosition,
        current_epoch: Option<LeaderEpoch>,
    ) -> Result<ListedOffset, FetchError> {
        let hosted = self
            .shared
            .registry
            .get(&partition)
            .ok_or(FetchError::NotLeader)?;
        fetch::list_offset(hosted, &self.shared.looking_up, position, current_epoch).await
    }

    /// Whether this node leads the partition, as it knows.
    pub fn leads(&self, partition: &TopicPartition) -> bool {
        let hosted = self.shared.registry.get(partition);
        hosted.is_some_and(|hosted| hosted.state.borrow().leading.is_some())
    }

    /// The high watermark of a partition that this node leads, once it knows it (R10).
    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<Offset> {
        let hosted = self.shared.registry.get(partition)?;
        let state = *hosted.state.borrow();
        let (_, epoch_start) = state.leading?;
        (state.high_watermark >= epoch_start).then_some(state.high_watermark)
    }

    /// The consumer groups that this node coordinates.
    pub fn groups(&self) -> &Groups {
        &self.shared.groups
    }

    /// The partitions hosted here, as they are now.
    pub fn hosted(&self) -> Vec<HostedPartition> {
        self.shared.registry.list()
    }

    /// What waits here, and how much may.
    pub fn queues(&self) -> [Queue; 6] {
        let shared = &self.shared;
        let (waiting, most) = shared.mailbox.waiting();
        let used = |room: &Semaphore, most: usize| most.saturating_sub(room.available_permits());
        let [group_requests, commit_bytes] = shared.groups.queues();
        [
            group_requests,
            commit_bytes,
            Queue {
                name: "plane_messages",
                used: waiting,
                limit: most,
            },
            Queue {
                name: "produce_bytes",
                used: used(&shared.produce_room, shared.produce_bytes),
                limit: shared.produce_bytes,
            },
            Queue {
                name: "fetch_bytes",
                used: shared.fetch_room.used(),
                limit: shared.fetch_room.limit(),
            },
            Queue {
                name: "tail_cache_bytes",
                used: shared.tails.used(),
                limit: shared.tails.limit(),
            },
        ]
    }

    /// Takes a follower's stream: feeds what it says to the replicas, and gives what they answer.
    /// The stream ends when either side drops its end.
    pub async fn follower_stream(
        &self,
        from: NodeId,
        mut incoming: mpsc::Receiver<FollowerMessage>,
    ) -> FollowerOutgoing {
        let shared = &self.shared;
        let next = shared
            .next_stream
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stream = StreamId(next);
        let mailbox = shared.mailbox.clone();
        let (outgoing, edge) = follower_stream(stream, mailbox.clone());
        mailbox.notify(Mail::FollowerStreamOpened { stream, outgoing });
        let cancel = shared.cancel.child_token();
        let pump = async move {
            while let Some(message) = incoming.recv().await {
                if !mailbox
                    .send(Mail::FromFollower {
                        stream,
                        from,
                        message,
                    })
                    .await
                {
                    break;
                }
            }
            mailbox.notify(Mail::FollowerStreamClosed { stream });
        };
        // Ends with the edge's end of the incoming channel, or with the broker.
        tokio::spawn(async move { cancel.run_until_cancelled(pump).await });
        edge
    }

    /// Whether this node takes part: registered, unfenced and in touch with the controller.
    ///
    /// # Errors
    /// Why it does not.
    pub fn ready(&self) -> Result<(), String> {
        let shared = &self.shared;
        let image = shared.quorum.image();
        let epoch = *shared.epoch.borrow();
        if epoch.is_none() {
            return Err("not registered with the cluster yet".to_owned());
        }
        if !is_active(image.broker(shared.node), shared.incarnation, epoch) {
            return Err("fenced: the controller has not admitted this broker".to_owned());
        }
        let silent = shared.clock.now().saturating_sub(shared.contact.last());
        if silent > shared.session_timeout {
            return Err(format!(
                "no answer from the controller for {} ms",
                silent.as_millis()
            ));
        }
        Ok(())
    }

    /// Asks the controller to move everything away and waits for its word.
    pub async fn controlled_shutdown(&self, within: Duration) -> ShutdownOutcome {
        self.shared.wants_shutdown.send_replace(true);
        let mut may_stop = self.shared.may_stop.clone();
        let released = may_stop.wait_for(|released| *released);
        match timeout(within, released).await {
            Ok(Ok(_)) => ShutdownOutcome::Released,
            Ok(Err(_)) | Err(_) => ShutdownOutcome::TimedOut,
        }
    }

    /// Flushes and closes every log and ends every task; gives the epoch for the clean mark.
    pub async fn stop(&self) -> Option<BrokerEpoch> {
        let (stopped, stop) = oneshot::channel();
        self.shared.mailbox.notify(Mail::Stop(stopped));
        let closed = stop.await.unwrap_or(false);
        self.shared.cancel.cancel();
        let tasks = std::mem::take(&mut *self.shared.tasks.lock());
        for task in tasks {
            let _cancelled = task.await;
        }
        let plane = self.shared.plane.lock().take();
        let joined = match plane {
            Some(plane) => tokio::task::spawn_blocking(move || plane.join().is_ok()).await,
            None => Ok(false),
        };
        let epoch = *self.shared.epoch.borrow();
        epoch.filter(|_| closed && joined.unwrap_or(false))
    }

    /// Returns, with the reason, when a part of the broker has ended without having been asked to:
    /// the logs could not be recovered, the thread that owns them died, or one of its tasks.
    pub async fn died(&self) -> String {
        let mut check = tokio::time::interval(Duration::from_millis(200));
        loop {
            check.tick().await;
            if let Some(failure) = self.shared.failure.borrow().clone() {
                return failure;
            }
            let plane = self.shared.plane.lock();
            if plane.as_ref().is_some_and(|plane| plane.is_finished()) {
                return "the thread that owns the logs has ended".to_owned();
            }
            let tasks = self.shared.tasks.lock();
            if !self.shared.cancel.is_cancelled() && tasks.iter().any(JoinHandle::is_finished) {
                return "a task of the broker has ended".to_owned();
            }
        }
    }
}

/// Room for `size` bytes in all. Where there is not so much, what was held is given back: who
/// holds room while waiting for more could wait for others that do the same.
fn grown(
    room: &Arc<Semaphore>,
    mut held: OwnedSemaphorePermit,
    size: usize,
) -> Option<OwnedSemaphorePermit> {
    let missing = size.saturating_sub(held.num_permits());
    let missing = u32::try_from(missing).unwrap_or(u32::MAX);
    let more = Arc::clone(room).try_acquire_many_owned(missing).ok()?;
    held.merge(more);
    Some(held)
}

/// Brings every image and the own registration to the plane. The plane diffs against the image it
/// has, so that images skipped under load cost nothing.
async fn follow_metadata(
    quorum: QuorumHandle,
    mut epoch: watch::Receiver<Option<BrokerEpoch>>,
    mailbox: Mailbox,
    cancel: CancellationToken,
) {
    let mut images = quorum.images();
    let follow = async {
        let mut registered = false;
        loop {
            let image = images.borrow_and_update().clone();
            if !mailbox.send(Mail::Image(image)).await {
                return;
            }
            tokio::select! {
                changed = images.changed() => if changed.is_err() { return },
                changed = epoch.changed(), if !registered => {
                    if changed.is_err() {
                        return;
                    }
                    let known = *epoch.borrow_and_update();
                    if let Some(known) = known {
                        registered = true;
                        if !mailbox.send(Mail::Registered(known)).await {
                            return;
                        }
                    }
                }
            }
        }
    };
    cancel.run_until_cancelled(follow).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_has_grown_takes_more_room_or_gives_back_what_it_had() {
        let room = Arc::new(Semaphore::new(10));
        let held = || Arc::clone(&room).try_acquire_many_owned(4).unwrap();
        let more = grown(&room, held(), 7).unwrap();
        assert_eq!(room.available_permits(), 3);
        drop(more);
        let same = grown(&room, held(), 2).unwrap();
        assert_eq!(room.available_permits(), 6);
        assert!(grown(&room, held(), 7).is_none());
        assert_eq!(room.available_permits(), 6);
        drop(same);
    }
}
