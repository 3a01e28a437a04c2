//! Each record a request of its own, pipelined over one `ProduceStream` of one connection.
//!
//! The stream goes to one node, and records to the partitions that this node leads, by turns, so
//! that nothing is forwarded. Where the stream breaks, what is under way on it has failed (it is not
//! sent again: that could double it), and the next record opens another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use quorate_client::{Client, ClientError};
use quorate_proto::v1;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::produce_stream_response::Result as Answer;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{Acks, Endpoint, PartitionId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::drive::{Delivered, Sink};

/// Requests between the sender and the connection.
const QUEUE: usize = 1_024;
/// A stream is opened within so long; after a failure the next try waits.
const OPEN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How requests are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestOptions {
    pub(crate) acks: Acks,
    pub(crate) compression: Compression,
    pub(crate) timeout: Duration,
}

/// Requests without an answer; none once the stream has broken.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<(), String>>>>>>;

struct Stream {
    outgoing: mpsc::Sender<v1::ProduceStreamRequest>,
    waiting: Waiting,
    reader: JoinHandle<()>,
    /// The partitions that its node leads.
    led: Vec<u32>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

pub(crate) struct RequestSink {
    client: Client,
    options: RequestOptions,
    topic: String,
    partitions: u32,
    /// Where its node is looked for.
    first: u32,
    stream: Option<Stream>,
    next_id: u64,
}

impl RequestSink {
    /// A sink whose stream goes to the leader of partition `first`.
    pub(crate) fn new(
        client: &Client,
        options: RequestOptions,
        topic: &str,
        partitions: u32,
        first: usize,
    ) -> Self {
        Self {
            client: client.clone(),
            options,
            topic: topic.to_owned(),
            partitions: partitions.max(1),
            first: u32::try_from(first).unwrap_or(0) % partitions.max(1),
            stream: None,
            next_id: 0,
        }
    }

    /// Opens the stream, before there is anything to send.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where there is no leader, or it does not answer.
    pub(crate) async fn open(&mut self) -> Result<(), ClientError> {
        let metadata = self.client.refresh().await?;
        let leader = |partition| metadata.leader(&self.topic, PartitionId::new(partition));
        let at = |offset| (self.first + offset) % self.partitions;
        let found = (0..self.partitions).find_map(|offset| leader(at(offset)));
        let none = || ClientError::Connection("no partition has a leader".into());
        let (node, _) = found.ok_or_else(none)?;
        let led = (0..self.partitions)
            .filter(|partition| leader(*partition).is_some_and(|(at, _)| at == node))
            .collect();
        let opened = timeout(OPEN, connect(&node)).await;
        let (outgoing, answers) =
            opened.map_err(|_| ClientError::Connection(format!("{node}: no answer in time")))??;
        let waiting = Waiting::new(Mutex::new(Some(HashMap::new())));
        self.stream = Some(Stream {
            outgoing,
            reader: tokio::spawn(read(answers, Arc::clone(&waiting))),
            waiting,
            led,
        });
        Ok(())
    }

    fn request(&self, partition: usize, value: &[u8]) -> v1::ProduceRequest {
        let mut batch = BatchBuilder::new(self.options.compression);
        batch.push(now(), None, Some(value), &[]);
        let timeout = self.options.timeout.as_millis();
        v1::ProduceRequest {
            topic: self.topic.clone(),
            partition: i32::try_from(partition).ok(),
            acks: quorate_wire::acks_to_proto(self.options.acks),
            payload: Some(Payload::Batch(batch.build().bytes().clone())),
            timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
            ..v1::ProduceRequest::default()
        }
    }
}

impl Sink for RequestSink {
    type Delivery = oneshot::Receiver<Result<(), String>>;

    fn lane(&mut self) -> usize {
        let turn = usize::try_from(self.next_id).unwrap_or(0);
        match &self.stream {
            Some(stream) if !stream.led.is_empty() => stream.led[turn % stream.led.len()] as usize,
            _ => self.first as usize,
        }
    }

    fn lanes(&self) -> usize {
        self.partitions as usize
    }

    async fn send(&mut self, lane: usize, value: &[u8]) -> Result<Self::Delivery, ClientError> {
        self.next_id += 1;
        let request_id = self.next_id;
        let message = v1::ProduceStreamRequest {
            request_id,
            request: Some(self.request(lane, value)),
        };
        if self.stream.is_none()
            && let Err(error) = self.open().await
        {
            sleep(PAUSE).await;
            return Err(error);
        }
        let broken = || ClientError::Connection("the stream broke".into());
        let Some(stream) = &self.stream else {
            return Err(broken());
        };
        let (sender, delivery) = oneshot::channel();
        let taken = match stream.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(request_id, sender).is_none(),
            None => false,
        };
        if !taken || stream.outgoing.send(message).await.is_err() {
            self.stream = None;
            return Err(broken());
        }
        Ok(delivery)
    }
}

impl Delivered for oneshot::Receiver<Result<(), String>> {
    async fn wait(self) -> Result<(), ClientError> {
        match self.await {
            Ok(result) => result.map_err(ClientError::Connection),
            Err(_) => Err(ClientError::Connection("the stream broke".into())),
        }
    }
}

type Opened = (
    mpsc::Sender<v1::ProduceStreamRequest>,
    Streaming<v1::ProduceStreamResponse>,
);

/// A connection of its own, not the client's: each sink stands for a program of its own.
async fn connect(node: &Endpoint) -> Result<Opened, ClientError> {
    let unreachable = |error| ClientError::Connection(format!("{node}: {error}"));
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{node}"))
        .map_err(unreachable)?
        .connect_timeout(OPEN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await
        .map_err(unreachable)?;
    let (outgoing, requests) = mpsc::channel(QUEUE);
    let answers = ProducerClient::new(channel)
        .produce_stream(ReceiverStream::new(requests))
        .await?
        .into_inner();
    Ok((outgoing, answers))
}

async fn read(mut answers: Streaming<v1::ProduceStreamResponse>, waiting: Waiting) {
    while let Ok(Some(answer)) = answers.message().await {
        let result = match answer.result {
            Some(Answer::Response(_)) => Ok(()),
            Some(Answer::Error(error)) => Err(format!("{}: {}", error.reason, error.message)),
            None => Err("an answer that says nothing".to_owned()),
        };
        let waits = waiting
            .lock()
            .as_mut()
            .and_then(|w| w.remove(&answer.request_id));
        if let Some(waits) = waits {
            // The load may have ended.
            let _ended = waits.send(result);
        }
    }
    // Whoever still waits learns it by the dropped sender.
    drop(waiting.lock().take());
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}
