//! Consuming: one fetcher a partition, straight from its leader, within a bounded buffer.
//!
//! Each reading of a partition, from an assignment, a seek or a resume on, has a number. What was
//! fetched by an older one is dropped when it comes out of the buffer: nothing of before is returned.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use quorate_record::Record;
use quorate_types::{LeaderEpoch, Offset, PartitionId, TopicId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::client::Client;
use crate::error::ClientError;
use crate::fetcher::{Fetched, Fetcher, Seen};

/// How a consumer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Bytes of one fetch (default 1 MiB).
    pub fetch_bytes: u32,
    /// How long a leader waits for records (default 500 ms).
    pub max_wait: Duration,
    /// Fetches that wait to be polled, over all partitions (default 16).
    pub buffered: usize,
    /// Whether to go on behind records that cannot be decoded, after telling of them, rather than
    /// to stop (default: stop).
    pub skip_corrupt: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            fetch_bytes: 1 << 20,
            max_wait: Duration::from_millis(500),
            buffered: 16,
            skip_corrupt: false,
        }
    }
}

/// A partition, by its topic's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<String>, partition: PartitionId) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// The first offset wanted.
    pub offset: Offset,
}

impl Assignment {
    /// Its partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), self.partition)
    }
}

/// Records of one partition, in order.
#[derive(Debug, Clone)]
pub struct Consumed {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// The records; none where the fetch only told the high watermark.
    pub records: Vec<Record>,
    /// The offset after them.
    pub next: Offset,
    /// The leader epoch of the last record that was read, where one was (KIP-320): what is committed
    /// with `next`.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Where the readable part of the log ends.
    pub high_watermark: Offset,
    /// How long the fetch took, from its request to its answer; with the wait for records where
    /// there were none.
    pub took: Duration,
}

/// How a partition is read.
enum Mode {
    Reads(AbortHandle),
    Paused,
    /// An error of it was returned; a seek goes on.
    Stopped,
}

struct Reading {
    number: u64,
    mode: Mode,
    /// The offset after what was returned.
    position: Offset,
    topic_id: Option<TopicId>,
    seen: Seen,
}

impl Reading {
    fn stop(&mut self, mode: Mode) {
        if let Mode::Reads(fetcher) = std::mem::replace(&mut self.mode, mode) {
            fetcher.abort();
        }
    }
}

/// Reads partitions. Made by [`Client::consumer`].
///
/// What it reads may be changed at any time between two polls. Buffers are bounded: by
/// [`ConsumerOptions::buffered`] fetches, and one more a partition.
pub struct Consumer {
    client: Client,
    options: ConsumerOptions,
    sender: mpsc::Sender<Fetched>,
    received: mpsc::Receiver<Fetched>,
    fetchers: JoinSet<()>,
    readings: BTreeMap<TopicPartition, Reading>,
    /// The number of the last reading.
    last: u64,
}

impl Client {
    /// A consumer of the assigned partitions, of which there may be none at first.
    pub fn consumer(&self, assigned: Vec<Assignment>, options: ConsumerOptions) -> Consumer {
        let (sender, received) = mpsc::channel(options.buffered.max(1));
        let mut consumer = Consumer {
            client: self.clone(),
            options,
            sender,
            received,
            fetchers: JoinSet::new(),
            readings: BTreeMap::new(),
            last: 0,
        };
        consumer.assign(assigned);
        consumer
    }
}

impl Consumer {
    /// The next records of some partition; none where no partition is left to be read, because none
    /// is assigned or all have failed. Waits where all are paused. May be dropped and called again:
    /// nothing is lost.
    ///
    /// # Errors
    /// [`ClientError`] of a partition, which is read no further until a [`Self::seek`]; only after a
    /// [`ClientError::Corrupt`] it is, where [`ConsumerOptions::skip_corrupt`] asks for that.
    pub async fn poll(&mut self) -> Option<Result<Consumed, ClientError>> {
        let (_, polled) = self.poll_one().await?;
        Some(polled)
    }

    /// As [`Self::poll`], with the partition.
    pub(crate) async fn poll_one(
        &mut self,
    ) -> Option<(TopicPartition, Result<Consumed, ClientError>)> {
        while self.has_partitions() {
            let fetched = self.received.recv().await?;
            let Some(reading) = self.readings.get_mut(&fetched.partition) else {
                continue;
            };
            if reading.number != fetched.reading {
                continue;
            }
            reading.position = fetched.next;
            reading.seen = fetched.seen;
            if fetched.is_last {
                reading.mode = Mode::Stopped;
            }
            return Some((fetched.partition, fetched.result));
        }
        None
    }

