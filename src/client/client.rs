//! The client's hold on the cluster: connections and the metadata cache.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_types::{Endpoint, ErrorCode, NodeId};
use quorate_wire::{ErrorInfo, FORWARDED, never_left};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::detours::{Detours, Way};
use crate::error::ClientError;
use crate::metadata::{Metadata, TopicInfo};

/// The largest message either way.
pub(crate) const MESSAGE_BYTES: usize = 72 << 20;
const FRAME: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How long one node is asked about the cluster.
const DESCRIBE: Duration = Duration::from_millis(750);
/// A topic that no node knows for so long is unknown.
const KNOWN: Duration = Duration::from_secs(1);
/// Nodes that cannot be reached are tried for so long: they may be starting.
const UNREACHED: Duration = Duration::from_secs(2);
/// Answers that are younger are shared by all who ask.
const FRESH: Duration = Duration::from_millis(10);

/// Times of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// A node that does not take a connection for so long is passed over (default 500 ms).
    pub connect_timeout: Duration,
    /// Calls about the cluster are tried so long (default 15 s).
    pub call_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(500),
            call_timeout: Duration::from_secs(15),
        }
    }
}

struct Shared {
    bootstrap: Vec<Endpoint>,
    options: ClientOptions,
    channels: Mutex<BTreeMap<Endpoint, Channel>>,
    metadata: RwLock<Arc<Metadata>>,
    topics: Mutex<BTreeSet<String>>,
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    turn: AtomicUsize,
    detours: Mutex<Detours>,
}

/// A client of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// A request for a leader. On the straight way only the leader itself is to answer: it is not
/// forwarded, so that the client learns who leads.
pub(crate) fn to_leader<T>(message: T, way: &Way) -> Request<T> {
    let mut request = Request::new(message);
    if way.is_straight() {
        let mark = tonic::metadata::MetadataValue::from_static("1");
        request.metadata_mut().insert(FORWARDED, mark);
    }
    request
}

/// A node's failure to answer, by its address and with what the system says.
pub(crate) fn failed(node: &Endpoint, status: Status) -> ClientError {
    let mut cause: &dyn std::error::Error = &status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let unreached = never_left(&status);
    let why = if cause.is::<Status>() {
        status.message().to_owned()
    } else {
        cause.to_string()
    };
    let why = format!("{node}: {why}");
    match ClientError::from(status) {
        ClientError::Connection(_) if unreached => ClientError::Unreachable(why),
        ClientError::Connection(_) => ClientError::Connection(why),
        refused => refused,
    }
}

/// How long a call goes on: some time, but less where no node can be reached at all.
pub(crate) struct Patience {
    until: Instant,
    /// How long no node may be reached, and since when none is.
    unreached_for: Duration,
    unreached: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            unreached_for: UNREACHED,
            unreached: None,
        }
    }

    /// A node has answered.
    pub(crate) fn heard(&mut self) {
        self.unreached = None;
    }

    /// All of the time, whatever there is to be reached: for members, which outlive that.
    pub(crate) fn steadfast(time: Duration) -> Self {
        Self {
            unreached_for: time,
            ..Self::new(time)
        }
    }

    /// Whether this was the last try, the last of whose errors is this.
    pub(crate) fn is_over(&mut self, error: &ClientError) -> bool {
        self.tried(!matches!(error, ClientError::Unreachable(_)))
    }

    /// Whether this was the last try, in which a node was reached or none was.
    pub(crate) fn tried(&mut self, reached: bool) -> bool {
        let now = Instant::now();
        if reached {
            self.heard();
            return now >= self.until;
        }
        let since = *self.unreached.get_or_insert(now);
        now >= self.until.min(since + self.unreached_for)
    }
}

