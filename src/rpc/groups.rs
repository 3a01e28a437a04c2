//! `Groups`: any node takes any request about a consumer group and passes it on to its coordinator,
//! one hop. Who coordinates is as this node's image has it; a coordinator that is replaced while it
//! is asked is waited for no longer.

mod describe;
mod heartbeat;
mod offsets;
mod pages;

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use quorate_group::GroupError;
use quorate_metadata::{MetadataImage, Shard};
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::groups_server::Groups;
use quorate_types::{ErrorCode, GroupId, TopicPartition};
use quorate_wire::{ErrorInfo, never_left};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use heartbeat::profile;
pub(crate) use offsets::refused_offset;

use crate::channels::MESSAGE_BYTES;
use crate::edge::{Edge, forward, is_forwarded};
use crate::status::{from_status, to_status};
use crate::subscribe;

/// What the way to the coordinator and back may take beside the time that a request may wait there.
const FORWARD_GRACE: Duration = Duration::from_secs(5);
/// How long this node's own image may lag behind what it proposed.
const SEE: Duration = Duration::from_secs(5);
/// Where the client of a forwarded request is, as the node knows that has taken it.
const CLIENT_HOST: &str = "quorate-client-host";

/// Where a request about a group goes.
enum Coordinated {
    Here,
    There(Box<GroupsClient<Channel>>, Shard),
}

/// Whether a request may be sent again without asking what has become of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Unsure,
}

impl Edge {
    /// Where a request about a group goes; one hop only.
    fn coordinated(&self, group: &GroupId, forwarded: bool) -> Result<Coordinated, Status> {
        let shard = self.image().coordinator(group);
        match shard.coordinator {
            Some(node) if node == self.me() => Ok(Coordinated::Here),
            Some(node) if !forwarded => {
                let channel = self.node(node).map_err(|_unreachable| {
                    to_status(&self.elsewhere(group, ErrorCode::CoordinatorNotAvailable))
                })?;
                let client = GroupsClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES)
                    .max_encoding_message_size(MESSAGE_BYTES);
                Ok(Coordinated::There(Box::new(client), shard))
            }
            Some(_) => Err(to_status(&self.elsewhere(group, ErrorCode::NotCoordinator))),
            None => {
                let code = ErrorCode::CoordinatorNotAvailable;
                Err(to_status(&self.elsewhere(group, code)))
            }
        }
    }

    /// "Not here", with who coordinates as far as this node knows.
    fn elsewhere(&self, group: &GroupId, code: ErrorCode) -> ErrorInfo {
        let message = match code {
            ErrorCode::NotCoordinator => {
                format!("node {} does not coordinate the group {group}", self.me())
            }
            _ => format!("no coordinator of the group {group} can be reached"),
        };
        self.name_coordinator(ErrorInfo::new(code, message), group)
    }

    fn name_coordinator(&self, error: ErrorInfo, group: &GroupId) -> ErrorInfo {
        let image = self.image();
        let coordinator = image.coordinator(group).coordinator;
        let known = coordinator.filter(|node| *node != self.me());
        match known.and_then(|node| image.broker(node)) {
            Some(broker) => error.with_coordinator(broker.node, &broker.client),
            None => error,
        }
    }

    fn group_error(&self, group: &GroupId, error: &GroupError) -> ErrorInfo {
        let info = ErrorInfo::new(error.code(), error.to_string());
        match error {
            GroupError::NotCoordinator { .. } => self.name_coordinator(info, group),
            _ => info,
        }
    }

    /// The answer of a group's coordinator elsewhere, as long as it is the coordinator.
    async fn there<T>(
        &self,
        group: &GroupId,
        at: Shard,
        repeat: Repeat,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let failed = tokio::select! {
            answer = call => match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if from_status(&status).is_some() => return Err(status),
                Err(status) => status,
            },
            () = self.broker().groups().moved(group, at) => {
                Status::unavailable("another node coordinates the group now")
            }
        };
        let code = if repeat == Repeat::Harmless || never_left(&failed) {
            ErrorCode::CoordinatorNotAvailable
        } else {
            ErrorCode::RequestTimedOut
        };
        let message = format!(
            "the group's coordinator did not answer: {}",
            failed.message()
        );
        let error = self.name_coordinator(ErrorInfo::new(code, message), group);
        Err(to_status(&error))
    }

    async fn delete_group(
        &self,
        request: v1::DeleteGroupRequest,
        forwarded: bool,
    ) -> Result<v1::DeleteGroupResponse, Status> {
        let id = quorate_wire::group_id(&request.group).map_err(|error| to_status(&error))?;
        match self.coordinated(&id, forwarded)? {
            Coordinated::There(mut client, at) => {
                let call = client.delete(forward(request, FORWARD_GRACE * 2));
                self.there(&id, at, Repeat::Unsure, call).await
            }
            Coordinated::Here => {
                let before = self.image().group(&id).map(|group| group.epoch);
                let deleted = self.broker().groups().delete(id.clone()).await;
                deleted.map_err(|error| to_status(&self.group_error(&id, &error)))?;
                let mut images = self.quorum().images();
                let gone = images.wait_for(|image| {
                    let now = image.group(&id);
                    now.is_none_or(|group| Some(group.epoch) != before)
                });
                // Decided; that this node lags does not undo it.
                let _lag = timeout(SEE, gone).await;
                Ok(v1::DeleteGroupResponse {})
            }
        }
    }
}

/// Where a request's client is, as far as is known; shown only.
pub(crate) fn client_host<T>(request: &Request<T>) -> String {
    let told = request.metadata().get(CLIENT_HOST);
    let told = told.filter(|_| is_forwarded(request));
    let told = told.and_then(|host| host.to_str().ok());
    match told {
        Some(host) => host.chars().take(64).collect(),
        None => {
            let address = request.remote_addr();
            address.map_or_else(String::new, |address| address.ip().to_string())
        }
    }
}

/// Partitions by their topics. Topics that are gone have no name.
pub(crate) fn by_topic(
    image: &MetadataImage,
    partitions: impl Iterator<Item = TopicPartition>,
) -> Vec<v1::TopicPartitions> {
    let mut topics: Vec<v1::TopicPartitions> = Vec::new();
    let mut last = None;
    for at in partitions {
        if last != Some(at.topic_id) {
            last = Some(at.topic_id);
            let name = image.topic(at.topic_id).map(|topic| topic.name.to_string());
            topics.push(v1::TopicPartitions {
                topic: name.unwrap_or_default(),
                topic_id: at.topic_id.as_bytes().to_vec().into(),
                partitions: Vec::new(),
            });
        }
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push(at.partition.to_signed());
        }
    }
    topics
}

#[tonic::async_trait]
impl Groups for Edge {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let host = client_host(&request);
        let answers = subscribe::subscribed(self.clone(), request.into_inner(), host);
        Ok(Response::new(answers))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let (host, forwarded) = (client_host(&request), is_forwarded(&request));
        let answer = self.group_heartbeat(request.into_inner(), &host, forwarded);
        answer.await.map(Response::new)
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let answer = self.group_commit(request.into_inner(), forwarded).await;
        answer.map(Response::new)
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let answer = self.group_offsets(request.into_inner(), forwarded).await;
        answer.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let listed = self.list_groups(&request.into_inner()).await;
        listed.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let answer = self.describe_group(request.into_inner(), forwarded).await;
        answer.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let answer = self.delete_group(request.into_inner(), forwarded).await;
        answer.map(Response::new)
    }
}
