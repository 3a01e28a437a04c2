//! One partition's sender: keeps a stream to the leader, sends batches in order, and after any
//! failure sends everything unanswered again, in the same order and under the same sequences.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::{Batch, BatchBuilder, ProducerTag, Record};
use quorate_types::{ErrorCode, PartitionId, ProducerEpoch, ProducerId, Sequence};
use quorate_wire::ErrorInfo;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::client::{Client, MESSAGE_BYTES, to_leader};
use crate::error::ClientError;
use crate::fate::Acked;
use crate::producer::{Gatherer, ProducerOptions, Sealed, Trouble};
use crate::producer_ids::ProducerIds;

/// A stream is opened within so long.
const OPEN: Duration = Duration::from_secs(1);
/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// A leader that does not answer for longer than the request's own time-out by so much is given up.
const GRACE: Duration = Duration::from_secs(1);

/// A sender that has sent nothing for so long begins anew before it does again, while everybody still
/// knows it: what is sent to a leader that has forgotten the producer could not be told from a repeat
/// afterwards. No leader forgets it sooner than in an hour (`producer-id-expiration`).
const SILENCE: Duration = Duration::from_secs(30 * 60);

/// A batch that has its sequence.
struct InFlight {
    sealed: Sealed,
    batch: Batch,
    /// 0: no answer is waited for.
    request_id: u64,
    /// When it went out on the present stream.
    sent: Option<Instant>,
    /// It went out on an earlier stream: it may be in the log.
    tried: bool,
    /// Refused for good, whatever becomes of those before it; it fails when it is the oldest.
    refused: Option<ErrorInfo>,
}

struct Stream {
    outgoing: mpsc::Sender<v1::ProduceStreamRequest>,
    answers: Streaming<v1::ProduceStreamResponse>,
    /// The epoch that the leader was taken for.
    leader_epoch: i32,
}

pub(crate) struct Worker {
    client: Client,
    options: ProducerOptions,
    topic: String,
    partition: PartitionId,
    gatherer: Arc<Gatherer>,
    ids: Arc<ProducerIds>,
    /// None until the first batch is to be sent, and where another is needed.
    id: Option<ProducerId>,
    /// The id before, all of whose epochs were used here.
    used_up: Option<ProducerId>,
    /// Bumped where sequences begin anew; fences late copies of what was sent before (KIP-360). In
    /// this partition only this sender uses the id, and nobody else was told it: so it is counted
    /// here, without the quorum, which produces do not need otherwise (R6).
    epoch: ProducerEpoch,
    next_sequence: Sequence,
    /// Another has taken over the id: there is no next epoch for this sender.
    fenced: bool,
    /// When something was sent last.
    sent_at: Instant,
    next_request: u64,
    in_flight: VecDeque<InFlight>,
    stream: Option<Stream>,
    backoff: Duration,
    trouble: Arc<Trouble>,
    /// Why what is in flight has not been delivered yet.
    last_error: Option<String>,
}

/// What an answer asks for.
enum Next {
    Go,
    /// The stream is void: everything unanswered is sent again.
    Again,
}

impl Worker {
    pub(crate) fn new(
        client: Client,
        options: ProducerOptions,
        topic: String,
        partition: PartitionId,
        gatherer: Arc<Gatherer>,
        ids: Arc<ProducerIds>,
        trouble: Arc<Trouble>,
    ) -> Self {
        Self {
            client,
            options,
            topic,
            partition,
            gatherer,
            ids,
            id: None,
            used_up: None,
            epoch: ProducerEpoch::ZERO,
            next_sequence: Sequence::ZERO,
            fenced: false,
            sent_at: Instant::now(),
            next_request: 0,
            in_flight: VecDeque::new(),
            stream: None,
            backoff: RETRY.0,
            trouble,
            last_error: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.expire();
            self.fail_refused();
            self.fill().await;
            if self.in_flight.is_empty() {
                self.idle().await;
                continue;
            }
            if self.stream.is_none()
                && let Err(error) = self.open().await
            {
                debug!(topic = self.topic, partition = %self.partition, %error, "no stream");
                self.failed(error.to_string());
                self.pause().await;
                continue;
            }
            match self.step().await {
                Ok(Next::Go) => {}
                Ok(Next::Again) => self.begin_again().await,
                Err(status) => {
                    debug!(topic = self.topic, partition = %self.partition, %status, "stream broke");
                    self.failed(ClientError::from(status).to_string());
                    self.begin_again().await;
                }
            }
        }
    }

