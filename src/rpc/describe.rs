//! The image as the protocol describes it.

use quorate_metadata::{
    Broker, BrokerState, ClusterEvent, EventKind, MetadataImage, Registration, Topic,
};
use quorate_proto::v1;
use quorate_quorum::{QuorumDescription, QuorumMember};
use quorate_types::{LeaderEpoch, NodeId, PartitionId, TopicName, TopicPartition};
use quorate_wire::endpoint_to_proto;

pub(crate) fn nodes(list: &[NodeId]) -> Vec<u32> {
    list.iter().map(|node| node.get()).collect()
}

/// A topic with its partitions; high watermarks are the caller's to fill in.
pub(crate) fn topic(image: &MetadataImage, topic: &Topic) -> v1::TopicDescription {
    let partitions = (0..topic.partitions)
        .map(PartitionId::new)
        .filter_map(|number| {
            let id = TopicPartition::new(topic.id, number);
            image
                .partition(&id)
                .map(|registration| partition(number, registration))
        });
    v1::TopicDescription {
        name: topic.name.to_string(),
        topic_id: topic.id.as_bytes().to_vec().into(),
        partitions: partitions.collect(),
        config: topic.config.clone().into_iter().collect(),
    }
}

pub(crate) fn partition(
    number: PartitionId,
    registration: &Registration,
) -> v1::PartitionDescription {
    v1::PartitionDescription {
        partition: number.to_signed(),
        leader: registration.leader.map(NodeId::get),
        leader_epoch: registration.leader_epoch.to_signed(),
        partition_epoch: registration.partition_epoch.to_signed(),
        replicas: registration
            .replicas
            .iter()
            .map(|replica| replica.node.get())
            .collect(),
        isr: nodes(&registration.isr),
        elr: nodes(&registration.elr),
        high_watermark: None,
    }
}

pub(crate) fn topic_summary(image: &MetadataImage, topic: &Topic) -> v1::TopicSummary {
    let first = TopicPartition::new(topic.id, PartitionId::ZERO);
    let replicas = image
        .partition(&first)
        .map_or(0, |registration| registration.replicas.len());
    v1::TopicSummary {
        name: topic.name.to_string(),
        topic_id: topic.id.as_bytes().to_vec().into(),
        partitions: topic.partitions,
        replication_factor: u32::try_from(replicas).unwrap_or(u32::MAX),
    }
}

pub(crate) fn broker_state(state: BrokerState) -> v1::BrokerState {
    match state {
        BrokerState::Fenced => v1::BrokerState::Fenced,
        BrokerState::Active => v1::BrokerState::Active,
        BrokerState::ShuttingDown => v1::BrokerState::ShuttingDown,
    }
}

pub(crate) fn broker(image: &MetadataImage, broker: &Broker) -> v1::BrokerDescription {
    let (mut leaders, mut replicas, mut out_of_sync) = (0, 0, 0);
    for registration in image.partitions().values() {
        if registration.has_replica(broker.node) {
            replicas += 1;
            out_of_sync += u32::from(!registration.isr.contains(&broker.node));
            leaders += u32::from(registration.leader == Some(broker.node));
        }
    }
    v1::BrokerDescription {
        node_id: broker.node.get(),
        state: broker_state(broker.state).into(),
        endpoint: Some(endpoint_to_proto(&broker.client)),
        internal_endpoint: Some(endpoint_to_proto(&broker.internal)),
        rack: broker.rack.clone(),
        broker_epoch: broker.epoch.to_signed(),
        leaders,
        replicas,
        out_of_sync,
        min_feature_level: broker.min_level,
        max_feature_level: broker.max_level,
    }
}

pub(crate) fn quorum(description: &QuorumDescription) -> v1::QuorumDescription {
    let member = |member: &QuorumMember| v1::QuorumMember {
        node_id: member.id.node.get(),
        directory_id: member.id.directory.to_string(),
        address: member.address.clone(),
        matched_index: member.matched.map(|index| index.to_signed()),
    };
    let index = |index: Option<quorate_types::RaftIndex>| index.unwrap_or_default().to_signed();
    v1::QuorumDescription {
        term: description.term.to_signed(),
        leader: description.leader.map(|id| id.node.get()),
        voters: description.voters.iter().map(member).collect(),
        observers: description.observers.iter().map(member).collect(),
        last_log_index: index(description.last_log),
        snapshot_index: index(description.snapshot),
        purged_index: index(description.purged),
        outage: description.outage.clone(),
    }
}

pub(crate) fn event(event: &ClusterEvent) -> v1::ClusterEvent {
    let mut described = v1::ClusterEvent {
        index: event.index.to_signed(),
        time_ms: event.time.millis(),
        kind: event.kind.name().to_owned(),
        cause: event.cause.clone(),
        text: format!("{} ({})", event.kind, event.cause),
        ..v1::ClusterEvent::default()
    };
    let mut place = |topic: &TopicName, partition: PartitionId, epoch: LeaderEpoch| {
        described.topic = Some(topic.to_string());
        described.partition = Some(partition.to_signed());
        described.leader_epoch = Some(epoch.to_signed());
    };
    match &event.kind {
        EventKind::BrokerRegistered { node, .. }
        | EventKind::BrokerUnfenced { node }
        | EventKind::BrokerFenced { node }
        | EventKind::BrokerShuttingDown { node } => described.node_id = Some(node.get()),
        EventKind::LeaderElected {
            topic,
            partition,
            leader,
            epoch,
            isr,
        } => {
            place(topic, *partition, *epoch);
            described.leader = Some(leader.get());
            described.isr = nodes(isr);
        }
        EventKind::UncleanLeaderElected {
            topic,
            partition,
            leader,
            epoch,
        } => {
            place(topic, *partition, *epoch);
            described.leader = Some(leader.get());
            described.isr = nodes(&[*leader]);
        }
        EventKind::DataLost {
            topic,
            partition,
            epoch,
            from,
            to,
        } => {
            place(topic, *partition, *epoch);
            described.lost_from = Some(from.to_signed());
            described.lost_to = Some(to.to_signed());
        }
        EventKind::PartitionOffline {
            topic,
            partition,
            epoch,
            isr,
        } => {
            place(topic, *partition, *epoch);
            described.isr = nodes(isr);
        }
        EventKind::IsrChanged {
            topic,
            partition,
            leader,
            epoch,
            isr,
        } => {
            place(topic, *partition, *epoch);
            described.leader = leader.map(NodeId::get);
            described.isr = nodes(isr);
        }
        EventKind::FeatureLevelRaised { .. } => {}
        EventKind::TopicCreated { topic, .. }
        | EventKind::TopicAltered { topic, .. }
        | EventKind::TopicDeleted { topic } => {
            described.topic = Some(topic.to_string());
        }
        EventKind::ReplicaDamaged {
            node,
            topic,
            partition,
        } => {
            described.node_id = Some(node.get());
            described.topic = Some(topic.to_string());
            described.partition = Some(partition.to_signed());
        }
    }
    described
}
