//! Bodies of requests and responses, counted against the memory that they take.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tonic::Status;

use crate::admission::{ResponseRoom, Waiting, overloaded};
use crate::metrics::{Call, Method};

/// How long a piece of a request waits for room.
const WAIT: Duration = Duration::from_secs(5);
/// A response is handed to the connection in pieces of so many bytes, so that what a slow client
/// leaves there is little.
const PIECE: usize = 256 << 10;
/// Bytes before each message: a flag and its length.
const PREFIX: usize = 5;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where a stream of length-prefixed gRPC messages stands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    have: usize,
    /// Bytes of the message that are still to come.
    missing: usize,
    /// Bytes since the last whole message.
    open: usize,
}

impl Framing {
    /// Takes some bytes; what is open afterwards belongs to a message that is not whole. Says
    /// whether a message came to its end.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            if self.missing == 0 && self.have < PREFIX {
                let taken = bytes.len().min(PREFIX - self.have);
                self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken;
                self.open += taken;
                bytes = &bytes[taken..];
                if self.have < PREFIX {
                    return ended;
                }
                let [_, length @ ..] = self.prefix;
                self.missing = u32::from_be_bytes(length) as usize;
            }
            let taken = bytes.len().min(self.missing);
            self.missing -= taken;
            self.open += taken;
            bytes = &bytes[taken..];
            if self.missing == 0 {
                (self.have, self.open) = (0, 0);
                ended = true;
            }
        }
        ended
    }
}

/// A request's body: its bytes take room from when they are read until the message that they belong
/// to has been decoded, and a message that does not come to its end is given up.
pub(crate) struct Taken {
    inner: Body,
    room: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    framing: Framing,
    waiting: Option<(Bytes, Waiting<Option<OwnedSemaphorePermit>>)>,
    receive: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    method: Option<Arc<Method>>,
}

impl Taken {
    pub(crate) fn new(
        inner: Body,
        room: Arc<Semaphore>,
        receive: Duration,
        method: Option<Arc<Method>>,
    ) -> Self {
        Self {
            inner,
            room,
            held: None,
            framing: Framing::default(),
            waiting: None,
            receive,
            deadline: None,
            method,
        }
    }

    /// Whoever asks for more has decoded every whole message.
    fn release_decoded(&mut self) {
        if let Some(held) = &mut self.held {
            let decoded = held.num_permits().saturating_sub(self.framing.open);
            drop(held.split(decoded));
        }
    }

