//! What all services share: who leads what, and how to reach them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_broker::Broker;
use quorate_metadata::{Command, MetadataImage, Outcome, Registration, Topic};
use quorate_quorum::{ProposeError, QuorumHandle};
use quorate_types::{
    ErrorCode, NodeId, PartitionId, ProducerId, TopicId, TopicName, TopicPartition,
};
use quorate_wire::{ErrorInfo, FORWARDED, never_left};
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::channels::Channels;
use crate::status::to_status;
use crate::subscribe::Subscriptions;

/// Producer ids fetched at a time.
const PRODUCER_IDS: u32 = 1_000;
/// Batches that are decompressed for streams at a time: each may take 64 MiB meanwhile.
const DECODING: usize = 4;
/// How long a reader of the metadata waits for what was decided before it asked.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Times and bounds of the edge.
#[derive(Clone)]
pub struct EdgeConfig {
    /// A request without a time-out gets this one.
    pub default_timeout: Duration,
    /// No request waits longer, whatever it asks for.
    pub max_timeout: Duration,
    /// A stream of produces ends whose client has taken no answer for so long.
    pub answer_timeout: Duration,
    /// Partitions that streams wait for at other nodes at a time; the others are asked for again
    /// and again.
    pub forwarded_polls: usize,
    /// Heartbeats of members that may wait for news at a time, here or at their coordinators; further
    /// ones are answered at once.
    pub waiting_members: usize,
    /// Settings of new topics that do not say otherwise.
    pub topic_defaults: BTreeMap<String, String>,
    /// Tells and changes what is logged, where the process lets it.
    pub log_level: Option<LogControl>,
}

/// Tells what the process logs, after changing it where that is asked for.
pub type LogControl = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            default_timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(300),
            answer_timeout: Duration::from_secs(30),
            forwarded_polls: 1_024,
            waiting_members: 8_192,
            topic_defaults: BTreeMap::new(),
            log_level: None,
        }
    }
}

/// The services for clients, and what they work on. Cheap to clone.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

struct Shared {
    me: NodeId,
    broker: Broker,
    quorum: QuorumHandle,
    config: EdgeConfig,
    forwarding: Channels,
    polls: Polls,
    subscriptions: Subscriptions,
    decoding: Semaphore,
    sticky: AtomicU32,
    producer_ids: Mutex<std::ops::Range<u64>>,
}

/// Places of what waits at other nodes, or for members' news.
pub(crate) struct Polls {
    /// For streams that ask other nodes for records and wait there.
    pub(crate) long: Semaphore,
    /// For those that do not.
    pub(crate) short: Semaphore,
    /// For heartbeats that wait.
    pub(crate) members: Semaphore,
}

/// Where a request goes.
pub(crate) enum Route {
    /// This node leads.
    Here,
    /// That node leads: forward.
    There(NodeId, Channel),
}

/// A partition as the image has it now.
pub(crate) struct Located {
    pub(crate) id: TopicPartition,
    pub(crate) topic: Topic,
    pub(crate) registration: Arc<Registration>,
}

