//! Produces of one client's stream on their way to a leader elsewhere: one stream there, pipelined, so
//! that their order holds and none waits for the answer to the one before.
//!
//! Never a second try: what was sent and not answered may have arrived (R11). What was not sent has
//! not: its refusal says so.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::{ErrorCode, NodeId};
use quorate_wire::ErrorInfo;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::channels::MESSAGE_BYTES;
use crate::edge::{forward_failed, mark_forwarded};
use crate::status::from_status;

/// Requests on their way from one task to the next; their bytes have room already.
const WAITING: usize = 64;
/// How often requests without an answer are looked at.
const TICK: Duration = Duration::from_millis(100);

pub(crate) type Answer = Result<v1::ProduceResponse, ErrorInfo>;

/// What a request takes here: until it is answered or given up, and no longer here to be sent. The
/// task that owns the stream to the leader lets go of it, whatever the client's task waits for.
type Room = Arc<OwnedSemaphorePermit>;

/// A request that has not been sent yet.
struct Forwarded {
    request: v1::ProduceRequest,
    until: Instant,
    answer: oneshot::Sender<Answer>,
    room: Room,
}

/// A request that the leader may have seen.
struct Sent {
    until: Instant,
    answer: oneshot::Sender<Answer>,
    _room: Room,
}

/// The streams to leaders that one client's stream needs; they end with it.
#[derive(Default)]
pub(crate) struct Forwarding {
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    leaders: BTreeMap<NodeId, mpsc::Sender<Forwarded>>,
    tasks: JoinSet<()>,
}

impl Links {
    fn to(&mut self, leader: NodeId, channel: Channel) -> mpsc::Sender<Forwarded> {
        // One that has ended has answered what it had: this begins anew.
        self.leaders.retain(|_, link| !link.is_closed());
        while self.tasks.try_join_next().is_some() {}
        let link = self.leaders.entry(leader).or_insert_with(|| {
            let (sender, requests) = mpsc::channel(WAITING);
            self.tasks.spawn(Link::new(requests).run(channel));
            sender
        });
        link.clone()
    }
}

