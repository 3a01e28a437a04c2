//! What a member has, and in which state: to be begun, being read, or to be given up; and what of it
//! may be committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{ErrorCode, Offset, TopicPartition};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Where it begins is not known yet, and the client not told of it.
    Beginning,
    /// The client is told.
    Reading,
    /// The client is told to stop, and not done with it yet.
    Revoked,
}

/// One time that a partition came to the member: what belongs to an earlier one does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

#[derive(Debug)]
struct Held {
    turn: Turn,
    state: State,
    /// Where it began in this turn, and the end of what was sent of it.
    range: (Offset, Offset),
}

/// What follows from an answer of the coordinator.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// To be begun.
    pub(super) begin: Vec<(TopicPartition, Turn)>,
    /// To be told to the client: it stops, and gives them up.
    pub(super) revoke: Vec<TopicPartition>,
    /// Given up already, as the client has never heard of them.
    pub(super) given_up: bool,
}

/// The partitions of a member.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    held: BTreeMap<TopicPartition, Held>,
    /// As the coordinator said last.
    assigned: BTreeSet<TopicPartition>,
    turns: u64,
}

impl Holdings {
    /// Takes what the coordinator says that the member may read.
    pub(super) fn follow(&mut self, assigned: BTreeSet<TopicPartition>) -> Change {
        let mut change = Change::default();
        self.held.retain(|at, Held { state, .. }| {
            if assigned.contains(at) {
                return true;
            }
            match state {
                State::Beginning => {
                    change.given_up = true;
                    return false;
                }
                State::Reading => {
                    *state = State::Revoked;
                    change.revoke.push(*at);
                }
                State::Revoked => {}
            }
            true
        });
        self.assigned = assigned;
        change.begin = self.begin();
        change
    }

    /// What is assigned and not here yet.
    fn begin(&mut self) -> Vec<(TopicPartition, Turn)> {
        let mut begun = Vec::new();
        for at in &self.assigned {
            if !self.held.contains_key(at) {
                self.turns += 1;
                let turn = Turn(self.turns);
                let held = Held {
                    turn,
                    state: State::Beginning,
                    range: (Offset::ZERO, Offset::ZERO),
                };
                self.held.insert(*at, held);
                begun.push((*at, turn));
            }
        }
        begun
    }

    /// Whether a partition whose place is found is to be read.
    pub(super) fn begun(&mut self, at: &TopicPartition, turn: Turn, offset: Offset) -> bool {
        match self.held.get_mut(at) {
            Some(held) if held.turn == turn && held.state == State::Beginning => {
                held.state = State::Reading;
                held.range = (offset, offset);
                true
            }
            _ => false,
        }
    }

    /// It is read on elsewhere, and what was sent of it counts no more.
    pub(super) fn moved(&mut self, at: &TopicPartition, offset: Offset) {
        if let Some(held) = self.held.get_mut(at) {
            held.range = (offset, offset);
        }
    }

    /// Records were sent, up to there.
    pub(super) fn sent(&mut self, at: &TopicPartition, next: Offset) {
        if let Some(held) = self.held.get_mut(at) {
            held.range.1 = held.range.1.max(next);
        }
    }

