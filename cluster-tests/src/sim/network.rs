//! Who reaches whom: rules that keep traffic of one kind, in one direction, from arriving.

use std::time::Duration;

use quorate_types::NodeId;

/// Kinds of traffic, each on connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Between followers and leaders.
    Replication,
    /// Heartbeats, probes, proposals, metadata.
    Control,
}

/// What does not arrive. None stands for any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) from: Option<NodeId>,
    pub(super) to: Option<NodeId>,
    pub(super) traffic: Option<Traffic>,
    pub(super) until: Duration,
}

impl Rule {
    fn blocks(&self, from: NodeId, to: NodeId, traffic: Traffic) -> bool {
        self.from.is_none_or(|node| node == from)
            && self.to.is_none_or(|node| node == to)
            && self.traffic.is_none_or(|kind| kind == traffic)
    }
}

/// The network between the nodes.
#[derive(Default)]
pub(super) struct Network {
    rules: Vec<Rule>,
}

impl Network {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(super) fn heal(&mut self) {
        self.rules.clear();
    }

    /// Until when nothing of that kind arrives; none where it does. A node reaches itself.
    pub(super) fn blocked(
        &self,
        from: NodeId,
        to: NodeId,
        traffic: Traffic,
        now: Duration,
    ) -> Option<Duration> {
        if from == to || self.rules.is_empty() {
            return None;
        }
        let blocking = self.rules.iter().filter(|rule| rule.until > now);
        let blocking = blocking.filter(|rule| rule.blocks(from, to, traffic));
        blocking.map(|rule| rule.until).max()
    }

    /// Whether a connection can be opened.
    pub(super) fn connects(
        &self,
        from: NodeId,
        to: NodeId,
        traffic: Traffic,
        now: Duration,
    ) -> bool {
        self.blocked(from, to, traffic, now).is_none()
            && self.blocked(to, from, traffic, now).is_none()
    }
}
