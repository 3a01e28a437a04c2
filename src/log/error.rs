//! What can go wrong with a log.

use std::io;

use quorate_record::BatchError;
use quorate_types::{LeaderEpoch, Offset};

/// Why an operation on a log failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A batch does not begin where the log ends.
    #[error("batch begins at offset {got}, the log ends at {expected}")]
    NotAtEnd {
        /// End of the log.
        expected: Offset,
        /// Where the batch begins.
        got: Offset,
    },
    /// A batch is of an older epoch than the last one (I6).
    #[error("batch is of leader epoch {got}, the log has reached {last}")]
    EpochFell {
        /// The log's last epoch.
        last: LeaderEpoch,
        /// The batch's.
        got: LeaderEpoch,
    },
    /// An earlier write or sync failed: nothing is taken until the log is cut (R13).
    #[error("the log has failed: {0}")]
    Failed(String),
    /// A file holds what no log writes.
    #[error("{path}, position {position}: {reason}")]
    Corrupt {
        /// The file.
        path: String,
        /// Where in it, in bytes.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// The data directory cannot be used.
    #[error("{path}: {reason}")]
    Directory {
        /// Which one.
        path: String,
        /// Why not, and what to do.
        reason: String,
    },
}

/// Names the file in an error of the system.
pub(crate) fn at(path: &str) -> impl FnOnce(io::Error) -> LogError + '_ {
    move |source| LogError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was read from the disk is no batch of this log.
    #[error("{path}, position {position}, offset {offset}: {source}")]
    Corrupt {
        /// The file.
        path: String,
        /// Where in it, in bytes.
        position: u64,
        /// The offset that was to be read.
        offset: Offset,
        /// What is wrong.
        source: BatchError,
    },
    /// The offset is below the log's start or has no segment.
    #[error("offset {0} is not in the log")]
    NotThere(Offset),
}
