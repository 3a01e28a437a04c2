//! `Consumer.Consume`: one stream of records from any node, whoever leads. Each partition is read
//! by a loop of fetches, here or at its leader, that outlives changes of leadership; nothing is
//! read ahead of what the client takes but one fetch a partition.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use quorate_proto::v1;
use quorate_record::{Batch, BatchError, Compression};
use quorate_types::{ErrorCode, LeaderEpoch, Offset, PartitionId, TopicId};
use quorate_wire::ErrorInfo;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::edge::Edge;
use crate::records::{Decoded, decode_batch};
use crate::status::{from_status, invalid, to_status};

/// Partitions of one stream.
const PARTITIONS_MAX: usize = 1_024;
/// Bytes of one fetch for a stream that takes its time, and for one that keeps up.
const CHUNK: (u32, u32) = (64 << 10, 512 << 10);
/// The most that a request may ask for a response.
const CHUNK_ASKED: u32 = 8 << 20;
/// Records of one response: what common clients take by default is 4 MiB a message.
const RESPONSE_BYTES: usize = 1 << 20;
/// Records that wait decoded in one go; of a larger batch the rest is read again.
const READY_BYTES: usize = 4 << 20;
/// Who takes the next response so soon keeps up; who takes so long does not.
const PACE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How long a leader waits for records before it is asked again.
const POLL: Duration = Duration::from_secs(5);
/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// The stream of one call.
pub(crate) type Consumed = BoxStream<'static, Result<v1::ConsumeResponse, Status>>;

/// Where a partition begins.
#[derive(Debug, Clone, Copy)]
enum Start {
    Offset(Offset, Option<LeaderEpoch>),
    Position(v1::Position),
    Timestamp(i64),
}

impl Edge {
    /// Checks a request and begins its stream.
    pub(crate) fn consume_stream(
        &self,
        request: &v1::ConsumeRequest,
    ) -> Result<Consumed, ErrorInfo> {
        let id = request.topic_id.as_deref().map(quorate_wire::topic_id);
        let id = id.transpose().map_err(|error| invalid(&error))?;
        let topic = self.topic(&request.topic, id)?;
        let starts = starts(request, topic.partitions)?;
        let most = match request.max_bytes {
            0 => CHUNK.1,
            asked => asked.min(CHUNK_ASKED),
        };
        let readers = starts.into_iter().map(|(partition, start)| {
            let reader = PartitionReader {
                edge: self.clone(),
                topic: request.topic.clone(),
                topic_id: topic.id,
                partition,
                start: Some(start),
                next: Offset::ZERO,
                last_epoch: None,
                until: None,
                until_end: request.until_end,
                as_batches: request.batches,
                chunk: CHUNK.0.min(most),
                most,
                ready: VecDeque::new(),
                given: None,
                told: false,
                room: None,
            };
            stream::unfold(Some(reader), |reader| async move {
                let mut reader = reader?;
                match reader.next_response().await {
                    Ok(Some(response)) => Some((Ok(response), Some(reader))),
                    Ok(None) => None,
                    Err(error) => Some((Err(to_status(&error)), None)),
                }
            })
            .boxed()
        });
        let merged = stream::select_all(readers);
        // The first error is the last word of the stream.
        let ended = merged.scan(false, |failed, item| {
            let go_on = !std::mem::replace(failed, *failed || item.is_err());
            std::future::ready(go_on.then_some(item))
        });
        Ok(ended.boxed())
    }
}

/// The partitions of a request, each with its place.
fn starts(
    request: &v1::ConsumeRequest,
    count: u32,
) -> Result<Vec<(PartitionId, Start)>, ErrorInfo> {
    use v1::consume_request::Start as Common;
    use v1::partition_start::Start as Own;
    let bad = |message: String| ErrorInfo::new(ErrorCode::InvalidRequest, message);
    let position = |number: i32| {
        let position = v1::Position::try_from(number);
        position.map_err(|_| bad(format!("{number} is no position")))
    };
    let common = match request.start {
        Some(Common::Position(number)) => Start::Position(position(number)?),
        Some(Common::TimestampMs(at)) => Start::Timestamp(at),
        None => Start::Position(v1::Position::Latest),
    };
    if request.partitions.is_empty() {
        if count as usize > PARTITIONS_MAX {
            return Err(bad(format!(
                "the topic has {count} partitions, one stream reads {PARTITIONS_MAX} at most: name \
                 some"
            )));
        }
        let all = (0..count).map(|number| (PartitionId::new(number), common));
        return Ok(all.collect());
    }
    if request.partitions.len() > PARTITIONS_MAX {
        return Err(bad(format!(
            "{} partitions: one stream reads {PARTITIONS_MAX} at most",
            request.partitions.len()
        )));
    }
    let mut seen = BTreeSet::new();
    let mut starts = Vec::with_capacity(request.partitions.len());
    for named in &request.partitions {
        let partition = Edge::partition(named.partition)?;
        if partition.get() >= count {
            return Err(ErrorInfo::new(
                ErrorCode::UnknownTopicOrPartition,
                format!(
                    "topic {} has {count} partitions, no {partition}",
                    request.topic
                ),
            ));
        }
        if !seen.insert(partition) {
            return Err(bad(format!("partition {partition} is named twice")));
        }
        let start = match named.start {
            Some(Own::Offset(offset)) => {
                let offset = Offset::from_signed(offset).map_err(|error| bad(error.to_string()))?;
                let epoch = named.last_fetched_epoch.map(LeaderEpoch::from_signed);
                let epoch = epoch.transpose().map_err(|error| bad(error.to_string()))?;
                Start::Offset(offset, epoch)
            }
            Some(Own::Position(number)) => Start::Position(position(number)?),
            Some(Own::TimestampMs(at)) => Start::Timestamp(at),
            None => common,
        };
        starts.push((partition, start));
    }
    Ok(starts)
}

