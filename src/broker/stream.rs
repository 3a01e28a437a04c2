//! The leader's end of a replication stream: a queue towards the follower, bounded in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quorate_replication::{LeaderMessage, StreamId};
use tokio::sync::mpsc;

use crate::mailbox::{Mail, Mailbox};

/// Bytes that may wait on one stream: what a follower that reads slowly can cost.
const STREAM_BYTES: usize = 16 << 20;

/// What a message costs beside its payload.
const MESSAGE_OVERHEAD: usize = 64;

#[derive(Debug)]
struct Shared {
    queued: AtomicUsize,
    /// The plane found no room and waits to be told.
    starved: AtomicBool,
}

/// The plane's end.
#[derive(Debug)]
pub(crate) struct FollowerStream {
    sender: mpsc::UnboundedSender<LeaderMessage>,
    shared: Arc<Shared>,
}

/// The edge's end: yields what is to be sent to the follower; ends with the stream.
#[derive(Debug)]
pub struct FollowerOutgoing {
    receiver: mpsc::UnboundedReceiver<LeaderMessage>,
    shared: Arc<Shared>,
    id: StreamId,
    mailbox: Mailbox,
}

fn cost(message: &LeaderMessage) -> usize {
    let payload = match message {
        LeaderMessage::Batches(batches) => batches.bytes.len(),
        _ => 0,
    };
    payload + MESSAGE_OVERHEAD
}

pub(crate) fn follower_stream(
    id: StreamId,
    mailbox: Mailbox,
) -> (FollowerStream, FollowerOutgoing) {
    let shared = Arc::new(Shared {
        queued: AtomicUsize::new(0),
        starved: AtomicBool::new(false),
    });
    // Bounded by `room`: the cores ask before they push data, and every other message answers one
    // of the follower's, whose mailbox is bounded; `send` ends a stream that passes twice that.
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        FollowerStream {
            sender,
            shared: Arc::clone(&shared),
        },
        FollowerOutgoing {
            receiver,
            shared,
            id,
            mailbox,
        },
    )
}

impl FollowerStream {
    /// Bytes that may still be queued.
    pub(crate) fn room(&self) -> usize {
        let room = STREAM_BYTES.saturating_sub(self.shared.queued.load(Ordering::Acquire));
        if room == 0 {
            self.shared.starved.store(true, Ordering::Release);
        }
        room
    }

    /// Queues a message; `false` when the stream has ended or is hopelessly behind.
    pub(crate) fn send(&self, message: LeaderMessage) -> bool {
        let queued = self
            .shared
            .queued
            .fetch_add(cost(&message), Ordering::AcqRel);
        queued < 2 * STREAM_BYTES && self.sender.send(message).is_ok()
    }
}

impl FollowerOutgoing {
    /// The next message to the follower; `None` when the stream has ended.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<LeaderMessage>> {
        let polled = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(message)) = &polled {
            let cost = cost(message);
            let before = self.shared.queued.fetch_sub(cost, Ordering::AcqRel);
            if before - cost < STREAM_BYTES / 2 && self.shared.starved.swap(false, Ordering::AcqRel)
            {
                self.mailbox.notify(Mail::RoomAgain { stream: self.id });
            }
        }
        polled
    }

    /// The next message to the follower; `None` when the stream has ended.
    pub async fn recv(&mut self) -> Option<LeaderMessage> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl Drop for FollowerOutgoing {
    fn drop(&mut self) {
        self.mailbox
            .notify(Mail::FollowerStreamClosed { stream: self.id });
    }
}
