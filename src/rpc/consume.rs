//! `Consumer.Consume`: one stream of records from any node, whoever leads. Each partition is read
//! by a loop of fetches, here or at its leader, that outlives changes of leadership. Nothing is read
//! ahead of what the client takes but one fetch of a few partitions: one that has something to read
//! takes a turn, those that wait for records do not.

mod take;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use quorate_broker::Holder;
use quorate_proto::v1;
use quorate_types::{
    ErrorCode, LeaderEpoch, Offset, PartitionId, TopicId, TopicName, TopicPartition,
};
use quorate_wire::ErrorInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use take::{Made, Taken, Taking, ready_bytes};

use crate::edge::Edge;
use crate::starts::{Start, starts};
use crate::status::{fetch_error, invalid, to_status, told};

/// Partitions of one stream that may be read at a time, and read but not taken by the client. Each
/// takes 64 KiB at least, which is the stream's own share of memory (`STREAM` in
/// `src/config/node.rs`); what is more has room.
const READING: usize = 4;
/// Bytes of one fetch for a stream that takes its time, and for one that keeps up.
const CHUNK: (u32, u32) = (64 << 10, 512 << 10);
/// The most that a request may ask for a response.
const CHUNK_ASKED: u32 = 8 << 20;
/// Who takes the next response so soon keeps up; who takes so long does not.
const PACE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How long a leader waits for records before it is asked again.
const POLL_MS: u32 = 5_000;
/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// What a fetch told, and what became of it.
struct Fetched {
    leader_epoch: Option<LeaderEpoch>,
    /// Of what there was to be read.
    high_watermark: Offset,
    /// The turn that it took, where the reader had none.
    turn: Option<OwnedSemaphorePermit>,
    /// None where it is to be read again, by a turn.
    taken: Option<Result<Taken, ErrorInfo>>,
}

/// What a fetch takes, until the client has taken all that was made of it: a turn, and room for what was
/// fetched and for what was made of it.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<[Option<OwnedSemaphorePermit>; 3]>);

impl Held {
    /// Gives it back now: nobody takes anything any more.
    pub(crate) fn give_back(&self) {
        *self.0.lock() = Default::default();
    }
}

/// A response, which is to be kept with what it takes.
pub(crate) struct Given {
    pub(crate) response: v1::ConsumeResponse,
    /// The epoch of the last record up to here (KIP-320).
    pub(crate) last_epoch: Option<LeaderEpoch>,
    pub(crate) held: Arc<Held>,
}

