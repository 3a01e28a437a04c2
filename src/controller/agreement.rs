//! Whether all nodes have built the same image from the same log. Rolling hashes are compared as of
//! one entry; where they differ once, they differ for good.
//!
//! The node that differs stops. Where it is most brokers that differ from the active controller, it
//! is the controller: one node must not take all the others down with it. So a first difference is
//! held back until every active broker has been compared, or for a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_types::{NodeId, RaftIndex};

/// Some heartbeats; what an active broker has not said by then it may never say.
const PATIENCE: Duration = Duration::from_secs(3);

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
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    agrees: BTreeMap<NodeId, bool>,
    differs_since: Option<Duration>,
}

impl Agreement {
    /// Takes note of a comparison. `active` are the brokers that take part, the controller's own
    /// too.
    pub(crate) fn compare(
        &mut self,
        node: NodeId,
        agrees: bool,
        active: &[NodeId],
        now: Duration,
    ) -> Verdict {
        self.agrees
            .retain(|known, _| active.contains(known) || *known == node);
        self.agrees.insert(node, agrees);
        if agrees {
            if self.agrees.values().all(|agrees| *agrees) {
                self.differs_since = None;
            }
            return Verdict::None;
        }
        let since = *self.differs_since.get_or_insert(now);
        let all = active.iter().all(|node| self.agrees.contains_key(node));
        if !all && now < since + PATIENCE {
            return Verdict::None;
        }
        let differ = self.agrees.values().filter(|agrees| !**agrees).count();
        if differ * 2 > self.agrees.len() {
            Verdict::ControllerIsWrong
        } else {
            Verdict::BrokerIsWrong
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(9);

    fn nodes() -> [NodeId; 3] {
        [1, 2, 3].map(NodeId::new)
    }

    #[test]
    fn one_broker_of_three_that_differs_stops() {
        let [one, two, three] = nodes();
        let mut agreement = Agreement::default();
        for node in [one, two] {
            assert_eq!(agreement.compare(node, true, &nodes(), AT), Verdict::None);
        }
        let verdict = agreement.compare(three, false, &nodes(), AT);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }

    #[test]
    fn a_controller_that_differs_from_most_stops_and_they_go_on() {
        let [one, two, three] = nodes();
        let mut agreement = Agreement::default();
        assert_eq!(agreement.compare(two, false, &nodes(), AT), Verdict::None);
        assert_eq!(agreement.compare(one, true, &nodes(), AT), Verdict::None);
        let verdict = agreement.compare(three, false, &nodes(), AT);
        assert_eq!(verdict, Verdict::ControllerIsWrong);
    }

    #[test]
    fn a_silent_broker_is_not_waited_for_without_end() {
        let [one, two, three] = nodes();
        let mut agreement = Agreement::default();
        agreement.compare(one, true, &nodes(), AT);
        assert_eq!(agreement.compare(three, false, &nodes(), AT), Verdict::None);
        let later = AT + PATIENCE;
        let verdict = agreement.compare(three, false, &nodes(), later);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
        // Who was restarted whole is as good as anybody.
        assert_eq!(
            agreement.compare(three, true, &nodes(), later),
            Verdict::None
        );
        assert_eq!(
            agreement.compare(two, false, &[one, two], later),
            Verdict::BrokerIsWrong
        );
    }

    #[test]
    fn of_two_the_controller_is_right() {
        let [one, two, _] = nodes();
        let mut agreement = Agreement::default();
        agreement.compare(one, true, &[one, two], AT);
        let verdict = agreement.compare(two, false, &[one, two], AT);
        assert_eq!(verdict, Verdict::BrokerIsWrong);
    }
}
