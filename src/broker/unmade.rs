//! Replicas that this node should host and cannot: their logs could not be made or opened. They are
//! tried again with a backoff, and the quorum hears of them, so that their leaderships go to others.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_replication::{ProposalId, ProposalResult};
use quorate_types::{LeaderEpoch, TopicPartition};

const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// One of them.
struct Wait {
    again_at: Duration,
    backoff: Duration,
    /// Whether there is a point in another try: else only a restart helps.
    again: bool,
    /// What the last try met.
    why: String,
    told: Told,
    /// The last leader epoch at which it was named leader in vain.
    in_vain: Option<LeaderEpoch>,
}

impl Wait {
    fn put_off(&mut self, now: Duration) {
        self.again_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }
}

enum Told {
    No,
    Asked(ProposalId),
    Yes,
}

/// All of them; bounded by the partitions that the image assigns to this node.
#[derive(Default)]
pub(crate) struct Unmade {
    waits: BTreeMap<TopicPartition, Wait>,
    proposals: u64,
}

impl Unmade {
    /// A try has failed because of `why`; `again` says whether there is a point in another one.
    pub(crate) fn failed(&mut self, id: TopicPartition, now: Duration, again: bool, why: String) {
        let wait = self.waits.entry(id).or_insert(Wait {
            again_at: now,
            backoff: BACKOFF,
            again,
            why: String::new(),
            told: Told::No,
            in_vain: None,
        });
        wait.again = again;
        wait.why = why;
        wait.put_off(now);
    }

    /// What the last try met.
    pub(crate) fn why(&self, id: &TopicPartition) -> &str {
        self.waits.get(id).map_or("", |wait| &wait.why)
    }

    /// The registration tells of it.
    pub(crate) fn told(&mut self, id: &TopicPartition) {
        if let Some(wait) = self.waits.get_mut(id) {
            wait.told = Told::Yes;
        }
    }

    /// Whether there is no point in another try, or it is too early for one.
    pub(crate) fn waits(&self, id: &TopicPartition, now: Duration) -> bool {
        let wait = self.waits.get(id);
        wait.is_some_and(|wait| !wait.again || wait.again_at > now)
    }

    /// Whether only a restart helps.
    pub(crate) fn is_given_up(&self, id: &TopicPartition) -> bool {
        self.waits.get(id).is_some_and(|wait| !wait.again)
    }

    /// It is named leader at that epoch: where only a restart helps, the quorum must hear of it again,
    /// once an epoch.
    pub(crate) fn leads_in_vain(&mut self, id: &TopicPartition, epoch: LeaderEpoch) -> bool {
        let wait = self.waits.get_mut(id).filter(|wait| !wait.again);
        wait.is_some_and(|wait| {
            let new = wait.in_vain < Some(epoch);
            if new {
                (wait.in_vain, wait.told) = (Some(epoch), Told::No);
            }
            new
        })
    }

    /// Those that are due: to be tried again, or told of.
    pub(crate) fn due(&self, now: Duration) -> Vec<TopicPartition> {
        let due = self.waits.iter().filter(|(_, wait)| {
            wait.again_at <= now && (wait.again || matches!(wait.told, Told::No))
        });
        due.map(|(id, _)| *id).collect()
    }

    /// Puts off what is due and was not tried.
    pub(crate) fn put_off(&mut self, id: &TopicPartition, now: Duration) {
        let wait = self.waits.get_mut(id);
        if let Some(wait) = wait.filter(|wait| wait.again_at <= now) {
            wait.put_off(now);
        }
    }

    /// Whether the quorum must hear of it.
    pub(crate) fn untold(&self, id: &TopicPartition) -> bool {
        let wait = self.waits.get(id);
        wait.is_some_and(|wait| matches!(wait.told, Told::No))
    }

    /// The quorum is told now: the proposal's number, unlike any of a replica's own.
    pub(crate) fn ask(&mut self, id: &TopicPartition) -> ProposalId {
        let number = ProposalId(u64::MAX - self.proposals);
        self.proposals += 1;
        if let Some(wait) = self.waits.get_mut(id) {
            wait.told = Told::Asked(number);
        }
        number
    }

    /// Takes a proposal's outcome, where it is one of these.
    pub(crate) fn proposed(
        &mut self,
        id: &TopicPartition,
        proposal: ProposalId,
        result: &ProposalResult,
    ) {
        if let Some(wait) = self.waits.get_mut(id)
            && matches!(wait.told, Told::Asked(asked) if asked == proposal)
        {
            wait.told = match result {
                ProposalResult::Unknown => Told::No,
                ProposalResult::Applied | ProposalResult::Refused(_) => Told::Yes,
            };
        }
    }

    /// It is hosted now.
    pub(crate) fn made(&mut self, id: &TopicPartition) {
        self.waits.remove(id);
    }

    /// Forgets those that are no business of this node's any more.
    pub(crate) fn retain(&mut self, mut ours: impl FnMut(&TopicPartition) -> bool) {
        self.waits.retain(|id, _| ours(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{PartitionId, TopicId};

    const ID: TopicPartition =
        TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0));

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn tries_become_rarer_and_end_where_only_a_restart_helps() {
        let mut unmade = Unmade::default();
        assert!(!unmade.waits(&ID, seconds(0)));
        let mut now = seconds(0);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            unmade.failed(ID, now, true, "why".into());
            assert!(
                unmade
                    .due(now + seconds(wait) - Duration::from_nanos(1))
                    .is_empty()
            );
            now += seconds(wait);
            assert_eq!(unmade.due(now), [ID]);
            assert!(!unmade.waits(&ID, now));
        }
        unmade.failed(ID, now, false, "why".into());
        assert!(unmade.waits(&ID, seconds(9_999)));
        assert_eq!(unmade.due(seconds(9_999)), [ID], "to be told of");
        unmade.told(&ID);
        assert!(unmade.due(seconds(9_999)).is_empty());
        unmade.made(&ID);
        assert!(!unmade.waits(&ID, now));
    }

    #[test]
    fn the_quorum_is_told_until_it_has_decided() {
        let mut unmade = Unmade::default();
        unmade.failed(ID, seconds(0), true, "why".into());
        assert!(unmade.untold(&ID));
        assert_eq!(unmade.why(&ID), "why");
        let first = unmade.ask(&ID);
        assert!(!unmade.untold(&ID));
        unmade.proposed(&ID, first, &ProposalResult::Unknown);
        assert!(unmade.untold(&ID));
        let second = unmade.ask(&ID);
        unmade.proposed(&ID, first, &ProposalResult::Unknown);
        assert!(!unmade.untold(&ID));
        unmade.proposed(&ID, second, &ProposalResult::Applied);
        unmade.failed(ID, seconds(1), true, "why".into());
        assert!(!unmade.untold(&ID));
    }

    #[test]
    fn a_leader_that_only_a_restart_helps_is_told_of_once_an_epoch() {
        let mut unmade = Unmade::default();
        unmade.failed(ID, seconds(0), true, String::new());
        let epoch = LeaderEpoch::new(3);
        assert!(!unmade.leads_in_vain(&ID, epoch), "it is tried again");
        unmade.failed(ID, seconds(0), false, String::new());
        unmade.told(&ID);
        assert!(!unmade.untold(&ID));
        assert!(unmade.leads_in_vain(&ID, epoch));
        assert!(unmade.untold(&ID));
        unmade.told(&ID);
        assert!(!unmade.leads_in_vain(&ID, epoch));
        assert!(unmade.leads_in_vain(&ID, epoch.next()));
    }
}
