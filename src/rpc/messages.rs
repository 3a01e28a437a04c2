//! Replication messages as the protocol has them, both ways.

use quorate_proto::internal as proto;
use quorate_replication::{
    Accepted, Ack, Batches, Diverged, FollowerMessage, Heartbeat, LeaderMessage, OutOfRange,
    Subscribe, SubscriptionError, Unsubscribe,
};
use quorate_types::{
    BrokerEpoch, ErrorCode, LeaderEpoch, Offset, PartitionId, SubscriptionId, TopicId,
    TopicPartition,
};
use tonic::Status;

fn partition(topic_id: &[u8], number: u32) -> Result<TopicPartition, Status> {
    let topic_id = TopicId::from_slice(topic_id)
        .ok_or_else(|| Status::invalid_argument("topic_id must be 16 bytes long"))?;
    Ok(TopicPartition::new(topic_id, PartitionId::new(number)))
}

fn id_bytes(partition: TopicPartition) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(partition.topic_id.as_bytes())
}

pub(crate) fn follower_to_proto(message: FollowerMessage) -> proto::FollowerMessage {
    use proto::follower_message::Message;
    let partition = message.partition();
    let (topic_id, number) = (id_bytes(partition), partition.partition.get());
    let message = match message {
        FollowerMessage::Subscribe(subscribe) => Message::Subscribe(proto::Subscribe {
            subscription_id: subscribe.subscription.get(),
            topic_id,
            partition: number,
            leader_epoch: subscribe.leader_epoch.get(),
            broker_epoch: subscribe.broker_epoch.get(),
            fetch_offset: subscribe.fetch_offset.get(),
            last_fetched_epoch: subscribe.last_fetched_epoch.map(LeaderEpoch::get),
        }),
        FollowerMessage::Ack(ack) => Message::Ack(proto::Ack {
            subscription_id: ack.subscription.get(),
            topic_id,
            partition: number,
            leo: ack.leo.get(),
            flushed_leo: ack.flushed_leo.get(),
        }),
        FollowerMessage::Unsubscribe(end) => Message::Unsubscribe(proto::Unsubscribe {
            subscription_id: end.subscription.get(),
            topic_id,
            partition: number,
        }),
    };
    proto::FollowerMessage {
        message: Some(message),
    }
}

pub(crate) fn follower_from_proto(
    message: proto::FollowerMessage,
) -> Result<FollowerMessage, Status> {
    use proto::follower_message::Message;
    Ok(match message.message {
        Some(Message::Subscribe(subscribe)) => FollowerMessage::Subscribe(Subscribe {
            partition: partition(&subscribe.topic_id, subscribe.partition)?,
            subscription: SubscriptionId::new(subscribe.subscription_id),
            leader_epoch: LeaderEpoch::new(subscribe.leader_epoch),
            broker_epoch: BrokerEpoch::new(subscribe.broker_epoch),
            fetch_offset: Offset::new(subscribe.fetch_offset),
            last_fetched_epoch: subscribe.last_fetched_epoch.map(LeaderEpoch::new),
        }),
        Some(Message::Ack(ack)) => FollowerMessage::Ack(Ack {
            partition: partition(&ack.topic_id, ack.partition)?,
            subscription: SubscriptionId::new(ack.subscription_id),
            leo: Offset::new(ack.leo),
            flushed_leo: Offset::new(ack.flushed_leo),
        }),
        Some(Message::Unsubscribe(end)) => FollowerMessage::Unsubscribe(Unsubscribe {
            partition: partition(&end.topic_id, end.partition)?,
            subscription: SubscriptionId::new(end.subscription_id),
        }),
        Some(Message::Hello(_)) | None => {
            return Err(Status::invalid_argument(
                "a follower's message without content",
            ));
        }
    })
}

pub(crate) fn leader_to_proto(message: LeaderMessage) -> proto::LeaderMessage {
    use proto::leader_message::Message;
    let at = message.partition();
    let subscription_id = message.subscription().get();
    let (topic_id, partition) = (id_bytes(at), at.partition.get());
    let message = match message {
        LeaderMessage::Accepted(accepted) => Message::Accepted(proto::Accepted {
            subscription_id,
            topic_id,
            partition,
            log_start_offset: accepted.log_start.get(),
        }),
        LeaderMessage::Batches(batches) => Message::Batches(proto::Batches {
            subscription_id,
            topic_id,
            partition,
            high_watermark: batches.high_watermark.get(),
            log_start_offset: batches.log_start.get(),
            bytes: batches.bytes,
        }),
        LeaderMessage::Heartbeat(beat) => Message::Heartbeat(proto::PartitionHeartbeat {
            subscription_id,
            topic_id,
            partition,
            high_watermark: beat.high_watermark.get(),
            log_start_offset: beat.log_start.get(),
        }),
        LeaderMessage::Diverged(diverged) => Message::Diverged(proto::Diverged {
            subscription_id,
            topic_id,
            partition,
            epoch: diverged.epoch.map(LeaderEpoch::get),
            end_offset: diverged.end_offset.get(),
        }),
        LeaderMessage::OutOfRange(out) => Message::OutOfRange(proto::OutOfRange {
            subscription_id,
            topic_id,
            partition,
            log_start_offset: out.log_start.get(),
        }),
        LeaderMessage::Error(error) => Message::Error(proto::SubscriptionError {
            subscription_id,
            topic_id,
            partition,
            code: error.code.name().to_owned(),
        }),
    };
    proto::LeaderMessage {
        message: Some(message),
    }
}

pub(crate) fn leader_from_proto(message: proto::LeaderMessage) -> Result<LeaderMessage, Status> {
    use proto::leader_message::Message;
    Ok(match message.message {
        Some(Message::Accepted(m)) => LeaderMessage::Accepted(Accepted {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            log_start: Offset::new(m.log_start_offset),
        }),
        Some(Message::Batches(m)) => LeaderMessage::Batches(Batches {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            high_watermark: Offset::new(m.high_watermark),
            log_start: Offset::new(m.log_start_offset),
            bytes: m.bytes,
        }),
        Some(Message::Heartbeat(m)) => LeaderMessage::Heartbeat(Heartbeat {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            high_watermark: Offset::new(m.high_watermark),
            log_start: Offset::new(m.log_start_offset),
        }),
        Some(Message::Diverged(m)) => LeaderMessage::Diverged(Diverged {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            epoch: m.epoch.map(LeaderEpoch::new),
            end_offset: Offset::new(m.end_offset),
        }),
        Some(Message::OutOfRange(m)) => LeaderMessage::OutOfRange(OutOfRange {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            log_start: Offset::new(m.log_start_offset),
        }),
        Some(Message::Error(m)) => LeaderMessage::Error(SubscriptionError {
            partition: partition(&m.topic_id, m.partition)?,
            subscription: SubscriptionId::new(m.subscription_id),
            code: ErrorCode::from_name(&m.code).unwrap_or(ErrorCode::UnknownServerError),
        }),
        Some(Message::Hello(_)) | None => {
            return Err(Status::invalid_argument(
                "a leader's message without content",
            ));
        }
    })
}