    /// Takes complete batches up to what may be in flight, and gives them their sequences.
    async fn fill(&mut self) {
        while self.in_flight.len() < self.options.in_flight {
            let Some(sealed) = self.gatherer.take(&self.options) else {
                return;
            };
            if self.in_flight.is_empty()
                && self.next_sequence != Sequence::ZERO
                && self.sent_at.elapsed() >= SILENCE
            {
                self.renew();
            }
            let batch = sealed.batch.clone();
            let mut entry = InFlight {
                sealed,
                batch,
                request_id: 0,
                sent: None,
                tried: false,
                refused: None,
            };
            if let Some(id) = self.id {
                self.tag(&mut entry, id);
            }
            self.in_flight.push_back(entry);
        }
    }

    fn tag(&mut self, entry: &mut InFlight, id: ProducerId) {
        let tag = ProducerTag {
            id,
            epoch: self.epoch,
            base_sequence: self.next_sequence,
        };
        self.next_sequence = self.next_sequence.plus(entry.batch.header().record_count);
        entry.batch = entry.batch.clone().with_producer(tag);
        entry.sent = None;
    }

    /// Nothing to send: waits for a record, and then for the batch to be complete.
    async fn idle(&mut self) {
        let news = self.gatherer.news.notified();
        match self.gatherer.due(&self.options) {
            None => news.await,
            Some(due) => {
                tokio::select! {
                    () = news => {}
                    () = sleep_until(due) => {}
                }
            }
        }
    }

    async fn open(&mut self) -> Result<(), ClientError> {
        if self.id.is_none() {
            let (id, epoch) = self.ids.other_than(self.used_up).await?;
            self.epoch = epoch;
            self.begin_sequence(id);
        }
        for entry in &mut self.in_flight {
            entry.tried |= entry.sent.take().is_some();
        }
        let metadata = self.client.metadata();
        let known = metadata.leader(&self.topic, self.partition);
        let (leader, leader_epoch) = match known {
            Some(leader) => leader,
            None => {
                let metadata = self.client.refresh().await?;
                let none = || ClientError::Connection("the partition has no leader".into());
                metadata
                    .leader(&self.topic, self.partition)
                    .ok_or_else(none)?
            }
        };
        let way = self.client.way_to(&leader);
        let mut client = ProducerClient::new(self.client.channel(way.first())?)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let (outgoing, requests) = mpsc::channel(self.options.in_flight + 1);
        let opened = timeout(
            OPEN,
            client.produce_stream(to_leader(ReceiverStream::new(requests), &way)),
        )
        .await;
        let opened = opened
            .map_err(|_| ClientError::Connection(format!("{}: no answer in time", way.first())));
        let answers = opened.and_then(|answer| Ok(answer?.into_inner()));
        self.client.note(&way, &answers);
        self.stream = Some(Stream {
            outgoing,
            answers: answers?,
            leader_epoch,
        });
        Ok(())
    }

    /// Gives everything unanswered sequences of a producer that has sent nothing yet.
    fn begin_sequence(&mut self, id: ProducerId) {
        self.id = Some(id);
        self.next_sequence = Sequence::ZERO;
        let mut entries = std::mem::take(&mut self.in_flight);
        for entry in &mut entries {
            self.tag(entry, id);
        }
        self.in_flight = entries;
    }

    /// Sends what is not sent; then waits for an answer, for more to send, or for a deadline.
    async fn step(&mut self) -> Result<Next, Status> {
        let Some(mut stream) = self.stream.take() else {
            return Ok(Next::Again);
        };
        // What follows one that is refused has no place in the log before that one is given up; and
        // a leader knows only the last batches again (R11), where some were split, too.
        let sendable = self
            .in_flight
            .iter_mut()
            .take(self.options.in_flight)
            .take_while(|entry| entry.refused.is_none());
        for entry in sendable.filter(|entry| entry.sent.is_none()) {
            self.next_request += 1;
            entry.request_id = self.next_request;
            self.sent_at = Instant::now();
            entry.sent = Some(self.sent_at);
            let mut request = request(&self.options, &self.topic, self.partition, entry);
            // A former leader that has not heard of its end must not judge sequences.
            if let Some(request) = &mut request.request {
                request.current_leader_epoch = Some(stream.leader_epoch);
            }
            if stream.outgoing.send(request).await.is_err() {
                return Ok(Next::Again);
            }
        }
        let oldest = self.in_flight.front().and_then(|entry| entry.sent);
        let give_up = oldest.map(|sent| sent + self.options.request_timeout + GRACE);
        let expires = self
            .in_flight
            .iter()
            .map(|entry| entry.sealed.deadline)
            .min();
        let deadline = give_up
            .into_iter()
            .chain(expires)
            .min()
            .unwrap_or_else(Instant::now);
        let room = self.in_flight.len() < self.options.in_flight;
        let due = self.gatherer.due(&self.options).filter(|_| room);
        let next = tokio::select! {
            biased;
            answer = stream.answers.message() => match answer? {
                Some(answer) => self.take(answer),
                None => return Ok(Next::Again),
            },
            () = self.gatherer.news.notified(), if room => Next::Go,
            () = sleep_until(due.unwrap_or(deadline)), if due.is_some() => Next::Go,
            () = sleep_until(deadline) => {
                if give_up.is_some_and(|at| at <= Instant::now()) { Next::Again } else { Next::Go }
            }
        };
        if matches!(next, Next::Go) {
            self.stream = Some(stream);
        }
        Ok(next)
    }

