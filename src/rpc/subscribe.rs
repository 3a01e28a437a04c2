//! `Groups.Subscribe`: a member on the client's behalf. One task a call joins, sends heartbeats, reads
//! what is assigned within the client's credit, commits, and leaves when the call ends.
//!
//! Bounds: records under way (the client's credit), of which this node holds no more than a few fetches;
//! messages of the client that wait for their answers. A client that takes nothing for
//! [`EdgeConfig::answer_timeout`](crate::EdgeConfig::answer_timeout) has its call ended.

mod asking;
mod beat;
mod call;
mod commits;
mod credit;
mod holdings;
mod join;
mod reading;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use futures::stream::{self, StreamExt};
use quorate_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::consume::Held;
use crate::edge::Edge;

/// The calls of this node.
#[derive(Default)]
pub(crate) struct Subscriptions {
    calls: TaskTracker,
    stopping: CancellationToken,
}

impl Subscriptions {
    /// Ends every call, and waits until their members have left.
    pub(crate) async fn end(&self) {
        self.stopping.cancel();
        self.calls.close();
        self.calls.wait().await;
    }
}

/// What the client reads.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send>>;

/// A message on its way to the client, and what it takes until the client has it.
struct Outgoing {
    response: v1::SubscribeResponse,
    held: Option<Arc<Held>>,
}

/// Begins the call's task, which ends with the call and once the member has left.
pub(crate) fn subscribed(
    edge: Edge,
    requests: Streaming<v1::SubscribeRequest>,
    host: String,
) -> Answers {
    // One: what the client does not take waits where it is counted.
    let (sender, taken) = mpsc::channel(1);
    let (failure, failed) = oneshot::channel();
    let calls = edge.subscriptions().calls.clone();
    calls.spawn(call::run(edge, requests, host, sender, failure));
    let failed = stream::once(failed)
        .filter_map(|failed: Result<Status, _>| std::future::ready(failed.ok().map(Err)));
    let taken = stream::unfold((taken, None), |(mut taken, last)| async move {
        // The last one is on the wire.
        drop(last);
        let next: Outgoing = taken.recv().await?;
        Some((Ok(next.response), (taken, next.held)))
    });
    Box::pin(taken.chain(failed))
}
