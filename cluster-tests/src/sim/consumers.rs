//! Consumers: they read from whoever takes itself for a leader, and tell a replica what of it they
//! cannot read.

use quorate_record::Batch;
use quorate_replication::Event;
use quorate_types::{NodeId, Offset, TopicPartition};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::schedule::{Scheduled, us};
use super::sight::{Consumed, Deed};
use super::world::World;

impl World {
    /// A consumer reads what some node that takes itself for the leader lets it.
    pub(super) fn consumer_turn(&mut self) -> bool {
        if !self.settling {
            let wait = us(self.rng.random_range(2_000..20_000));
            self.at(wait, Scheduled::ConsumerTurn);
        }
        let mut leaders = Vec::new();
        for (id, watched) in &self.partitions {
            let theirs = watched.seen.iter().filter(|(_, s)| s.leads_at().is_some());
            leaders.extend(theirs.map(|(node, _)| (*id, *node)));
        }
        let Some((id, node)) = leaders.choose(&mut self.rng).copied() else {
            return false;
        };
        self.consume(node, id)
    }

    fn consume(&mut self, node: NodeId, id: TopicPartition) -> bool {
        let (Some(watched), Some(slot)) = (
            self.partitions.get(&id),
            self.process(node)
                .and_then(|process| process.slots.get(&id)),
        ) else {
            return false;
        };
        let at = slot.core.positions();
        let from = watched.consumed.max(at.start);
        if from >= at.high_watermark {
            return false;
        }
        let (from, to) = (Offset::new(from), Offset::new(at.high_watermark));
        match slot.core.read(from, to, 2_000) {
            Ok(bytes) => {
                let batches = Batch::split(bytes).expect("a log holds batches");
                if let Some(end) = batches.last().map(|batch| batch.end_offset().get()) {
                    if let Some(watched) = self.partitions.get_mut(&id) {
                        watched.consumed = end;
                    }
                    self.look(id, None, Deed::Consumed(Consumed { node, end }));
                }
            }
            // As a broker's reader does: it tells the replica.
            Err(error) => {
                let why = error.to_string();
                self.step(node, id, Event::Unreadable { why });
            }
        }
        true
    }
}
