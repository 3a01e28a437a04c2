//! What goes wrong, and when. Each run has a few kinds of faults only, drawn from its seed, so that
//! a rare combination is not drowned by the others (swarm testing).

use std::time::Duration;

use quorate_metadata::Command;
use quorate_replication::StreamId;
use quorate_types::{NodeId, TopicPartition};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::network::{Rule, Traffic};
use super::schedule::{Scheduled, ms, us};
use super::trace::note;
use super::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    KillAll,
    PowerLoss,
    PowerLossOfAll,
    Pause,
    Shutdown,
    BreakStream,
    ResetSession,
    Apart,
    FenceWrongly,
    ElectPreferred,
    NewTerm,
    QuorumAway,
    StallDisk,
    FailSync,
    Congest,
    FlipBit,
    WipeDisk,
    WallClock,
    DeleteBefore,
}

pub(super) const FAULTS: [Fault; 20] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::PowerLoss,
    Fault::PowerLossOfAll,
    Fault::Pause,
    Fault::Shutdown,
    Fault::BreakStream,
    Fault::ResetSession,
    Fault::Apart,
    Fault::FenceWrongly,
    Fault::ElectPreferred,
    Fault::NewTerm,
    Fault::QuorumAway,
    Fault::StallDisk,
    Fault::FailSync,
    Fault::Congest,
    Fault::FlipBit,
    Fault::WipeDisk,
    Fault::WallClock,
    Fault::DeleteBefore,
];

impl World {
    /// The next thing goes wrong.
    pub(super) fn fault_strikes(&mut self) {
        if let Some(fault) = self.plan.enabled.choose(&mut self.rng).copied() {
            self.counts.faults += 1;
            self.strike(fault);
        }
    }

    fn any_partition(&mut self) -> Option<TopicPartition> {
        let ids: Vec<TopicPartition> = self.partitions.keys().copied().collect();
        ids.choose(&mut self.rng).copied()
    }

    fn any_node(&mut self) -> NodeId {
        // Leaders are where it hurts.
        let id = self.any_partition();
        let registration = id.and_then(|id| self.quorum.latest().partition(&id));
        match registration.and_then(|registration| registration.leader) {
            Some(leader) if self.rng.random_bool(0.4) => leader,
            _ => NodeId::new(self.rng.random_range(1..=self.plan.nodes)),
        }
    }

    /// Partitions that a node has a replica of.
    pub(super) fn replicas_on(&self, node: NodeId) -> Vec<TopicPartition> {
        let partitions = self.quorum.latest().partitions().iter();
        let here = partitions.filter(|(_, registration)| registration.has_replica(node));
        here.map(|(id, _)| *id).collect()
    }

    /// Two replicas at least, and all of them live, registered and in the ISR.
    fn all_in_sync(&self, id: TopicPartition) -> bool {
        let Some(registration) = self.quorum.latest().partition(&id) else {
            return false;
        };
        let members = registration.isr.len();
        let lives = |node: &NodeId| {
            let process = self.process(*node);
            process.is_some_and(|process| process.epoch.is_some()) && !self.node(*node).disk_failed
        };
        members > 1 && members == registration.replicas.len() && registration.isr.iter().all(lives)
    }

    /// Whether another member of the ISR lives wherever a node is in it.
    pub(super) fn others_hold_all(&self, node: NodeId) -> bool {
        self.replicas_on(node).iter().all(|id| {
            let registration = self.quorum.latest().partition(id);
            let isr = registration.map_or(&[][..], |registration| &registration.isr);
            let mut others = isr.iter().filter(|other| **other != node);
            let whole = |other: &NodeId| {
                let process = self.process(*other);
                process.is_some_and(|process| process.epoch.is_some())
                    && !self.marked.contains(&(*other, *id))
            };
            others.any(whole)
        })
    }

    fn any_stream(&mut self) -> Option<StreamId> {
        let streams: Vec<StreamId> = self.streams.open.keys().copied().collect();
        streams.choose(&mut self.rng).copied()
    }

    fn strike(&mut self, fault: Fault) {
        let node = self.any_node();
        let until = self.now + us(self.rng.random_range(3_000..200_000));
        match fault {
            Fault::Kill => {
                self.kill(node);
                self.start_later(node);
            }
            Fault::KillAll => {
                for node in self.node_ids() {
                    self.kill(node);
                    self.start_later(node);
                }
            }
            Fault::PowerLoss => self.power_will_fail(node),
            Fault::PowerLossOfAll => self.power_fails_everywhere(),
            Fault::Pause => self.pause(node, until - self.now),
            Fault::Shutdown => self.begin_shutdown(node),
            Fault::BreakStream => {
                if let Some(stream) = self.any_stream() {
                    self.break_stream(stream);
                }
            }
            Fault::ResetSession => self.reset_session(node),
            Fault::ElectPreferred => {
                let partitions = self.partitions.keys().copied().collect();
                let command = Command::ElectPreferredLeaders { partitions };
                self.propose_from_outside(command, false);
            }
            Fault::Apart => self.part(node, until),
            Fault::FenceWrongly => self.fence_wrongly(node),
            Fault::NewTerm => self.elect(),
            Fault::QuorumAway => {
                note!(self, None, "the quorum is away");
                self.quorum.available_at = until;
            }
            Fault::StallDisk => self.stall(node, until),
            Fault::FailSync => self.fail_sync(node),
            Fault::Congest => {
                if let Some(stream) = self.any_stream() {
                    self.streams.congested.insert(stream);
                    self.at(until - self.now, Scheduled::RoomAgain { stream });
                }
            }
            Fault::FlipBit => self.flip(node),
            Fault::WipeDisk => self.wipe(node),
            Fault::WallClock => {
                let by = self.rng.random_range(-100_000..100_000);
                note!(self, None, "node {node}: its wall clock jumps by {by} ms");
                self.node_mut(node).clock.wall_off += by;
            }
            Fault::DeleteBefore => self.delete_before(node),
        }
    }

