//! One `ProduceStream`: requests are taken in order, answers come as they are decided. A client that
//! does not take its answers keeps nobody else from going on: what its requests take is let go of
//! as they are decided, and after a while its stream ends.

use std::pin::{Pin, pin};

use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered};
use futures::{Stream, StreamExt};
use quorate_broker::Waiter;
use quorate_proto::v1;
use quorate_types::ErrorCode;
use quorate_wire::ErrorInfo;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::edge::Edge;
use crate::forwarding::Forwarding;
use crate::producer::Started;

/// Requests of one stream that may wait for their answers.
const IN_FLIGHT: usize = 1_024;
/// Answers that wait for the client to take them, beside one for each request in flight.
const ANSWERS: usize = 64;

/// What the client reads.
pub(crate) type Answers =
    Pin<Box<dyn Stream<Item = Result<v1::ProduceStreamResponse, Status>> + Send>>;

/// Answers the requests of one stream, on a task of its own that ends when the client ends its side
/// and has what was decided, when it goes away, or when it has taken no answer for
/// [`EdgeConfig::answer_timeout`](crate::EdgeConfig::answer_timeout). Requests that end badly (too
/// large, too slow) are told of in the status, after the answers to those before.
pub(crate) fn answers(
    edge: Edge,
    requests: Streaming<v1::ProduceStreamRequest>,
    forwarded: bool,
) -> Answers {
    let (sender, taken) = mpsc::channel(ANSWERS);
    let (failure, failed) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(status) = edge.answer_stream(requests, forwarded, &sender).await {
            let _gone = failure.send(status);
        }
    });
    let failed = stream::once(failed)
        .filter_map(|failed: Result<Status, _>| std::future::ready(failed.ok().map(Err)));
    Box::pin(ReceiverStream::new(taken).map(Ok).chain(failed))
}

impl Edge {
    async fn answer_stream(
        &self,
        mut requests: Streaming<v1::ProduceStreamRequest>,
        forwarded: bool,
        answers: &mpsc::Sender<v1::ProduceStreamResponse>,
    ) -> Result<(), Status> {
        let forwarding = Forwarding::default();
        let mut pending: FuturesUnordered<BoxFuture<'static, _>> = FuturesUnordered::new();
        // The request that waits for room; those behind it are not read meanwhile.
        let mut starting: Option<BoxFuture<'_, _>> = None;
        // The answer that the client has no place for.
        let mut untaken = None;
        let allowed = self.config().answer_timeout;
        let mut patience = pin!(sleep(allowed));
        let (mut open, mut ended) = (true, Ok(()));
        while open || starting.is_some() || !pending.is_empty() || untaken.is_some() {
            let answer = tokio::select! {
                biased;
                place = answers.reserve(), if untaken.is_some() => {
                    let Ok(place) = place else { return Ok(()) };
                    if let Some(answer) = untaken.take() {
                        place.send(answer);
                    }
                    continue;
                }
                Some(answer) = pending.next(), if untaken.is_none() => answer,
                Some(started) = maybe(&mut starting) => {
                    starting = None;
                    pending.push(started);
                    continue;
                }
                request = requests.message(),
                    if open && starting.is_none() && pending.len() < IN_FLIGHT =>
                {
                    match request {
                        Ok(Some(v1::ProduceStreamRequest { request_id, request })) => {
                            let request = request.unwrap_or_default();
                            let started = self.begin(request_id, request, forwarded, &forwarding);
                            starting = Some(Box::pin(started));
                        }
                        Ok(None) => open = false,
                        Err(status) => (open, ended) = (false, Err(status)),
                    }
                    continue;
                }
                () = &mut patience, if untaken.is_some() => {
                    let message = format!("no answer was taken for {allowed:?}");
                    return Err(Status::deadline_exceeded(message));
                }
                () = answers.closed() => return Ok(()),
            };
            match answers.try_send(answer) {
                Ok(()) => {}
                Err(TrySendError::Full(answer)) => {
                    untaken = Some(answer);
                    patience.as_mut().reset(Instant::now() + allowed);
                }
                Err(TrySendError::Closed(_)) => return Ok(()),
            }
        }
        ended
    }

    /// Hands a request to its leader; gives what waits for the answer.
    async fn begin(
        &self,
        request_id: u64,
        request: v1::ProduceRequest,
        forwarded: bool,
        forwarding: &Forwarding,
    ) -> BoxFuture<'static, v1::ProduceStreamResponse> {
        match self.start(request, forwarded, Waiter::OneByOne).await {
            Started::Answered(answer) => {
                Box::pin(std::future::ready(stream_response(request_id, answer)))
            }
            Started::Pending(located, waiting) => {
                let edge = self.clone();
                Box::pin(async move {
                    let answer = edge.finish(&located, waiting.wait().await);
                    stream_response(request_id, answer)
                })
            }
            Started::Forward(onward) => {
                let onward = *onward;
                let (request, within) = (onward.request, onward.within);
                let (leader, channel) = (onward.leader, onward.channel);
                let sent = forwarding.send(leader, channel, request, within, onward.room);
                let answer = sent.await;
                Box::pin(async move {
                    let answer = answer.await.unwrap_or_else(|_ended| {
                        let message = "the way to the leader ended";
                        Err(ErrorInfo::new(ErrorCode::RequestTimedOut, message))
                    });
                    stream_response(request_id, answer)
                })
            }
        }
    }
}

/// The value of a future that may be missing; none, at once, where it is.
async fn maybe<T>(future: &mut Option<BoxFuture<'_, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

fn stream_response(
    request_id: u64,
    answer: Result<v1::ProduceResponse, ErrorInfo>,
) -> v1::ProduceStreamResponse {
    use v1::produce_stream_response::Result as Answer;
    let result = match answer {
        Ok(response) => Answer::Response(response),
        Err(error) => Answer::Error(v1::ProduceError {
            reason: error.code.name().to_owned(),
            retriable: error.code.is_retriable(),
            message: error.message,
            metadata: error.metadata.into_iter().collect(),
        }),
    };
    v1::ProduceStreamResponse {
        request_id,
        result: Some(result),
    }
}
