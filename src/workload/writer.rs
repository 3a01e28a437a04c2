//! A producer of numbered keyed records with `acks=all`, which remembers what was acknowledged,
//! where and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::{Acked, Client, ClientError, Delivery, Producer, ProducerOptions, ToSend};
use quorate_record::partition_for_key;
use quorate_types::PartitionId;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::gaps::longest_gap;
use crate::history::{History, Sent};

/// Deliveries of one partition that are awaited at most; then the writer waits.
const AWAITED: usize = 100_000;

/// What a writer writes.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// To which topic.
    pub topic: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// How many keys, each with records in numbered order.
    pub keys: u64,
    /// So many records …
    pub records: u32,
    /// … every so often.
    pub every: Duration,
}

/// A record whose fate is not known yet.
struct Waiting {
    key: String,
    number: u64,
    delivery: Delivery,
}

/// One partition's acknowledgements.
#[derive(Default)]
struct Acks {
    times: Vec<Instant>,
    count: u64,
}

/// A running writer.
pub struct Writer {
    stop: watch::Sender<bool>,
    acks: BTreeMap<PartitionId, Arc<Mutex<Acks>>>,
    sender: JoinHandle<Result<(), ClientError>>,
    recorders: Vec<JoinHandle<History>>,
}

/// Why a writer has no history.
#[derive(Debug, thiserror::Error)]
pub enum WriterFailed {
    /// A record could not even be taken.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A task of the writer died.
    #[error(transparent)]
    Task(#[from] JoinError),
}

impl Writer {
    /// Starts to write, with the client's default producer.
    pub fn start(client: &Client, options: WriterOptions) -> Self {
        let producer = client.producer(ProducerOptions::default());
        let (stop, stopped) = watch::channel(false);
        let mut acks = BTreeMap::new();
        let mut recorders = Vec::new();
        let mut queues = Vec::new();
        for partition in (0..options.partitions).map(PartitionId::new) {
            let shared = Arc::<Mutex<Acks>>::default();
            let (queue, waiting) = mpsc::channel(AWAITED);
            recorders.push(tokio::spawn(record(waiting, Arc::clone(&shared))));
            acks.insert(partition, shared);
            queues.push(queue);
        }
        let sender = tokio::spawn(send(producer, options, queues, stopped));
        Self {
            stop,
            acks,
            sender,
            recorders,
        }
    }

    /// How many records are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acks.values().map(|acks| acks.lock().count).sum()
    }

    /// Whether every partition had an acknowledgement after `at`.
    pub fn all_acknowledged_after(&self, at: Instant) -> bool {
        let mut partitions = self.acks.values();
        partitions.all(|acks| acks.lock().times.last().is_some_and(|time| *time > at))
    }

    /// The longest gap of each partition from `since` until now.
    pub fn gaps(&self, since: Instant) -> BTreeMap<PartitionId, Duration> {
        let now = Instant::now();
        let partitions = self.acks.iter();
        partitions
            .map(|(partition, acks)| {
                let gap = longest_gap(&acks.lock().times, since, now);
                (*partition, gap)
            })
            .collect()
    }

    /// Stops writing, waits for every answer, and tells what was sent and acknowledged.
    ///
    /// # Errors
    /// [`WriterFailed`] where a record could not be taken at all, or a task died.
    pub async fn finish(self) -> Result<History, WriterFailed> {
        self.stop.send_replace(true);
        self.sender.await??;
        let mut history = History::new();
        for recorder in self.recorders {
            history.extend(recorder.await?);
        }
        history.sort_by_key(|sent| sent.number);
        Ok(history)
    }
}

async fn send(
    producer: Producer,
    options: WriterOptions,
    queues: Vec<mpsc::Sender<Waiting>>,
    stopped: watch::Receiver<bool>,
) -> Result<(), ClientError> {
    let mut pace = interval(options.every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while !*stopped.borrow() {
        pace.tick().await;
        for _ in 0..options.records {
            number += 1;
            let key = format!("key-{}", number % options.keys);
            let value = number.to_string();
            let partition = partition_for_key(key.as_bytes(), options.partitions);
            let record = ToSend {
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                ..ToSend::default()
            };
            let delivery = producer.send(&options.topic, record).await?;
            let waiting = Waiting {
                key,
                number,
                delivery,
            };
            if let Some(queue) = queues.get(partition.get() as usize) {
                // A recorder ends only after this sender.
                let _ends_later = queue.send(waiting).await;
            }
        }
    }
    producer.close().await;
    Ok(())
}

async fn record(mut waiting: mpsc::Receiver<Waiting>, acks: Arc<Mutex<Acks>>) -> History {
    let mut history = History::new();
    while let Some(Waiting {
        key,
        number,
        delivery,
    }) = waiting.recv().await
    {
        let acked = delivery.wait().await.ok();
        if acked.is_some() {
            let mut acks = acks.lock();
            acks.count += 1;
            acks.times.push(Instant::now());
        }
        let place = |acked: Acked| Some((acked.partition.get(), acked.offset?));
        history.push(Sent {
            key,
            number,
            acknowledged: acked.and_then(place),
        });
    }
    history
}
