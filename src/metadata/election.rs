//! Who leads (R7): an active member of the ISR, replicas in their order. Unclean elections and
//! eligible leader replicas (R8) are not part of this yet.

use quorate_types::{NodeId, TopicName, TopicPartition};

use crate::apply::Change;
use crate::event::EventKind;
use crate::image::Registration;

/// The first replica, in the order of assignment, that is in the ISR and `may_lead`.
pub(crate) fn choose(
    registration: &Registration,
    may_lead: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    registration
        .replicas
        .iter()
        .map(|replica| replica.node)
        .find(|node| registration.isr.contains(node) && may_lead(*node))
}

/// Names the leader, or none: a new leader epoch either way.
pub(crate) fn lead(registration: &mut Registration, leader: Option<NodeId>) {
    if registration.leader.is_some() {
        registration.last_known_leader = registration.leader;
    }
    registration.leader = leader;
    registration.leader_epoch = registration.leader_epoch.next();
}

/// Takes a node out of the ISR; its last member stays (R8). Says whether anything changed.
pub(crate) fn leave_isr(registration: &mut Registration, node: NodeId) -> bool {
    let leaves = registration.isr.len() > 1 && registration.isr.contains(&node);
    if leaves {
        registration.isr.retain(|member| *member != node);
    }
    leaves
}

impl Change<'_> {
    /// Stores a changed registration: bumps its partition epoch and tells what happened.
    pub(crate) fn store(&mut self, id: TopicPartition, mut new: Registration, cause: &str) {
        let old = self.image.partitions.get(&id).cloned();
        new.partition_epoch = new.partition_epoch.next();
        let topic = self.topic_name(id);
        let partition = id.partition;
        let (epoch, isr) = (new.leader_epoch, new.isr.clone());
        let elected = old
            .as_ref()
            .is_none_or(|old| old.leader_epoch != new.leader_epoch);
        let kind = match new.leader {
            Some(leader) if elected => EventKind::LeaderElected {
                topic,
                partition,
                leader,
                epoch,
                isr,
            },
            None if elected => EventKind::PartitionOffline {
                topic,
                partition,
                epoch,
                isr,
            },
            // What changed is no one's business but the protocol's.
            _ if old.is_some_and(|old| old.isr == new.isr) => {
                self.image.partitions.insert(id, new.into());
                return;
            }
            leader => EventKind::IsrChanged {
                topic,
                partition,
                leader,
                epoch,
                isr,
            },
        };
        self.tell(kind, cause);
        self.image.partitions.insert(id, new.into());
    }

    pub(crate) fn topic_name(&self, id: TopicPartition) -> TopicName {
        let topic = self.image.topics.get(&id.topic_id);
        topic
            .map(|topic| topic.name.clone())
            .expect("a partition's topic is in the image")
    }
}
