//! What goes wrong, and when. Each run has a few kinds of faults only, drawn from its seed, so that
//! a rare combination is not drowned by the others (swarm testing).

use quorate_metadata::{AlterTopic, Command};
use quorate_replication::{Event, Faults, StreamId};
use quorate_types::{Durability, NodeId};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::world::{PARTITION, Scheduled, World, ms};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    KillAll,
    PowerLoss,
    PowerLossOfAll,
    Pause,
    Shutdown,
    BreakStream,
    Apart,
    CutOffController,
    FenceWrongly,
    ElectPreferred,
    NewTerm,
    QuorumAway,
    StallDisk,
    FailSync,
    Congest,
}

pub(super) const FAULTS: [Fault; 16] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::PowerLoss,
    Fault::PowerLossOfAll,
    Fault::Pause,
    Fault::Shutdown,
    Fault::BreakStream,
    Fault::Apart,
    Fault::CutOffController,
    Fault::FenceWrongly,
    Fault::ElectPreferred,
    Fault::NewTerm,
    Fault::QuorumAway,
    Fault::StallDisk,
    Fault::FailSync,
    Fault::Congest,
];

impl<F: Faults> World<F> {
    /// The next thing goes wrong.
    pub(super) fn fault_turn(&mut self) {
        if self.settling {
            return;
        }
        if let Some(fault) = self.enabled.choose(&mut self.rng).copied() {
            self.strike(fault);
        }
        let longest = self.fault_gap;
        let wait = ms(self.rng.random_range(5..longest));
        self.at(wait, Scheduled::FaultTurn);
    }

    fn any_node(&mut self) -> NodeId {
        // Leaders are where it hurts.
        let leader = self.quorum.registration().and_then(|r| r.leader);
        match leader {
            Some(leader) if self.rng.random_bool(0.4) => leader,
            _ => {
                let nodes = self.node_ids();
                nodes[self.rng.random_range(0..nodes.len())]
            }
        }
    }

    /// Every replica lives and is in the ISR.
    fn all_in_sync(&self) -> bool {
        let members = self.quorum.registration().map_or(0, |r| r.isr.len());
        members == 3
            && self
                .node_ids()
                .iter()
                .all(|node| self.process(*node).is_some())
    }

    fn any_stream(&mut self) -> Option<StreamId> {
        let streams: Vec<StreamId> = self.network.streams.keys().copied().collect();
        streams.choose(&mut self.rng).copied()
    }

    fn start_later(&mut self, node: NodeId) {
        let wait = ms(self.rng.random_range(10..1_500));
        self.at(wait, Scheduled::Start { node });
    }

