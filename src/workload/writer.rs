//! A producer of numbered keyed records with `acks=all`, which remembers what was acknowledged,
//! where and when. It is an open loop: each record has its time, whatever became of those before,
//! and its latency runs from then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::latencies::Latencies;

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
    meant: Instant,
    delivery: Delivery,
}

/// A partition's leader changed between two acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderChange {
    /// The partition.
    pub partition: PartitionId,
    /// The last acknowledgement at an earlier leader epoch.
    pub last: Instant,
    /// The first at the new one.
    pub next: Instant,
}

/// One partition's acknowledgements.
#[derive(Default)]
struct Acks {
    times: Vec<Instant>,
    count: u64,
    bytes: u64,
    latencies: Latencies,
    measure_from: Option<Instant>,
    leader_epoch: Option<i32>,
    /// When the record was meant for that is awaited now.
    awaited: Option<Instant>,
    changes: Vec<LeaderChange>,
    first_error: Option<ClientError>,
}

/// What a writer's acknowledgements come to since a time.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) latencies: Latencies,
    /// Bytes of keys and values.
    pub(crate) bytes: u64,
    pub(crate) first_error: Option<ClientError>,
    /// The most that the writer itself was behind, from its beginning.
    pub(crate) behind: Duration,
}

/// A running writer.
pub struct Writer {
    stop: watch::Sender<bool>,
    behind_us: Arc<AtomicU64>,
    acks: BTreeMap<PartitionId, Arc<Mutex<Acks>>>,
    sender: Option<JoinHandle<Result<(), ClientError>>>,
    recorders: Vec<JoinHandle<History>>,
    history: History,
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
        Self::start_after(client, options, 0)
    }

    /// The same, with numbers above `last`, which another writer to this topic gave last: it must be
    /// finished.
    pub fn start_after(client: &Client, options: WriterOptions, last: u64) -> Self {
        let producer = client.producer(ProducerOptions::default());
        let (stop, stopped) = watch::channel(false);
        let mut acks = BTreeMap::new();
        let mut recorders = Vec::new();
        let mut queues = Vec::new();
        for partition in (0..options.partitions).map(PartitionId::new) {
            let shared = Arc::<Mutex<Acks>>::default();
            let (queue, waiting) = mpsc::channel(AWAITED);
            recorders.push(tokio::spawn(record(
                partition,
                waiting,
                Arc::clone(&shared),
            )));
            acks.insert(partition, shared);
            queues.push(queue);
        }
        let behind_us = Arc::<AtomicU64>::default();
        let behind = Arc::clone(&behind_us);
        let sender = tokio::spawn(send(producer, options, last, queues, stopped, behind));
        Self {
            stop,
            behind_us,
            acks,
            sender: Some(sender),
            recorders,
            history: History::new(),
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

    /// Latencies and bytes count for records that are meant for this time or later.
    pub fn measure_from(&self, at: Instant) {
        for acks in self.acks.values() {
            let mut acks = acks.lock();
            acks.measure_from = Some(at);
            acks.latencies = Latencies::default();
            acks.bytes = 0;
        }
    }

    pub(crate) fn measured(&self) -> Measured {
        let mut measured = Measured {
            behind: Duration::from_micros(self.behind_us.load(Ordering::Relaxed)),
            ..Measured::default()
        };
        for acks in self.acks.values() {
            let acks = acks.lock();
            measured.latencies.add(&acks.latencies);
            measured.bytes += acks.bytes;
            if measured.first_error.is_none() {
                measured.first_error.clone_from(&acks.first_error);
            }
        }
        measured
    }

    /// The changes of leaders that acknowledgements after `since` have told of.
    pub fn leader_changes(&self, since: Instant) -> Vec<LeaderChange> {
        let partitions = self.acks.values();
        partitions
            .flat_map(|acks| acks.lock().changes.clone())
            .filter(|change| change.next > since)
            .collect()
    }

    /// Partitions that have acknowledged nothing for so long although a record waits for it, from
    /// their last acknowledgement, or from `since`, until now.
    pub(crate) fn stalled(&self, since: Instant, long: Duration) -> Vec<LeaderChange> {
        let now = Instant::now();
        let partitions = self.acks.iter();
        partitions
            .filter_map(|(partition, acks)| acks.lock().stalled(*partition, since, now, long))
            .collect()
    }

    /// Stops to write, and waits for every answer; [`finish`](Self::finish) does it too.
    pub(crate) async fn settle(&mut self) -> Result<(), WriterFailed> {
        self.stop.send_replace(true);
        if let Some(sender) = self.sender.take() {
            sender.await??;
        }
        for recorder in std::mem::take(&mut self.recorders) {
            self.history.extend(recorder.await?);
        }
        Ok(())
    }

    /// Stops writing, waits for every answer, and tells what was sent and acknowledged.
    ///
    /// # Errors
    /// [`WriterFailed`] where a record could not be taken at all, or a task died.
    pub async fn finish(mut self) -> Result<History, WriterFailed> {
        self.settle().await?;
        self.history.sort_by_key(|sent| sent.number);
        Ok(self.history)
    }
}

async fn send(
    producer: Producer,
    options: WriterOptions,
    last: u64,
    queues: Vec<mpsc::Sender<Waiting>>,
    stopped: watch::Receiver<bool>,
    behind_us: Arc<AtomicU64>,
) -> Result<(), ClientError> {
    let mut pace = interval(options.every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = last;
    while !*stopped.borrow() {
        let meant = pace.tick().await;
        let behind = u64::try_from(meant.elapsed().as_micros()).unwrap_or(u64::MAX);
        behind_us.fetch_max(behind, Ordering::Relaxed);
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
                meant,
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

async fn record(
    partition: PartitionId,
    mut waiting: mpsc::Receiver<Waiting>,
    acks: Arc<Mutex<Acks>>,
) -> History {
    let mut history = History::new();
    while let Some(Waiting {
        key,
        number,
        meant,
        delivery,
    }) = waiting.recv().await
    {
        let bytes = key.len() + number.to_string().len();
        acks.lock().awaited = Some(meant);
        let result = delivery.wait().await;
        acks.lock().note(partition, meant, bytes as u64, &result);
        let acked = result.ok();
        let place = |acked: Acked| Some((acked.partition.get(), acked.offset?));
        history.push(Sent {
            key,
            number,
            acknowledged: acked.and_then(place),
        });
    }
    history
}

impl Acks {
    fn note(
        &mut self,
        partition: PartitionId,
        meant: Instant,
        bytes: u64,
        result: &Result<Acked, ClientError>,
    ) {
        self.awaited = None;
        let acked = match result {
            Ok(acked) => acked,
            Err(error) => {
                self.first_error.get_or_insert_with(|| error.clone());
                return;
            }
        };
        let now = Instant::now();
        let before = self.leader_epoch.replace(acked.leader_epoch);
        if let Some(last) = self.times.last().copied()
            && before.is_some_and(|before| before < acked.leader_epoch)
        {
            self.changes.push(LeaderChange {
                partition,
                last,
                next: now,
            });
        }
        self.count += 1;
        self.times.push(now);
        if self.measure_from.is_none_or(|from| meant >= from) {
            self.latencies.record(now.saturating_duration_since(meant));
            self.bytes += bytes;
        }
    }

    fn stalled(
        &self,
        partition: PartitionId,
        since: Instant,
        now: Instant,
        long: Duration,
    ) -> Option<LeaderChange> {
        // Where nothing is sent, nothing is to be acknowledged: a low rate is no gap.
        let awaited = self.awaited?;
        let last = self.times.last().map_or(since, |last| since.max(*last));
        (now.saturating_duration_since(awaited.max(last)) > long).then_some(LeaderChange {
            partition,
            last,
            next: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_change_lies_between_the_acknowledgements_around_it() {
        let mut acks = Acks::default();
        let at = |leader_epoch| {
            Ok(Acked {
                partition: PartitionId::new(3),
                offset: Some(0),
                leader_epoch,
                replicas: 3,
                fsynced: 3,
            })
        };
        let meant = Instant::now();
        for result in [at(1), at(1), Err(ClientError::Closed), at(4), at(4)] {
            acks.note(PartitionId::new(3), meant, 10, &result);
        }
        let [change] = acks.changes[..] else {
            panic!("{:?}", acks.changes);
        };
        assert_eq!((change.last, change.next), (acks.times[1], acks.times[2]));
        assert_eq!((acks.count, acks.bytes, acks.latencies.count()), (4, 40, 4));
        assert!(matches!(acks.first_error, Some(ClientError::Closed)));
    }

    #[test]
    fn a_partition_that_owes_an_acknowledgement_for_long_is_stalled() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut acks = Acks::default();
        let stalled = |acks: &Acks, now| {
            let long = Duration::from_millis(100);
            let found = acks.stalled(PartitionId::new(3), at(50), at(now), long);
            found.map(|gap| (gap.last, gap.next))
        };
        // Nothing is owed.
        acks.times = vec![at(10), at(70)];
        assert_eq!(stalled(&acks, 1_000), None);
        acks.awaited = Some(at(400));
        assert_eq!(stalled(&acks, 450), None);
        assert_eq!(stalled(&acks, 501), Some((at(70), at(501))));
        acks.times.pop();
        assert_eq!(stalled(&acks, 501), Some((at(50), at(501))));
    }
}