    fn take(&mut self, answer: v1::ProduceStreamResponse) -> Next {
        use v1::produce_stream_response::Result as Answer;
        let found = self
            .in_flight
            .iter()
            .position(|entry| entry.request_id == answer.request_id);
        let Some(at) = found else { return Next::Go };
        match answer.result {
            Some(Answer::Response(response)) => {
                self.backoff = RETRY.0;
                if self.last_error.take().is_some() {
                    self.trouble.over();
                }
                if let Some(entry) = self.in_flight.remove(at) {
                    entry.sealed.fate.decide(Ok(Acked {
                        partition: self.partition,
                        offset: response.base_offset,
                        leader_epoch: response.leader_epoch,
                        replicas: response.replicas,
                        fsynced: response.fsynced,
                    }));
                }
                Next::Go
            }
            Some(Answer::Error(error)) => self.take_error(at, error),
            None => Next::Again,
        }
    }

    /// Only the oldest batch can fail for good: a later one may have failed because of it, and is
    /// judged again when it is the oldest.
    fn take_error(&mut self, at: usize, error: v1::ProduceError) -> Next {
        let code = ErrorCode::from_name(&error.reason);
        debug!(topic = self.topic, partition = %self.partition, reason = error.reason, "refused");
        let forgotten = matches!(
            code,
            Some(ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId)
        );
        // Of all refusals only this one says the same whatever became of those before it; and it
        // is known that a batch is not in the log that was never sent otherwise.
        if code == Some(ErrorCode::MessageTooLarge) && !self.in_flight[at].tried {
            self.refuse_size(at, error);
            return Next::Go;
        }
        if at > 0 {
            return Next::Again;
        }
        if error.retriable {
            self.failed(format!("{}: {}", error.reason, error.message));
            return Next::Again;
        }
        if code == Some(ErrorCode::InvalidProducerEpoch) {
            self.give_way(&error);
            return Next::Go;
        }
        if forgotten && !self.in_flight[at].tried && !self.fenced {
            // What this producer wrote is not remembered any more: it begins anew.
            self.renew();
            return Next::Again;
        }
        let refused = ClientError::Refused(error_info(error));
        self.fail_oldest(if forgotten {
            // Its first try may have been taken, by a leader that knew what was before.
            ClientError::TimedOut(format!("{refused}; the record may be in the log or not"))
        } else {
            refused
        });
        Next::Again
    }

    /// Somebody asked the quorum for the next epoch of this id, to take over from whoever has it. So
    /// nothing of it is taken any more, and another epoch must not be tried: it would be theirs. What
    /// comes later is sent, and refused, under the same one.
    fn give_way(&mut self, error: &v1::ProduceError) {
        self.fenced = true;
        for entry in self.in_flight.drain(..) {
            let refused = ClientError::Refused(error_info(error.clone()));
            entry.sealed.fate.decide(Err(if entry.tried {
                ClientError::TimedOut(format!("{refused}; the record may be in the log or not"))
            } else {
                refused
            }));
        }
    }

    /// Remembers why records wait.
    fn failed(&mut self, why: String) {
        self.trouble.met(&why);
        self.last_error = Some(why);
    }

    /// Makes two batches of one that was refused for its size, and has later ones gathered smaller:
    /// what a topic takes is known only from its refusals. A single record fails, once those before
    /// it are decided. Nothing behind it has been taken either, since its sequences are missing: all
    /// that is sent anew.
    fn refuse_size(&mut self, at: usize, error: v1::ProduceError) {
        for entry in self.in_flight.range_mut(at..) {
            // What is still to be answered of them says nothing new.
            (entry.sent, entry.request_id) = (None, 0);
        }
        let Some(entry) = self.in_flight.remove(at) else {
            return;
        };
        self.gatherer.gather_at_most(entry.batch.size() / 2);
        match halves(entry) {
            Ok((first, second)) => {
                self.in_flight.insert(at, second);
                self.in_flight.insert(at, first);
            }
            Err(mut entry) => {
                entry.refused = Some(error_info(error));
                self.in_flight.insert(at, *entry);
            }
        }
    }

    /// Gives up what was refused, once it is the oldest.
    fn fail_refused(&mut self) {
        while let Some(entry) = self.in_flight.front_mut()
            && let Some(info) = entry.refused.take()
        {
            self.fail_oldest(ClientError::Refused(info));
        }
    }

