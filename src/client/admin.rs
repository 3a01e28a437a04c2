//! Topics, the cluster and its events.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_types::{NodeId, PartitionId};
use quorate_wire::never_left;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::client::{Client, MESSAGE_BYTES, Patience, failed};
use crate::error::ClientError;

/// How long one node is waited for.
const ONE_TRY: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(50);

impl Client {
    /// Calls one node after the other until one decides. A call whose outcome is unknown is not
    /// sent again unless `again` allows it.
    pub(crate) async fn call<T, F>(
        &self,
        again: bool,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut patience = Patience::new(self.options().call_timeout);
        loop {
            let mut last = ClientError::Connection("no node is known".into());
            for node in self.nodes() {
                let (error, unsent) = match timeout(ONE_TRY, call(self.channel(&node)?)).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) => {
                        let unsent = never_left(&status);
                        (failed(&node, status), unsent)
                    }
                    Err(_) => {
                        let why = format!("{node}: no answer in time");
                        (ClientError::Connection(why), false)
                    }
                };
                let may_go_on = unsent || (again && error.is_retriable());
                if !may_go_on {
                    return Err(error);
                }
                last = error;
            }
            if patience.is_over(&last) {
                return Err(last);
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes a topic; 0 leaves partitions or replication factor to the cluster.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u32,
        config: BTreeMap<String, String>,
    ) -> Result<v1::TopicDescription, ClientError> {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replication_factor,
            config: config.into_iter().collect(),
        };
        let created = self
            .call(false, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).create_topic(request).await }
            })
            .await?;
        created
            .topic
            .ok_or_else(|| ClientError::Protocol("no topic in the answer".into()))
    }

    /// Changes settings of a topic while it is in use; all are taken or none.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn alter_topic(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        unset: Vec<String>,
    ) -> Result<v1::TopicDescription, ClientError> {
        let request = v1::AlterTopicRequest {
            name: name.to_owned(),
            set: set.into_iter().collect(),
            unset,
        };
        // The same settings twice are the same settings.
        let altered = self
            .call(true, |channel| {
                let request = request.clone();
                async move {
                    let mut client =
                        AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                    client.alter_topic(request).await
                }
            })
            .await?;
        altered
            .topic
            .ok_or_else(|| ClientError::Protocol("no topic in the answer".into()))
    }

    /// Deletes a topic and its data.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest {
            name: name.to_owned(),
        };
        self.call(false, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).delete_topic(request).await }
        })
        .await
        .map(|_| ())
    }

    /// All topics.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where no node answers.
    pub async fn list_topics(&self) -> Result<Vec<v1::TopicSummary>, ClientError> {
        let listed = self
            .call(true, |channel| async move {
                let mut client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                client.list_topics(v1::ListTopicsRequest {}).await
            })
            .await?;
        Ok(listed.topics)
    }

    /// One topic with its partitions and high watermarks.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where there is none.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::TopicDescription, ClientError> {
        let request = v1::DescribeTopicRequest {
            name: name.to_owned(),
        };
        let described = self
            .call(false, |channel| {
                let request = request.clone();
                async move {
                    let mut client =
                        AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                    client.describe_topic(request).await
                }
            })
            .await?;
        described
            .topic
            .ok_or_else(|| ClientError::Protocol("no topic in the answer".into()))
    }

    /// All that one node knows of a topic's partitions, in the order of their numbers; of only one
    /// where `partition` names it. With `history` also what happened to them lately. Many come in
    /// several answers; who answers and what that node knows of a controller is the last one's.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where there is no such topic or partition.
    pub async fn describe_partitions(
        &self,
        topic: &str,
        partition: Option<PartitionId>,
        history: bool,
    ) -> Result<v1::DescribePartitionsResponse, ClientError> {
        let mut request = v1::DescribePartitionsRequest {
            topic: topic.to_owned(),
            partition: partition.map(PartitionId::to_signed),
            first_partition: 0,
            history,
        };
        let mut described = Vec::new();
        let mut topic_id = None;
        loop {
            let mut page = self
                .call(false, |channel| {
                    let request = request.clone();
                    async move {
                        let mut client =
                            ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                        client.describe_partitions(request).await
                    }
                })
                .await?;
            if *topic_id.get_or_insert(page.topic_id.clone()) != page.topic_id {
                let why = format!("topic {topic} was deleted and made anew meanwhile: ask again");
                return Err(ClientError::Protocol(why));
            }
            described.append(&mut page.partitions);
            match page.next_partition {
                // Whoever answers names a later one, or the pages would never end.
                Some(next) if next > request.first_partition => request.first_partition = next,
                _ => {
                    page.partitions = described;
                    return Ok(page);
                }
            }
        }
    }

    /// The cluster as one node sees it, with all topics.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where no node answers.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, ClientError> {
        let request = v1::DescribeClusterRequest {
            topics: Vec::new(),
            all_topics: true,
        };
        self.call(true, |channel| {
            let request = request.clone();
            async move {
                let mut client =
                    ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                client.describe(request).await
            }
        })
        .await
    }

    /// Tells what a node logs, after changing it where `level` is given; without a node the one
    /// that answers.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn log_level(
        &self,
        node: Option<NodeId>,
        level: Option<String>,
    ) -> Result<v1::LogLevelResponse, ClientError> {
        let request = v1::LogLevelRequest {
            node_id: node.map(NodeId::get),
            level,
        };
        self.call(true, |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).log_level(request).await }
        })
        .await
    }

    /// Raises the feature level, which decides what changes of the metadata do; it never falls.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where a registered broker does not speak it.
    pub async fn set_feature(&self, level: u32) -> Result<v1::SetFeatureResponse, ClientError> {
        // The same level twice is the same level.
        self.call(true, |channel| async move {
            ClusterClient::new(channel)
                .set_feature(v1::SetFeatureRequest { level })
                .await
        })
        .await
    }

    /// What a node remembers of elections, ISR changes and fencings, and with `follow` what
    /// happens from now on.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where no node answers.
    pub async fn watch_events(
        &self,
        follow: bool,
    ) -> Result<Streaming<v1::ClusterEvent>, ClientError> {
        self.call(true, |channel| async move {
            ClusterClient::new(channel)
                .watch_events(v1::WatchEventsRequest { follow })
                .await
        })
        .await
    }

    /// Looks an offset up; none where no record is that young.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn list_offset(
        &self,
        topic: &str,
        partition: PartitionId,
        position: v1::list_offsets_request::Position,
    ) -> Result<Option<i64>, ClientError> {
        let request = v1::ListOffsetsRequest {
            topic: topic.to_owned(),
            partition: partition.to_signed(),
            position: Some(position),
            ..v1::ListOffsetsRequest::default()
        };
        let listed = self
            .call(true, |channel| {
                let request = request.clone();
                async move { ConsumerClient::new(channel).list_offsets(request).await }
            })
            .await?;
        Ok(listed.offset)
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::Endpoint;
    use tokio::net::TcpListener;

    use super::*;
    use crate::ClientOptions;

    #[tokio::test]
    async fn a_call_that_no_connection_took_may_go_to_the_next_node() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        // `.invalid` never resolves (RFC 6761): a stopped container's name does not either.
        for host in ["127.0.0.1", "stopped.invalid"] {
            let host = host.to_owned();
            let node = Endpoint { host, port };
            let client = Client::new(vec![node.clone()], ClientOptions::default()).unwrap();
            let mut admin = AdminClient::new(client.channel(&node).unwrap());
            let failed = admin.list_topics(v1::ListTopicsRequest {}).await;
            assert!(never_left(&failed.unwrap_err()), "{node}");
        }
        assert!(!never_left(&Status::unavailable("tcp connect error")));
    }
}
