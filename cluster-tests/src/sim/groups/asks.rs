//! What members ask of nodes, and the way there and back: requests and answers get lost, take long,
//! come twice.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_group::{Answer, GroupError, Heartbeat};
use quorate_metadata::{Committer, OffsetToCommit};
use quorate_types::{NodeId, TopicPartition};
use rand::Rng;

use super::{GroupEvent, Groups};
use crate::sim::schedule::{Scheduled, us};
use crate::sim::world::World;

/// A request of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) struct AskId(u64);

/// What is asked.
#[derive(Debug, Clone)]
pub(in crate::sim) enum What {
    Beat(Heartbeat),
    /// Of a member; none: by somebody outside.
    Commit(Option<Committer>, Vec<OffsetToCommit>),
    /// By an operator.
    Delete,
    /// What is committed, which is at least this much where something was acknowledged.
    Fetch(BTreeMap<TopicPartition, u64>),
}

/// Messages that take their time in different ways.
#[derive(Clone, Copy)]
enum Kind {
    /// It may wait for long in a node that passes it on.
    PassedOn,
    Other,
}

/// A request.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Ask {
    pub(super) seat: usize,
    /// Of that program only.
    pub(super) life: u64,
    pub(super) group: usize,
    pub(super) to: NodeId,
    /// By the member's clock.
    pub(super) sent: Duration,
    pub(super) what: What,
}

/// An answer.
#[derive(Debug, Clone)]
pub(in crate::sim) enum Reply {
    Beat(Result<Answer, GroupError>),
    Commit,
    Fetch(Vec<(TopicPartition, u64)>),
    /// Not by this node; maybe by that one.
    Elsewhere(Option<NodeId>),
}

impl Groups {
    /// How long a message takes; none: it is lost.
    fn way(&mut self, kind: Kind, settling: bool) -> Option<Duration> {
        if !settling && self.rng.random_bool(self.plan.lost) {
            return None;
        }
        let (often, longest) = match kind {
            Kind::PassedOn => (self.plan.slow + 0.2, 500_000),
            Kind::Other => (self.plan.slow, 250_000),
        };
        let slow = !settling && self.rng.random_bool(often);
        let most = if slow { longest } else { 1_500 };
        Some(us(self.rng.random_range(50..most)))
    }

    /// When a message and its repeats arrive.
    fn ways(&mut self, kind: Kind, settling: bool) -> Vec<Duration> {
        let twice = !settling && self.rng.random_bool(self.plan.twice);
        let tries = if twice { 2 } else { 1 };
        (0..tries)
            .filter_map(|_| self.way(kind, settling))
            .collect()
    }

    pub(super) fn is_cut(&self, seat: usize, node: NodeId, now: Duration) -> bool {
        let mut cuts = self.cuts.iter();
        cuts.any(|(of, from, until)| (*of, *from) == (seat, node) && *until > now)
    }

    pub(super) fn cut(&mut self, seat: usize, node: NodeId, until: Duration) {
        self.cuts.push((seat, node, until));
    }
}

impl World {
    /// Whose process an event of groups is for, and of which life.
    pub(in crate::sim) fn addressee_in_groups(
        &self,
        event: &GroupEvent,
    ) -> Option<(NodeId, Option<u64>)> {
        match event {
            GroupEvent::Tick { node, life }
            | GroupEvent::Propose { node, life }
            | GroupEvent::ReadConfirmed { node, life, .. } => Some((*node, Some(*life))),
            GroupEvent::AskArrives { ask } => {
                let groups = self.groups.as_ref()?;
                Some((groups.asks.get(ask)?.to, None))
            }
            _ => None,
        }
    }

    /// Sends a request to the node that its seat takes for the coordinator.
    pub(super) fn ask(&mut self, seat: usize, what: What) -> Option<AskId> {
        let to = self.groups.as_ref()?.seats[seat].to;
        self.ask_at(seat, to, what)
    }

    /// Sends a request to a node.
    pub(super) fn ask_at(&mut self, seat: usize, to: NodeId, what: What) -> Option<AskId> {
        let (now, settling) = (self.now, self.settling);
        let kind = match what {
            What::Commit(..) | What::Delete => Kind::PassedOn,
            What::Beat(_) | What::Fetch(_) => Kind::Other,
        };
        let groups = self.groups.as_mut()?;
        groups.next_ask += 1;
        let id = AskId(groups.next_ask);
        let of = &groups.seats[seat];
        let ask = Ask {
            seat,
            life: of.life,
            group: of.group,
            to,
            sent: of.clock.now(now),
            what,
        };
        let cut = groups.is_cut(seat, to, now);
        groups.asks.insert(id, ask);
        let ways = if cut {
            Vec::new()
        } else {
            groups.ways(kind, settling)
        };
        for wait in ways {
            self.at(wait, Scheduled::Group(GroupEvent::AskArrives { ask: id }));
        }
        Some(id)
    }

    /// Sends an answer to whoever asked.
    pub(super) fn reply(&mut self, ask: AskId, reply: Reply) {
        let (now, settling) = (self.now, self.settling);
        let Some(groups) = self.groups.as_mut() else {
            return;
        };
        let Some((seat, to)) = groups.asks.get(&ask).map(|of| (of.seat, of.to)) else {
            return;
        };
        let ways = if groups.is_cut(seat, to, now) {
            Vec::new()
        } else {
            groups.ways(Kind::Other, settling)
        };
        for wait in ways {
            let reply = Box::new(reply.clone());
            let answered = GroupEvent::Answered { ask, reply };
            self.at(wait, Scheduled::Group(answered));
        }
    }
}