/// Reads one partition on and on.
struct PartitionReader {
    edge: Edge,
    topic: String,
    topic_id: TopicId,
    partition: PartitionId,
    /// Until the place is found.
    start: Option<Start>,
    next: Offset,
    last_epoch: Option<LeaderEpoch>,
    until: Option<Offset>,
    until_end: bool,
    as_batches: bool,
    chunk: u32,
    most: u32,
    /// What a fetch brought and the client has not taken yet.
    ready: VecDeque<v1::ConsumeResponse>,
    given: Option<Instant>,
    told: bool,
    /// What the last fetch takes, until the client has taken it.
    room: Option<OwnedSemaphorePermit>,
}

impl PartitionReader {
    /// The next response; none at the end that was asked for.
    async fn next_response(&mut self) -> Result<Option<v1::ConsumeResponse>, ErrorInfo> {
        self.pace();
        let mut backoff = RETRY.0;
        loop {
            if let Some(response) = self.ready.pop_front() {
                self.given = Some(Instant::now());
                self.told = true;
                return Ok(Some(response));
            }
            self.room = None;
            if self.told && self.until.is_some_and(|end| self.next >= end) {
                return Ok(None);
            }
            match self.read_on().await {
                Ok(()) => backoff = RETRY.0,
                Err(error) if error.code.is_retriable() && self.exists() => {
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(RETRY.1);
                }
                Err(error) => return Err(self.place(error)),
            }
        }
    }

    /// A client that comes back at once gets larger pieces, one that takes its time smaller ones:
    /// what a stuck client holds is little.
    fn pace(&mut self) {
        let Some(given) = self.given.take() else {
            return;
        };
        let taken = given.elapsed();
        if taken < PACE.0 {
            self.chunk = (self.chunk * 2).min(self.most);
        } else if taken > PACE.1 {
            self.chunk = (self.chunk / 2).max(CHUNK.0).min(self.most);
        }
    }

    fn exists(&self) -> bool {
        self.edge.image().topic(self.topic_id).is_some()
    }

    /// An error with the place where reading ended.
    fn place(&self, mut error: ErrorInfo) -> ErrorInfo {
        let mut note = |key: &str, value: String| {
            error.metadata.entry(key.to_owned()).or_insert(value);
        };
        note("topic", self.topic.clone());
        note("partition", self.partition.to_string());
        note("offset", self.next.to_string());
        error
    }

    async fn read_on(&mut self) -> Result<(), ErrorInfo> {
        if let Some(start) = self.start {
            (self.next, self.last_epoch) = self.find(start).await?;
            if self.until_end {
                let end = self.look_up(latest()).await?;
                self.until = Some(end.unwrap_or_default());
            }
            self.start = None;
        }
        let live = self.until.is_none_or(|end| self.next < end);
        let request = v1::FetchRequest {
            topic: self.topic.clone(),
            topic_id: Some(self.topic_id.as_bytes().to_vec().into()),
            partition: self.partition.to_signed(),
            offset: self.next.to_signed(),
            max_bytes: self.chunk,
            // The first answer says where reading begins, whether there is something or not.
            min_bytes: u32::from(self.told && live),
            max_wait_ms: u32::try_from(POLL.as_millis()).unwrap_or(u32::MAX),
            current_leader_epoch: None,
            last_fetched_epoch: self.last_epoch.map(LeaderEpoch::to_signed),
        };
        // On a task of its own: a client that does not take what is there must not leave it on the
        // connection to another node, where it would stand in the way of everybody else's.
        let edge = self.edge.clone();
        let fetching = tokio::spawn(async move { edge.fetch_anywhere(request, false).await });
        let fetched = AbortOnDropHandle::new(fetching).await.map_err(|_ended| {
            ErrorInfo::new(ErrorCode::LeaderNotAvailable, "the fetch was given up")
        })?;
        let (fetched, room) = fetched.map_err(|status| told(&status))?;
        self.room = room;
        self.take(fetched).await
    }

