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

/// What one leadership has found so far; no more entries than brokers that were ever registered.
#[derive(Debug)]
pub(crate) struct Agreement {
    me: NodeId,
    found: BTreeMap<NodeId, Found>,
}

/// What the last comparison with a node says.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// Equal as of that entry; what came later is not known.
    Same(RaftIndex),
    /// Different as of that entry, the first where it was seen, and so for good.
    Differs(RaftIndex),
}

impl Agreement {
    /// Nothing yet; the controller's node `me` agrees with itself.
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            me,
            found: BTreeMap::new(),
        }
    }

    /// Takes note of a comparison as of `index`. `living` are the brokers that are not gone, also
    /// those that are starting.
    pub(crate) fn compare(
        &mut self,
        node: NodeId,
        index: RaftIndex,
        agrees: bool,
        living: &[NodeId],
    ) -> Verdict {
        // Who differed and is gone, told to stop or not, has not become right by that.
        self.found
            .retain(|known, found| living.contains(known) || matches!(found, Found::Differs(_)));
        let found = match self.found.get(&node) {
            _ if agrees => Found::Same(index),
            Some(Found::Differs(first)) => Found::Differs(index.min(*first)),
            _ => Found::Differs(index),
        };
        self.found.insert(node, found);
        self.found.remove(&self.me);
        if agrees {
            return Verdict::None;
        }
        let differing = self.found.values().filter_map(|found| match found {
            Found::Differs(first) => Some(*first),
            Found::Same(_) => None,
        });
        let (differ, first) = (differing.clone().count(), differing.min().unwrap_or(index));
        // Who was the same before the images parted may stand on either side now.
        let same = |found: &&Found| matches!(found, Found::Same(at) if *at >= first);
        let agree = 1 + self.found.values().filter(same).count();
        let unheard = |node: &&NodeId| **node != self.me && !self.found.contains_key(*node);
        let all = 1 + self.found.len() + living.iter().filter(unheard).count();
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

    fn at(index: u64) -> RaftIndex {
        RaftIndex::new(index)
    }

    #[test]
    fn what_was_equal_before_the_images_parted_counts_for_neither_side() {
        let mut agreement = Agreement::new(ONE);
        for index in [990, 995, 998] {
            for node in ALL {
                let verdict = agreement.compare(node, at(index), true, &ALL);
                assert_eq!(verdict, Verdict::None);
            }
        }
        let verdict = agreement.compare(TWO, at(1_000), false, &ALL);
        assert_eq!(verdict, Verdict::None);
        // Gone or not, the first one stands on the other side.
        for living in [&ALL[..], &[ONE, THREE]] {
            let verdict = agreement.compare(THREE, at(1_001), false, living);
            assert_eq!(verdict, Verdict::ControllerIsWrong, "{living:?}");
        }
        // One that has seen what the first differs by, and is the controller's equal.
        let mut agreement = Agreement::new(ONE);
        agreement.compare(THREE, at(998), true, &ALL);
        agreement.compare(TWO, at(1_000), false, &ALL);
        agreement.compare(THREE, at(1_000), true, &ALL);
        let verdict = agreement.compare(TWO, at(1_003), false, &ALL);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn one_broker_of_three_that_differs_stops() {
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(THREE, at(9), false, &ALL), Verdict::None);
        assert_eq!(agreement.compare(TWO, at(9), true, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, at(9), false, &ALL);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
        // Who was restarted whole is as good as anybody.
        assert_eq!(agreement.compare(THREE, at(9), true, &ALL), Verdict::None);
        let verdict = agreement.compare(TWO, at(9), false, &ALL);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn a_controller_that_differs_from_most_stops_and_they_go_on() {
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(TWO, at(9), false, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, at(9), false, &ALL);
        assert_eq!(verdict, Verdict::ControllerIsWrong);
    }

    #[test]
    fn nobody_is_told_to_stop_by_the_first_that_is_heard() {
        // The controller's own broker is gone or has not registered, and so have the others.
        for living in [&[THREE][..], &[TWO, THREE], &[ONE, TWO, THREE]] {
            let mut agreement = Agreement::new(ONE);
            let verdict = agreement.compare(THREE, at(9), false, living);
            assert_ne!(verdict, Verdict::ControllerIsWrong, "{living:?}");
        }
        // One that is silent is waited for until it is gone.
        let mut agreement = Agreement::new(ONE);
        assert_eq!(agreement.compare(THREE, at(9), false, &ALL), Verdict::None);
        let verdict = agreement.compare(THREE, at(9), false, &[ONE, THREE]);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn of_two_the_controller_is_right() {
        let mut agreement = Agreement::new(ONE);
        let verdict = agreement.compare(TWO, at(9), false, &[ONE, TWO]);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }
}
