//! Why a node did not start, or had to stop.

use std::io;

use quorate_broker::BrokerError;
use quorate_log::LogError;
use quorate_quorum::QuorumError;

/// Why a node did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error("the data directory cannot be used: {0}")]
    Directory(#[from] LogError),
    /// A listener cannot be opened.
    #[error("cannot listen on {address} ({setting}): {source}; is the port in use?")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata quorum did not start.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// The logs could not be recovered.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A part of the running node has died.
    #[error("{part} has stopped: {reason}")]
    Died {
        /// Which part.
        part: &'static str,
        /// Why, as far as known.
        reason: String,
    },
}
