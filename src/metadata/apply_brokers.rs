//! Brokers come, go and come back (R8, R9).

use quorate_types::{BrokerEpoch, ErrorCode, NodeId, TopicPartition};

use crate::apply::Change;
use crate::cause::{self, Cause, Reason, words};
use crate::command::{Outcome, RegisterBroker};
use crate::election::{Unclean, forget, leave_isr};
use crate::event::EventKind;
use crate::image::{Broker, BrokerState, Registration};

impl Change<'_> {
    pub(crate) fn register(&mut self, register: &RegisterBroker) -> Outcome {
        let node = register.node;
        let level = self.image.feature_level;
        if level < register.min_level || level > register.max_level {
            return Outcome::refused(
                ErrorCode::UnsupportedVersion,
                format!(
                    "the cluster is at feature level {level}, the broker speaks {} to {}",
                    register.min_level, register.max_level
                ),
            );
        }
        let known = self.image.broker(node).cloned();
        let mut cause = Cause::from(Reason::FirstStart);
        if let Some(known) = &known {
            if known.incarnation == register.incarnation {
                return Outcome::Registered { epoch: known.epoch };
            }
            // The lock on a directory proves its former process dead; another directory does not.
            if known.directory != register.directory && !known.is_gone() {
                return Outcome::refused(
                    ErrorCode::DuplicateBrokerRegistration,
                    format!("node {node} lives with another data directory: stop that one first"),
                );
            }
            cause = Reason::Restart {
                node,
                clean: register.clean_epoch == Some(known.epoch),
                booted: register.boot != known.boot,
                other_directory: register.directory != known.directory,
            }
            .into();
            self.leave_everything(node, &cause, Unclean::Never);
            self.drop_what_was_lost(known, register, &cause);
        }
        let epoch = BrokerEpoch::new(self.at.index.get());
        let broker = Broker {
            node,
            directory: register.directory,
            incarnation: register.incarnation,
            boot: register.boot,
            epoch,
            state: BrokerState::Fenced,
            starting: true,
            client: register.client.clone(),
            internal: register.internal.clone(),
            rack: register.rack.clone(),
            min_level: register.min_level,
            max_level: register.max_level,
        };
        self.image.brokers.insert(node, broker);
        self.place_shards();
        self.tell(EventKind::BrokerRegistered { node, epoch }, cause);
        Outcome::Registered { epoch }
    }

    /// R9: what this restart may have lost leaves the ISRs, even as their last member.
    fn drop_what_was_lost(&mut self, known: &Broker, register: &RegisterBroker, again: &Cause) {
        let node = register.node;
        let other_directory = known.directory != register.directory;
        let clean = register.clean_epoch == Some(known.epoch);
        let cache_lost = !clean && known.boot != register.boot;
        for id in self.partitions_of(node) {
            let Some(old) = self.image.partition(&id).cloned() else {
                continue;
            };
            let mut new = Registration::clone(&old);
            let damaged = register.damaged.iter().find(|of| of.partition == id);
            let lost =
                other_directory || damaged.is_some() || (cache_lost && !old.fsync_established);
            if lost {
                forget(&mut new, node);
            }
            // After an unclean election nobody may be left who knows (R7).
            new.damaged_end = new.damaged_end.max(damaged.and_then(|of| of.had));
            if other_directory || damaged.is_some_and(|of| of.gone) {
                // It has nothing left to lead with.
                new.last_known_leader = new.last_known_leader.filter(|last| *last != node);
            }
            if other_directory {
                for replica in new
                    .replicas
                    .iter_mut()
                    .filter(|replica| replica.node == node)
                {
                    replica.directory = register.directory;
                }
            }
            // With its own directory it is on its way back.
            let unclean = if other_directory {
                Unclean::AsSet
            } else {
                Unclean::Never
            };
            self.elect_where_offline(id, &mut new, Some(node), unclean);
            let found = damaged.map(|of| of.found.as_str());
            if let Some(found) = found {
                let damaged = EventKind::ReplicaDamaged {
                    node,
                    topic: self.topic_name(id),
                    partition: id.partition,
                };
                self.tell(damaged, cause::found(found));
            }
            let cause = match found.map(words) {
                _ if other_directory => again.clone(),
                Some(found) => Reason::Damaged { node, found }.into(),
                None => Reason::CacheLost { node }.into(),
            };
            if new != *old {
                self.store(id, new, cause);
            }
        }
    }

    pub(crate) fn unfence(&mut self, node: NodeId, epoch: BrokerEpoch) -> Outcome {
        match self.current(node, epoch) {
            Err(refused) => return refused,
            Ok(BrokerState::Active) => return Outcome::Done,
            Ok(BrokerState::ShuttingDown) => {
                let message = format!("broker {node} is shutting down");
                return Outcome::refused(ErrorCode::InvalidRequest, message);
            }
            Ok(BrokerState::Fenced) => {}
        }
        self.set_state(node, BrokerState::Active);
        self.tell(EventKind::BrokerUnfenced { node }, Reason::Ready);
        for id in self.partitions_of(node) {
            let Some(old) = self.image.partition(&id).cloned() else {
                continue;
            };
            let mut new = Registration::clone(&old);
            self.elect_where_offline(id, &mut new, None, Unclean::AsSet);
            if new != *old {
                let cause = if new.unclean_epoch == old.unclean_epoch {
                    Reason::Back { node }
                } else {
                    Reason::Unsure { node }
                };
                self.store(id, new, cause);
            }
        }
        Outcome::Done
    }

    pub(crate) fn fence(&mut self, node: NodeId, epoch: BrokerEpoch, cause: &str) -> Outcome {
        match self.current(node, epoch) {
            Err(refused) => return refused,
            // One that is starting was expected: now it is not any more.
            Ok(BrokerState::Fenced) if self.image.broker(node).is_some_and(Broker::is_gone) => {
                return Outcome::Done;
            }
            Ok(_) => {}
        }
        self.set_state(node, BrokerState::Fenced);
        self.tell(EventKind::BrokerFenced { node }, cause);
        let why = words(cause);
        let cause = Reason::Fenced { node, why }.into();
        self.leave_everything(node, &cause, Unclean::AsSet);
        Outcome::Done
    }

    pub(crate) fn begin_shutdown(&mut self, node: NodeId, epoch: BrokerEpoch) -> Outcome {
        match self.current(node, epoch) {
            Err(refused) => return refused,
            Ok(BrokerState::ShuttingDown) => return Outcome::Done,
            Ok(BrokerState::Fenced) => {
                let message = format!("broker {node} is fenced");
                return Outcome::refused(ErrorCode::InvalidRequest, message);
            }
            Ok(BrokerState::Active) => {}
        }
        self.set_state(node, BrokerState::ShuttingDown);
        self.tell(EventKind::BrokerShuttingDown { node }, Reason::Asked);
        let cause = Reason::Stopping { node }.into();
        self.leave_everything(node, &cause, Unclean::Never);
        Outcome::Done
    }

    /// Out of every ISR but as the last member, out of every leadership (R8). The epoch of a
    /// partition that it led rises even where nobody else can lead.
    fn leave_everything(&mut self, node: NodeId, cause: &Cause, unclean: Unclean) {
        for id in self.partitions_of(node) {
            let Some(old) = self.image.partition(&id).cloned() else {
                continue;
            };
            let mut new = Registration::clone(&old);
            leave_isr(&mut new, node, self.minimum(id, &old));
            if self.planted.drop_last_member {
                new.isr.retain(|member| *member != node);
            }
            if old.leader == Some(node) {
                self.elect(id, &mut new, Some(node), unclean);
            } else {
                self.elect_where_offline(id, &mut new, Some(node), unclean);
            }
            if new != *old {
                self.store(id, new, cause.clone());
            }
        }
    }

    pub(crate) fn partitions_of(&self, node: NodeId) -> Vec<TopicPartition> {
        let partitions = self.image.partitions.iter();
        partitions
            .filter(|(_, reg)| reg.has_replica(node))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The state of the broker, where that registration is the current one.
    pub(crate) fn current(&self, node: NodeId, epoch: BrokerEpoch) -> Result<BrokerState, Outcome> {
        match self.image.broker(node) {
            None => Err(Outcome::refused(
                ErrorCode::BrokerIdNotRegistered,
                format!("broker {node} is not registered"),
            )),
            Some(broker) if broker.epoch != epoch => Err(Outcome::refused(
                ErrorCode::StaleBrokerEpoch,
                format!("broker {node} is at epoch {}, not {epoch}", broker.epoch),
            )),
            Some(broker) => Ok(broker.state),
        }
    }

    fn set_state(&mut self, node: NodeId, state: BrokerState) {
        if let Some(broker) = self.image.brokers.get_mut(&node) {
            broker.state = state;
            broker.starting = false;
        }
        self.place_shards();
    }
}
