//! What was seen, and where it contradicts itself. It outlives the voters' lives.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use quorate_metadata::MetadataImage;
use quorate_types::RaftIndex;

use crate::handle::QuorumHandle;
use crate::ids::RaftId;

#[derive(Debug, Default)]
struct Seen {
    /// The rolling hash of each applied index, and who applied it first.
    hashes: BTreeMap<u64, (u64, RaftId)>,
    votes: HashMap<(RaftId, u64), RaftId>,
    leaders: HashMap<u64, RaftId>,
    violations: Vec<String>,
}

/// Everything that was seen under one seed.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Seen>);

impl std::fmt::Debug for QuorumHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "member {}", self.core.me())
    }
}

impl Record {
    pub(crate) fn violated(&self, what: String) {
        self.0.lock().violations.push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    /// A voter answered that it votes for a candidate.
    pub(crate) fn votes(&self, voter: RaftId, term: u64, candidate: RaftId) {
        let mut seen = self.0.lock();
        let before = *seen.votes.entry((voter, term)).or_insert(candidate);
        if before != candidate {
            let what = format!("{voter} voted in term {term} for {before} and for {candidate}");
            seen.violations.push(what);
        }
    }

    /// A member calls itself the leader of a term: it has voted for itself.
    pub(crate) fn leads(&self, term: u64, leader: RaftId) {
        {
            let mut seen = self.0.lock();
            let before = *seen.leaders.entry(term).or_insert(leader);
            if before != leader {
                let what = format!("term {term} has the leaders {before} and {leader}");
                seen.violations.push(what);
            }
        }
        self.votes(leader, term, leader);
    }

    /// A member has applied an entry.
    pub(crate) fn applied(&self, member: RaftId, index: RaftIndex, hash: u64) {
        let mut seen = self.0.lock();
        let first = *seen.hashes.entry(index.get()).or_insert((hash, member));
        if first.0 != hash {
            let what = format!(
                "entry {index}: {member} applied {hash:016x}, {} had applied {:016x}",
                first.1, first.0
            );
            seen.violations.push(what);
        }
    }

    /// The highest index that anybody ever applied.
    pub(crate) fn highest(&self) -> u64 {
        let seen = self.0.lock();
        seen.hashes.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// The last image holds everything that anybody ever applied.
    pub(crate) fn ends_with(&self, image: &MetadataImage) {
        let mut seen = self.0.lock();
        let highest = seen.hashes.last_key_value().map_or(0, |(index, _)| *index);
        if image.applied().index.get() < highest {
            let what = format!(
                "entry {highest} was applied, and the end is {:?}",
                image.applied()
            );
            seen.violations.push(what);
        }
    }

    /// Follows a member's life: what it applies, in order.
    pub(crate) async fn follow(&self, handle: QuorumHandle) {
        let member = handle.core.me();
        let mut images = handle.images();
        let mut last = RaftIndex::ZERO;
        loop {
            let image = images.borrow_and_update().clone();
            let (index, hash) = (image.applied().index, image.rolling_hash());
            if index < last {
                self.violated(format!("{member} applied {last}, then {index}"));
            }
            for between in last.get() + 1..index.get() {
                let between = RaftIndex::new(between);
                if let Some(hash) = handle.hash_at(between) {
                    self.applied(member, between, hash);
                }
            }
            if index > RaftIndex::ZERO {
                self.applied(member, index, hash);
            }
            last = index;
            if images.changed().await.is_err() {
                return;
            }
        }
    }
}
