//! Fields.

use quorate_proto::v1;
use quorate_types::{Acks, Endpoint, ProducerEpoch, TopicId};

/// A field that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An id is not 16 bytes long.
    #[error("{0} must be 16 bytes long")]
    Id(&'static str),
    /// A number is outside of its range.
    #[error("{0} is out of range: it must be 0 or more, and fit its field in a batch")]
    Range(&'static str),
    /// A number names no kind of acknowledgement.
    #[error("acks is {0}: must be 0 (all), 1 (leader) or 2 (none)")]
    Acks(i32),
    /// There is nothing to append.
    #[error("the list of records is empty: a produce needs one at least")]
    NoRecords,
    /// An idempotent producer is named by half.
    #[error(
        "producer_id, producer_epoch and base_sequence go together: give all three, or none of them"
    )]
    HalfProducer,
}

/// Reads a topic id.
///
/// # Errors
/// [`WireError::Id`].
pub fn topic_id(bytes: &[u8]) -> Result<TopicId, WireError> {
    TopicId::from_slice(bytes).ok_or(WireError::Id("topic_id"))
}

/// Reads a producer's epoch: 0 to 32,767, as a batch has room for.
///
/// # Errors
/// [`WireError::Range`].
pub fn producer_epoch(number: i32) -> Result<ProducerEpoch, WireError> {
    i16::try_from(number)
        .ok()
        .and_then(|epoch| ProducerEpoch::from_signed(epoch).ok())
        .ok_or(WireError::Range("producer_epoch"))
}

/// Reads the acks of a request.
///
/// # Errors
/// [`WireError::Acks`] for a number that means nothing.
pub fn acks(number: i32) -> Result<Acks, WireError> {
    match v1::Acks::try_from(number) {
        Ok(v1::Acks::All) => Ok(Acks::All),
        Ok(v1::Acks::Leader) => Ok(Acks::Leader),
        Ok(v1::Acks::None) => Ok(Acks::None),
        Err(_) => Err(WireError::Acks(number)),
    }
}

/// The acks as the protocol has them.
pub fn acks_to_proto(acks: Acks) -> i32 {
    match acks {
        Acks::All => v1::Acks::All,
        Acks::Leader => v1::Acks::Leader,
        Acks::None => v1::Acks::None,
    }
    .into()
}

/// An endpoint as the protocol has it.
pub fn endpoint_to_proto(endpoint: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        host: endpoint.host.clone(),
        port: u32::from(endpoint.port),
    }
}
