//! The end of a run: faults are over, or all but one that a cluster of three must bear, and all must
//! be well within a bound (I9).

use std::time::Duration;

use quorate_replication::Status;
use quorate_types::{NodeId, TopicPartition};

use super::invariants::{g02_groups_converge as groups_converge, i09_liveness as liveness};
use super::network::Rule;
use super::plan::{Plan, Residue};
use super::schedule::{Scheduled, ms};
use super::trace::note;
use super::world::{Violation, World};

/// All must be well within so long.
const SETTLE: Duration = ms(20_000);
/// Events between two looks whether all is well.
const LOOK: u64 = 24;

impl World {
    /// Heals what was broken and waits until all is well.
    pub(super) fn settle(&mut self) {
        if self.violation.is_some() {
            return;
        }
        self.settling = true;
        note!(
            self,
            None,
            "faults are over, but for {:?}",
            self.plan.residue
        );
        self.network.heal();
        self.quorum.available_at = self.now;
        for node in self.node_ids() {
            self.node_mut(node).stalled_until = self.now;
            self.release_streams_of(node);
            self.at(ms(1), Scheduled::Start { node });
        }
        self.restart_where_nothing_else_helps();
        self.leave_residue();
        self.last_words();
        self.settle_groups();
        let end = self.now + SETTLE;
        let mut looks = 0;
        while self.violation.is_none() {
            looks += 1;
            if looks % LOOK == 0 {
                if self.unsettled().is_none() {
                    return;
                }
                // A late command may have changed a topic's durability.
                self.restart_where_nothing_else_helps();
            }
            if !self.next(end) {
                break;
            }
        }
        if self.violation.is_none()
            && let Some((partition, why)) = self.unsettled()
        {
            self.violate(partition, why);
        }
    }

    /// What is not well yet.
    fn unsettled(&self) -> Option<Violation> {
        let here = liveness::unsettled(self);
        let here = here.map(|(id, why)| (id, format!("{}: {why}", liveness::NAME)));
        here.or_else(|| {
            let why = groups_converge::unsettled(self)?;
            Some((None, format!("{}: {why}", groups_converge::NAME)))
        })
    }

    /// An operator starts a node again whose disk has failed.
    fn restart_where_nothing_else_helps(&mut self) {
        for node in self.node_ids() {
            if self.node(node).disk_failed && self.needs_a_restart(node) {
                self.kill(node);
                self.at(ms(1), Scheduled::Start { node });
            }
        }
    }

    /// What a page cache holds only is sorted out by a start (R13), and so are a damaged replica and a
    /// directory that could not be set aside (R14); any other replica whose disk failed goes on by
    /// itself.
    fn needs_a_restart(&self, node: NodeId) -> bool {
        let Some(process) = self.process(node) else {
            return true;
        };
        // A disk that hangs from now on is found out by what is written; this one's is idle.
        let hangs = self.plan.residue == Residue::Stalled(node);
        let mut slots = process.slots.values();
        let image = self.quorum.latest();
        let here = |id: &TopicPartition| image.partition(id).is_some_and(|of| of.has_replica(node));
        hangs
            || slots.any(|slot| slot.core.status() == Status::Damaged)
            || process.ledger.hosted().iter().any(|id| !here(id))
            || self.replicas_on(node).iter().any(|id| {
                let registration = image.partition(id);
                registration.is_none_or(|registration| !registration.fsync_established)
            })
    }

    fn leave_residue(&mut self) {
        match self.plan.residue {
            Residue::Nothing => {}
            Residue::Down(node) => {
                self.node_mut(node).lost = true;
                self.kill(node);
            }
            Residue::Stalled(node) => self.node_mut(node).stalled_until = Plan::FOR_GOOD,
            Residue::CutOff(node) => {
                for (from, to) in [(Some(node), None), (None, Some(node))] {
                    self.network.add(Rule {
                        from,
                        to,
                        traffic: None,
                        until: Plan::FOR_GOOD,
                    });
                }
                self.break_streams_between(node, None);
                if self.quorum.announced.leader == Some(node) {
                    self.leader_is_missed();
                }
            }
        }
    }

    /// A node that reaches nobody for good.
    pub(super) fn is_cut_off(&self, node: NodeId) -> bool {
        self.settling && self.plan.residue == Residue::CutOff(node)
    }

    /// A node that nothing keeps from its work.
    pub(super) fn is_well(&self, node: NodeId) -> bool {
        self.plan.residue.node() != Some(node) && self.process(node).is_some()
    }
}
