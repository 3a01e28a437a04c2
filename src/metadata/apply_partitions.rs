//! Changes of one partition: its ISR (R5), its leader.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_types::{BrokerEpoch, Durability, ErrorCode, LeaderEpoch, NodeId, TopicPartition};

use crate::apply::Change;
use crate::command::{AlterPartition, Outcome};
use crate::election::{choose, lead, leave_isr};
use crate::event::EventKind;
use crate::image::{BrokerState, Registration};

impl Change<'_> {
    fn registration(&self, id: TopicPartition) -> Result<Arc<Registration>, Outcome> {
        self.image.partition(&id).cloned().ok_or_else(|| {
            let message = format!("there is no partition {id}");
            Outcome::refused(ErrorCode::UnknownTopicOrPartition, message)
        })
    }

    pub(crate) fn alter_partition(&mut self, alter: &AlterPartition) -> Outcome {
        let old = match self.registration(alter.partition) {
            Ok(old) => old,
            Err(refused) => return refused,
        };
        if let Err(refused) = self.check_alter(&old, alter) {
            return refused;
        }
        let mut new = Registration::clone(&old);
        let members: BTreeSet<NodeId> = alter.isr.iter().map(|(node, _)| *node).collect();
        new.isr = new
            .replicas
            .iter()
            .map(|r| r.node)
            .filter(|n| members.contains(n))
            .collect();
        // R17: an ISR that acknowledges from page caches again has nothing established.
        let syncs = self
            .image
            .topic(alter.partition.topic_id)
            .is_some_and(|topic| topic.settings.durability == Durability::Fsync);
        new.fsync_established |= alter.fsync_established && syncs;
        let cause = match new.isr.len().cmp(&old.isr.len()) {
            Ordering::Greater => "a replica caught up",
            Ordering::Less => "a replica fell behind",
            Ordering::Equal => "asked for by its leader",
        };
        self.store(alter.partition, new, cause);
        Outcome::Done
    }

    fn check_alter(&self, old: &Registration, alter: &AlterPartition) -> Result<(), Outcome> {
        let refuse = |code, message: String| Err(Outcome::refused(code, message));
        if alter.leader_epoch != old.leader_epoch || old.leader != Some(alter.leader) {
            let current = old.leader_epoch;
            return refuse(
                ErrorCode::FencedLeaderEpoch,
                format!("leader epoch is {current}"),
            );
        }
        self.current(alter.leader, alter.leader_broker_epoch)?;
        if alter.partition_epoch != old.partition_epoch {
            let current = old.partition_epoch;
            return refuse(
                ErrorCode::InvalidUpdateVersion,
                format!("partition epoch is {current}"),
            );
        }
        let members: BTreeSet<NodeId> = alter.isr.iter().map(|(node, _)| *node).collect();
        let known = members.iter().all(|node| old.has_replica(*node));
        if members.len() != alter.isr.len() || !known || !members.contains(&alter.leader) {
            let message = "an ISR is made of different replicas, the leader among them";
            return refuse(ErrorCode::InvalidRequest, message.to_owned());
        }
        for (node, epoch) in &alter.isr {
            // KIP-903: the very registration that the leader saw catch up, and none that goes.
            let eligible = self.current(*node, *epoch) == Ok(BrokerState::Active);
            if !eligible && *node != alter.leader {
                let message = format!("broker {node} at epoch {epoch} may not be in an ISR");
                return refuse(ErrorCode::IneligibleReplica, message);
            }
        }
        Ok(())
    }

    /// R13: out of the ISR; the last member stays, without a leader, until its broker comes back
    /// and tells what recovery found.
    pub(crate) fn report_damaged(
        &mut self,
        id: TopicPartition,
        node: NodeId,
        broker_epoch: BrokerEpoch,
    ) -> Outcome {
        if let Err(refused) = self.current(node, broker_epoch) {
            return refused;
        }
        let old = match self.registration(id) {
            Ok(old) => old,
            Err(refused) => return refused,
        };
        let mut new = Registration::clone(&old);
        let left = leave_isr(&mut new, node);
        let topic = self.topic_name(id);
        let cause = "its disk failed or lost data";
        self.tell(
            EventKind::ReplicaDamaged {
                node,
                topic,
                partition: id.partition,
            },
            cause,
        );
        if old.leader == Some(node) {
            let image = &*self.image;
            let next = choose(&new, |other| other != node && image.is_active(other));
            lead(&mut new, next);
            self.store(id, new, "its leader is damaged");
        } else if left {
            self.store(id, new, "the replica is damaged");
        }
        Outcome::Done
    }

    /// R6: the leadership goes to another member; without one there is nobody better.
    pub(crate) fn resign(
        &mut self,
        id: TopicPartition,
        leader: NodeId,
        leader_epoch: LeaderEpoch,
    ) -> Outcome {
        let old = match self.registration(id) {
            Ok(old) => old,
            Err(refused) => return refused,
        };
        if old.leader != Some(leader) || old.leader_epoch != leader_epoch {
            let message = format!("leader epoch is {}", old.leader_epoch);
            return Outcome::refused(ErrorCode::FencedLeaderEpoch, message);
        }
        let image = &*self.image;
        let Some(next) = choose(&old, |other| other != leader && image.is_active(other)) else {
            let message = "no other in-sync replica can lead";
            return Outcome::refused(ErrorCode::NotEnoughReplicas, message);
        };
        let mut new = Registration::clone(&old);
        leave_isr(&mut new, leader);
        lead(&mut new, Some(next));
        self.store(id, new, "the leader resigned");
        Outcome::Done
    }

    pub(crate) fn elect_preferred(&mut self, partitions: &[TopicPartition]) -> Outcome {
        for id in partitions {
            let Some(old) = self.image.partition(id).cloned() else {
                continue;
            };
            let Some(preferred) = old.replicas.first().map(|replica| replica.node) else {
                continue;
            };
            let fit = old.isr.contains(&preferred) && self.image.is_active(preferred);
            if fit && old.leader != Some(preferred) {
                let mut new = Registration::clone(&old);
                lead(&mut new, Some(preferred));
                self.store(*id, new, "the preferred leader is back");
            }
        }
        Outcome::Done
    }
}
