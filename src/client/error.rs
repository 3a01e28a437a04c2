//! Why a call failed.

use std::collections::BTreeMap;

use quorate_record::BatchError;
use quorate_types::{ErrorCode, Offset, PartitionId};
use quorate_wire::{DOMAIN, ErrorInfo};
use tonic::Status;
use tonic_types::StatusExt;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The cluster refused.
    #[error("{0}")]
    Refused(ErrorInfo),
    /// No connection could be made: nobody has seen the call.
    #[error("no node can be reached: {0}")]
    Unreachable(String),
    /// No answer, or the connection broke: the outcome of a write is unknown.
    #[error("no answer from the cluster: {0}")]
    Connection(String),
    /// It was tried until the time was up: the outcome of a write is unknown.
    #[error("not decided in time; the last error was: {0}")]
    TimedOut(String),
    /// A node answered what makes no sense.
    #[error("unreadable answer: {0}")]
    Protocol(String),
    /// Records that a producer has put into the log cannot be decoded: their batch is whole, what is
    /// inside makes no sense. Nobody can read them; reading on from `next` goes past them.
    #[error(
        "{topic}-{partition}: the records from offset {offset} to {next} (exclusive) cannot be \
         decoded: {reason}"
    )]
    Corrupt {
        /// The topic.
        topic: String,
        /// The partition.
        partition: PartitionId,
        /// The first of them.
        offset: Offset,
        /// The offset after the last of them.
        next: Offset,
        /// What is wrong.
        reason: BatchError,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The producer or consumer is closed.
    #[error("closed")]
    Closed,
}

impl ClientError {
    /// The cluster's code, where it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(info) => Some(info.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(info) => info.code.is_retriable(),
            Self::Connection(_) | Self::Unreachable(_) => true,
            _ => false,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let info = status
            .get_details_error_info()
            .filter(|info| info.domain == DOMAIN);
        let code = info
            .as_ref()
            .and_then(|info| ErrorCode::from_name(&info.reason));
        match (info, code) {
            (Some(info), Some(code)) => {
                let metadata: BTreeMap<String, String> = info.metadata.into_iter().collect();
                let message = status.message().to_owned();
                Self::Refused(ErrorInfo {
                    code,
                    message,
                    metadata,
                })
            }
            _ => Self::Connection(format!("{}: {}", status.code(), status.message())),
        }
    }
}
