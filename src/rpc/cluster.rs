//! `Cluster`: what there is, and what happens.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use quorate_metadata::Command;
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_types::{ErrorCode, NodeId};
use quorate_wire::ErrorInfo;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::describe;
use crate::edge::{Edge, forward, forward_failed, is_forwarded};
use crate::status::to_status;

/// How long the metadata quorum may take to decide.
const DECIDE: Duration = Duration::from_secs(5);
/// How long another node is asked about its log.
const ASK: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl Cluster for Edge {
    async fn describe(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let request = request.into_inner();
        let image = self.image();
        let wanted = |name: &str| request.all_topics || request.topics.iter().any(|t| t == name);
        let topics = image
            .topics()
            .values()
            .filter(|topic| wanted(topic.name.as_str()));
        let quorum = self.quorum().describe();
        let response = v1::DescribeClusterResponse {
            cluster_id: image
                .cluster_id()
                .map(|id| id.to_string())
                .unwrap_or_default(),
            controller: self.controller(),
            brokers: image
                .brokers()
                .values()
                .map(|b| describe::broker(&image, b))
                .collect(),
            quorum: Some(describe::quorum(&quorum)),
            applied_index: image.applied().index.to_signed(),
            topics: topics.map(|topic| describe::topic(&image, topic)).collect(),
            node_id: self.me().get(),
            feature_level: image.feature_level(),
        };
        Ok(Response::new(response))
    }

    async fn describe_partitions(
        &self,
        request: Request<v1::DescribePartitionsRequest>,
    ) -> Result<Response<v1::DescribePartitionsResponse>, Status> {
        let described = self.describe_partitions_of(request.into_inner()).await;
        described
            .map(Response::new)
            .map_err(|error| to_status(&error))
    }

    async fn set_feature(
        &self,
        request: Request<v1::SetFeatureRequest>,
    ) -> Result<Response<v1::SetFeatureResponse>, Status> {
        let level = request.into_inner().level;
        let set = self.propose(Command::SetFeature { level }, DECIDE).await;
        set.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::SetFeatureResponse { level }))
    }

    async fn log_level(
        &self,
        request: Request<v1::LogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let request = request.into_inner();
        let node = request.node_id.map_or(self.me(), NodeId::new);
        if node != self.me() && !forwarded {
            let channel = self.node(node).map_err(|error| to_status(&error))?;
            let answer = ClusterClient::new(channel)
                .log_level(forward(request, ASK))
                .await;
            return answer.map_err(|status| forward_failed(status, false));
        }
        let refuse = |code, why: String| to_status(&ErrorInfo::new(code, why));
        let Some(control) = &self.config().log_level else {
            let why = "this node's log is not its own to change".to_owned();
            return Err(refuse(ErrorCode::InvalidRequest, why));
        };
        let level = control(request.level.as_deref());
        let level = level.map_err(|why| refuse(ErrorCode::InvalidConfig, why))?;
        Ok(Response::new(v1::LogLevelResponse {
            node_id: self.me().get(),
            level,
        }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<v1::ClusterEvent, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let follow = request.into_inner().follow;
        // Subscribed before the past is read, so that nothing falls in between.
        let mut live = self.quorum().subscribe_events();
        let past = self.quorum().events();
        let (sender, events) = mpsc::channel(64);
        // Ends with the past, or when the client stops reading.
        tokio::spawn(async move {
            let last = past.last().map(|event| event.index);
            for event in &past {
                if sender.send(Ok(describe::event(event))).await.is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            loop {
                let event = tokio::select! {
                    event = live.recv() => event,
                    // Nobody reads any more, however quiet the cluster is.
                    () = sender.closed() => return,
                };
                let event = match event {
                    Ok(event) if Some(event.index) <= last => continue,
                    Ok(event) => Ok(describe::event(&event)),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let message = format!("{missed} events were missed: watch again");
                        let code = ErrorCode::ThrottlingQuotaExceeded;
                        Err(to_status(&ErrorInfo::new(code, message)))
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let ends = event.is_err();
                if sender.send(event).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }
}