    async fn find(&self, start: Start) -> Result<(Offset, Option<LeaderEpoch>), ErrorInfo> {
        use v1::list_offsets_request::{Earliest, Position};
        let position = match start {
            Start::Offset(offset, epoch) => return Ok((offset, epoch)),
            Start::Position(v1::Position::Earliest) => Position::Earliest(Earliest {}),
            Start::Position(v1::Position::Latest) => latest(),
            Start::Timestamp(at) => Position::TimestampMs(at),
        };
        let found = match self.look_up(position).await? {
            Some(offset) => offset,
            // No record is that young: what comes next is.
            None => self.look_up(latest()).await?.unwrap_or_default(),
        };
        Ok((found, None))
    }

    async fn look_up(
        &self,
        position: v1::list_offsets_request::Position,
    ) -> Result<Option<Offset>, ErrorInfo> {
        let request = v1::ListOffsetsRequest {
            topic: self.topic.clone(),
            topic_id: Some(self.topic_id.as_bytes().to_vec().into()),
            partition: self.partition.to_signed(),
            current_leader_epoch: None,
            position: Some(position),
        };
        let listed = self.edge.list_offset(request, false).await;
        let listed = listed.map_err(|status| told(&status))?;
        let offset = listed.offset.map(Offset::from_signed).transpose();
        offset.map_err(|error| ErrorInfo::new(ErrorCode::UnknownServerError, error.to_string()))
    }

    /// Makes responses of what a fetch brought.
    async fn take(&mut self, fetched: v1::FetchResponse) -> Result<(), ErrorInfo> {
        if let Some(diverging) = fetched.diverging {
            let mut error = ErrorInfo::new(
                ErrorCode::OffsetOutOfRange,
                format!(
                    "{}-{}: the log was truncated to offset {} below what was read (KIP-320)",
                    self.topic, self.partition, diverging.end_offset
                ),
            );
            let end = diverging.end_offset.to_string();
            error.metadata.insert("diverging_offset".to_owned(), end);
            return Err(error);
        }
        let response = v1::ConsumeResponse {
            partition: self.partition.to_signed(),
            next_offset: self.next.to_signed(),
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
            leader_epoch: fetched.leader_epoch,
            ..v1::ConsumeResponse::default()
        };
        if fetched.batches.is_empty() {
            if !self.told {
                self.ready.push_back(response);
            }
            return Ok(());
        }
        let batches = Batch::split(fetched.batches.clone());
        let batches = batches.map_err(|error| self.corrupt(&error.to_string(), None))?;
        if self.as_batches {
            if let Some(last) = batches.last() {
                self.next = last.end_offset();
                self.last_epoch = Some(last.leader_epoch());
            }
            self.ready.push_back(v1::ConsumeResponse {
                next_offset: self.next.to_signed(),
                batches: fetched.batches,
                ..response
            });
            return Ok(());
        }
        for batch in batches {
            let (from, until, end) = (self.next, self.until, batch.end_offset());
            let (epoch, compressed) = (
                batch.leader_epoch(),
                batch.header().compression != Compression::None,
            );
            let decode = move || decode_batch(&batch, from, until, RESPONSE_BYTES, READY_BYTES);
            let decoded = if compressed {
                let decoding = tokio::task::spawn_blocking(decode);
                decoding.await.unwrap_or_else(|died| {
                    Err(BatchError::Records(if died.is_panic() {
                        "decoding failed"
                    } else {
                        "the node stops"
                    }))
                })
            } else {
                decode()
            };
            let decoded = match decoded {
                Ok(decoded) => decoded,
                // What is before it is given first; the next read comes back to it.
                Err(_) if !self.ready.is_empty() => return Ok(()),
                Err(why) => return Err(self.corrupt(&why.to_string(), Some(end))),
            };
            for Decoded { records, next } in decoded {
                self.next = self.next.max(next);
                self.ready.push_back(v1::ConsumeResponse {
                    records,
                    next_offset: self.next.to_signed(),
                    ..response.clone()
                });
            }
            self.last_epoch = Some(epoch);
            if self.next < end {
                // The rest of the batch, or what cannot be decoded in it, is for the next read.
                break;
            }
        }
        Ok(())
    }

    /// What cannot be decoded, with its place and, where it is known, how to get past it.
    fn corrupt(&self, why: &str, end: Option<Offset>) -> ErrorInfo {
        let message = format!(
            "{}-{}, offset {}: the records cannot be decoded: {why}",
            self.topic, self.partition, self.next
        );
        let mut error = ErrorInfo::new(ErrorCode::CorruptMessage, message);
        if let Some(end) = end {
            let end = end.to_string();
            error.message = format!("{}; read on from offset {end} to skip them", error.message);
            error.metadata.insert("next_offset".to_owned(), end);
        }
        error
    }
}

fn latest() -> v1::list_offsets_request::Position {
    v1::list_offsets_request::Position::Latest(v1::list_offsets_request::Latest {})
}

fn told(status: &Status) -> ErrorInfo {
    from_status(status).unwrap_or_else(|| {
        ErrorInfo::new(
            ErrorCode::UnknownServerError,
            format!("{}: {}", status.code(), status.message()),
        )
    })
}
