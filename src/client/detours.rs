//! Ways to a leader whose advertised address means nothing where this client runs: inside a
//! container network, behind a port mapping. Then the bootstrap addresses lead there: the one at
//! which that very node has answered, else any, whose node forwards.
//!
//! An address that has ever answered is never given up for a detour: where it fails, its node does.
//! While a detour works, the straight way is tried again now and then: the address may only have
//! been down when it was first tried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_types::Endpoint;
use tokio::time::Instant;

/// One request tries an address again that has only failed, after so long.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// How a request gets to a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the leader's advertised address.
    Straight(Endpoint),
    /// To a bootstrap address instead.
    Detour {
        /// What the leader advertises.
        leader: Endpoint,
        /// Where to knock.
        through: Endpoint,
    },
}

impl Way {
    /// The address to connect to.
    pub(crate) fn first(&self) -> &Endpoint {
        match self {
            Self::Straight(to) | Self::Detour { through: to, .. } => to,
        }
    }

    /// Whether the leader itself is reached.
    pub(crate) fn is_straight(&self) -> bool {
        matches!(self, Self::Straight(_))
    }
}

/// What is known of addresses.
#[derive(Debug, Default)]
pub(crate) struct Detours {
    /// Advertised addresses that have answered.
    reached: BTreeSet<Endpoint>,
    /// Advertised addresses that have only failed, and when that was last tried.
    unreachable: BTreeMap<Endpoint, Instant>,
    /// Where else the node with an advertised address has answered.
    elsewhere: BTreeMap<Endpoint, Endpoint>,
}

impl Detours {
    /// Whether an advertised address has only failed.
    pub(crate) fn is_unreachable(&self, advertised: &Endpoint) -> bool {
        self.unreachable.contains_key(advertised)
    }

    /// The node that advertises an address has answered at another, or at this.
    pub(crate) fn answered(&mut self, advertised: &Endpoint, at: &Endpoint) {
        if advertised == at {
            self.arrived(&Way::Straight(at.clone()));
        } else {
            self.elsewhere.insert(advertised.clone(), at.clone());
        }
    }

    /// The way to try next; `turn` chooses among the bootstrap addresses.
    pub(crate) fn way_to(
        &mut self,
        leader: &Endpoint,
        bootstrap: &[Endpoint],
        turn: impl FnOnce() -> usize,
        now: Instant,
    ) -> Way {
        match self.unreachable.get_mut(leader) {
            Some(tried) if now.saturating_duration_since(*tried) >= TRY_AGAIN => {
                // The others go on by the detour meanwhile.
                *tried = now;
                return Way::Straight(leader.clone());
            }
            Some(_) => {}
            None => return Way::Straight(leader.clone()),
        }
        let any = || bootstrap.get(turn() % bootstrap.len().max(1));
        match self.elsewhere.get(leader).or_else(any) {
            Some(through) => Way::Detour {
                leader: leader.clone(),
                through: through.clone(),
            },
            None => Way::Straight(leader.clone()),
        }
    }

    /// A way led to a node.
    pub(crate) fn arrived(&mut self, way: &Way) {
        if let Way::Straight(leader) = way {
            self.unreachable.remove(leader);
            self.reached.insert(leader.clone());
        }
    }

    /// A way led nowhere. After a detour the straight way is tried again: the leader may only have
    /// been down.
    pub(crate) fn lost(&mut self, way: &Way, now: Instant) {
        match way {
            Way::Straight(leader) => {
                if !self.reached.contains(leader) {
                    self.unreachable.insert(leader.clone(), now);
                }
            }
            Way::Detour { leader, .. } => {
                self.unreachable.remove(leader);
                self.elsewhere.remove(leader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            port: 7070,
        }
    }

    fn way_at(detours: &mut Detours, now: Instant) -> Way {
        detours.way_to(&at("leader"), &[at("a"), at("b")], || 0, now)
    }

    fn way(detours: &mut Detours, turn: usize) -> Way {
        let now = Instant::now();
        detours.way_to(&at("leader"), &[at("a"), at("b")], || turn, now)
    }

    #[test]
    fn an_address_that_never_answered_is_passed_by_and_tried_again_after_the_detour() {
        let mut detours = Detours::default();
        let straight = way(&mut detours, 0);
        assert_eq!(straight, Way::Straight(at("leader")));
        detours.lost(&straight, Instant::now());
        let (first, second) = (way(&mut detours, 0), way(&mut detours, 1));
        assert_eq!((first.first(), second.first()), (&at("a"), &at("b")));
        assert!(!first.is_straight());
        // Where that very node has answered, nobody need forward.
        detours.answered(&at("leader"), &at("b"));
        assert_eq!(way(&mut detours, 0).first(), &at("b"));
        detours.arrived(&second);
        assert_eq!(way(&mut detours, 0).first(), &at("b"));
        detours.lost(&second, Instant::now());
        assert_eq!(way(&mut detours, 0), straight);
    }

    #[test]
    fn an_address_that_has_answered_is_kept_while_its_node_is_down() {
        let mut detours = Detours::default();
        detours.answered(&at("leader"), &at("leader"));
        let straight = way(&mut detours, 0);
        detours.lost(&straight, Instant::now());
        assert_eq!(way(&mut detours, 0), straight);
        assert!(!detours.is_unreachable(&at("leader")));
    }

    #[test]
    fn the_straight_way_is_tried_again_in_the_end_by_one_at_a_time() {
        let mut detours = Detours::default();
        let mut now = Instant::now();
        let straight = way_at(&mut detours, now);
        detours.lost(&straight, now);
        let detour = way_at(&mut detours, now);
        for _ in 0..2 {
            detours.arrived(&detour);
            now += TRY_AGAIN - Duration::from_millis(1);
            assert_eq!(way_at(&mut detours, now), detour);
            now += Duration::from_millis(1);
            assert_eq!(way_at(&mut detours, now), straight);
            assert_eq!(way_at(&mut detours, now), detour);
            detours.lost(&straight, now);
        }
        now += TRY_AGAIN;
        let again = way_at(&mut detours, now);
        detours.arrived(&again);
        assert_eq!(way_at(&mut detours, now), straight);
        assert!(!detours.is_unreachable(&at("leader")));
    }
}
