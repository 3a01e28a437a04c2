//! What goes wrong with members and their coordinators beside what goes wrong with nodes: programs
//! die and sleep, do not reach a node, a coordinator does not hear of the quorum for long, and an
//! operator sets offsets anew and deletes groups.

use quorate_group::Leave;
use quorate_metadata::OffsetToCommit;
use quorate_types::{NodeId, Offset, TopicPartition};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::GroupEvent;
use super::asks::What;
use crate::sim::network::{Rule, Traffic};
use crate::sim::schedule::{Scheduled, us};
use crate::sim::trace::note;
use crate::sim::world::World;

impl World {
    pub(super) fn group_fault(&mut self) {
        let nodes = self.plan.nodes;
        let now = self.now;
        if self.settling {
            return;
        }
        let Some(groups) = &mut self.groups else {
            return;
        };
        let gap = groups.plan.fault_gap.as_micros() as u64;
        let again = us(groups.rng.random_range(gap / 4..=gap));
        self.at(again, Scheduled::Group(GroupEvent::Fault));
        let Some(groups) = &mut self.groups else {
            return;
        };
        let rng = &mut groups.rng;
        let seat = rng.random_range(0..groups.seats.len());
        // Long enough, often, for its session to end meanwhile, or nearly so.
        let session = groups.seats[seat].profile.session_timeout_ms;
        let until = now + us(rng.random_range(10_000..2_000 * u64::from(session)));
        let node = NodeId::new(rng.random_range(1..=nodes));
        let kinds = if groups.plan.deletes { 14 } else { 10 };
        let kind = rng.random_range(0..kinds);
        let of = &mut groups.seats[seat];
        let (id, to) = (of.id.clone(), of.to);
        match kind {
            0 if of.up => {
                note!(self, None, "member {id} is killed");
                self.end_member(seat);
            }
            1..=3 => {
                note!(self, None, "member {id} sleeps");
                of.paused_until = of.paused_until.max(until);
            }
            4 | 5 => {
                note!(self, None, "member {id} does not reach node {node}");
                groups.cut(seat, node, until);
            }
            6 | 7 => self.isolate_coordinator(),
            8 => self.set_offsets(seat, to),
            10.. => self.everybody_leaves(seat),
            _ => {}
        }
    }

    /// A group has no members for a moment, in which it is deleted, or later.
    fn everybody_leaves(&mut self, one: usize) {
        let now = self.now;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let group = groups.seats[one].group;
        let wait = us(groups.rng.random_range(0..30_000));
        let tries = groups.rng.random_range(1..8);
        let away = groups.rng.random_range(20_000..300_000);
        for seat in 0..groups.seats.len() {
            let Some(of) = self.groups.as_ref().map(|groups| &groups.seats[seat]) else {
                return;
            };
            if of.group != group || !of.up {
                continue;
            }
            if of.paused_until <= now {
                self.say_farewell(seat, Leave::ForGood);
            }
            let Some(groups) = &mut self.groups else {
                return;
            };
            groups.seats[seat].stop();
            let back = us(away + groups.rng.random_range(0..50_000));
            self.at(back, Scheduled::Group(GroupEvent::Starts { seat }));
        }
        self.at(wait, Scheduled::Group(GroupEvent::Deletes { group, tries }));
    }

    pub(super) fn group_is_deleted(&mut self, group: usize, tries: u32) {
        let coordinator = |world: &Self| {
            let id = &world.groups.as_ref()?.ids[group];
            world.quorum.latest().coordinator(id).coordinator
        };
        let coordinator = coordinator(self);
        let Some(groups) = self.groups.as_mut().filter(|_| !self.settling) else {
            return;
        };
        let wait = us(groups.rng.random_range(2_000..60_000));
        // Another sets its offsets meanwhile, so that it is not as it was.
        let resets = groups.rng.random_bool(0.5);
        let mut seats = groups.seats.iter();
        let seat = seats.position(|of| of.group == group);
        if let Some((seat, node)) = seat.zip(coordinator) {
            note!(self, None, "an operator deletes group {group}");
            self.ask_at(seat, node, What::Delete);
            if resets {
                self.set_offsets(seat, node);
            }
        }
        if let Some(tries) = tries.checked_sub(1).filter(|left| *left > 0) {
            self.at(wait, Scheduled::Group(GroupEvent::Deletes { group, tries }));
        }
    }

    /// A coordinator hears nothing of the quorum for long, and members reach it still.
    fn isolate_coordinator(&mut self) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        let until = self.now + us(groups.rng.random_range(200_000..900_000));
        let group = groups.ids.choose(&mut groups.rng);
        let image = self.quorum.latest();
        let Some(node) = group.and_then(|id| image.coordinator(id).coordinator) else {
            return;
        };
        note!(self, None, "node {node} coordinates, and is cut off");
        for (from, to) in [(Some(node), None), (None, Some(node))] {
            self.network.add(Rule {
                from,
                to,
                traffic: Some(Traffic::Control),
                until,
            });
        }
        if self.quorum.announced.leader == Some(node) {
            self.leader_is_missed();
        }
    }

    /// An operator sets a group's offset anew; refused where the group has members.
    fn set_offsets(&mut self, seat: usize, to: NodeId) {
        let ids: Vec<TopicPartition> = self.partitions.keys().copied().collect();
        let Some(groups) = &mut self.groups else {
            return;
        };
        let Some(partition) = ids.choose(&mut groups.rng).copied() else {
            return;
        };
        let offset = groups.rng.random_range(0..20);
        let item = OffsetToCommit {
            partition,
            offset: groups.rng.random_bool(0.8).then_some(Offset::new(offset)),
            leader_epoch: None,
            metadata: String::new(),
        };
        self.ask_at(seat, to, What::Commit(None, vec![item]));
    }

    /// Faults are over: some programs never come again, the others run.
    pub(in crate::sim) fn settle_groups(&mut self) {
        let Some(groups) = &mut self.groups else {
            return;
        };
        groups.cuts.clear();
        let mut start = Vec::new();
        for seat in 0..groups.seats.len() {
            let ends = groups.rng.random_bool(0.2);
            let of = &mut groups.seats[seat];
            of.ended = ends;
            of.paused_until = of.paused_until.min(self.now);
            if ends {
                of.stop();
            } else {
                start.push((seat, us(groups.rng.random_range(1_000..50_000))));
            }
        }
        for (seat, wait) in start {
            self.at(wait, Scheduled::Group(GroupEvent::Starts { seat }));
        }
    }
}