    fn stall(&mut self, node: NodeId, until: Duration) {
        note!(self, None, "node {node}: its disk stalls");
        let state = self.node_mut(node);
        state.stalled_until = state.stalled_until.max(until);
    }

    /// A machine loses power, at once or, where it may keep what was not acknowledged from the page
    /// cache, when that hurts most.
    fn power_will_fail(&mut self, node: NodeId) {
        let page_cache = self.partitions.values().any(|watched| watched.page_cache);
        if !page_cache {
            return self.power_fails(node);
        }
        // Only what a slow disk has not taken yet can be lost.
        let soon = ms(self.rng.random_range(2..40));
        self.stall(node, self.now + soon);
        self.hold_streams_of(node);
        // Where nothing new comes, what the node has acked stays where the log ends.
        let quiet = self.now + soon * 2 / 3;
        self.clients.quiet = quiet..quiet + ms(150);
        self.at(soon, Scheduled::PowerFails { node });
    }

    /// Whether what a node has in its page cache only can be lost: two members at once may take with
    /// them what was acknowledged.
    fn cache_may_go(&self, node: NodeId) -> bool {
        self.replicas_on(node).iter().all(|id| {
            let watched = self.partitions.get(id);
            watched.is_none_or(|watched| !watched.page_cache) || self.all_in_sync(*id)
        })
    }

    fn fail_sync(&mut self, node: NodeId) {
        if self.process(node).is_some() && self.cache_may_go(node) {
            note!(self, None, "node {node}: its syncs fail");
            let state = self.node_mut(node);
            state.disk_failed = true;
            state.may_be_marked = true;
            state.disk.fail_syncs(1);
            for id in self.replicas_on(node) {
                if let Some(watched) = self.partitions.get_mut(&id) {
                    watched.damaged = true;
                }
            }
        }
    }

    pub(super) fn power_fails(&mut self, node: NodeId) {
        if self.settling {
            return;
        }
        // A bit that flipped in the last second cannot be told from what the power loss tore (R9).
        if self.cache_may_go(node) && !self.node(node).flipped {
            self.lose_power(node);
            self.start_later(node);
        } else {
            self.release_streams_of(node);
        }
    }

    /// Unless what is acknowledged may be in page caches only.
    pub(super) fn power_fails_everywhere(&mut self) {
        let page_cache = self.partitions.values().any(|watched| watched.page_cache);
        let flipped = self.nodes.values().any(|node| node.flipped);
        if page_cache || flipped || self.settling {
            return;
        }
        for node in self.node_ids() {
            self.lose_power(node);
            self.start_later(node);
        }
    }

    /// Traffic of some kind stops between a node and another, or all others: both ways or one.
    fn part(&mut self, node: NodeId, until: Duration) {
        let mut others = self.node_ids();
        others.retain(|other| *other != node);
        let Some(other) = others.choose(&mut self.rng).copied() else {
            return;
        };
        let other = self.rng.random_bool(0.6).then_some(other);
        let traffic = match self.rng.random_range(0..4) {
            0 => None,
            1 => Some(Traffic::Control),
            _ => Some(Traffic::Replication),
        };
        let (there, back) =
            [(true, true), (true, true), (true, false), (false, true)][self.rng.random_range(0..4)];
        note!(
            self,
            None,
            "nodes {node} and {other:?} are apart for {traffic:?}: there {there}, back {back}"
        );
        if there {
            self.network.add(Rule {
                from: Some(node),
                to: other,
                traffic,
                until,
            });
        }
        if back {
            self.network.add(Rule {
                from: other,
                to: Some(node),
                traffic,
                until,
            });
        }
        // Connections break, or hold what they cannot bring.
        if traffic != Some(Traffic::Control) && self.rng.random_bool(0.6) {
            self.break_streams_between(node, other);
        }
    }

    pub(super) fn break_streams_between(&mut self, node: NodeId, other: Option<NodeId>) {
        let meets = |end: NodeId, far: NodeId| end == node && other.is_none_or(|o| o == far);
        let streams = self.streams_where(|state| {
            meets(state.leader, state.follower) || meets(state.follower, state.leader)
        });
        for stream in streams {
            self.break_stream(stream);
        }
    }
}