impl Edge {
    /// The services of node `me`.
    pub fn new(me: NodeId, broker: Broker, quorum: QuorumHandle, config: EdgeConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                me,
                broker,
                quorum,
                polls: Polls {
                    long: Semaphore::new(config.forwarded_polls),
                    short: Semaphore::new(config.forwarded_polls),
                    members: Semaphore::new(config.waiting_members),
                },
                decoding: Semaphore::new(DECODING),
                subscriptions: Subscriptions::default(),
                config,
                forwarding: Channels::default(),
                sticky: AtomicU32::new(me.get()),
                producer_ids: Mutex::new(0..0),
            }),
        }
    }

    pub(crate) fn me(&self) -> NodeId {
        self.shared.me
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.shared.broker
    }

    pub(crate) fn quorum(&self) -> &QuorumHandle {
        &self.shared.quorum
    }

    pub(crate) fn polls(&self) -> &Polls {
        &self.shared.polls
    }

    pub(crate) fn subscriptions(&self) -> &Subscriptions {
        &self.shared.subscriptions
    }

    /// Ends the calls that are members of groups on their clients' behalf; returns once these have
    /// left, so that what they have need not wait for the ends of their sessions.
    pub async fn end_subscriptions(&self) {
        self.shared.subscriptions.end().await;
    }

    /// Turns to decompress a batch for a stream.
    pub(crate) fn decoding(&self) -> &Semaphore {
        &self.shared.decoding
    }

    pub(crate) fn config(&self) -> &EdgeConfig {
        &self.shared.config
    }

    /// The connection to another node, for requests that are for that very one.
    pub(crate) fn node(&self, node: NodeId) -> Result<Channel, ErrorInfo> {
        let image = self.image();
        let broker = image.broker(node).ok_or_else(|| {
            let message = format!("there is no node {node}");
            ErrorInfo::new(ErrorCode::BrokerIdNotRegistered, message)
        })?;
        self.shared.forwarding.to(&broker.internal).map_err(|_| {
            let message = format!("node {node} cannot be reached");
            ErrorInfo::new(ErrorCode::BrokerNotAvailable, message)
        })
    }

    /// The active controller as this node knows it; none during its election.
    pub(crate) fn controller(&self) -> Option<u32> {
        let quorum = self.quorum();
        let leader = quorum.leadership().borrow().leader;
        // Whom Raft takes for the leader may be the one that is gone.
        let known = leader.filter(|_| quorum.describe().outage.is_none());
        known.map(NodeId::get)
    }

    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.shared.quorum.image()
    }

    /// An image with all that was decided before this call, at whichever node; where no quorum
    /// confirms that within 1 s, the newest that this node has.
    pub(crate) async fn caught_up(&self) -> Arc<MetadataImage> {
        let quorum = self.quorum();
        let read = async {
            if let Ok(index) = quorum.read_index_within(CATCH_UP).await {
                quorum.wait_applied(index).await;
            }
        };
        let _late = tokio::time::timeout(CATCH_UP, read).await;
        self.image()
    }

    /// The time-out that a request asked for, within bounds.
    pub(crate) fn timeout(&self, asked_ms: u32) -> Duration {
        match asked_ms {
            0 => self.shared.config.default_timeout,
            asked => Duration::from_millis(asked.into()).min(self.shared.config.max_timeout),
        }
    }

    /// A partition for records without a key; moves on with each request.
    pub(crate) fn sticky_partition(&self, partitions: u32) -> PartitionId {
        let turn = self.shared.sticky.fetch_add(1, Ordering::Relaxed);
        PartitionId::new(turn % partitions.max(1))
    }

    pub(crate) fn topic(&self, name: &str, id: Option<TopicId>) -> Result<Topic, ErrorInfo> {
        let name = TopicName::new(name)
            .map_err(|error| ErrorInfo::new(ErrorCode::InvalidTopic, error.to_string()))?;
        let image = self.image();
        let Some(topic) = image.topic_by_name(&name) else {
            let code = match id {
                Some(_) => ErrorCode::UnknownTopicId,
                None => ErrorCode::UnknownTopicOrPartition,
            };
            return Err(ErrorInfo::new(code, format!("there is no topic {name}")));
        };
        match id {
            Some(id) if id != topic.id => Err(ErrorInfo::new(
                ErrorCode::InconsistentTopicId,
                format!("topic {name} has id {}, not {id}", topic.id),
            )),
            _ => Ok(topic.clone()),
        }
    }

    pub(crate) fn locate(
        &self,
        topic: Topic,
        partition: PartitionId,
    ) -> Result<Located, ErrorInfo> {
        let id = TopicPartition::new(topic.id, partition);
        match self.image().partition(&id) {
            Some(registration) => Ok(Located {
                id,
                registration: Arc::clone(registration),
                topic,
            }),
            None => Err(ErrorInfo::new(
                ErrorCode::UnknownTopicOrPartition,
                format!(
                    "topic {} has {} partitions, no {partition}",
                    topic.name, topic.partitions
                ),
            )),
        }
    }

    /// Reads a partition number.
    pub(crate) fn partition(number: i32) -> Result<PartitionId, ErrorInfo> {
        PartitionId::from_signed(number)
            .map_err(|error| ErrorInfo::new(ErrorCode::InvalidRequest, error.to_string()))
    }

    /// Where a request about a partition goes; one hop only.
    pub(crate) fn route(&self, located: &Located, forwarded: bool) -> Result<Route, ErrorInfo> {
        let Some(leader) = located.registration.leader else {
            let topic = &located.topic.name;
            let message = format!(
                "no in-sync replica of {topic}-{} lives",
                located.id.partition
            );
            return Err(ErrorInfo::new(ErrorCode::LeaderNotAvailable, message));
        };
        if leader == self.me() {
            return Ok(Route::Here);
        }
        let not_here = || self.not_leader(located);
        let internal = self
            .image()
            .broker(leader)
            .map(|broker| broker.internal.clone());
        match internal {
            Some(at) if !forwarded => self
                .shared
                .forwarding
                .to(&at)
                .map(|channel| Route::There(leader, channel))
                .map_err(|_| not_here()),
            _ => Err(not_here()),
        }
    }

    /// "Not here", with who leads as far as this node knows.
    pub(crate) fn not_leader(&self, located: &Located) -> ErrorInfo {
        let message = format!("node {} does not lead the partition", self.me());
        self.name_leader(
            ErrorInfo::new(ErrorCode::NotLeaderOrFollower, message),
            &located.id,
        )
    }

    /// Adds who leads to an error.
    pub(crate) fn name_leader(&self, error: ErrorInfo, id: &TopicPartition) -> ErrorInfo {
        let image = self.image();
        let known = image.partition(id).and_then(|registration| {
            let leader = image.broker(registration.leader?)?;
            Some((
                leader.node,
                leader.client.clone(),
                registration.leader_epoch,
            ))
        });
        match known {
            Some((node, at, epoch)) => error.with_leader(node, &at, epoch),
            None => error,
        }
    }

    /// Proposes one command; a refusal is an error.
    pub(crate) async fn propose(
        &self,
        command: Command,
        within: Duration,
    ) -> Result<Outcome, ErrorInfo> {
        let outcomes = self
            .quorum()
            .propose(vec![command], within)
            .await
            .map_err(undecided)?;
        match outcomes.into_iter().next() {
            Some(Outcome::Refused(refusal)) => Err(ErrorInfo::new(refusal.code, refusal.message)),
            Some(outcome) => Ok(outcome),
            None => Err(ErrorInfo::new(
                ErrorCode::UnknownServerError,
                "an empty answer",
            )),
        }
    }

    /// A producer id that no one else has.
    pub(crate) async fn producer_id(&self) -> Result<ProducerId, ErrorInfo> {
        if let Some(id) = self.shared.producer_ids.lock().next() {
            return Ok(ProducerId::new(id));
        }
        let command = Command::AllocateProducerIds {
            count: PRODUCER_IDS,
        };
        match self
            .propose(command, self.shared.config.default_timeout)
            .await?
        {
            Outcome::ProducerIds { first, count } => {
                let mut block = first.get()..first.get() + u64::from(count);
                let id = block.next().unwrap_or(first.get());
                *self.shared.producer_ids.lock() = block;
                Ok(ProducerId::new(id))
            }
            other => {
                let message = format!("unexpected outcome {other:?}");
                Err(ErrorInfo::new(ErrorCode::UnknownServerError, message))
            }
        }
    }
}