/// The stream of one call.
pub(crate) type Consumed = BoxStream<'static, Result<v1::ConsumeResponse, Status>>;

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
        let most = most(request.max_bytes);
        let few = starts.len() <= READING;
        let turns = turns();
        let readers = starts.into_iter().map(|(partition, start)| {
            let id = TopicPartition::new(topic.id, partition);
            let mut reader = PartitionReader::new(self, &topic.name, id, start, most, &turns);
            reader.until_end = request.until_end;
            reader.as_batches = request.batches;
            reader.few = few;
            let first = Some((reader, Arc::default()));
            stream::unfold(first, |state: Option<(PartitionReader, Arc<Held>)>| async {
                let (mut reader, taken) = state?;
                drop(taken);
                match reader.next_response().await {
                    // Kept until the next one is asked for.
                    Ok(Some(given)) => Some((Ok(given.response), Some((reader, given.held)))),
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

/// The bytes of one fetch, at most, for a client that asks for so many.
pub(crate) fn most(asked: u32) -> u32 {
    match asked {
        0 => CHUNK.1,
        asked => asked.min(CHUNK_ASKED),
    }
}

/// The turns of one stream's partitions.
pub(crate) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READING))
}

/// Reads one partition on and on.
pub(crate) struct PartitionReader {
    edge: Edge,
    topic: String,
    topic_id: TopicId,
    partition: PartitionId,
    /// Until the place is found.
    start: Option<Start>,
    next: Offset,
    last_epoch: Option<LeaderEpoch>,
    /// The leader epoch when reading began: what later unclean elections lose is told (R7).
    seen_epoch: Option<LeaderEpoch>,
    until: Option<Offset>,
    until_end: bool,
    as_batches: bool,
    chunk: u32,
    most: u32,
    /// What a fetch brought and the client has not taken yet, each with the epoch of its last record.
    ready: VecDeque<(v1::ConsumeResponse, Option<LeaderEpoch>)>,
    given: Option<Instant>,
    told: bool,
    /// As the last answer told it: what is below is read, what is above is waited for.
    high_watermark: Offset,
    /// The stream's turns to read; each partition can have one where they are few.
    turns: Arc<Semaphore>,
    few: bool,
    /// This one's, until something is read.
    turn: Option<OwnedSemaphorePermit>,
    /// What the last fetch takes.
    held: Arc<Held>,
}

impl PartitionReader {
    /// From a place on, live; fetches of up to `most` bytes, by the stream's turns.
    pub(crate) fn new(
        edge: &Edge,
        topic: &TopicName,
        id: TopicPartition,
        start: Start,
        most: u32,
        turns: &Arc<Semaphore>,
    ) -> Self {
        Self {
            edge: edge.clone(),
            topic: topic.to_string(),
            topic_id: id.topic_id,
            partition: id.partition,
            start: Some(start),
            next: Offset::ZERO,
            last_epoch: None,
            seen_epoch: None,
            until: None,
            until_end: false,
            as_batches: false,
            chunk: CHUNK.0.min(most),
            most,
            ready: VecDeque::new(),
            given: None,
            told: false,
            high_watermark: Offset::ZERO,
            turns: Arc::clone(turns),
            few: false,
            turn: None,
            held: Arc::default(),
        }
    }

    /// Finds the place where reading begins, and reads nothing; tried until a leader tells it. There is
    /// no empty response that says it, then.
    pub(crate) async fn begin(&mut self) -> Result<Offset, ErrorInfo> {
        let mut backoff = RETRY.0;
        loop {
            let found = self.find_start().await;
            self.let_go();
            match found {
                Ok(()) => {
                    self.told = true;
                    return Ok(self.next);
                }
                Err(error) if error.code.is_retriable() && self.exists() => {
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(RETRY.1);
                }
                Err(error) => return Err(self.place(error)),
            }
        }
    }

    /// The next response; none at the end that was asked for.
    pub(crate) async fn next_response(&mut self) -> Result<Option<Given>, ErrorInfo> {
        self.pace();
        let mut backoff = RETRY.0;
        loop {
            if let Some((response, last_epoch)) = self.ready.pop_front() {
                self.given = Some(Instant::now());
                self.told = true;
                let held = match self.ready.is_empty() {
                    true => std::mem::take(&mut self.held),
                    false => Arc::clone(&self.held),
                };
                return Ok(Some(Given {
                    response,
                    last_epoch,
                    held,
                }));
            }
            self.let_go();
            if self.told && self.until.is_some_and(|end| self.next >= end) {
                return Ok(None);
            }
            match self.read_on().await {
                Ok(()) => backoff = RETRY.0,
                Err(error) if error.code.is_retriable() && self.exists() => {
                    self.let_go();
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(RETRY.1);
                }
                Err(error) => return Err(self.place(error)),
            }
        }
    }

    fn let_go(&mut self) {
        (self.held, self.turn) = (Arc::default(), None);
    }

    /// A turn to read, in the order of asking.
    async fn take_turn(&mut self) {
        if self.turn.is_none() {
            // Nobody closes it.
            self.turn = Arc::clone(&self.turns).acquire_owned().await.ok();
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

    async fn find_start(&mut self) -> Result<(), ErrorInfo> {
        if let Some(start) = self.start {
            // What is known already is not looked up.
            if self.until_end || !matches!(start, Start::Offset(..)) {
                self.take_turn().await;
            }
            (self.next, self.last_epoch) = self.find(start).await?;
            if self.until_end {
                let end = self.look_up(latest()).await?;
                self.until = Some(end.unwrap_or_default());
            }
            self.seen_epoch = self.last_epoch;
            self.start = None;
        }
        Ok(())
    }

    async fn read_on(&mut self) -> Result<(), ErrorInfo> {
        self.find_start().await?;
        // The first answer says where reading begins, whether there is something or not.
        let waits = self.told && self.next >= self.high_watermark;
        if self.few || !waits {
            self.take_turn().await;
        }
        let request = v1::FetchRequest {
            topic: self.topic.clone(),
            topic_id: Some(self.topic_id.as_bytes().to_vec().into()),
            partition: self.partition.to_signed(),
            offset: self.next.to_signed(),
            max_bytes: match self.turn {
                Some(_) if !self.is_scarce() => self.chunk,
                _ => self.chunk.min(CHUNK.0),
            },
            min_bytes: u32::from(waits),
            max_wait_ms: if waits { POLL_MS } else { 0 },
            current_leader_epoch: None,
            last_fetched_epoch: self.last_epoch.map(LeaderEpoch::to_signed),
            seen_leader_epoch: self.seen_epoch.map(LeaderEpoch::to_signed),
        };
        let has_turn = self.turn.is_some();
        let fetching = self.fetch(request, has_turn);
        // On a task of its own: a client that does not take what is there must not leave it on the
        // connection to another node, where it would stand in the way of everybody else's, and what is
        // to become of it is seen to at once, for that may take less room.
        let fetched = AbortOnDropHandle::new(tokio::spawn(fetching));
        let fetched = fetched.await.map_err(|ended| match ended.is_panic() {
            true => ErrorInfo::new(ErrorCode::UnknownServerError, "reading failed"),
            false => ErrorInfo::new(ErrorCode::LeaderNotAvailable, "the fetch was given up"),
        })??;
        if self.seen_epoch.is_none() {
            self.seen_epoch = fetched.leader_epoch;
        }
        self.high_watermark = fetched.high_watermark;
        let Some(taken) = fetched.taken else {
            return Ok(());
        };
        let taken = taken?;
        self.next = taken.next;
        self.last_epoch = taken.last_epoch;
        self.ready.extend(taken.ready);
        let turn = self.turn.take().or(fetched.turn);
        self.held = Arc::new(Held(Mutex::new([turn, taken.room, taken.decoded_room])));
        Ok(())
    }

    /// Whether so much may be asked for only that the own share holds it: the rest would be read again.
    fn is_scarce(&self) -> bool {
        let chunk = usize::try_from(self.chunk).unwrap_or(usize::MAX);
        self.edge.broker().room_is_scarce(chunk)
    }

    /// Fetches, and makes responses of what comes, for which there must be a turn.
    fn fetch(
        &self,
        mut request: v1::FetchRequest,
        has_turn: bool,
    ) -> impl Future<Output = Result<Fetched, ErrorInfo>> + Send + 'static {
        let (edge, turns) = (self.edge.clone(), Arc::clone(&self.turns));
        let mut taking = Taking {
            edge: self.edge.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            next: self.next,
            until: self.until,
            as_batches: self.as_batches,
            told: self.told,
            last_epoch: self.last_epoch,
            ready_bytes: ready_bytes(self.chunk),
        };
        async move {
            let (mut turn, mut paid) = (None, None);
            loop {
                let holder = match paid {
                    Some(_) => Holder::Paid,
                    None => Holder::Stream,
                };
                let answer = edge.fetch_anywhere(request.clone(), false, holder).await;
                let (answer, room) = answer.map_err(|status| told(&status))?;
                let is_empty = answer.batches.is_empty();
                let high_watermark = Offset::from_signed(answer.high_watermark).unwrap_or_default();
                let mut fetched = Fetched {
                    leader_epoch: LeaderEpoch::from_signed(answer.leader_epoch).ok(),
                    high_watermark: if is_empty {
                        // Whatever was told: what is not given now is waited for.
                        high_watermark.min(taking.next)
                    } else {
                        high_watermark
                    },
                    turn: None,
                    taken: None,
                };
                if !has_turn && !is_empty && turn.is_none() {
                    // Where others are to be taken first it is read again when its turn has come.
                    turn = Arc::clone(&turns).try_acquire_owned().ok();
                    if turn.is_none() {
                        return Ok(fetched);
                    }
                }
                match taking.take(answer, room, paid.take()).await {
                    Ok(Made::Needs(bytes)) => {
                        let room = edge.broker().fetch_room(bytes, Holder::Answer).await;
                        paid = room.map_err(|error| fetch_error(&error))?;
                        (request.max_bytes, request.max_wait_ms) = (1, 0);
                    }
                    Ok(Made::Taken(taken)) => {
                        (fetched.taken, fetched.turn) = (Some(Ok(taken)), turn);
                        return Ok(fetched);
                    }
                    Err(error) => {
                        fetched.taken = Some(Err(error));
                        return Ok(fetched);
                    }
                }
            }
        }
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
}

fn latest() -> v1::list_offsets_request::Position {
    v1::list_offsets_request::Position::Latest(v1::list_offsets_request::Latest {})
}
