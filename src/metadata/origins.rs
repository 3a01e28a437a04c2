//! What each origin has proposed lately, so that a repeat is answered and not applied again.

use imbl::OrdMap;
use quorate_types::Incarnation;
use serde::{Deserialize, Serialize};

use crate::command::Outcome;

/// Outcomes kept of each origin.
const WINDOW: usize = 1_024;

/// The proposals of one node's present life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredWindow", into = "StoredWindow")]
pub(crate) struct OriginWindow {
    pub(crate) incarnation: Incarnation,
    /// Sequences up to here are forgotten.
    floor: u64,
    outcomes: OrdMap<u64, Vec<Outcome>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWindow {
    incarnation: Incarnation,
    floor: u64,
    outcomes: Vec<(u64, Vec<Outcome>)>,
}

impl From<StoredWindow> for OriginWindow {
    fn from(stored: StoredWindow) -> Self {
        let StoredWindow {
            incarnation,
            floor,
            outcomes,
        } = stored;
        Self {
            incarnation,
            floor,
            outcomes: outcomes.into_iter().collect(),
        }
    }
}

impl From<OriginWindow> for StoredWindow {
    fn from(window: OriginWindow) -> Self {
        let OriginWindow {
            incarnation,
            floor,
            outcomes,
        } = window;
        Self {
            incarnation,
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

    pub(crate) fn note(&mut self, sequence: u64, outcomes: Vec<Outcome>) {
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
