//! Produces of one client's stream on their way to a leader elsewhere: one stream there, pipelined, so
//! that their order holds and none waits for the answer to the one before.
//!
//! Never a second try: what was sent and not answered may have arrived (R11).

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::{ErrorCode, NodeId};
use quorate_wire::ErrorInfo;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::channels::MESSAGE_BYTES;
use crate::edge::{forward_failed, mark_forwarded};
use crate::status::from_status;

/// Requests that may wait to be sent on; their bytes have room already.
const WAITING: usize = 64;
/// How often requests without an answer are looked at.
const TICK: Duration = Duration::from_millis(100);

pub(crate) type Answer = Result<v1::ProduceResponse, ErrorInfo>;

struct Forwarded {
    request: v1::ProduceRequest,
    within: Duration,
    answer: oneshot::Sender<Answer>,
}

/// The streams to leaders that one client's stream needs; they end with it.
#[derive(Default)]
pub(crate) struct Forwarding {
    leaders: BTreeMap<NodeId, mpsc::Sender<Forwarded>>,
    tasks: JoinSet<()>,
}

impl Forwarding {
    /// Sends a request on, after those before it. The answer comes `within` the time given; a
    /// channel that closes without one is a request whose fate is unknown.
    pub(crate) async fn send(
        &mut self,
        leader: NodeId,
        channel: Channel,
        request: v1::ProduceRequest,
        within: Duration,
    ) -> oneshot::Receiver<Answer> {
        let (answer, pending) = oneshot::channel();
        let forwarded = Forwarded {
            request,
            within,
            answer,
        };
        // One that has ended has answered what it had: this begins anew.
        self.leaders.retain(|_, link| !link.is_closed());
        while self.tasks.try_join_next().is_some() {}
        let link = self.leaders.entry(leader).or_insert_with(|| {
            let (sender, requests) = mpsc::channel(WAITING);
            self.tasks.spawn(Link::new(requests).run(channel));
            sender
        });
        // Where it ends just now, the answer's sender is dropped with the request.
        let _ended = link.send(forwarded).await;
        pending
    }
}

/// One stream to one leader.
struct Link {
    requests: mpsc::Receiver<Forwarded>,
    /// Sent or about to be, by number, with the time until which they are waited for.
    waiting: BTreeMap<u64, (Instant, oneshot::Sender<Answer>)>,
    next: u64,
}

impl Link {
    fn new(requests: mpsc::Receiver<Forwarded>) -> Self {
        Self {
            requests,
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    async fn run(mut self, channel: Channel) {
        let failed = self.pump(channel).await;
        let error = from_status(&forward_failed(failed, true))
            .unwrap_or_else(|| ErrorInfo::new(ErrorCode::RequestTimedOut, "the leader is gone"));
        self.requests.close();
        while let Ok(forwarded) = self.requests.try_recv() {
            let _gone = forwarded.answer.send(Err(error.clone()));
        }
        for (_, (_, answer)) in self.waiting {
            let _gone = answer.send(Err(error.clone()));
        }
    }

    /// Goes on until the stream ends or nobody forwards any more; says why.
    async fn pump(&mut self, channel: Channel) -> Status {
        let (outgoing, stream) = mpsc::channel(WAITING);
        let mut client = ProducerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let mut request = Request::new(ReceiverStream::new(stream));
        mark_forwarded(&mut request);
        let mut answers = match client.produce_stream(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(answer),
                    Ok(None) => return Status::unavailable("the stream ended"),
                    Err(status) => return status,
                },
                // What is taken is sent at once: there is a place for it.
                (place, forwarded) = async {
                    let place = outgoing.reserve().await;
                    (place, self.requests.recv().await)
                }, if open => match (place, forwarded) {
                    (Ok(place), Some(forwarded)) => {
                        self.next += 1;
                        let until = Instant::now() + forwarded.within;
                        self.waiting.insert(self.next, (until, forwarded.answer));
                        place.send(v1::ProduceStreamRequest {
                            request_id: self.next,
                            request: Some(forwarded.request),
                        });
                    }
                    (Ok(_), None) => open = false,
                    (Err(_), forwarded) => {
                        if let Some(forwarded) = forwarded {
                            self.waiting.insert(u64::MAX, (Instant::now(), forwarded.answer));
                        }
                        return Status::unavailable("the stream is closed");
                    }
                },
                _ = tick.tick() => self.give_up(Instant::now()),
            }
            if !open && self.waiting.is_empty() {
                return Status::cancelled("nothing more is forwarded");
            }
        }
    }

    fn answered(&mut self, answer: v1::ProduceStreamResponse) {
        use v1::produce_stream_response::Result as Told;
        // One that was given up may still be answered.
        let Some((_, waiting)) = self.waiting.remove(&answer.request_id) else {
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
        let _gone = waiting.send(told);
    }

    fn give_up(&mut self, now: Instant) {
        let is_late =
            |(number, (until, _)): (&u64, &(Instant, _))| (*until <= now).then_some(*number);
        let late: Vec<u64> = self.waiting.iter().filter_map(is_late).collect();
        for (_, answer) in late.iter().filter_map(|number| self.waiting.remove(number)) {
            let message = "the leader did not answer in time";
            let error = ErrorInfo::new(ErrorCode::RequestTimedOut, message);
            let _gone = answer.send(Err(error));
        }
    }
}
