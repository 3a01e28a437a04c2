//! Consuming: one fetcher a partition, straight from its leader, within a bounded buffer.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_record::{Batch, BatchError, Record};
use quorate_types::{Offset, PartitionId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, MESSAGE_BYTES, to_leader};
use crate::error::ClientError;

/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// A leader that does not answer for longer than the poll by so much is given up.
const GRACE: Duration = Duration::from_secs(2);

/// What the records of one batch may take in memory: what a small hostile batch can cost a reader.
const DECOMPRESSED_MAX: usize = 256 << 20;

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
    /// Where the readable part of the log ends.
    pub high_watermark: Offset,
    /// How long the fetch took, from its request to its answer; with the wait for records where
    /// there were none.
    pub took: Duration,
}

/// Reads partitions.
pub struct Consumer {
    received: mpsc::Receiver<Result<Consumed, ClientError>>,
    _fetchers: JoinSet<()>,
}

impl Client {
    /// A consumer of the assigned partitions.
    pub fn consumer(&self, assigned: Vec<Assignment>, options: ConsumerOptions) -> Consumer {
        let (sender, received) = mpsc::channel(options.buffered.max(1));
        let mut fetchers = JoinSet::new();
        for assignment in assigned {
            let fetcher = Fetcher {
                client: self.clone(),
                options,
                at: assignment,
                last_epoch: None,
                seen_epoch: None,
            };
            fetchers.spawn(fetcher.run(sender.clone()));
        }
        Consumer {
            received,
            _fetchers: fetchers,
        }
    }
}

impl Consumer {
    /// The next records of some partition; none where no partition is left.
    ///
    /// # Errors
    /// [`ClientError`] of a partition, which is read no further; only after a
    /// [`ClientError::Corrupt`] it is, where [`ConsumerOptions::skip_corrupt`] asks for that.
    pub async fn poll(&mut self) -> Option<Result<Consumed, ClientError>> {
        self.received.recv().await
    }
}

struct Fetcher {
    client: Client,
    options: ConsumerOptions,
    at: Assignment,
    /// The epoch of the last record that was read (KIP-320).
    last_epoch: Option<i32>,
    /// The leader epoch when reading began: what later unclean elections lose is told.
    seen_epoch: Option<i32>,
}

impl Fetcher {
    async fn run(mut self, out: mpsc::Sender<Result<Consumed, ClientError>>) {
        let mut backoff = RETRY.0;
        loop {
            let asked = Instant::now();
            let fetched = match self.fetch().await {
                Ok(fetched) => self.decode(fetched, asked.elapsed()),
                Err(error) => Err(error),
            };
            match fetched {
                Ok((consumed, corrupt)) => {
                    backoff = RETRY.0;
                    // What could be read before the records that cannot is given first.
                    let given = corrupt.is_none() || !consumed.records.is_empty();
                    if given && out.send(Ok(consumed)).await.is_err() {
                        return;
                    }
                    let Some((behind, error)) = corrupt else {
                        continue;
                    };
                    if out.send(Err(error)).await.is_err() || !self.options.skip_corrupt {
                        return;
                    }
                    self.at.offset = behind;
                }
                Err(error) if error.is_retriable() => {
                    // Where it does not answer either, the next try says so again.
                    let _unreachable = self.client.refresh().await;
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(RETRY.1);
                }
                Err(error) => {
                    let _closed = out.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    async fn fetch(&self) -> Result<v1::FetchResponse, ClientError> {
        let Assignment {
            topic,
            partition,
            offset,
        } = &self.at;
        let (leader, leader_epoch) = match self.client.metadata().leader(topic, *partition) {
            Some(leader) => leader,
            None => {
                self.client.topic(topic).await?;
                let metadata = self.client.refresh().await?;
                let none = || ClientError::Connection("the partition has no leader".into());
                metadata.leader(topic, *partition).ok_or_else(none)?
            }
        };
        let request = v1::FetchRequest {
            topic: topic.clone(),
            partition: partition.to_signed(),
            offset: offset.to_signed(),
            max_bytes: self.options.fetch_bytes,
            min_bytes: 1,
            current_leader_epoch: Some(leader_epoch),
            last_fetched_epoch: self.last_epoch,
            seen_leader_epoch: self.seen_epoch,
            max_wait_ms: u32::try_from(self.options.max_wait.as_millis()).unwrap_or(u32::MAX),
            ..v1::FetchRequest::default()
        };
        let way = self.client.way_to(&leader);
        let mut client = ConsumerClient::new(self.client.channel(way.first())?)
            .max_decoding_message_size(MESSAGE_BYTES);
        let fetched = timeout(
            self.options.max_wait + GRACE,
            client.fetch(to_leader(request, &way)),
        )
        .await;
        let fetched = fetched
            .map_err(|_| ClientError::Connection(format!("{}: no answer in time", way.first())));
        let fetched = fetched.and_then(|answer| Ok(answer?.into_inner()));
        self.client.note(&way, &fetched);
        fetched
    }

    /// Decodes what was fetched, up to the first record that cannot be; then that is told too, with
    /// the offset behind its batch.
    fn decode(
        &mut self,
        fetched: v1::FetchResponse,
        took: Duration,
    ) -> Result<(Consumed, Option<(Offset, ClientError)>), ClientError> {
        let Assignment {
            topic,
            partition,
            offset,
        } = &mut self.at;
        if let Some(diverging) = &fetched.diverging {
            let end = diverging.end_offset;
            return Err(ClientError::Protocol(format!(
                "{topic}-{partition}: what was read from offset {end} to {offset} is not in the log any \
                 more: read on from offset {end}"
            )));
        }
        self.seen_epoch.get_or_insert(fetched.leader_epoch);
        let unreadable = |error: &dyn std::fmt::Display| {
            ClientError::Protocol(format!("{topic}-{partition}, offset {offset}: {error}"))
        };
        let high_watermark =
            Offset::from_signed(fetched.high_watermark).map_err(|error| unreadable(&error))?;
        let batches =
            Batch::split(Bytes::clone(&fetched.batches)).map_err(|error| unreadable(&error))?;
        let (mut records, mut next, mut corrupt) = (Vec::new(), *offset, None);
        for batch in batches {
            if let Err((at, reason)) = read(&batch, next, &mut records) {
                next = at;
                let behind = batch.end_offset();
                let error = ClientError::Corrupt {
                    topic: topic.clone(),
                    partition: *partition,
                    offset: at,
                    next: behind,
                    reason,
                };
                corrupt = Some((behind, error));
                break;
            }
            next = next.max(batch.end_offset());
            self.last_epoch = Some(batch.leader_epoch().to_signed());
        }
        *offset = next;
        let consumed = Consumed {
            topic: topic.clone(),
            partition: *partition,
            records,
            next,
            high_watermark,
            took,
        };
        Ok((consumed, corrupt))
    }
}

/// Adds a batch's records from `from` on (it may begin below what was asked for).
///
/// # Errors
/// The offset of the first record that cannot be decoded, and why; those before it are added.
fn read(
    batch: &Batch,
    from: Offset,
    records: &mut Vec<Record>,
) -> Result<(), (Offset, BatchError)> {
    let mut at = batch.base_offset();
    let decoded = batch.iter(DECOMPRESSED_MAX);
    for record in decoded.map_err(|error| (at.max(from), error))? {
        let record = record.map_err(|error| (at.max(from), error))?;
        at = record.offset.plus(1);
        if record.offset >= from {
            records.push(record);
        }
    }
    Ok(())
}
