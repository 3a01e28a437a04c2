//! What the client is told, in the order in which it happened.

use prost::Message;
use quorate_proto::v1;
use quorate_proto::v1::subscribe_response::{self as answer, Message as Told};
use quorate_types::{Offset, TopicId, TopicPartition};
use quorate_wire::ErrorInfo;

use super::Call;
use crate::consume::Given;
use crate::groups::by_topic;
use crate::subscribe::Outgoing;
use crate::subscribe::credit::counted;

impl Call {
    pub(super) fn tell(&mut self, message: Told) {
        let message = Some(message);
        self.outbox.push_back(Outgoing {
            response: v1::SubscribeResponse { message },
            held: None,
        });
    }

    /// With those that are to be told of anyway.
    pub(super) fn tell_assigned(&mut self, topic: String, at: TopicPartition, offset: Offset) {
        let partition = answer::AssignedPartition {
            topic,
            partition: at.partition.to_signed(),
            offset: offset.to_signed(),
            topic_id: at.topic_id.as_bytes().to_vec().into(),
        };
        if let Some(Told::Assigned(last)) = self
            .outbox
            .back_mut()
            .and_then(|last| last.response.message.as_mut())
        {
            last.partitions.push(partition);
            return;
        }
        let partitions = vec![partition];
        self.tell(Told::Assigned(answer::Assigned { partitions }));
    }

    pub(super) fn tell_interrupted(
        &mut self,
        at: &TopicPartition,
        why: &ErrorInfo,
        next: Option<Offset>,
    ) {
        let image = self.edge.image();
        let topic = image.topic(at.topic_id);
        let read = why.metadata.get("offset");
        let offset = read.and_then(|read| read.parse().ok()).map(Offset::new);
        self.tell(Told::Interrupted(answer::Interrupted {
            topic: topic.map_or_else(String::new, |topic| topic.name.to_string()),
            partition: at.partition.to_signed(),
            offset: offset.unwrap_or_default().to_signed(),
            reason: why.code.name().to_owned(),
            message: why.message.clone(),
            next: next.map(Offset::to_signed),
        }));
    }

    pub(super) fn send(&mut self, at: TopicPartition, given: Given) {
        let Given {
            response: records,
            last_epoch,
            held,
        } = given;
        let image = self.edge.image();
        let Some(topic) = image.topic(at.topic_id) else {
            return;
        };
        let bytes = counted(records.encoded_len());
        self.credit.sent(bytes);
        if let Ok(next) = Offset::from_signed(records.next_offset) {
            self.holdings.sent(&at, next);
            if self.join.auto_commit {
                self.progress.sent(at, (next, last_epoch), bytes);
            }
        }
        let topic = topic.name.to_string();
        let message = Some(Told::Records(answer::Records {
            topic,
            records: Some(records),
            bytes,
        }));
        let response = v1::SubscribeResponse { message };
        self.outbox.push_back(Outgoing {
            response,
            held: Some(held),
        });
    }

    pub(super) fn tell_lost(&mut self, lost: Vec<TopicPartition>) {
        for at in &lost {
            self.reading.stop(at);
            self.progress.lose(at);
        }
        if !lost.is_empty() {
            let mut partitions = by_topic(&self.edge.image(), lost.iter().copied());
            // One that is deleted has no name any more.
            for told in partitions.iter_mut().filter(|told| told.topic.is_empty()) {
                let id = TopicId::from_slice(&told.topic_id);
                told.topic = id
                    .and_then(|id| self.names.get(&id).cloned())
                    .unwrap_or_default();
            }
            self.tell(Told::Lost(answer::Lost { partitions }));
        }
    }
}
