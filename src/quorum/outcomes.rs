//! The outcomes of one entry as bytes: what Raft hands back, and what the leader answers to a
//! node that proposed through it.

use prost::Message;
use quorate_metadata::Outcome;

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(bytes = "vec", repeated, tag = "1")]
    outcomes: Vec<Vec<u8>>,
}

/// Outcomes that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the outcomes of a proposal cannot be read: {0}")]
pub(crate) struct UnreadableOutcomes(String);

pub(crate) fn encode(outcomes: &[Outcome]) -> Vec<u8> {
    List {
        outcomes: outcomes.iter().map(Outcome::encode).collect(),
    }
    .encode_to_vec()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Outcome>, UnreadableOutcomes> {
    let list = List::decode(bytes).map_err(|error| UnreadableOutcomes(error.to_string()))?;
    let decoded = list.outcomes.iter().map(|bytes| Outcome::decode(bytes));
    decoded
        .collect::<Result<_, _>>()
        .map_err(|error| UnreadableOutcomes(error.to_string()))
}
