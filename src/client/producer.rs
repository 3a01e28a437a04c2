//! Producing: records are gathered into batches, one gatherer and one sender a partition.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_record::{
    Batch, BatchBuilder, Compression, RecordHeader, StickyPartitioner, partition_for_key,
};
use quorate_types::{Acks, PartitionId, Timestamp};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::ClientError;
use crate::fate::{Delivery, Fateful};
use crate::producer_ids::ProducerIds;
use crate::worker::Worker;

/// What a record costs in the buffer beside its bytes.
const RECORD_OVERHEAD: usize = 32;

/// No record is tried for longer: a cluster may have forgotten its producer then, and could not tell
/// a repeat (`producer-id-expiration`, a day by default).
const DELIVERY_MAX: Duration = Duration::from_secs(24 * 3_600);

/// How a producer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerOptions {
    /// When a record counts as delivered (default: all in-sync replicas).
    pub acks: Acks,
    /// How long a batch waits for more records (default 5 ms).
    pub linger: Duration,
    /// A batch of so many bytes is sent at once (default 256 KiB).
    pub batch_bytes: usize,
    /// How batches are compressed (default not).
    pub compression: Compression,
    /// Batches of one partition that wait for their answers (1–5, default 5).
    pub in_flight: usize,
    /// Bytes of records that are not delivered yet; `send` waits for room (default 32 MiB).
    pub buffer_bytes: usize,
    /// A record that could not be delivered for so long fails (a day at most, default 120 s); less
    /// than the cluster's `producer-id-expiration`, or a repeat may be in the log twice.
    pub delivery_timeout: Duration,
    /// How long a leader waits for its followers (default 30 s).
    pub request_timeout: Duration,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            linger: Duration::from_millis(5),
            batch_bytes: 256 << 10,
            compression: Compression::None,
            in_flight: 5,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// A record to be sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct ToSend<'a> {
    /// Decides the partition, where none is named.
    pub key: Option<&'a [u8]>,
    /// What it says.
    pub value: Option<&'a [u8]>,
    /// Beside key and value.
    pub headers: &'a [RecordHeader],
    /// Its time; by default now.
    pub timestamp: Option<Timestamp>,
    /// Where to; by default the key's partition, else one after the other.
    pub partition: Option<PartitionId>,
}

/// A complete batch.
pub(crate) struct Sealed {
    pub(crate) batch: Batch,
    pub(crate) fate: Fateful,
    pub(crate) deadline: Instant,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// A batch that still takes records.
struct Gathering {
    builder: BatchBuilder,
    fate: Fateful,
    since: Instant,
    permit: OwnedSemaphorePermit,
}

/// One partition's records between `send` and its sender.
pub(crate) struct Gatherer {
    state: Mutex<GathererState>,
    pub(crate) news: Notify,
    /// A batch of so many bytes is complete; less than the option where the topic takes less.
    batch_bytes: AtomicUsize,
}

/// Why records wait, if they do: shared by the senders of a producer.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    pub(crate) fn met(&self, why: &str) {
        *self.0.lock() = Some(why.to_owned());
    }

    pub(crate) fn over(&self) {
        *self.0.lock() = None;
    }
}

#[derive(Default)]
struct GathererState {
    gathering: Option<Gathering>,
    sealed: VecDeque<Sealed>,
    /// Send without waiting for more.
    hurry: bool,
}

impl Gatherer {
    /// The next complete batch; one that has waited for `linger`, or is hurried, is complete.
    pub(crate) fn take(&self, options: &ProducerOptions) -> Option<Sealed> {
        let mut state = self.state.lock();
        let due = state
            .gathering
            .as_ref()
            .is_some_and(|gathering| state.hurry || gathering.since.elapsed() >= options.linger);
        if state.sealed.is_empty() && due {
            state.seal(options);
        }
        state.sealed.pop_front()
    }

    /// When the gathering batch will be complete.
    pub(crate) fn due(&self, options: &ProducerOptions) -> Option<Instant> {
        self.state
            .lock()
            .gathering
            .as_ref()
            .map(|gathering| gathering.since + options.linger)
    }