    fn give(&mut self, bytes: Bytes, permit: OwnedSemaphorePermit) -> Bytes {
        match &mut self.held {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        // What is open after the end of a message belongs to the next one, which has just begun.
        if self.framing.take(&bytes) {
            self.deadline = None;
        }
        if let Some(method) = &self.method {
            method.received(bytes.len());
        }
        bytes
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let Some((_, waiting)) = &mut self.waiting else {
            return Poll::Ready(None);
        };
        let permit = ready!(waiting.as_mut().poll(cx));
        let bytes = self.waiting.take().map(|(bytes, _)| bytes);
        Poll::Ready(match (bytes, permit) {
            (Some(bytes), Some(permit)) => Some(Ok(self.give(bytes, permit))),
            _ => {
                let status = overloaded("no memory for the request", "`request-bytes`");
                Some(Err(status))
            }
        })
    }

    /// The time for a message that has begun is over.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.framing.open == 0 {
            return Poll::Pending;
        }
        let receive = self.receive;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(receive)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Status::deadline_exceeded(format!(
            "the message was not received within {receive:?}"
        )))
    }
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.release_decoded();
        if let Some(given) = ready!(self.poll_room(cx)) {
            return Poll::Ready(Some(given.map(Frame::data).map_err(Into::into)));
        }
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => {
                let late = ready!(self.poll_deadline(cx));
                return Poll::Ready(Some(Err(late.into())));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(other) => return Poll::Ready(Some(Ok(other))),
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(size) {
            Ok(permit) => {
                let bytes = self.give(bytes, permit);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(_full) => {
                let room = Arc::clone(&self.room).acquire_many_owned(size);
                let waiting = async move { timeout(WAIT, room).await.ok()?.ok() };
                self.waiting = Some((bytes, Box::pin(waiting)));
                let given = ready!(self.poll_room(cx));
                Poll::Ready(given.map(|given| given.map(Frame::data).map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body: given in pieces, with whatever must live as long as it does.
pub(crate) struct Given {
    inner: Body,
    rest: Bytes,
    _place: OwnedSemaphorePermit,
    _room: Option<ResponseRoom>,
    observed: Call,
}

impl Given {
    pub(crate) fn new(
        inner: Body,
        place: OwnedSemaphorePermit,
        room: Option<ResponseRoom>,
        observed: Call,
    ) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
            _place: place,
            _room: room,
            observed,
        }
    }
}

impl http_body::Body for Given {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(bytes) => self.rest = bytes,
                Err(other) => {
                    if let Some(trailers) = other.trailers_ref() {
                        self.observed.ended(trailers);
                    }
                    return Poll::Ready(Some(Ok(other)));
                }
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.observed.sent(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        hint.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio_stream::StreamExt;

    use super::*;

    #[test]
    fn framing_knows_what_belongs_to_an_open_message() {
        let message = |length: u32| {
            let mut bytes = vec![0];
            bytes.extend(length.to_be_bytes());
            bytes.resize(PREFIX + length as usize, 7);
            bytes
        };
        let all = [message(3), message(0), message(10)].concat();
        for cut in 0..all.len() {
            let mut framing = Framing::default();
            framing.take(&all[..cut]);
            let open = match cut {
                0..8 => cut,
                8..13 => cut - 8,
                _ => cut - 13,
            };
            assert_eq!(framing.open, open, "after {cut} bytes");
            framing.take(&all[cut..]);
            assert_eq!(framing.open, 0);
        }
    }

    fn frames(pieces: Vec<Vec<u8>>) -> Body {
        let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
        Body::from_stream(tokio_stream::iter(pieces))
    }

    async fn next(body: &mut Taken) -> Option<Result<Bytes, BoxError>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_received_takes_room_until_it_is_decoded() {
        let room = Arc::new(Semaphore::new(10));
        // A message of three bytes, and the first four of five.
        let first = vec![0, 0, 0, 0, 3, 1, 2, 3];
        let body = frames(vec![first, vec![0, 0], vec![0, 0, 5, 1]]);
        let mut taken = Taken::new(body, Arc::clone(&room), Duration::from_secs(1), None);
        assert!(next(&mut taken).await.unwrap().is_ok());
        assert_eq!(room.available_permits(), 2, "not decoded yet");
        assert!(next(&mut taken).await.unwrap().is_ok());
        assert_eq!(room.available_permits(), 8, "the first is decoded");
        assert!(next(&mut taken).await.unwrap().is_ok());
        assert_eq!(room.available_permits(), 4);
        drop(taken);
        assert_eq!(room.available_permits(), 10);

        let mut starved = Taken::new(
            frames(vec![vec![0; 11]]),
            Arc::new(Semaphore::new(10)),
            Duration::from_secs(1),
            None,
        );
        let refused = next(&mut starved).await.unwrap().unwrap_err();
        let status = Status::from_error(refused);
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_end_is_given_up() {
        let begun = tokio_stream::once(Ok::<_, std::io::Error>(vec![0, 0, 0, 0, 9, 1]));
        let body = Body::from_stream(begun.chain(tokio_stream::pending()));
        let mut taken = Taken::new(
            body,
            Arc::new(Semaphore::new(99)),
            Duration::from_secs(30),
            None,
        );
        assert!(next(&mut taken).await.unwrap().is_ok());
        let late = next(&mut taken).await.unwrap().unwrap_err();
        let status = Status::from_error(late);
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }

    /// Each frame ends one message and begins the next, so that one is always open.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_ends_in_time_is_no_reason_to_give_up_the_next() {
        let head = vec![0, 0, 0, 0, 2, 1];
        let tail_and_head = vec![2, 0, 0, 0, 0, 2, 1];
        let pieces = std::iter::once(head).chain(std::iter::repeat_n(tail_and_head, 10));
        let paced = tokio_stream::iter(pieces).then(|piece| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(piece)
        });
        let body = Body::from_stream(Box::pin(paced).chain(tokio_stream::pending()));
        let room = Arc::new(Semaphore::new(99));
        let mut taken = Taken::new(body, room, Duration::from_secs(5), None);
        for number in 0..11 {
            let frame = next(&mut taken).await.unwrap();
            assert!(frame.is_ok(), "frame {number}: {frame:?}");
        }
        // The last one does not end.
        assert!(next(&mut taken).await.unwrap().is_err());
    }
}
