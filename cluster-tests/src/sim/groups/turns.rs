//! What members do: they start, send heartbeats, read, commit, leave.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_group::{Heartbeat, Leave};
use quorate_metadata::{Committer, OffsetToCommit};
use quorate_types::{CommitSeq, NodeId, Offset, TopicName, TopicPartition};
use rand::Rng;

use super::asks::What;
use super::{GroupEvent, Groups};
use crate::sim::schedule::{Scheduled, ms, us};
use crate::sim::trace::note;
use crate::sim::world::World;

/// A member asks another node after so many requests without an answer.
const PATIENCE: u32 = 3;

impl World {
    /// Members start, one after the other.
    pub(in crate::sim) fn groups_begin(&mut self) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        let mut begin = Vec::new();
        for seat in 0..groups.seats.len() {
            begin.push((seat, us(groups.rng.random_range(0..60_000))));
        }
        let first_fault = groups.plan.fault_gap;
        for (seat, wait) in begin {
            self.at(wait, Scheduled::Group(GroupEvent::Starts { seat }));
        }
        self.at(first_fault, Scheduled::Group(GroupEvent::Fault));
    }

    /// Topics that a program reads, mostly all.
    fn draw_topics(&mut self) -> BTreeSet<TopicName> {
        let names: Vec<TopicName> = self.topics.iter().map(|of| of.name.clone()).collect();
        let Some(groups) = &mut self.groups else {
            return BTreeSet::new();
        };
        let all = groups.rng.random_bool(0.7);
        let some: BTreeSet<TopicName> = names
            .iter()
            .filter(|_| all || groups.rng.random_bool(0.6))
            .cloned()
            .collect();
        if some.is_empty() {
            // One that is not there: the program waits.
            [TopicName::new("missing").expect("a good name")].into()
        } else {
            some
        }
    }

    pub(in crate::sim) fn member_starts(&mut self, seat: usize) {
        let topics = self.draw_topics();
        let nodes = self.plan.nodes;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let to = NodeId::new(groups.rng.random_range(1..=nodes));
        let of = &mut groups.seats[seat];
        if of.up || of.ended {
            return;
        }
        of.start(topics);
        of.to = to;
        let life = of.life;
        note!(self, None, "member {} starts", of.id);
        self.member_turn(seat, life);
    }

    /// A program that sleeps does it later; gives whether it is to be done now.
    pub(super) fn is_awake(
        &mut self,
        seat: usize,
        life: u64,
        event: impl FnOnce() -> GroupEvent,
    ) -> bool {
        let now = self.now;
        let Some(groups) = &mut self.groups else {
            return false;
        };
        let of = &mut groups.seats[seat];
        if !of.up || of.life != life {
            return false;
        }
        if of.paused_until > now {
            let wait = of.paused_until - now;
            self.at(wait, Scheduled::Group(event()));
            return false;
        }
        of.look_at_clock(now);
        true
    }

    pub(in crate::sim) fn member_turn(&mut self, seat: usize, life: u64) {
        if !self.is_awake(seat, life, || GroupEvent::Turn { seat, life }) {
            return;
        }
        let settling = self.settling;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let Groups {
            rng, seats, plan, ..
        } = &mut **groups;
        let of = &mut seats[seat];
        for holding in of.owned.values_mut() {
            if let Some(position) = &mut holding.position {
                *position += rng.random_range(0..3);
            }
        }
        let pause = plan.timing.heartbeat_interval.as_micros() as u64;
        let wait = us(rng.random_range(pause / 2..=pause));
        let leaves = !settling && rng.random_bool(plan.leaves);
        let for_now = of.is_static() && rng.random_bool(0.7);
        let other_topics = !settling && rng.random_bool(plan.changes_topics);
        let commits = rng.random_bool(0.35);
        if commits {
            self.commit(seat);
        }
        self.fetch(seat);
        if leaves {
            let leave = if for_now {
                Leave::ForNow
            } else {
                Leave::ForGood
            };
            return self.leave(seat, leave);
        }
        if other_topics {
            let topics = self.draw_topics();
            if let Some(groups) = &mut self.groups {
                groups.seats[seat].profile.topics = topics;
            }
        }
        self.send_beat(seat, Leave::No);
        self.at(wait, Scheduled::Group(GroupEvent::Turn { seat, life }));
    }

    fn send_beat(&mut self, seat: usize, leave: Leave) {
        let nodes = self.plan.nodes;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let Groups {
            rng,
            seats,
            plan,
            ids,
            ..
        } = &mut **groups;
        let of = &mut seats[seat];
        of.unanswered += 1;
        if of.unanswered > PATIENCE {
            of.unanswered = 0;
            of.to = NodeId::new(rng.random_range(1..=nodes));
        }
        let wait = if of.waits {
            plan.timing.heartbeat_interval
        } else {
            Duration::ZERO
        };
        let beat = Heartbeat {
            group: ids[of.group].clone(),
            member: of.id.clone(),
            epoch: of.epoch,
            owned: of.owned.keys().copied().collect(),
            // Always: a coordinator may be gone before a change that it answered is decided, and an
            // older heartbeat that comes late says what was so before.
            profile: Some(of.profile.clone()),
            leave,
            wait,
        };
        self.ask(seat, What::Beat(beat));
    }

    /// A program says that it goes, and ends; another comes in its place.
    fn leave(&mut self, seat: usize, leave: Leave) {
        self.say_farewell(seat, leave);
        self.end_member(seat);
    }

    pub(super) fn say_farewell(&mut self, seat: usize, leave: Leave) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        let of = &mut groups.seats[seat];
        note!(self, None, "member {} leaves: {leave:?}", of.id);
        // It reads no more before it says so.
        of.owned.clear();
        self.send_beat(seat, leave);
    }

    /// A program ends; another comes in its place.
    pub(super) fn end_member(&mut self, seat: usize) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        groups.seats[seat].stop();
        let wait = ms(groups.rng.random_range(1..250));
        self.at(wait, Scheduled::Group(GroupEvent::Starts { seat }));
    }

    /// Commits how far it has read.
    fn commit(&mut self, seat: usize) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        let of = &mut groups.seats[seat];
        let item = |(partition, position): (&TopicPartition, u64)| OffsetToCommit {
            partition: *partition,
            offset: Some(Offset::new(position)),
            leader_epoch: None,
            metadata: String::new(),
        };
        let known = of.owned.iter();
        let known = known.filter_map(|(partition, holding)| Some((partition, holding.position?)));
        let items: Vec<OffsetToCommit> = known.map(item).collect();
        if items.is_empty() {
            return;
        }
        of.seq += 1;
        let by = Committer {
            member: of.id.clone(),
            epoch: of.epoch,
            seq: Some(CommitSeq::new(of.seq)),
        };
        self.ask(seat, What::Commit(Some(by), items));
    }

    /// Asks where to begin with what it has got.
    pub(super) fn fetch(&mut self, seat: usize) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        let of = &groups.seats[seat];
        let new = of.owned.iter().filter(|(_, at)| at.position.is_none());
        let floors: BTreeMap<TopicPartition, u64> = new
            .map(|(id, _)| (*id, groups.offsets.acknowledged(&groups.ids[of.group], id)))
            .collect();
        if floors.is_empty() {
            return;
        }
        let ask = self.ask(seat, What::Fetch(floors));
        if let Some(groups) = &mut self.groups {
            groups.seats[seat].fetching = ask;
        }
    }

    pub(in crate::sim) fn partition_given_up(
        &mut self,
        seat: usize,
        life: u64,
        partition: TopicPartition,
        mark: u64,
    ) {
        let again = || GroupEvent::GivenUp {
            seat,
            life,
            partition,
            mark,
        };
        if !self.is_awake(seat, life, again) {
            return;
        }
        let wanted = |groups: &Groups| {
            let at = groups.seats[seat].owned.get(&partition);
            at.is_some_and(|at| at.giving_up == Some(mark))
        };
        if self.groups.as_deref().is_some_and(wanted) {
            self.commit(seat);
            if let Some(groups) = &mut self.groups {
                groups.seats[seat].give_up(&partition, mark);
            }
            self.send_beat(seat, Leave::No);
        }
    }
}
