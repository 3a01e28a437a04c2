//! Fetching one partition straight from its leader, over changes of leaders.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_record::{Batch, BatchError, Record};
use quorate_types::{LeaderEpoch, Offset, TopicId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, MESSAGE_BYTES, to_leader};
use crate::consumer::{Assignment, Consumed, ConsumerOptions, TopicPartition};
use crate::error::ClientError;

/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// A leader that does not answer for longer than the poll by so much is given up.
const GRACE: Duration = Duration::from_secs(2);

/// What the records of one batch may take in memory: what a small hostile batch can cost a reader.
const DECOMPRESSED_MAX: usize = 256 << 20;

/// Which history of the partition was read (KIP-320): whoever goes on says so.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// The epoch of the last record that was read.
    pub(crate) last_epoch: Option<i32>,
    /// The leader epoch when reading began: what later unclean elections lose is told.
    pub(crate) leader_epoch: Option<i32>,
}

/// What one fetch gave.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Which reading of the partition it belongs to; what is of an older one is nobody's.
    pub(crate) reading: u64,
    pub(crate) partition: TopicPartition,
    pub(crate) result: Result<Consumed, ClientError>,
    /// Where to go on.
    pub(crate) next: Offset,
    pub(crate) seen: Seen,
    /// The fetcher has ended.
    pub(crate) is_last: bool,
}

pub(crate) struct Fetcher {
    pub(crate) client: Client,
    pub(crate) options: ConsumerOptions,
    pub(crate) reading: u64,
    pub(crate) at: Assignment,
    /// Where it must be this topic, and not one of the same name that was made later.
    pub(crate) topic_id: Option<TopicId>,
    pub(crate) seen: Seen,
}

impl Fetcher {
    pub(crate) async fn run(mut self, out: mpsc::Sender<Fetched>) {
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
                    if given && out.send(self.fetched(Ok(consumed), false)).await.is_err() {
                        return;
                    }
                    let Some((behind, error)) = corrupt else {
                        continue;
                    };
                    let goes_on = self.options.skip_corrupt;
                    if goes_on {
                        self.at.offset = behind;
                    }
                    let told = self.fetched(Err(error), !goes_on);
                    if out.send(told).await.is_err() || !goes_on {
                        return;
                    }
                }
                Err(error) if error.is_retriable() => {
                    // Where it does not answer either, the next try says so again.
                    let _unreachable = self.client.refresh().await;
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(RETRY.1);
                }
                Err(error) => {
                    let _closed = out.send(self.fetched(Err(error), true)).await;
                    return;
                }
            }
        }
    }

    fn fetched(&self, result: Result<Consumed, ClientError>, is_last: bool) -> Fetched {
        Fetched {
            reading: self.reading,
            partition: self.at.topic_partition(),
            result,
            next: self.at.offset,
            seen: self.seen,
            is_last,
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
            topic_id: self
                .topic_id
                .map(|id| Bytes::copy_from_slice(id.as_bytes())),
            partition: partition.to_signed(),
            offset: offset.to_signed(),
            max_bytes: self.options.fetch_bytes,
            min_bytes: 1,
            current_leader_epoch: Some(leader_epoch),
            last_fetched_epoch: self.seen.last_epoch,
            seen_leader_epoch: self.seen.leader_epoch,
            max_wait_ms: u32::try_from(self.options.max_wait.as_millis()).unwrap_or(u32::MAX),
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
        self.seen.leader_epoch.get_or_insert(fetched.leader_epoch);
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
            self.seen.last_epoch = Some(batch.leader_epoch().to_signed());
        }
        *offset = next;
        let consumed = Consumed {
            topic: topic.clone(),
            partition: *partition,
            records,
            next,
            leader_epoch: self.seen.last_epoch.and_then(epoch),
            high_watermark,
            took,
        };
        Ok((consumed, corrupt))
    }
}

fn epoch(number: i32) -> Option<LeaderEpoch> {
    LeaderEpoch::from_signed(number).ok()
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
