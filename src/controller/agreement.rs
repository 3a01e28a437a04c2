//! Whether all nodes have built the same image from the same log. Rolling hashes are compared as of
//! one entry; where they differ once, they differ for good.
//!
//! The node that differs stops. Where it is most nodes that differ from the active controller, it is
//! the controller: one node must not take all the others down with it. So nobody is told to stop
//! before a majority of those that live stands on one side, or all of them have been compared.

use std::collections::BTreeMap;

use quorate_types::{NodeId, RaftIndex};

/// Two rolling hashes that should be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// As of which entry of the metadata log.
    pub index: RaftIndex,
    /// Of the controller's image.
    pub controller: u64,
    /// Of the broker's.
    pub broker: u64,
}

/// Who has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody, as far as is known now.
    None,
    /// The broker that was compared.
    BrokerIsWrong,
    ControllerIsWrong,
}

/// What one leadership has found so far; no more entries than brokers.
#[derive(Debug)]
pub(crate) struct Agreement {
    me: NodeId,
    agrees: BTreeMap<NodeId, bool>,
}

impl Agreement {
    /// Nothing yet; the controller's node `me` agrees with itself.
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            me,
            agrees: BTreeMap::new(),
        }
    }

    /// Takes note of a comparison. `living` are the brokers that are not gone, also those that are
    /// starting.
    pub(crate) fn compare(&mut self, node: NodeId, agrees: bool, living: &[NodeId]) -> Verdict {
        self.agrees.retain(|known, _| living.contains(known));
        self.agrees.insert(node, agrees);
        self.agrees.insert(self.me, true);
        if agrees {
            return Verdict::None;
        }
        let unknown = living.iter().filter(|node| !self.agrees.contains_key(node));
        let all = self.agrees.len() + unknown.count();
        let differ = self.agrees.values().filter(|agrees| !**agrees).count();
        let agree = self.agrees.len() - differ;
        if differ * 2 > all {
            Verdict::ControllerIsWrong
        } else if agree * 2 > all || agree + differ == all {
            Verdict::BrokerIsWrong
        } else {
            Verdict::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId::new(1);
    const TWO: NodeId = NodeId::new(2);
    const THREE: NodeId = NodeId::new(3);
    const ALL: [NodeId; 3] = [ONE, TWO, THREE];

    #[test]
    fn one_broker_of_three_that_differs_stops() {
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(THREE, false, &ALL), Verdict::None);
        assert_eq!(agreement.compare(TWO, true, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, false, &ALL);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
        // Who was restarted whole is as good as anybody.
        assert_eq!(agreement.compare(THREE, true, &ALL), Verdict::None);
        let verdict = agreement.compare(TWO, false, &ALL);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn a_controller_that_differs_from_most_stops_and_they_go_on() {
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(TWO, false, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, false, &ALL);
        assert_eq!(verdict, Verdict::ControllerIsWrong);
    }

    #[test]
    fn nobody_is_told_to_stop_by_the_first_that_is_heard() {
        // The controller's own broker is gone or has not registered, and so have the others.
        for living in [&[THREE][..], &[TWO, THREE], &[ONE, TWO, THREE]] {
            let mut agreement = Agreement::new(ONE);
            let verdict = agreement.compare(THREE, false, living);
            assert_ne!(verdict, Verdict::ControllerIsWrong, "{living:?}");
        }
        // One that is silent is waited for until it is gone.
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(THREE, false, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, false, &[ONE, THREE]);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn of_two_the_controller_is_right() {
        let mut agreement = Agreement::new(ONE);
        let verdict = agreement.compare(TWO, false, &[ONE, TWO]);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }
}