fn undecided(error: ProposeError) -> ErrorInfo {
    let message = format!("the metadata quorum did not decide: {error}");
    ErrorInfo::new(ErrorCode::RequestTimedOut, message)
}

/// Whether another node has forwarded the request.
pub(crate) fn is_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED)
}

/// A request to forward, marked so.
pub(crate) fn forward<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    mark_forwarded(&mut request);
    request.set_timeout(within);
    request
}

/// Marks a request as forwarded: whoever gets it answers it itself.
pub(crate) fn mark_forwarded<T>(request: &mut Request<T>) {
    let mark = tonic::metadata::MetadataValue::from_static("1");
    request.metadata_mut().insert(FORWARDED, mark);
}

/// The error of a forwarded call: the leader's own where it answered, else that it cannot be
/// reached. `sent` tells whether it may have been carried out all the same.
pub(crate) fn forward_failed(status: Status, sent: bool) -> Status {
    if crate::status::from_status(&status).is_some() {
        return status;
    }
    let message = format!("the leader did not answer: {}", status.message());
    let code = if !sent {
        ErrorCode::LeaderNotAvailable
    } else if never_left(&status) {
        ErrorCode::NotLeaderOrFollower
    } else {
        ErrorCode::RequestTimedOut
    };
    to_status(&ErrorInfo::new(code, message))
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::InitProducerRequest;
    use quorate_proto::v1::producer_client::ProducerClient;

    use super::*;
    use crate::status::from_status;

    #[tokio::test]
    async fn a_call_that_no_connection_took_did_nothing() {
        // A port that the kernel gives and nobody listens on any more.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let mut client = ProducerClient::new(endpoint.unwrap().connect_lazy());
        let refused = client
            .init_producer(InitProducerRequest::default())
            .await
            .unwrap_err();
        let code = |status| from_status(&forward_failed(status, true)).unwrap().code;
        assert_eq!(code(refused), ErrorCode::NotLeaderOrFollower);
        assert_eq!(
            code(Status::unavailable("broken pipe")),
            ErrorCode::RequestTimedOut
        );
    }
}
