//! `Admin`: topics.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use quorate_metadata::{AlterTopic, BrokerState, Command, CreateTopic, Topic};
use quorate_proto::v1;
use quorate_proto::v1::admin_server::Admin;
use quorate_types::{ErrorCode, PartitionId, TopicId, TopicName, TopicPartition};
use quorate_wire::ErrorInfo;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::describe;
use crate::edge::Edge;
use crate::status::to_status;

/// How long a change of the metadata is tried.
const DECIDE: Duration = Duration::from_secs(10);
/// How long this node's own image may lag behind what it proposed.
const SEE: Duration = Duration::from_secs(5);
/// How long a leader is asked for its high watermark.
const ASK: Duration = Duration::from_secs(1);
/// So many of them at a time.
const ASKED: usize = 64;
/// The replication factor of a topic that asks for none, where there are as many brokers.
const REPLICATION_FACTOR: usize = 3;

impl Edge {
    async fn create(
        &self,
        request: v1::CreateTopicRequest,
    ) -> Result<v1::TopicDescription, ErrorInfo> {
        let name = TopicName::new(&request.name)
            .map_err(|error| ErrorInfo::new(ErrorCode::InvalidTopic, error.to_string()))?;
        let id = Uuid::new_v4();
        let topic_id = TopicId::from(id);
        let replication_factor = match request.replication_factor {
            0 => {
                let image = self.image();
                let brokers = image.brokers().values();
                let active = brokers
                    .filter(|broker| broker.state == BrokerState::Active)
                    .count();
                u32::try_from(active.clamp(1, REPLICATION_FACTOR)).unwrap_or(1)
            }
            asked => asked,
        };
        let command = Command::CreateTopic(CreateTopic {
            name,
            topic_id,
            partitions: request.partitions.max(1),
            replication_factor,
            seed: id.as_u64_pair().0,
            config: {
                let mut config = self.config().topic_defaults.clone();
                config.extend(request.config);
                config
            },
        });
        self.propose(command, DECIDE).await?;
        let mut images = self.quorum().images();
        let seen = images.wait_for(|image| image.topic(topic_id).is_some());
        match timeout(SEE, seen).await {
            Ok(Ok(image)) => match image.topic(topic_id) {
                Some(topic) => Ok(describe::topic(&image, topic)),
                None => Err(ErrorInfo::new(
                    ErrorCode::UnknownServerError,
                    "the topic is gone",
                )),
            },
            _ => Err(ErrorInfo::new(
                ErrorCode::RequestTimedOut,
                "the topic was created, but this node has not seen it yet: ask again",
            )),
        }
    }

    async fn alter(
        &self,
        request: v1::AlterTopicRequest,
    ) -> Result<v1::TopicDescription, ErrorInfo> {
        let topic = self.topic(&request.name, None)?;
        if request.set.is_empty() && request.unset.is_empty() {
            let message = "nothing to alter: name settings to set or to unset";
            return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
        }
        let alter = AlterTopic {
            topic_id: topic.id,
            set: request.set.into_iter().collect(),
            unset: request.unset,
        };
        let after = |config: &BTreeMap<String, String>| {
            let set = alter
                .set
                .iter()
                .all(|(key, value)| config.get(key) == Some(value));
            set && alter.unset.iter().all(|key| !config.contains_key(key))
        };
        self.propose(Command::AlterTopic(alter.clone()), DECIDE)
            .await?;
        let mut images = self.quorum().images();
        let seen = images.wait_for(|image| {
            image
                .topic(topic.id)
                .is_none_or(|topic| after(&topic.config))
        });
        // Decided; where this node lags, or somebody alters it again, the answer is what it sees.
        let _lag = timeout(SEE, seen).await;
        let topic = self.topic(&request.name, None)?;
        Ok(describe::topic(&self.image(), &topic))
    }

    async fn delete(&self, name: &str) -> Result<(), ErrorInfo> {
        let topic = self.topic(name, None)?;
        self.propose(Command::DeleteTopic { topic_id: topic.id }, DECIDE)
            .await?;
        let mut images = self.quorum().images();
        let gone = images.wait_for(|image| image.topic(topic.id).is_none());
        // Decided; that this node lags does not undo it.
        let _lag = timeout(SEE, gone).await;
        Ok(())
    }

    /// A topic with high watermarks, as far as its leaders answer.
    async fn describe_topic_fully(&self, name: &str) -> Result<v1::TopicDescription, ErrorInfo> {
        let topic = self.topic(name, None)?;
        let mut description = describe::topic(&self.image(), &topic);
        let numbers = description.partitions.iter().map(|p| p.partition);
        let high_watermarks = self.high_watermarks(&topic, numbers).await;
        for (partition, known) in description.partitions.iter_mut().zip(high_watermarks) {
            partition.high_watermark = known;
        }
        Ok(description)
    }

    /// The high watermarks of partitions, as far as their leaders answer.
    pub(crate) async fn high_watermarks(
        &self,
        topic: &Topic,
        numbers: impl Iterator<Item = i32>,
    ) -> Vec<Option<i64>> {
        let asked = |number: i32| {
            let id = TopicPartition::new(topic.id, PartitionId::new(number.unsigned_abs()));
            let local = self
                .broker()
                .high_watermark(&id)
                .map(|offset| offset.to_signed());
            async move {
                if local.is_some() {
                    return local;
                }
                let latest = v1::list_offsets_request::Latest {};
                let request = v1::ListOffsetsRequest {
                    topic: topic.name.to_string(),
                    partition: number,
                    position: Some(v1::list_offsets_request::Position::Latest(latest)),
                    ..v1::ListOffsetsRequest::default()
                };
                let answer = timeout(ASK, self.list_offset(request, false)).await;
                answer.ok()?.ok()?.offset
            }
        };
        let numbers: Vec<i32> = numbers.collect();
        let mut known = Vec::with_capacity(numbers.len());
        for some in numbers.chunks(ASKED) {
            known.extend(join_all(some.iter().copied().map(asked)).await);
        }
        known
    }
}

#[tonic::async_trait]
impl Admin for Edge {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let created = self.create(request.into_inner()).await;
        let topic = created.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::CreateTopicResponse {
            topic: Some(topic),
        }))
    }

    async fn alter_topic(
        &self,
        request: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        let altered = self.alter(request.into_inner()).await;
        let topic = altered.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::AlterTopicResponse { topic: Some(topic) }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let deleted = self.delete(&request.into_inner().name).await;
        deleted.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::DeleteTopicResponse {}))
    }

    async fn list_topics(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let image = self.image();
        let mut topics: Vec<_> = image
            .topics()
            .values()
            .map(|topic| describe::topic_summary(&image, topic))
            .collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let described = self.describe_topic_fully(&request.into_inner().name).await;
        let topic = described.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::DescribeTopicResponse {
            topic: Some(topic),
        }))
    }
}
