//! Changes of one partition: its ISR (R5), its leader.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_types::{BrokerEpoch, Durability, ErrorCode, LeaderEpoch, NodeId, TopicPartition};

use crate::apply::Change;
use crate::cause::{self, Cause, Reason, words};
use crate::command::{AlterPartition, Outcome, ReportDataLoss};
use crate::election::{Unclean, forget, lead, leave_isr, take_isr};
use crate::event::EventKind;
use crate::image::{BrokerState, DataLoss, Registration};

/// Unclean elections of one partition whose losses are kept.
const LOSSES_MAX: usize = 16;

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
        let replicas = old.replicas.iter().map(|replica| replica.node);
        let isr = replicas.filter(|node| members.contains(node)).collect();
        take_isr(&mut new, isr, self.minimum(alter.partition, &old));
        // R17: an ISR that acknowledges from page caches again has nothing established.
        let syncs = self
            .image
            .topic(alter.partition.topic_id)
            .is_some_and(|topic| topic.settings.durability == Durability::Fsync);
        new.fsync_established |= alter.fsync_established && syncs;
        let without = |isr: &[NodeId], other: &[NodeId]| {
            let missing = isr.iter().filter(|node| !other.contains(node));
            missing.copied().collect()
        };
        let cause = Reason::Followed {
            joined: without(&new.isr, &old.isr),
            left: without(&old.isr, &new.isr),
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
            let eligible = self.current(*node, *epoch) == Ok(BrokerState::Active)
                || self.planted.any_broker_epoch && self.image.is_active(*node);
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
        found: &str,
    ) -> Outcome {
        if let Err(refused) = self.current(node, broker_epoch) {
            return refused;
        }
        let old = match self.registration(id) {
            Ok(old) => old,
            Err(refused) => return refused,
        };
        let mut new = Registration::clone(&old);
        if new.isr.len() > 1 {
            forget(&mut new, node);
        }
        new.elr.retain(|member| *member != node);
        let topic = self.topic_name(id);
        let cause = Cause::from(Reason::Damaged {
            node,
            found: words(found),
        });
        self.tell(
            EventKind::ReplicaDamaged {
                node,
                topic,
                partition: id.partition,
            },
            cause::found(found),
        );
        if old.leader == Some(node) {
            self.elect(id, &mut new, Some(node), Unclean::AsSet);
            // Its successor from the ELR left it there.
            new.elr.retain(|member| *member != node);
            self.store(id, new, cause);
        } else if new != *old || old.leader.is_some() && old.has_replica(node) {
            match new.leader {
                // Perhaps nobody is left any more that is sure to hold all that was acknowledged.
                None => self.elect_where_offline(id, &mut new, Some(node), Unclean::AsSet),
                // What it acked before does not count any more, also where it is to join: its leader
                // takes no ack of a subscription that was made in an older epoch (R13).
                leader => lead(&mut new, leader),
            }
            self.store(id, new, cause);
        }
        Outcome::Done
    }

    /// R7: takes note of what an unclean election lost, as far as one replica knows: the new leader
    /// where its epoch begins, a replica that comes back what it has and the new history has not,
    /// before it cuts it away. All that is told of one election is one range.
    pub(crate) fn report_data_loss(&mut self, report: &ReportDataLoss) -> Outcome {
        let (id, from) = (report.partition, report.from);
        if let Err(refused) = self.current(report.node, report.broker_epoch) {
            return refused;
        }
        let old = match self.registration(id) {
            Ok(old) => old,
            Err(refused) => return refused,
        };
        let epoch = report.unclean_epoch;
        if old.unclean_epoch != Some(epoch) || !old.has_replica(report.node) {
            let message = match old.unclean_epoch {
                Some(last) => format!("the last unclean election was at epoch {last}"),
                None => "there was no unclean election".to_owned(),
            };
            return Outcome::refused(ErrorCode::InvalidUpdateVersion, message);
        }
        if report.to.is_some_and(|to| to <= from) {
            let message = "a range ends after it begins";
            return Outcome::refused(ErrorCode::InvalidRequest, message);
        }
        let mut new = Registration::clone(&old);
        let had = new.damaged_end.take();
        let to = report.to.max(had.filter(|had| *had > from));
        let told = DataLoss { epoch, from, to };
        match new.losses.last_mut().filter(|last| last.epoch == epoch) {
            Some(last) => *last = last.with(&told),
            None => new.losses.push(told),
        }
        let surplus = new.losses.len().saturating_sub(LOSSES_MAX);
        new.losses.drain(..surplus);
        let loss = new.losses.last().copied();
        if new != *old {
            self.store(id, new, "an unclean election");
            if let Some((from, to)) = loss.and_then(|loss| Some((loss.from, loss.to?))) {
                let topic = self.topic_name(id);
                let partition = id.partition;
                let kind = EventKind::DataLost {
                    topic,
                    partition,
                    epoch,
                    from,
                    to,
                };
                self.tell(kind, Reason::Told { node: report.node });
            }
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
        let mut new = Registration::clone(&old);
        leave_isr(&mut new, leader, self.minimum(id, &old));
        self.elect(id, &mut new, Some(leader), Unclean::Never);
        if new.leader.is_none() {
            let message = "no other in-sync replica can lead";
            return Outcome::refused(ErrorCode::NotEnoughReplicas, message);
        }
        self.store(id, new, Reason::Resigned { node: leader });
        Outcome::Done
    }

    pub(crate) fn elect_preferred(&mut self, partitions: &[TopicPartition]) -> Outcome {
        for id in partitions {
            let Some(old) = self.image.partition(id).cloned() else {
                continue;
            };
            if old.leader.is_none() {
                let mut new = Registration::clone(&old);
                self.elect_where_offline(*id, &mut new, None, Unclean::Never);
                if let Some(node) = new.leader {
                    self.store(*id, new, Reason::Again { node });
                }
                continue;
            }
            let Some(preferred) = old.replicas.first().map(|replica| replica.node) else {
                continue;
            };
            let fit = old.isr.contains(&preferred) && self.image.is_active(preferred);
            if fit && old.leader != Some(preferred) {
                let mut new = Registration::clone(&old);
                lead(&mut new, Some(preferred));
                self.store(*id, new, Reason::Preferred { node: preferred });
            }
        }
        Outcome::Done
    }
}