    /// Whether there is something to wait for.
    pub(crate) fn has_partitions(&self) -> bool {
        let mut readings = self.readings.values();
        readings.any(|reading| !matches!(reading.mode, Mode::Stopped))
    }

    /// Reads these partitions, too. One that is assigned already goes on at the offset that is given,
    /// also where it was paused.
    pub fn assign(&mut self, assigned: impl IntoIterator<Item = Assignment>) {
        for assignment in assigned {
            self.begin(assignment, None, Seen::default());
        }
    }

    /// As [`Self::assign`], of a topic of that id, where the last record before was of an epoch.
    pub(crate) fn assign_after(
        &mut self,
        assignment: Assignment,
        topic_id: TopicId,
        epoch: Option<LeaderEpoch>,
    ) {
        let seen = Seen {
            last_epoch: epoch.map(LeaderEpoch::to_signed),
            leader_epoch: None,
        };
        self.begin(assignment, Some(topic_id), seen);
    }

    /// Reads a partition no more: nothing of it is returned after this. Says whether it was assigned.
    pub fn unassign(&mut self, partition: &TopicPartition) -> bool {
        let removed = self.readings.remove(partition);
        let was = removed.is_some();
        if let Some(mut reading) = removed {
            reading.stop(Mode::Stopped);
        }
        was
    }

    /// Goes on elsewhere in a partition: what is returned of it after this is from `offset` on. A
    /// paused one stays paused; one that has failed is read again.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where it is not assigned.
    pub fn seek(&mut self, partition: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        let reading = self.reading(partition)?;
        let topic_id = reading.topic_id;
        if matches!(reading.mode, Mode::Paused) {
            reading.position = offset;
            reading.seen = Seen::default();
        } else {
            let TopicPartition { topic, partition } = partition.clone();
            let assignment = Assignment {
                topic,
                partition,
                offset,
            };
            self.begin(assignment, topic_id, Seen::default());
        }
        Ok(())
    }

    /// Stops to read a partition for a while: nothing of it is returned after this, nor fetched.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where it is not assigned.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<(), ClientError> {
        let reading = self.reading(partition)?;
        if matches!(reading.mode, Mode::Reads(_)) {
            reading.stop(Mode::Paused);
            // What waits in the buffer is fetched again.
            reading.number = 0;
        }
        Ok(())
    }

    /// Goes on with a partition after [`Self::pause`], behind what was returned of it.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where it is not assigned.
    pub fn resume(&mut self, partition: &TopicPartition) -> Result<(), ClientError> {
        let reading = self.reading(partition)?;
        if matches!(reading.mode, Mode::Paused) {
            let (offset, topic_id, seen) = (reading.position, reading.topic_id, reading.seen);
            let TopicPartition { topic, partition } = partition.clone();
            let assignment = Assignment {
                topic,
                partition,
                offset,
            };
            self.begin(assignment, topic_id, seen);
        }
        Ok(())
    }

    /// The offset after what was returned of a partition; none where it is not assigned.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        Some(self.readings.get(partition)?.position)
    }

    /// What is assigned, paused and failed partitions too, with their positions.
    pub fn assigned(&self) -> Vec<Assignment> {
        let assigned = self.readings.iter().map(|(at, reading)| Assignment {
            topic: at.topic.clone(),
            partition: at.partition,
            offset: reading.position,
        });
        assigned.collect()
    }

    fn reading(&mut self, partition: &TopicPartition) -> Result<&mut Reading, ClientError> {
        let reading = self.readings.get_mut(partition);
        reading.ok_or_else(|| ClientError::Invalid(format!("{partition} is not assigned")))
    }

    fn begin(&mut self, at: Assignment, topic_id: Option<TopicId>, seen: Seen) {
        while self.fetchers.try_join_next().is_some() {}
        let partition = at.topic_partition();
        self.unassign(&partition);
        self.last += 1;
        let position = at.offset;
        let fetcher = Fetcher {
            client: self.client.clone(),
            options: self.options,
            reading: self.last,
            at,
            topic_id,
            seen,
        };
        let fetcher = self.fetchers.spawn(fetcher.run(self.sender.clone()));
        let reading = Reading {
            number: self.last,
            mode: Mode::Reads(fetcher),
            position,
            topic_id,
            seen,
        };
        self.readings.insert(partition, reading);
    }
}