impl Client {
    /// A client that asks `bootstrap` first; nothing is connected before the first call.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for an empty list.
    pub fn new(bootstrap: Vec<Endpoint>, options: ClientOptions) -> Result<Self, ClientError> {
        if bootstrap.is_empty() {
            return Err(ClientError::Invalid(
                "at least one bootstrap address is needed".into(),
            ));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                bootstrap,
                options,
                channels: Mutex::default(),
                metadata: RwLock::default(),
                topics: Mutex::default(),
                refreshed: tokio::sync::Mutex::default(),
                turn: AtomicUsize::new(0),
                detours: Mutex::default(),
            }),
        })
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.shared.options
    }

    /// What is known of the cluster, as of the last refresh.
    pub fn metadata(&self) -> Arc<Metadata> {
        self.shared.metadata.read().clone()
    }

    /// The connection to a node; made when it is first used, and again after it broke.
    pub(crate) fn channel(&self, to: &Endpoint) -> Result<Channel, ClientError> {
        let mut channels = self.shared.channels.lock();
        if let Some(channel) = channels.get(to) {
            return Ok(channel.clone());
        }
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{to}"))
            .map_err(|error| ClientError::Invalid(format!("{to}: {error}")))?;
        let channel = endpoint
            .connect_timeout(self.shared.options.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .max_frame_size(FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_lazy();
        channels.insert(to.clone(), channel.clone());
        Ok(channel)
    }

    /// Nodes to ask, another one first each time: one that is cut off is not asked forever.
    pub(crate) fn nodes(&self) -> Vec<Endpoint> {
        let known = self.metadata();
        let mut nodes: Vec<Endpoint> = known.brokers.values().cloned().collect();
        for endpoint in &self.shared.bootstrap {
            if !nodes.contains(endpoint) {
                nodes.push(endpoint.clone());
            }
        }
        let turn = self.turn() % nodes.len();
        nodes.rotate_left(turn);
        // Last, what cannot be reached from here: another answers sooner.
        let detours = self.shared.detours.lock();
        nodes.sort_by_key(|node| detours.is_unreachable(node));
        nodes
    }

    fn turn(&self) -> usize {
        self.shared.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// How to reach a leader: itself, or through another node where its address means nothing here.
    pub(crate) fn way_to(&self, leader: &Endpoint) -> Way {
        let mut detours = self.shared.detours.lock();
        let bootstrap = &self.shared.bootstrap;
        detours.way_to(leader, bootstrap, || self.turn(), Instant::now())
    }

    /// Remembers whether a way led to a node.
    pub(crate) fn note<T>(&self, way: &Way, answer: &Result<T, ClientError>) {
        let mut detours = self.shared.detours.lock();
        match answer {
            Err(ClientError::Connection(_) | ClientError::Unreachable(_)) => {
                detours.lost(way, Instant::now())
            }
            _ => detours.arrived(way),
        }
    }

    /// Learns anew who leads; many who ask at once share one answer.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where no node answers.
    pub async fn refresh(&self) -> Result<Arc<Metadata>, ClientError> {
        let mut refreshed = self.shared.refreshed.lock().await;
        if refreshed.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(self.metadata());
        }
        let mut last = ClientError::Connection("no node is known".into());
        for node in self.nodes() {
            let request = v1::DescribeClusterRequest {
                topics: self.shared.topics.lock().iter().cloned().collect(),
                all_topics: false,
            };
            let mut client =
                ClusterClient::new(self.channel(&node)?).max_decoding_message_size(MESSAGE_BYTES);
            match timeout(DESCRIBE, client.describe(request)).await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    let who = NodeId::new(answer.node_id);
                    let mut metadata = Metadata::from_proto(answer);
                    if let Some(advertised) = metadata.brokers.get(&who) {
                        self.shared.detours.lock().answered(advertised, &node);
                    }
                    metadata.keep_newer(&self.metadata());
                    let metadata = Arc::new(metadata);
                    *self.shared.metadata.write() = Arc::clone(&metadata);
                    *refreshed = Some(Instant::now());
                    return Ok(metadata);
                }
                Ok(Err(status)) => last = failed(&node, status),
                Err(_) => last = ClientError::Connection(format!("{node}: no answer in time")),
            }
        }
        Err(last)
    }

    /// A topic's partitions, asked for until it is known or the time is up: a second where nodes
    /// answer that they know none, since one that is behind may not know of it yet.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where it does not become known, [`ClientError::Connection`] where no
    /// node answers.
    pub async fn topic(&self, name: &str) -> Result<TopicInfo, ClientError> {
        if let Some(known) = self.metadata().topics.get(name) {
            return Ok(known.clone());
        }
        self.shared.topics.lock().insert(name.to_owned());
        let mut patience = Patience::new(self.shared.options.call_timeout);
        let mut unknown_since = None;
        loop {
            match self.refresh().await {
                Ok(metadata) => {
                    if let Some(topic) = metadata.topics.get(name) {
                        return Ok(topic.clone());
                    }
                    let since = *unknown_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= KNOWN {
                        let code = ErrorCode::UnknownTopicOrPartition;
                        let message = format!("there is no topic {name}");
                        return Err(ClientError::Refused(ErrorInfo::new(code, message)));
                    }
                }
                Err(error) => {
                    if patience.is_over(&error) {
                        return Err(error);
                    }
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}