impl Forwarding {
    /// Sends a request on, after those before it; it takes `room`. The answer comes `within` the
    /// time given from now; a channel that closes without one is a request whose fate is unknown.
    pub(crate) async fn send(
        &self,
        leader: NodeId,
        channel: Channel,
        request: v1::ProduceRequest,
        within: Duration,
        room: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Answer> {
        let (answer, pending) = oneshot::channel();
        let forwarded = Forwarded {
            request,
            until: Instant::now() + within,
            answer,
            room: Arc::new(room),
        };
        let link = self.links.lock().to(leader, channel);
        // Not for long: a link takes all that comes. Where it ends just now, the answer's sender is
        // dropped with the request.
        let _ended = link.send(forwarded).await;
        pending
    }
}

/// One stream to one leader.
struct Link {
    requests: mpsc::Receiver<Forwarded>,
    /// Not sent yet: so many as the client's stream may have in flight, at most.
    queued: VecDeque<Forwarded>,
    /// Sent or about to be, by number.
    waiting: BTreeMap<u64, Sent>,
    next: u64,
}

impl Link {
    fn new(requests: mpsc::Receiver<Forwarded>) -> Self {
        Self {
            requests,
            queued: VecDeque::new(),
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    async fn run(mut self, channel: Channel) {
        let failed = self.pump(channel).await;
        let error = |sent| {
            from_status(&forward_failed(failed.clone(), sent))
                .unwrap_or_else(|| ErrorInfo::new(ErrorCode::RequestTimedOut, "the leader is gone"))
        };
        self.requests.close();
        while let Ok(forwarded) = self.requests.try_recv() {
            self.queued.push_back(forwarded);
        }
        for unsent in self.queued {
            let _gone = unsent.answer.send(Err(error(false)));
        }
        for sent in self.waiting.into_values() {
            let _gone = sent.answer.send(Err(error(true)));
        }
    }

    /// Goes on until the stream ends or nobody forwards any more; says why.
    async fn pump(&mut self, channel: Channel) -> Status {
        let (outgoing, stream) = mpsc::channel::<(v1::ProduceStreamRequest, Room)>(WAITING);
        // Whoever takes a request from here puts it into the connection's buffers.
        let stream = ReceiverStream::new(stream).map(|(request, _room)| request);
        let mut client = ProducerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let mut request = Request::new(stream);
        mark_forwarded(&mut request);
        let mut opening = pin!(client.produce_stream(request));
        let mut answers: Option<Streaming<_>> = None;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            tokio::select! {
                opened = &mut opening, if answers.is_none() => match opened {
                    Ok(opened) => answers = Some(opened.into_inner()),
                    Err(status) => return status,
                },
                Some(answer) = next(&mut answers) => match answer {
                    Ok(Some(answer)) => self.answered(answer),
                    Ok(None) => return Status::unavailable("the stream ended"),
                    Err(status) => return status,
                },
                forwarded = self.requests.recv(), if open => match forwarded {
                    Some(forwarded) => self.queued.push_back(forwarded),
                    None => open = false,
                },
                place = outgoing.reserve(), if answers.is_some() && !self.queued.is_empty() => {
                    match place {
                        Ok(place) => self.send_first(place),
                        Err(_) => return Status::unavailable("the stream is closed"),
                    }
                }
                _ = tick.tick() => self.give_up(Instant::now()),
            }
            if !open && self.queued.is_empty() && self.waiting.is_empty() {
                return Status::cancelled("nothing more is forwarded");
            }
        }
    }

    fn send_first(&mut self, place: mpsc::Permit<'_, (v1::ProduceStreamRequest, Room)>) {
        let Some(first) = self.queued.pop_front() else {
            return;
        };
        self.next += 1;
        let sent = Sent {
            until: first.until,
            answer: first.answer,
            _room: Arc::clone(&first.room),
        };
        self.waiting.insert(self.next, sent);
        let request = v1::ProduceStreamRequest {
            request_id: self.next,
            request: Some(first.request),
        };
        place.send((request, first.room));
    }

    fn answered(&mut self, answer: v1::ProduceStreamResponse) {
        use v1::produce_stream_response::Result as Told;
        // One that was given up may still be answered.
        let Some(sent) = self.waiting.remove(&answer.request_id) else {
            return;
        };
        let told = match answer.result {
            Some(Told::Response(response)) => Ok(response),
            Some(Told::Error(error)) => Err(ErrorInfo {
                code: ErrorCode::from_name(&error.reason).unwrap_or(ErrorCode::UnknownServerError),
                message: error.message,
                metadata: error.metadata.into_iter().collect(),
            }),
            None => {
                let message = "the leader's answer says nothing";
                Err(ErrorInfo::new(ErrorCode::RequestTimedOut, message))
            }
        };
        let _gone = sent.answer.send(told);
    }

    fn give_up(&mut self, now: Instant) {
        let is_late = |(number, sent): (&u64, &Sent)| (sent.until <= now).then_some(*number);
        let late: Vec<u64> = self.waiting.iter().filter_map(is_late).collect();
        for sent in late.iter().filter_map(|number| self.waiting.remove(number)) {
            let message = "the leader did not answer in time";
            let error = ErrorInfo::new(ErrorCode::RequestTimedOut, message);
            let _gone = sent.answer.send(Err(error));
        }
        if self.queued.iter().all(|forwarded| forwarded.until > now) {
            return;
        }
        for forwarded in std::mem::take(&mut self.queued) {
            if forwarded.until > now {
                self.queued.push_back(forwarded);
                continue;
            }
            let message = "the leader takes no more requests: this one was not sent";
            let error = ErrorInfo::new(ErrorCode::ThrottlingQuotaExceeded, message);
            let _gone = forwarded.answer.send(Err(error));
        }
    }
}

/// The next answer; none, at once, where the stream is not open yet.
async fn next(
    answers: &mut Option<Streaming<v1::ProduceStreamResponse>>,
) -> Option<Result<Option<v1::ProduceStreamResponse>, Status>> {
    match answers {
        Some(answers) => Some(answers.message().await),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_a_silent_leader_was_not_sent_is_refused_in_time() {
        // Takes connections and never says a word.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let channel = Channel::from_shared(address).unwrap().connect_lazy();
        let room = Arc::new(Semaphore::new(100));
        let forwarding = Forwarding::default();
        let mut answers = Vec::new();
        // More than are on their way to a link at a time.
        for _ in 0..100 {
            let permit = Arc::clone(&room).try_acquire_owned().unwrap();
            let (request, within) = (v1::ProduceRequest::default(), Duration::from_millis(500));
            let sent = forwarding.send(NodeId::new(2), channel.clone(), request, within, permit);
            answers.push(sent.await);
        }
        let all = futures::future::join_all(answers);
        let all = tokio::time::timeout(Duration::from_secs(10), all).await;
        for answer in all.unwrap() {
            let refused = answer.unwrap().unwrap_err();
            assert_eq!(
                refused.code,
                ErrorCode::ThrottlingQuotaExceeded,
                "{refused:?}"
            );
        }
        assert_eq!(room.available_permits(), 100);
    }
}
