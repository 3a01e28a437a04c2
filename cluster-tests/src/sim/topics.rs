//! Topics as operators treat them: made, set anew, deleted and made again under the same name.

use quorate_metadata::{AlterTopic, Command, CreateTopic, Outcome};
use quorate_types::{TopicId, TopicName, TopicPartition};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::plan::TopicPlan;
use super::schedule::{Scheduled, ms};
use super::trace::note;
use super::world::World;

/// A topic that exists.
pub(super) struct SimTopic {
    pub(super) name: TopicName,
    pub(super) id: TopicId,
    pub(super) plan: TopicPlan,
}

impl World {
    /// Makes a topic, with clients of its own.
    pub(super) fn make_topic(&mut self, name: &TopicName, plan: TopicPlan) {
        self.topics_made += 1;
        let mut id = [5; 16];
        id[14..].copy_from_slice(&self.topics_made.to_be_bytes());
        let id = TopicId::from_bytes(id);
        let config = plan.settings();
        let seed = self.rng.random();
        let outcome = self.apply_now(Command::CreateTopic(CreateTopic {
            name: name.clone(),
            topic_id: id,
            partitions: plan.partitions,
            replication_factor: plan.factor,
            seed,
            config: config.map(|(key, value)| (key.to_owned(), value)).into(),
        }));
        if matches!(outcome, Outcome::Refused(_)) {
            note!(self, None, "no topic {name}: {outcome:?}");
            return;
        }
        let made = self.quorum.latest().partitions().keys().copied();
        let ids: Vec<TopicPartition> = made.filter(|made| made.topic_id == id).collect();
        let busiest = self.topics.is_empty();
        for made in ids {
            self.add_producers(made, busiest && made.partition.get() == 0);
        }
        let name = name.clone();
        self.topics.push(SimTopic { name, id, plan });
    }

    pub(super) fn settings_later(&mut self) {
        let wait = ms(self.rng.random_range(15..120));
        self.at(wait, Scheduled::SettingsTurn);
    }

    /// An operator changes a setting, or makes a topic anew.
    pub(super) fn settings_turn(&mut self) {
        if self.settling {
            return;
        }
        self.settings_later();
        if self.topics.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.topics.len());
        match self.rng.random_range(0..10) {
            0..6 => self.durability_changes(at),
            6 => self.set(at, |topic| topic.unclean = !topic.unclean),
            7 | 8 => self.set(at, |topic| topic.min_isr = 3 - topic.min_isr),
            _ => {
                let topic = self.topics.remove(at);
                note!(self, None, "topic {} is deleted", topic.name);
                self.counts.deleted += 1;
                self.apply_now(Command::DeleteTopic { topic_id: topic.id });
                self.make_topic(&topic.name, topic.plan);
            }
        }
    }

    fn set(&mut self, at: usize, change: impl FnOnce(&mut TopicPlan)) {
        let topic = &mut self.topics[at];
        change(&mut topic.plan);
        let set = topic.plan.settings();
        let command = Command::AlterTopic(AlterTopic {
            topic_id: topic.id,
            set: set.map(|(key, value)| (key.to_owned(), value)).into(),
            unset: Vec::new(),
        });
        self.propose_from_outside(command, false);
    }

    /// The topic's durability changes, to and fro (R17). A disk lags while the registration changes,
    /// and then there is no power anywhere: what is called established must be on the disks.
    fn durability_changes(&mut self, at: usize) {
        self.set(at, |topic| topic.page_cache = !topic.page_cache);
        if !self.topics[at].plan.page_cache && self.rng.random_bool(0.7) {
            let nodes = self.node_ids();
            if let Some(node) = nodes.choose(&mut self.rng).copied() {
                let soon = ms(self.rng.random_range(2..40));
                note!(self, None, "node {node}: its disk stalls");
                let until = self.now + soon * 2;
                let state = self.node_mut(node);
                state.stalled_until = state.stalled_until.max(until);
                self.at(soon, Scheduled::PowerFailsEverywhere);
            }
        }
    }
}