    /// Batches are to be smaller from now on.
    pub(crate) fn gather_at_most(&self, bytes: usize) {
        self.batch_bytes.fetch_min(bytes.max(1), Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.gathering.is_none() && state.sealed.is_empty()
    }

    fn hurry(&self, hurry: bool) {
        self.state.lock().hurry = hurry;
        self.news.notify_one();
    }
}

impl GathererState {
    fn seal(&mut self, options: &ProducerOptions) {
        if let Some(Gathering {
            builder,
            fate,
            since,
            permit,
        }) = self.gathering.take()
        {
            self.sealed.push_back(Sealed {
                batch: builder.build(),
                fate,
                deadline: since + options.delivery_timeout,
                permit,
            });
        }
    }
}

struct Topic {
    gatherers: Vec<Arc<Gatherer>>,
    sticky: StickyPartitioner,
}

struct Shared {
    client: Client,
    options: ProducerOptions,
    room: Arc<Semaphore>,
    topics: Mutex<BTreeMap<String, Topic>>,
    workers: tokio::sync::Mutex<JoinSet<()>>,
    ids: Arc<ProducerIds>,
    trouble: Arc<Trouble>,
    cancel: CancellationToken,
}

/// Sends records. Cheap to clone; clones share buffer and senders.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

impl Client {
    /// A producer. It is idempotent: retries do not duplicate or reorder records.
    pub fn producer(&self, options: ProducerOptions) -> Producer {
        let options = ProducerOptions {
            in_flight: options.in_flight.clamp(1, 5),
            delivery_timeout: options.delivery_timeout.min(DELIVERY_MAX),
            ..options
        };
        Producer {
            shared: Arc::new(Shared {
                client: self.clone(),
                options,
                room: Arc::new(Semaphore::new(options.buffer_bytes)),
                topics: Mutex::default(),
                workers: tokio::sync::Mutex::default(),
                ids: Arc::new(ProducerIds::new(self.clone())),
                trouble: Arc::default(),
                cancel: CancellationToken::new(),
            }),
        }
    }
}

impl Producer {
    /// Takes a record; waits only for room in the buffer.
    ///
    /// # Errors
    /// [`ClientError`] where the topic is unknown or the record can never be sent.
    pub async fn send(&self, topic: &str, record: ToSend<'_>) -> Result<Delivery, ClientError> {
        let shared = &self.shared;
        if !shared.topics.lock().contains_key(topic) {
            self.open(topic).await?;
        }
        let size = record.key.map_or(0, <[u8]>::len)
            + record.value.map_or(0, <[u8]>::len)
            + record
                .headers
                .iter()
                .map(|h| h.key.len() + h.value.as_ref().map_or(0, |v| v.len()))
                .sum::<usize>()
            + RECORD_OVERHEAD;
        if size > shared.options.buffer_bytes {
            let limit = shared.options.buffer_bytes;
            return Err(ClientError::Invalid(format!(
                "a record of {size} bytes, room for {limit}"
            )));
        }
        let permits = u32::try_from(size).unwrap_or(u32::MAX);
        let permit = Arc::clone(&shared.room)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| ClientError::Closed)?;
        let mut topics = shared.topics.lock();
        let Some(known) = topics.get_mut(topic) else {
            return Err(ClientError::Closed);
        };
        let count = u32::try_from(known.gatherers.len()).unwrap_or(u32::MAX);
        let partition = match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => known.sticky.current(count),
        };
        let Some(gatherer) = known.gatherers.get(partition.get() as usize) else {
            return Err(ClientError::Invalid(format!(
                "topic {topic} has {count} partitions, no {partition}"
            )));
        };
        let (delivery, sealed) = add(gatherer, record, size, permit, &shared.options);
        if sealed && record.key.is_none() && record.partition.is_none() {
            known.sticky.advance();
        }
        Ok(delivery)
    }

    async fn open(&self, topic: &str) -> Result<(), ClientError> {
        let shared = &self.shared;
        let info = shared.client.topic(topic).await?;
        let mut workers = shared.workers.lock().await;
        if shared.cancel.is_cancelled() {
            return Err(ClientError::Closed);
        }
        if shared.topics.lock().contains_key(topic) {
            return Ok(());
        }
        let mut gatherers = Vec::with_capacity(info.partitions.len());
        for partition in (0..).map(PartitionId::new).take(info.partitions.len()) {
            let gatherer = Arc::new(Gatherer {
                state: Mutex::default(),
                news: Notify::new(),
                batch_bytes: AtomicUsize::new(shared.options.batch_bytes),
            });
            let worker = Worker::new(
                shared.client.clone(),
                shared.options,
                topic.to_owned(),
                partition,
                Arc::clone(&gatherer),
                Arc::clone(&shared.ids),
                Arc::clone(&shared.trouble),
            );
            let cancel = shared.cancel.clone();
            workers.spawn(async move {
                cancel.run_until_cancelled(worker.run()).await;
            });
            gatherers.push(gatherer);
        }
        let sticky = StickyPartitioner::new(rand::random());
        shared
            .topics
            .lock()
            .insert(topic.to_owned(), Topic { gatherers, sticky });
        Ok(())
    }

    /// Why records wait for longer than usual, if some do: what was answered, or not, when one of
    /// the senders tried last.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.0.lock().clone()
    }

    fn gatherers(&self) -> Vec<Arc<Gatherer>> {
        let topics = self.shared.topics.lock();
        topics
            .values()
            .flat_map(|topic| topic.gatherers.iter().cloned())
            .collect()
    }

    /// Sends what is gathered without waiting for more, and returns when every record taken before
    /// is decided.
    pub async fn flush(&self) {
        for gatherer in self.gatherers() {
            gatherer.hurry(true);
        }
        // All the room is free again exactly when nothing is on its way.
        let all = u32::try_from(self.shared.options.buffer_bytes).unwrap_or(u32::MAX);
        let _all = self.shared.room.acquire_many(all).await;
        for gatherer in self.gatherers() {
            gatherer.hurry(false);
            debug_assert!(gatherer.is_empty() || self.shared.room.is_closed());
        }
    }

    /// Flushes, and ends the senders.
    pub async fn close(self) {
        self.flush().await;
        self.shared.cancel.cancel();
        self.shared.room.close();
        let mut workers = self.shared.workers.lock().await;
        while workers.join_next().await.is_some() {}
    }
}

