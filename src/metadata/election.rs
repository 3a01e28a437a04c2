//! Who leads (R7), and what becomes of the ISR and of the eligible leader replicas (R8, KIP-966).

use quorate_config::TopicSettings;
use quorate_types::{NodeId, TopicName, TopicPartition};

use crate::apply::Change;
use crate::cause::Cause;
use crate::event::EventKind;
use crate::image::{Broker, Registration};

/// Whether a replica that is not sure to hold what was acknowledged may lead, where the topic allows
/// that and nobody better is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unclean {
    /// Somebody better is on its way back, or not gone yet.
    Never,
    /// By `unclean.leader.election.enable`.
    AsSet,
}

/// R7: names whoever may lead now, or none: a new leader epoch either way. From the ISR, else from
/// the ELR, else, uncleanly, the last known leader where nobody is left that is sure to hold what
/// was acknowledged, or any replica where the topic's settings allow that.
fn elect(
    registration: &mut Registration,
    minimum: usize,
    unclean: bool,
    may_lead: impl Fn(NodeId) -> bool,
) {
    let first = |among: &[NodeId]| {
        let mut nodes = registration.replicas.iter().map(|replica| replica.node);
        nodes.find(|node| among.contains(node) && may_lead(*node))
    };
    if let Some(leader) = first(&registration.isr) {
        return lead(registration, Some(leader));
    }
    if let Some(leader) = first(&registration.elr) {
        let mut others = std::mem::take(&mut registration.elr);
        others.append(&mut registration.isr);
        others.retain(|node| *node != leader);
        registration.isr = vec![leader];
        if registration.isr.len() < minimum {
            registration.elr = in_order(registration, &others);
        }
        return lead(registration, Some(leader));
    }
    let nobody_is_sure = registration.isr.is_empty() && registration.elr.is_empty();
    let last = registration.last_known_leader;
    let last = last.filter(|node| registration.has_replica(*node) && may_lead(*node));
    let anybody = || {
        let mut nodes = registration.replicas.iter().map(|replica| replica.node);
        nodes.find(|node| may_lead(*node))
    };
    let leader = if unclean {
        last.or_else(anybody)
    } else {
        last.filter(|_| nobody_is_sure)
    };
    lead(registration, leader);
    if let Some(leader) = leader {
        registration.isr = vec![leader];
        registration.elr.clear();
        registration.unclean_epoch = Some(registration.leader_epoch);
        // What the former leaders had synced says nothing of this one's disk (R17).
        registration.fsync_established = false;
    }
}

/// Names the leader, or none: a new leader epoch either way.
pub(crate) fn lead(registration: &mut Registration, leader: Option<NodeId>) {
    if registration.leader.is_some() {
        registration.last_known_leader = registration.leader;
    }
    registration.leader = leader;
    registration.leader_epoch = registration.leader_epoch.next();
}

/// Takes a node out of the ISR; its last member stays. Whoever leaves one that falls below the
/// effective minimum holds all that was acknowledged, since nothing is until it is large enough
/// again: it may still be elected (R8). Says whether anything changed.
pub(crate) fn leave_isr(registration: &mut Registration, node: NodeId, minimum: usize) -> bool {
    let leaves = registration.isr.len() > 1 && registration.isr.contains(&node);
    if leaves {
        let mut isr = registration.isr.clone();
        isr.retain(|member| *member != node);
        take_isr(registration, isr, minimum);
    }
    leaves
}

/// Takes a new ISR, and what follows for the ELR (R8): disjoint from the ISR, and empty once that
/// is large enough.
pub(crate) fn take_isr(registration: &mut Registration, isr: Vec<NodeId>, minimum: usize) {
    let before = std::mem::replace(&mut registration.isr, isr);
    let mut eligible = std::mem::take(&mut registration.elr);
    if registration.isr.len() < minimum {
        eligible.extend(before);
        eligible.retain(|node| !registration.isr.contains(node));
        registration.elr = in_order(registration, &eligible);
    }
}

/// A replica that has lost something is out of the ISR and the ELR, even as the last member.
pub(crate) fn forget(registration: &mut Registration, node: NodeId) {
    registration.isr.retain(|member| *member != node);
    registration.elr.retain(|member| *member != node);
}

/// Those of the replicas that are among `nodes`, each once, in the order of assignment.
fn in_order(registration: &Registration, nodes: &[NodeId]) -> Vec<NodeId> {
    let replicas = registration.replicas.iter().map(|replica| replica.node);
    replicas.filter(|node| nodes.contains(node)).collect()
}

impl Change<'_> {
    /// R7 (see [`elect`]): any active broker may lead, but for `leaving`. A new leader epoch also
    /// where nobody can.
    pub(crate) fn elect(
        &self,
        id: TopicPartition,
        registration: &mut Registration,
        leaving: Option<NodeId>,
        unclean: Unclean,
    ) {
        let may_lead = |node| Some(node) != leaving && self.image.is_active(node);
        let settings = self.settings(id);
        let minimum = registration.effective_min_isr(settings);
        // Whoever is sure to have all that was acknowledged is waited for while it may come, or is
        // still about to go.
        let gone = |node: &NodeId| {
            Some(*node) == leaving || self.image.broker(*node).is_none_or(Broker::is_gone)
        };
        let mut sure = registration.isr.iter().chain(&registration.elr);
        let unclean =
            unclean == Unclean::AsSet && settings.unclean_leader_election && sure.all(gone);
        elect(registration, minimum, unclean, may_lead);
    }

    /// The same for a partition without a leader; nothing changes where nobody can lead.
    pub(crate) fn elect_where_offline(
        &self,
        id: TopicPartition,
        registration: &mut Registration,
        leaving: Option<NodeId>,
        unclean: Unclean,
    ) {
        if registration.leader.is_none() {
            let mut tried = registration.clone();
            self.elect(id, &mut tried, leaving, unclean);
            if tried.leader.is_some() {
                *registration = tried;
            }
        }
    }

    /// In-sync replicas that an `acks=all` produce needs.
    pub(crate) fn minimum(&self, id: TopicPartition, registration: &Registration) -> usize {
        registration.effective_min_isr(self.settings(id))
    }

    /// The settings of a partition's topic.
    pub(crate) fn settings(&self, id: TopicPartition) -> &TopicSettings {
        let topic = self.image.topics.get(&id.topic_id);
        &topic.expect("a partition's topic is in the image").settings
    }

    /// Stores a changed registration: bumps its partition epoch and tells what happened.
    pub(crate) fn store(
        &mut self,
        id: TopicPartition,
        mut new: Registration,
        cause: impl Into<Cause>,
    ) {
        let old = self.image.partitions.get(&id).cloned();
        new.partition_epoch = new.partition_epoch.next();
        let topic = self.topic_name(id);
        let partition = id.partition;
        let (epoch, isr) = (new.leader_epoch, new.isr.clone());
        let elected = old
            .as_ref()
            .is_none_or(|old| old.leader_epoch != new.leader_epoch);
        let kind = match new.leader {
            Some(leader) if elected && new.unclean_epoch == Some(epoch) => {
                EventKind::UncleanLeaderElected {
                    topic,
                    partition,
                    leader,
                    epoch,
                }
            }
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
