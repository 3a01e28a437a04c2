//! A data directory: partitions, their segments and indexes, recovery, checkpoints, and the
//! flusher thread with its group commit. Blocking, without a runtime; all files go through
//! [`Dir`], so that the simulator runs this very code on a simulated disk.
//!
//! Invariant (R13): what [`PartitionLog::flushed_end`] covers is on the disk, with every earlier
//! segment and every directory entry.

mod checkpoint;
mod damage;
mod data_directory;
mod dir;
mod error;
mod finding;
mod flush;
mod identity;
mod ledger;
mod metrics;
mod offline;
#[cfg(test)]
mod offline_tests;
mod open;
mod os_dir;
mod partition_log;
#[cfg(test)]
mod producer_tests;
#[cfg(test)]
mod read_tests;
mod reader;
mod segment;
mod start;
#[cfg(test)]
mod start_tests;
mod tail;
#[cfg(test)]
mod test_dir;
#[cfg(test)]
mod tests;
mod truncate;
mod verify;
mod verify_directory;
mod verify_files;
mod verify_segment;
mod view;
mod walk;

pub use data_directory::DataDirectory;
pub use dir::{Dir, DirFile, Entry, OpenMode};
pub use error::{LogError, ReadError};
pub use finding::{Finding, Findings, Severity};
pub use flush::{FlushDone, FlushTicket, Flusher};
pub use ledger::{FoundPartition, Ledger};
pub use metrics::describe as describe_metrics;
pub use offline::{Offline, OfflinePartition, OfflineTarget};
pub use open::{RecoveryContext, RecoveryReport};
pub use os_dir::{OsDir, OsFile, SlowDir, SlowFile};
pub use partition_log::{LogOptions, PartitionLog};
pub use reader::LogReader;
pub use tail::TailBudget;
pub use verify::{Checked, verify_partition};
pub use verify_directory::{DirectoryFacts, verify_directory};
pub use view::{PartitionFiles, StoredPositions};
pub use walk::{Piece, SegmentWalk, segments};