    /// Whether the client may commit that: it says so of what it was sent in this turn, not of what it
    /// had of the partition, or of another topic of that name, at an earlier time.
    ///
    /// # Errors
    /// `PARTITION_NOT_OWNED`, `OFFSET_OUT_OF_RANGE`.
    pub(super) fn may_commit(&self, at: &TopicPartition, offset: Offset) -> Result<(), ErrorCode> {
        let held = self.held.get(at);
        let held = held.filter(|held| held.state != State::Beginning);
        let (from, to) = held.ok_or(ErrorCode::PartitionNotOwned)?.range;
        if offset < from || offset > to {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(())
    }

    /// Whether what was read is for the client.
    pub(super) fn reads(&self, at: &TopicPartition, turn: Turn) -> bool {
        let held = self.held.get(at);
        held.is_some_and(|held| held.turn == turn && held.state == State::Reading)
    }

    /// Whether the partition is still the one that came to the member then, and not to be given up.
    pub(super) fn wants(&self, at: &TopicPartition, turn: Turn) -> bool {
        let held = self.held.get(at);
        held.is_some_and(|held| held.turn == turn && held.state != State::Revoked)
    }

    /// Whether the client is to give that up.
    pub(super) fn is_revoked(&self, at: &TopicPartition) -> bool {
        let held = self.held.get(at);
        held.is_some_and(|held| held.state == State::Revoked)
    }

    /// Partitions that the client is to give up.
    pub(super) fn revoked(&self) -> impl Iterator<Item = TopicPartition> {
        let revoked = self
            .held
            .iter()
            .filter(|(_, held)| held.state == State::Revoked);
        revoked.map(|(at, _)| *at)
    }

    /// The client is done with a revoked partition; says whether it was one.
    pub(super) fn give_up(&mut self, at: &TopicPartition) -> bool {
        let revoked = self.is_revoked(at);
        if revoked {
            self.held.remove(at);
        }
        revoked
    }

    /// What has come back to the member while it was giving it up.
    pub(super) fn come_back(&mut self) -> Vec<(TopicPartition, Turn)> {
        self.begin()
    }

    /// All that the member has, as it says to the coordinator.
    pub(super) fn owned(&self) -> impl Iterator<Item = TopicPartition> {
        self.held.keys().copied()
    }

    /// A partition is gone; says whether the client knew it.
    pub(super) fn lose(&mut self, at: &TopicPartition) -> bool {
        let lost = self.held.remove(at);
        lost.is_some_and(|held| held.state != State::Beginning)
    }

    /// All is gone; gives what the client knew.
    pub(super) fn lose_all(&mut self) -> Vec<TopicPartition> {
        self.assigned.clear();
        let held = std::mem::take(&mut self.held).into_iter();
        let known = held.filter(|(_, held)| held.state != State::Beginning);
        known.map(|(at, _)| at).collect()
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::{PartitionId, TopicId};

    use super::*;

    fn at(number: u32) -> TopicPartition {
        TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(number))
    }

    fn assigned(numbers: &[u32]) -> BTreeSet<TopicPartition> {
        numbers.iter().map(|number| at(*number)).collect()
    }

    fn reading(numbers: &[u32]) -> Holdings {
        let mut holdings = Holdings::default();
        let change = holdings.follow(assigned(numbers));
        for (at, turn) in change.begin {
            assert!(holdings.wants(&at, turn) && !holdings.reads(&at, turn));
            assert!(holdings.begun(&at, turn, Offset::ZERO));
            assert!(holdings.reads(&at, turn));
        }
        holdings
    }

    #[test]
    fn what_is_revoked_is_kept_until_the_client_gives_it_up() {
        let mut holdings = reading(&[0, 1]);
        let change = holdings.follow(assigned(&[0]));
        assert_eq!(change.revoke, [at(1)]);
        assert!(
            !holdings.wants(&at(1), Turn(2)),
            "what it ends with is nobody's concern"
        );
        assert_eq!(holdings.owned().count(), 2);
        // Told once.
        assert_eq!(holdings.follow(assigned(&[0])), Change::default());
        assert!(!holdings.give_up(&at(0)), "nobody has asked for it");
        assert!(holdings.give_up(&at(1)));
        assert_eq!(holdings.owned().collect::<Vec<_>>(), [at(0)]);
        assert_eq!(holdings.come_back(), []);
    }

    #[test]
    fn what_the_client_has_never_heard_of_is_given_up_without_a_word() {
        let mut holdings = Holdings::default();
        let (first, turn) = holdings.follow(assigned(&[0])).begin[0];
        let change = holdings.follow(assigned(&[]));
        assert!(change.given_up && change.revoke.is_empty());
        let zero = Offset::ZERO;
        assert!(!holdings.begun(&first, turn, zero));
        // Back again: the place that was looked for before does not count.
        let (_, anew) = holdings.follow(assigned(&[0])).begin[0];
        assert!(!holdings.begun(&first, turn, zero));
        assert!(holdings.begun(&first, anew, zero));
    }

    #[test]
    fn what_comes_back_while_it_is_given_up_begins_anew() {
        let mut holdings = reading(&[0]);
        holdings.follow(assigned(&[]));
        let change = holdings.follow(assigned(&[0]));
        assert_eq!(change, Change::default(), "the client is not done with it");
        assert!(holdings.give_up(&at(0)));
        assert_eq!(holdings.come_back().len(), 1);
    }

    #[test]
    fn only_what_was_sent_in_this_turn_is_committed() {
        let mut holdings = Holdings::default();
        let may = |holdings: &Holdings, offset| holdings.may_commit(&at(0), Offset::new(offset));
        let not_owned = Err(ErrorCode::PartitionNotOwned);
        assert_eq!(may(&holdings, 5), not_owned);
        let (_, turn) = holdings.follow(assigned(&[0])).begin[0];
        assert_eq!(
            may(&holdings, 5),
            not_owned,
            "the client has not heard of it"
        );
        assert!(holdings.begun(&at(0), turn, Offset::new(5)));
        holdings.sent(&at(0), Offset::new(9));
        for (offset, allowed) in [(4, false), (5, true), (9, true), (10, false)] {
            assert_eq!(may(&holdings, offset).is_ok(), allowed, "{offset}");
        }
        holdings.follow(assigned(&[]));
        assert_eq!(
            may(&holdings, 7),
            Ok(()),
            "it is to commit before it gives it up"
        );
        assert!(holdings.give_up(&at(0)));
        // Others had it meanwhile and are further.
        let (_, turn) = holdings.follow(assigned(&[0])).begin[0];
        assert!(holdings.begun(&at(0), turn, Offset::new(50)));
        assert_eq!(may(&holdings, 9), Err(ErrorCode::OffsetOutOfRange));
        holdings.sent(&at(0), Offset::new(60));
        holdings.moved(&at(0), Offset::new(40));
        assert_eq!(may(&holdings, 60), Err(ErrorCode::OffsetOutOfRange));
        assert_eq!(may(&holdings, 40), Ok(()));
    }

    #[test]
    fn who_loses_all_is_told_of_what_it_knew() {
        let mut holdings = reading(&[0, 1]);
        holdings.follow(assigned(&[0, 2]));
        assert!(holdings.lose(&at(0)));
        assert_eq!(
            holdings.lose_all(),
            [at(1)],
            "0 is gone, of 2 it has not heard"
        );
        assert_eq!(holdings.owned().count(), 0);
        assert_eq!(holdings.come_back(), []);
    }
}
