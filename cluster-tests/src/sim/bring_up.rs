//! How a run begins: the brokers are up, the topics made.

use std::time::Duration;

use quorate_metadata::{BrokerState, Command, Outcome};
use quorate_types::TopicName;

use super::schedule::{Scheduled, ms};
use super::world::World;

/// A cluster that was told nothing comes up within so long.
const UP: Duration = ms(6_000);

impl World {
    /// Starts the nodes; by the book, or as if that had been done, since it costs little then.
    pub(super) fn bring_up(&mut self) {
        for node in self.node_ids() {
            self.start(node);
        }
        self.elect();
        if !self.plan.by_the_book {
            for node in self.node_ids() {
                let Some(register) = self.registration_of(node) else {
                    continue;
                };
                let command = Command::RegisterBroker(register);
                if let Outcome::Registered { epoch } = self.apply_now(command) {
                    self.registered(node, epoch);
                    self.apply_now(Command::UnfenceBroker { node, epoch });
                }
            }
        }
        while self.violation.is_none() && !self.all_active() {
            if !self.next(UP) || self.now >= UP {
                return self.violate(None, "the brokers never came up".to_owned());
            }
        }
        for (number, plan) in self.plan.topics.clone().into_iter().enumerate() {
            let name = TopicName::new(["a", "b", "c"][number % 3]).expect("a good name");
            self.make_topic(&name, plan);
        }
        let latest = self.quorum.index();
        for node in self.node_ids() {
            self.image_arrives(node, latest);
        }
        self.at(ms(1), Scheduled::ConsumerTurn);
        if self.plan.changes {
            self.settings_later();
        }
        self.groups_begin();
    }

    fn all_active(&self) -> bool {
        let brokers = self.quorum.latest().brokers();
        let active = brokers
            .values()
            .filter(|broker| broker.state == BrokerState::Active);
        active.count() == self.nodes.len()
    }
}