    /// The oldest batch leaves a gap in the sequences: what follows it begins anew. What may be in
    /// the log already under its old sequence is given up with it: sent again under a new one it
    /// could be there twice.
    fn fail_oldest(&mut self, error: ClientError) {
        if let Some(entry) = self.in_flight.pop_front() {
            entry.sealed.fate.decide(Err(error));
        }
        while self.in_flight.front().is_some_and(|entry| entry.tried)
            && let Some(entry) = self.in_flight.pop_front()
        {
            let why = "a record before it was given up; it may be in the log or not";
            let error = ClientError::TimedOut(why.to_owned());
            entry.sealed.fate.decide(Err(error));
        }
        self.renew();
    }

    /// Begins the sequences anew, under an epoch that fences what is still under way; after the last
    /// epoch, under an id that the next opening of a stream brings.
    fn renew(&mut self) {
        let Some(id) = self.id.filter(|_| !self.fenced) else {
            return;
        };
        if self.epoch == ProducerEpoch::LAST {
            (self.id, self.used_up, self.stream) = (None, Some(id), None);
            return;
        }
        self.epoch = self.epoch.next();
        self.begin_sequence(id);
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while self
            .in_flight
            .front()
            .is_some_and(|entry| entry.sealed.deadline <= now)
        {
            let why = match &self.last_error {
                Some(error) => format!("{error}; the record may be in the log or not"),
                None => "no answer; the record may be in the log or not".to_owned(),
            };
            self.stream = None;
            for entry in &mut self.in_flight {
                entry.tried |= entry.sent.take().is_some();
            }
            self.fail_oldest(ClientError::TimedOut(why));
        }
    }

    /// The stream is void: learns who leads, and lets the next round send everything again.
    async fn begin_again(&mut self) {
        self.stream = None;
        self.pause().await;
    }

    async fn pause(&mut self) {
        if let Err(error) = self.client.refresh().await {
            debug!(%error, "the cluster does not answer");
        }
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(RETRY.1);
    }
}

fn error_info(error: v1::ProduceError) -> ErrorInfo {
    let code = ErrorCode::from_name(&error.reason);
    ErrorInfo {
        code: code.unwrap_or(ErrorCode::UnknownServerError),
        message: error.message,
        metadata: error.metadata.into_iter().collect(),
    }
}

/// Two batches with the records and sequences of one; the same again where it is a single record, or
/// cannot be read.
fn halves(entry: InFlight) -> Result<(InFlight, InFlight), Box<InFlight>> {
    let records = entry.sealed.batch.records().unwrap_or_default();
    if records.len() < 2 {
        return Err(Box::new(entry));
    }
    let compression = entry.batch.header().compression;
    let tag = entry.batch.header().producer;
    let middle = records.len() / 2;
    let batch = |records: &[Record], after: u32| {
        let mut builder = BatchBuilder::new(compression);
        for record in records {
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            builder.push(record.timestamp, key, value, &record.headers);
        }
        let batch = builder.build();
        let tagged = tag.map(|tag| ProducerTag {
            base_sequence: tag.base_sequence.plus(after),
            ..tag
        });
        (
            batch.clone(),
            tagged.map_or(batch.clone(), |tag| batch.with_producer(tag)),
        )
    };
    let InFlight { sealed, tried, .. } = entry;
    let Sealed {
        mut fate,
        deadline,
        mut permit,
        ..
    } = sealed;
    let of_first = u32::try_from(middle).unwrap_or(u32::MAX);
    let first_fate = fate.split_off_first(of_first);
    let first_permit = permit.split(permit.num_permits() / 2);
    let first_permit = first_permit.expect("half of what is held can be split off");
    let entry = |(batch, tagged): (Batch, Batch), fate, permit| InFlight {
        sealed: Sealed {
            batch,
            fate,
            deadline,
            permit,
        },
        batch: tagged,
        request_id: 0,
        sent: None,
        tried,
        refused: None,
    };
    Ok((
        entry(batch(&records[..middle], 0), first_fate, first_permit),
        entry(batch(&records[middle..], of_first), fate, permit),
    ))
}

fn request(
    options: &ProducerOptions,
    topic: &str,
    partition: PartitionId,
    entry: &InFlight,
) -> v1::ProduceStreamRequest {
    let bytes: Bytes = entry.batch.bytes().clone();
    let timeout = options.request_timeout.as_millis();
    v1::ProduceStreamRequest {
        request_id: entry.request_id,
        request: Some(v1::ProduceRequest {
            topic: topic.to_owned(),
            partition: Some(partition.to_signed()),
            acks: quorate_wire::acks_to_proto(options.acks),
            payload: Some(v1::produce_request::Payload::Batch(bytes)),
            timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
            ..v1::ProduceRequest::default()
        }),
    }
}
