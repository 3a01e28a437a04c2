//! Stepping replicas: events in, what they decide carried out, and after each step a look of the
//! checkers.

use std::time::Duration;

use quorate_replication::{Context, Event, ProposalId, ProposalResult, Status};
use quorate_types::{NodeId, TopicPartition};
use rand::Rng;

use super::cores::{Act, Core};
use super::node::{Asked, Slot, UnderWay};
use super::schedule::{Scheduled, ms, us};
use super::trace::note;
use super::world::World;

/// How often a process looks at deadlines, as the broker's plane does.
const TICK: Duration = ms(10);

impl Slot {
    pub(super) fn new(core: Box<dyn Core>, path: String) -> Self {
        Self {
            core,
            path,
            flush: None,
            flushes: 0,
        }
    }
}

impl World {
    pub(super) fn slot_mut(&mut self, node: NodeId, id: TopicPartition) -> Option<&mut Slot> {
        self.process_mut(node)?.slots.get_mut(&id)
    }

    /// Ticks every replica of a node; says whether that led to anything.
    pub(super) fn tick(&mut self, node: NodeId) -> bool {
        let acts = self.acts;
        let Some(process) = self.process(node) else {
            return false;
        };
        let hosted: Vec<TopicPartition> = process.slots.keys().copied().collect();
        for id in hosted {
            self.act(node, id, Some(Event::Tick));
            self.act(node, id, None);
        }
        self.try_unmade(node);
        self.tick_within(node, TICK);
        self.acts != acts
    }

    /// The next tick comes within so long.
    pub(super) fn tick_within(&mut self, node: NodeId, wait: Duration) {
        let at = self.now + wait;
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.tick_number += 1;
        process.next_tick = at;
        let (life, number) = (process.life, process.tick_number);
        self.at(wait, Scheduled::Tick { node, life, number });
    }

    /// Feeds one event to a node's replica. It settles at once or, as a broker's does that has more
    /// mail, a little later: then perhaps for several events.
    pub(super) fn step(&mut self, node: NodeId, id: TopicPartition, event: Event) {
        if self.slot_mut(node, id).is_none() {
            return;
        }
        self.act(node, id, Some(event));
        if self.plan.gathering > 0.0 && self.rng.random_bool(self.plan.gathering) {
            let life = self.life(node);
            let wait = us(self.rng.random_range(0..2_000));
            self.at(wait, Scheduled::Settle { node, life, id });
        } else {
            self.act(node, id, None);
        }
    }

    /// Lets a node's replica take an event, or settle; carries out what it decides, and lets the
    /// checkers look.
    pub(super) fn act(&mut self, node: NodeId, id: TopicPartition, event: Option<Event>) {
        let now = self.now;
        let mut out = std::mem::take(&mut self.actions);
        let Some(state) = self.nodes.get_mut(&node) else {
            return;
        };
        let clock = state.clock;
        let Some(process) = &mut state.process else {
            return;
        };
        let Some(slot) = process.slots.get_mut(&id) else {
            return;
        };
        let cx = Context {
            now: clock.now(now),
            wall: clock.wall(now),
            controller_contact: process.contact,
            streams: &self.streams,
        };
        let takes = event.is_some();
        match event {
            Some(event) => slot.core.take(&cx, event, &mut out),
            None => slot.core.settle(&cx, &mut out),
        }
        // A core wants its next tick sooner: a leader that owes its followers a high watermark.
        let sooner = !takes && clock.until(now, slot.core.next_deadline()) + ms(1) < TICK;
        if sooner && process.next_tick > now + ms(1) {
            self.tick_within(node, ms(1));
        }
        self.acts += out.len() as u64;
        for action in out.drain(..) {
            self.carry_out(node, id, action);
        }
        self.actions = out;
        self.look_at(id, node);
    }

    pub(super) fn carry_out(&mut self, node: NodeId, id: TopicPartition, action: Act) {
        match action {
            Act::ToFollower { stream, message } => self.say_to_follower(node, stream, message),
            Act::ToLeader { leader, message } => self.say_to_leader(node, leader, message),
            Act::Propose {
                id: number,
                command,
            } => {
                self.propose(node, Asked::Replica(id, number), None, command);
            }
            Act::Answer {
                id: request,
                result,
            } => self.answered(node, id, request, result),
            Act::Flush(flush) => {
                let stalled = self.node(node).stalled_until.saturating_sub(self.now);
                let wait = stalled + self.delay();
                let life = self.life(node);
                if let Some(slot) = self.slot_mut(node, id) {
                    slot.flushes += 1;
                    slot.flush = Some(UnderWay::ToRun(flush));
                    let flush = slot.flushes;
                    let runs = Scheduled::FlushRuns {
                        node,
                        life,
                        id,
                        flush,
                    };
                    self.at(wait, runs);
                }
            }
            Act::Status => self.note_status(node, id),
        }
    }

    fn note_status(&mut self, node: NodeId, id: TopicPartition) {
        let Some(slot) = self.slot_mut(node, id) else {
            return;
        };
        let status = slot.core.status();
        note!(self, Some(id), "node {node}: {status:?}");
        if status == Status::Damaged {
            self.counts.damaged += 1;
            self.marked.insert((node, id));
            let state = self.node(node);
            if !state.disk_failed && !state.flipped {
                let what = format!("node {node} is damaged on a disk that never failed");
                self.violate(Some(id), what);
            }
        }
    }

    pub(super) fn flush_runs(&mut self, node: NodeId, id: TopicPartition, flush: u64) {
        // A stall that began meanwhile holds it back, too.
        let stalled = self.node(node).stalled_until.saturating_sub(self.now);
        let life = self.life(node);
        if stalled > Duration::ZERO {
            let runs = Scheduled::FlushRuns {
                node,
                life,
                id,
                flush,
            };
            return self.at(stalled, runs);
        }
        let Some(slot) = self.slot_mut(node, id).filter(|s| s.flushes == flush) else {
            return;
        };
        if let Some(UnderWay::ToRun(run)) = slot.flush.take() {
            slot.flush = Some(UnderWay::Ended(run()));
            let wait = self.delay();
            let ends = Scheduled::FlushEnds {
                node,
                life,
                id,
                flush,
            };
            self.at(wait, ends);
        }
    }

    pub(super) fn flush_ends(&mut self, node: NodeId, id: TopicPartition, flush: u64) {
        let Some(slot) = self.slot_mut(node, id).filter(|s| s.flushes == flush) else {
            return;
        };
        if let Some(UnderWay::Ended(done)) = slot.flush.take() {
            self.step(node, id, Event::Flushed(done));
        }
    }

    pub(super) fn proposed(
        &mut self,
        node: NodeId,
        id: TopicPartition,
        number: ProposalId,
        result: ProposalResult,
    ) {
        note!(
            self,
            Some(id),
            "node {node}: proposal {} {result:?}",
            number.0
        );
        self.step(node, id, Event::Proposed { id: number, result });
    }
}
