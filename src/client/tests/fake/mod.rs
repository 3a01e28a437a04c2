//! What the servers of the tests share: a cluster of one broker that leads all partitions of the topic
//! `t`, and a client that knows nothing but its address.
#![allow(dead_code, reason = "not every test needs all of it")]

pub mod groups;
pub mod log;

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use quorate_client::{Client, ClientOptions};
use quorate_proto::v1;
use quorate_proto::v1::cluster_server::{Cluster, ClusterServer};
use quorate_types::{Endpoint, ErrorCode};
use quorate_wire::DOMAIN;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The leader, and the epoch that it leads at.
pub const LEADER: u32 = 1;
pub const EPOCH: i32 = 7;
pub const TOPIC_ID: [u8; 16] = [1; 16];
/// What a test waits for happens within this.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Describes the cluster.
#[derive(Clone)]
pub struct Known {
    /// Who answers.
    pub node: u32,
    /// Where the leader says that it is.
    pub leader_port: u16,
    /// How many partitions the topic has.
    pub partitions: usize,
}

impl Known {
    pub fn service(self) -> ClusterServer<Self> {
        ClusterServer::new(self)
    }
}

/// A client whose only bootstrap address is this port.
pub fn client_of(port: u16) -> Client {
    let host = "127.0.0.1".to_owned();
    Client::new(vec![Endpoint { host, port }], ClientOptions::default()).unwrap()
}

/// A refusal by Kafka's name.
pub fn refused(code: ErrorCode, metadata: &[(&str, String)]) -> Status {
    let metadata = metadata.iter();
    let metadata = metadata.map(|(key, value)| ((*key).to_owned(), value.clone()));
    let details =
        ErrorDetails::with_error_info(code.name(), DOMAIN, metadata.collect::<HashMap<_, _>>());
    Status::with_error_details(Code::FailedPrecondition, "refused by the test", details)
}

pub fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl Cluster for Known {
    async fn describe(
        &self,
        _: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let broker = v1::BrokerDescription {
            node_id: LEADER,
            endpoint: Some(v1::Endpoint {
                host: "127.0.0.1".into(),
                port: u32::from(self.leader_port),
            }),
            ..v1::BrokerDescription::default()
        };
        let partition = v1::PartitionDescription {
            leader: Some(LEADER),
            leader_epoch: EPOCH,
            ..v1::PartitionDescription::default()
        };
        let topic = v1::TopicDescription {
            name: "t".into(),
            topic_id: TOPIC_ID.to_vec().into(),
            partitions: vec![partition; self.partitions],
            ..v1::TopicDescription::default()
        };
        Ok(Response::new(v1::DescribeClusterResponse {
            node_id: self.node,
            brokers: vec![broker],
            topics: vec![topic],
            ..v1::DescribeClusterResponse::default()
        }))
    }

    async fn describe_partitions(
        &self,
        _: Request<v1::DescribePartitionsRequest>,
    ) -> Result<Response<v1::DescribePartitionsResponse>, Status> {
        not_here()
    }

    async fn set_feature(
        &self,
        _: Request<v1::SetFeatureRequest>,
    ) -> Result<Response<v1::SetFeatureResponse>, Status> {
        not_here()
    }

    async fn log_level(
        &self,
        _: Request<v1::LogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        not_here()
    }

    type WatchEventsStream = Answers<v1::ClusterEvent>;

    async fn watch_events(
        &self,
        _: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        not_here()
    }
}
