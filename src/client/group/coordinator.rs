//! Finds a group's coordinator and stays with it: straight to the node that answered last, or that
//! another one named, through any node where its address means nothing here.

use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::{Endpoint, ErrorCode};
use rand::Rng;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::client::{Client, MESSAGE_BYTES, Patience, failed, to_leader};
use crate::detours::Way;
use crate::error::ClientError;

/// Pause between tries: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Longer and longer pauses, of a random length so that members do not come all at once.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(RETRY.0)
    }

    pub(super) fn next(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(RETRY.1);
        longest.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

/// One group's coordinator, as far as known.
pub(super) struct Coordinator {
    client: Client,
    known: Mutex<Option<Endpoint>>,
}

/// Where a refusal says that the coordinator is.
fn named(error: &ClientError) -> Option<Endpoint> {
    let ClientError::Refused(info) = error else {
        return None;
    };
    let host = info.metadata.get("coordinator_host")?.clone();
    let port = info.metadata.get("coordinator_port")?.parse().ok()?;
    Some(Endpoint { host, port })
}

impl Coordinator {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Asks once, and where the asked node names the coordinator, that one, each for `patience`.
    pub(super) async fn once<M: Clone, T, F>(
        &self,
        message: &M,
        patience: Duration,
        call: impl Fn(GroupsClient<Channel>, Request<M>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let target = self.known.lock().clone();
        let first = self.at(target.as_ref(), message, patience, &call).await;
        let elsewhere = first.as_ref().err().and_then(named);
        match elsewhere.filter(|named| Some(named) != target.as_ref()) {
            Some(named) => self.at(Some(&named), message, patience, &call).await,
            None => first,
        }
    }

    async fn at<M: Clone, T, F>(
        &self,
        target: Option<&Endpoint>,
        message: &M,
        patience: Duration,
        call: &impl Fn(GroupsClient<Channel>, Request<M>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let way = match target {
            Some(coordinator) => self.client.way_to(coordinator),
            None => {
                let nodes = self.client.nodes();
                let any = nodes.into_iter().next();
                Way::Straight(any.ok_or(ClientError::Closed)?)
            }
        };
        let groups = GroupsClient::new(self.client.channel(way.first())?)
            .max_decoding_message_size(MESSAGE_BYTES);
        let asked = timeout(patience, call(groups, to_leader(message.clone(), &way))).await;
        let answer = match asked {
            Ok(answer) => answer
                .map(Response::into_inner)
                .map_err(|status| failed(way.first(), status)),
            Err(_) => {
                let why = format!("{}: no answer in time", way.first());
                Err(ClientError::Connection(why))
            }
        };
        if target.is_some() {
            self.client.note(&way, &answer);
        }
        let lives_at = target.unwrap_or_else(|| way.first());
        *self.known.lock() = match &answer {
            Ok(_) => Some(lives_at.clone()),
            Err(ClientError::Refused(info)) => match info.code {
                ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable => None,
                _ => Some(lives_at.clone()),
            },
            Err(_) => None,
        };
        answer
    }

    /// Asks until it is decided or the time is up, a node for `one_try`; only what may be asked twice.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason, [`ClientError::TimedOut`] where nobody has decided,
    /// [`ClientError::Unreachable`] where no node can be reached.
    pub(super) async fn until<M: Clone, T, F>(
        &self,
        message: &M,
        one_try: Duration,
        patience: &mut Patience,
        call: impl Fn(GroupsClient<Channel>, Request<M>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::new();
        loop {
            match self.once(message, one_try, &call).await {
                Err(error) if error.is_retriable() => {
                    // It may be the coordinator alone that is gone.
                    let reached = !matches!(error, ClientError::Unreachable(_))
                        || self.client.refresh().await.is_ok();
                    if patience.tried(reached) {
                        return Err(in_time(error));
                    }
                    sleep(backoff.next()).await;
                }
                decided => {
                    patience.heard();
                    return decided;
                }
            }
        }
    }
}

/// What is told when the time is up.
pub(super) fn in_time(error: ClientError) -> ClientError {
    match error {
        ClientError::Connection(_) => ClientError::TimedOut(error.to_string()),
        told => told,
    }
}
