//! What each origin has proposed lately, so that a repeat is answered and not applied again.

use imbl::OrdMap;
use quorate_types::{DirectoryId, Incarnation, NodeId, RaftIndex};
use serde::{Deserialize, Serialize};

use crate::command::{Origin, Outcome};

/// Outcomes kept of each origin.
const WINDOW: usize = 1_024;
/// Directories of one node whose proposals are kept, those that proposed last.
const DIRECTORIES: usize = 4;

/// The windows of all directories.
pub(crate) type Origins = OrdMap<(NodeId, DirectoryId), OriginWindow>;

/// Stores a window; of a node that had many directories the one that has proposed nothing for the
/// longest goes.
pub(crate) fn keep(origins: &mut Origins, origin: &Origin, window: OriginWindow) {
    let node = origin.node;
    origins.insert((node, origin.directory), window);
    let first = (node, DirectoryId::from_bytes([0; 16]));
    let last = (node, DirectoryId::from_bytes([255; 16]));
    let of_node = || origins.range(first..=last);
    if of_node().count() > DIRECTORIES
        && let Some((oldest, _)) = of_node().min_by_key(|(_, window)| window.used)
    {
        let oldest = *oldest;
        origins.remove(&oldest);
    }
}

/// The proposals of one node's present life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredWindow", into = "StoredWindow")]
pub(crate) struct OriginWindow {
    pub(crate) incarnation: Incarnation,
    /// When its last proposal was applied.
    used: RaftIndex,
    /// Sequences up to here are forgotten.
    floor: u64,
    outcomes: OrdMap<u64, Vec<Outcome>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWindow {
    incarnation: Incarnation,
    used: RaftIndex,
    floor: u64,
    outcomes: Vec<(u64, Vec<Outcome>)>,
}

impl From<StoredWindow> for OriginWindow {
    fn from(stored: StoredWindow) -> Self {
        let StoredWindow {
            incarnation,
            used,
            floor,
            outcomes,
        } = stored;
        Self {
            incarnation,
            used,
            floor,
            outcomes: outcomes.into_iter().collect(),
        }
    }
}

impl From<OriginWindow> for StoredWindow {
    fn from(window: OriginWindow) -> Self {
        let OriginWindow {
            incarnation,
            used,
            floor,
            outcomes,
        } = window;
        Self {
            incarnation,
            used,
            floor,
            outcomes: outcomes.into_iter().collect(),
        }
    }
}

/// What a sequence is to a window.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Never seen.
    New,
    /// Applied before, with this outcome.
    Repeat(Vec<Outcome>),
    /// So old that its outcome is forgotten.
    Forgotten,
}

impl OriginWindow {
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            used: RaftIndex::ZERO,
            floor: 0,
            outcomes: OrdMap::new(),
        }
    }

    pub(crate) fn look_up(&self, sequence: u64) -> Known {
        match self.outcomes.get(&sequence) {
            Some(outcomes) => Known::Repeat(outcomes.clone()),
            None if sequence <= self.floor => Known::Forgotten,
            None => Known::New,
        }
    }

    pub(crate) fn note(&mut self, at: RaftIndex, sequence: u64, outcomes: Vec<Outcome>) {
        self.used = at;
        self.outcomes.insert(sequence, outcomes);
        while self.outcomes.len() > WINDOW {
            let Some(oldest) = self.outcomes.get_min().map(|(sequence, _)| *sequence) else {
                break;
            };
            self.outcomes.remove(&oldest);
            self.floor = oldest;
        }
    }
}
