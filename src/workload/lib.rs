//! Load against a cluster, what came of it, and whether that is right: numbered keyed records, a
//! history of what was acknowledged where, the gaps between acknowledgements, and the checks that
//! find what was lost, moved, duplicated, invented or out of order.

mod gaps;
mod history;
mod reader;
mod writer;

pub use gaps::longest_gap;
pub use history::{History, Sent, Stored, Violation, check};
pub use reader::{ReadFailed, read_all};
pub use writer::{Writer, WriterFailed, WriterOptions};
