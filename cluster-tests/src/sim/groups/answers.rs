//! What answers make of members: what they take, give up, and where they begin to read.

use std::collections::BTreeMap;

use quorate_group::{Answer, GroupError, Heartbeat, Leave};
use quorate_types::{NodeId, TopicPartition};
use rand::Rng;

use super::asks::What;
use super::{Ask, AskId, GroupEvent, Groups, Reply, names};
use crate::sim::invariants::g01_single_ownership as single_ownership;
use crate::sim::schedule::{Scheduled, us};
use crate::sim::trace::note;
use crate::sim::world::World;

impl World {
    pub(in crate::sim) fn ask_answered(&mut self, id: AskId, reply: Box<Reply>) {
        let Some(ask) = self
            .groups
            .as_ref()
            .and_then(|of| of.asks.get(&id))
            .cloned()
        else {
            return;
        };
        if matches!(ask.what, What::Delete) {
            // Not the seat's.
            return;
        }
        let (seat, life) = (ask.seat, ask.life);
        let sleeping = reply.clone();
        let again = || GroupEvent::Answered {
            ask: id,
            reply: sleeping,
        };
        if !self.is_awake(seat, life, again) {
            return;
        }
        if let Some(groups) = &mut self.groups {
            groups.seats[seat].unanswered = 0;
        }
        match (*reply, &ask.what) {
            (Reply::Beat(Ok(answer)), What::Beat(beat)) => self.take(&ask, beat, &answer),
            (Reply::Beat(Err(error)), What::Beat(beat)) => self.refused(&ask, beat, error),
            (Reply::Fetch(offsets), What::Fetch(floors)) => {
                self.fetched(&ask, id, floors, &offsets);
            }
            (Reply::Elsewhere(other), _) => self.go_to(seat, other),
            _ => {}
        }
    }

    fn take(&mut self, ask: &Ask, beat: &Heartbeat, answer: &Answer) {
        let (now, seat, life) = (self.now, ask.seat, ask.life);
        let settling = self.settling;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let Groups {
            rng, seats, plan, ..
        } = &mut **groups;
        let of = &mut seats[seat];
        if beat.member != of.id || beat.leave != Leave::No {
            return;
        }
        let taken = of.take(ask.sent, answer);
        let slow = !settling && rng.random_bool(plan.slow_to_give_up);
        let most = if slow { 400_000 } else { 2_000 };
        let mut ends = Vec::new();
        for (partition, mark) in taken.give_up {
            let wait = us(rng.random_range(0..most));
            let given_up = GroupEvent::GivenUp {
                seat,
                life,
                partition,
                mark,
            };
            ends.push((wait, given_up));
        }
        if !taken.new.is_empty() {
            note!(
                self,
                None,
                "member {} has {} at epoch {}",
                of.id,
                names(&taken.new),
                answer.epoch
            );
        }
        self.counts.taken += taken.new.len() as u64;
        let checked = single_ownership::check(&groups.seats, seat, &taken.new, now);
        if let Err((partition, why)) = checked {
            self.violate(Some(partition), why);
        }
        for (wait, event) in ends {
            self.at(wait, Scheduled::Group(event));
        }
        if !taken.new.is_empty() {
            self.fetch(seat);
        }
    }

    fn refused(&mut self, ask: &Ask, beat: &Heartbeat, error: GroupError) {
        let seat = ask.seat;
        match error {
            GroupError::NotCoordinator { coordinator } => self.go_to(seat, coordinator),
            GroupError::CutOff => self.go_to(seat, None),
            GroupError::UnknownMember(_) => {
                let Some(groups) = &mut self.groups else {
                    return;
                };
                let of = &mut groups.seats[seat];
                if beat.member == of.id {
                    note!(self, None, "member {} hears that it is none", of.id);
                    of.join_anew();
                }
            }
            // It tries again.
            _ => {}
        }
    }

    fn go_to(&mut self, seat: usize, other: Option<NodeId>) {
        let nodes = self.plan.nodes;
        if let Some(groups) = &mut self.groups {
            let any = NodeId::new(groups.rng.random_range(1..=nodes));
            groups.seats[seat].to = other.unwrap_or(any);
        }
    }

    fn fetched(
        &mut self,
        ask: &Ask,
        id: AskId,
        floors: &BTreeMap<TopicPartition, u64>,
        offsets: &[(TopicPartition, u64)],
    ) {
        let offsets: BTreeMap<TopicPartition, u64> = offsets.iter().copied().collect();
        let Some(groups) = &mut self.groups else {
            return;
        };
        let group = &groups.ids[ask.group];
        let low = groups.offsets.too_low(group, floors, &offsets);
        let of = &mut groups.seats[ask.seat];
        if of.fetching == Some(id) {
            for partition in floors.keys() {
                let committed = offsets.get(partition).copied().unwrap_or_default();
                of.begin_at(partition, committed);
            }
        }
        if let Some((partition, why)) = low {
            self.violate(Some(partition), why);
        }
    }
}
