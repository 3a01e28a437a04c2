//! All that this node knows of a topic's partitions, and what led there: from its own image, so that
//! it answers also where the metadata quorum does not.
//!
//! Bounds: so many partitions an answer, each with at most 64 events.

use quorate_metadata::{
    ClusterEvent, DataLoss, MetadataImage, Registration, ReplicaAssignment, Topic,
};
use quorate_proto::v1;
use quorate_types::{NodeId, Offset, PartitionId, TopicPartition};
use quorate_wire::ErrorInfo;

use crate::describe;
use crate::edge::Edge;

/// Partitions of one answer. With 64 events of some 600 bytes each, a page stays below the 4 MiB that
/// gRPC clients take by default.
const PAGE: u32 = 64;

impl Edge {
    pub(crate) async fn describe_partitions_of(
        &self,
        request: v1::DescribePartitionsRequest,
    ) -> Result<v1::DescribePartitionsResponse, ErrorInfo> {
        let topic = self.topic(&request.topic, None)?;
        let image = self.image();
        let (first, count) = match request.partition {
            Some(only) => (Self::partition(only)?, 1),
            None => (Self::partition(request.first_partition)?, PAGE),
        };
        // Also names a partition that there is not.
        let first = self.locate(topic.clone(), first)?.id.partition.get();
        let end = first.saturating_add(count).min(topic.partitions);
        let mut partitions: Vec<_> = (first..end)
            .map(|number| TopicPartition::new(topic.id, PartitionId::new(number)))
            .filter_map(|id| state(&image, &topic, id, request.history))
            .collect();
        let described = |state: &v1::PartitionState| Some(state.partition.as_ref()?.partition);
        let numbers: Vec<i32> = partitions.iter().filter_map(described).collect();
        let known = self.high_watermarks(&topic, numbers.into_iter()).await;
        for (state, known) in partitions.iter_mut().zip(known) {
            if let Some(partition) = &mut state.partition {
                partition.high_watermark = known;
            }
        }
        let more = request.partition.is_none() && end < topic.partitions;
        Ok(v1::DescribePartitionsResponse {
            topic: topic.name.to_string(),
            topic_id: topic.id.as_bytes().to_vec().into(),
            partitions,
            next_partition: more.then(|| PartitionId::new(end).to_signed()),
            node_id: self.me().get(),
            applied_index: image.applied().index.to_signed(),
            controller: self.controller(),
        })
    }
}

fn state(
    image: &MetadataImage,
    topic: &Topic,
    id: TopicPartition,
    history: bool,
) -> Option<v1::PartitionState> {
    let registration = image.partition(&id)?;
    let min_isr = registration.effective_min_isr(&topic.settings);
    let events = if history {
        image.partition_history(&id)
    } else {
        Vec::new()
    };
    let replicas = registration.replicas.iter();
    Some(v1::PartitionState {
        partition: Some(describe::partition(id.partition, registration)),
        effective_min_isr: u32::try_from(min_isr).unwrap_or(u32::MAX),
        last_known_leader: registration.last_known_leader.map(NodeId::get),
        unclean_epoch: registration.unclean_epoch.map(|epoch| epoch.to_signed()),
        fsync_established: registration.fsync_established,
        adding: describe::nodes(&registration.adding),
        removing: describe::nodes(&registration.removing),
        replicas: replicas
            .map(|replica| of_replica(image, registration, replica))
            .collect(),
        history: events.iter().map(describe::event).collect(),
        losses: registration.losses.iter().map(lost).collect(),
    })
}

fn lost(loss: &DataLoss) -> v1::LostRange {
    v1::LostRange {
        leader_epoch: loss.epoch.to_signed(),
        from: loss.from.to_signed(),
        to: loss.to.map(Offset::to_signed),
    }
}

fn of_replica(
    image: &MetadataImage,
    registration: &Registration,
    replica: &ReplicaAssignment,
) -> v1::ReplicaState {
    let node = replica.node;
    let state = image
        .broker(node)
        .map_or(v1::BrokerState::Fenced, |broker| {
            describe::broker_state(broker.state)
        });
    let since: Option<ClusterEvent> = image.broker_history(node).pop();
    v1::ReplicaState {
        node_id: node.get(),
        state: state.into(),
        directory_id: replica.directory.to_string(),
        in_sync: registration.isr.contains(&node),
        since: since.as_ref().map(describe::event),
    }
}