    fn strike(&mut self, fault: Fault) {
        let node = self.any_node();
        let until = self.now + ms(self.rng.random_range(50..2_500));
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
            Fault::PowerLoss => {
                if self.page_cache {
                    // Only what a slow disk has not taken yet can be lost.
                    let soon = ms(self.rng.random_range(20..300));
                    self.node_mut(node).stalled_until = self.now + soon;
                    self.hold_streams_of(node);
                    // Where nothing new comes, what the node has acked stays where the log ends.
                    let quiet = self.now + soon * 2 / 3;
                    self.clients.quiet = quiet..quiet + ms(2_500);
                    self.at(soon, Scheduled::PowerFails { node });
                } else {
                    self.power_fails(node);
                }
            }
            Fault::PowerLossOfAll => self.power_fails_everywhere(),
            Fault::Pause => self.pause(node, until - self.now),
            Fault::Shutdown => self.begin_shutdown(node),
            Fault::BreakStream => {
                if let Some(stream) = self.any_stream() {
                    self.break_stream(stream);
                }
            }
            Fault::ElectPreferred => {
                let partitions = vec![PARTITION];
                self.propose_as_controller(Command::ElectPreferredLeaders { partitions });
            }
            Fault::Apart => self.part(node, until),
            Fault::CutOffController => {
                self.note(&format!("node {node} does not reach the controller"));
                self.controller.cut_off.insert(node, until);
            }
            Fault::FenceWrongly => self.fence_wrongly(node),
            Fault::NewTerm => {
                self.quorum.term += 1;
                let away = ms(self.rng.random_range(0..300));
                self.quorum.available_at = self.now + away;
            }
            Fault::QuorumAway => self.quorum.available_at = until,
            Fault::StallDisk => {
                self.note(&format!("node {node}: its disk stalls"));
                self.node_mut(node).stalled_until = until;
            }
            Fault::FailSync => {
                self.note(&format!("node {node}: its syncs fail"));
                let state = self.node_mut(node);
                if state.process.is_some() {
                    state.disk_failed = true;
                    state.disk.fail_syncs(1);
                }
            }
            Fault::Congest => {
                if let Some(stream) = self.any_stream() {
                    self.congested.insert(stream);
                    self.at(until - self.now, Scheduled::RoomAgain { stream });
                }
            }
        }
    }

    pub(super) fn durability_later(&mut self) {
        let wait = ms(self.rng.random_range(300..4_000));
        self.at(wait, Scheduled::DurabilityTurn);
    }

    /// The topic's durability changes, to and fro (R17). Once the registration says that what is
    /// acknowledged is on the disks, power may fail everywhere at once.
    pub(super) fn durability_turn(&mut self) {
        if self.settling {
            return;
        }
        if !self.enabled.contains(&Fault::PowerLossOfAll) {
            self.enabled.push(Fault::PowerLossOfAll);
        }
        let topic = self.quorum.latest().topic(PARTITION.topic_id);
        let now = topic.map(|topic| topic.settings.durability);
        let next = match now {
            Some(Durability::PageCache) => "fsync",
            _ => "page-cache",
        };
        let set = [("durability".to_owned(), next.to_owned())].into();
        self.propose_as_controller(Command::AlterTopic(AlterTopic {
            topic_id: PARTITION.topic_id,
            set,
            unset: Vec::new(),
        }));
        if next == "fsync" && self.rng.random_bool(0.7) {
            // A disk that lags while the registration changes, and then no power anywhere: what is
            // called established must be on the disks.
            let (node, soon) = (self.any_node(), ms(self.rng.random_range(20..400)));
            self.note(&format!("node {node}: its disk stalls"));
            self.node_mut(node).stalled_until = self.now + soon * 2;
            self.at(soon, Scheduled::PowerFailsEverywhere);
        }
        self.durability_later();
    }

    /// Unless what is acknowledged may be in page caches only.
    pub(super) fn power_fails_everywhere(&mut self) {
        if self.page_cache || self.settling {
            return;
        }
        for node in self.node_ids() {
            self.lose_power(node);
            self.start_later(node);
        }
    }

    pub(super) fn power_fails(&mut self, node: NodeId) {
        // From the page cache two members at once may take with them what was acknowledged.
        if !self.page_cache || self.all_in_sync() {
            self.lose_power(node);
            self.start_later(node);
        } else {
            self.release_streams_of(node);
        }
    }

    fn pause(&mut self, node: NodeId, time: std::time::Duration) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if !process.paused {
            process.paused = true;
            let life = process.life;
            self.note(&format!("node {node} is paused"));
            self.at(time, Scheduled::Resume { node, life });
        }
    }

    /// The process goes on: what came meanwhile comes now, in its order.
    pub(super) fn resume(&mut self, node: NodeId) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.paused = false;
        let stash = std::mem::take(&mut process.stash);
        self.note(&format!("node {node} goes on"));
        for event in stash {
            self.handle(event);
        }
    }

    fn part(&mut self, node: NodeId, until: std::time::Duration) {
        let others: Vec<NodeId> = self.node_ids().into_iter().filter(|n| *n != node).collect();
        let Some(other) = others.choose(&mut self.rng).copied() else {
            return;
        };
        self.note(&format!("nodes {node} and {other} are apart"));
        let pair = (node.min(other), node.max(other));
        self.network.apart.insert(pair, until);
        let between = self.network.streams.iter();
        let streams: Vec<StreamId> = between
            .filter(|(_, s)| (s.follower.min(s.leader), s.follower.max(s.leader)) == pair)
            .map(|(stream, _)| *stream)
            .collect();
        for stream in streams {
            self.break_stream(stream);
        }
    }

    pub(super) fn room_again(&mut self, stream: StreamId) {
        self.congested.remove(&stream);
        if let Some(state) = self.network.streams.get(&stream) {
            let leader = state.leader;
            self.step(leader, Event::RoomAgain { stream });
        }
    }
}