/// Adds a record to a partition's batch; says whether that completed one.
fn add(
    gatherer: &Gatherer,
    record: ToSend<'_>,
    size: usize,
    permit: OwnedSemaphorePermit,
    options: &ProducerOptions,
) -> (Delivery, bool) {
    let timestamp = record.timestamp.unwrap_or_else(now);
    let batch_bytes = gatherer.batch_bytes.load(Ordering::Relaxed);
    let mut state = gatherer.state.lock();
    // A batch that takes more than one record stays below the limit: a large record among many
    // small ones would have all of them refused.
    let over = state.gathering.as_ref().is_some_and(|gathering| {
        !gathering.builder.is_empty() && gathering.builder.size_estimate() + size > batch_bytes
    });
    if over {
        state.seal(options);
    }
    let first = state.gathering.is_none();
    let gathering = match &mut state.gathering {
        Some(gathering) => {
            gathering.permit.merge(permit);
            gathering
        }
        none => none.insert(Gathering {
            builder: BatchBuilder::new(options.compression),
            fate: Fateful::default(),
            since: Instant::now(),
            permit,
        }),
    };
    let index = i64::try_from(gathering.builder.len()).unwrap_or(i64::MAX);
    gathering
        .builder
        .push(timestamp, record.key, record.value, record.headers);
    let delivery = gathering.fate.delivery(index);

    let full = gathering.builder.size_estimate() >= batch_bytes;
    if full {
        state.seal(options);
    }
    drop(state);
    if first || full || over {
        gatherer.news.notify_one();
    }
    (delivery, full || over)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}
