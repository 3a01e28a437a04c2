//! Puts a node together and takes it down in order: the one place where everything meets.
//!
//! Order of start: the directory and its lock, both listeners, the quorum, the logs, the
//! controller, the services; then it registers. Order of stop: what it leads moves away, the
//! quorum is handed over, clients are let go, the logs are closed, the clean mark is written.

#[cfg(test)]
mod client_group_tests;
mod error;
mod figures;
#[cfg(test)]
mod group_page_tests;
#[cfg(test)]
mod group_read_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod image_tests;
mod node;
#[cfg(test)]
mod overload_tests;
#[cfg(test)]
mod producer_tests;
mod serve;
#[cfg(test)]
mod subscribe_tests;
#[cfg(test)]
mod tests;

pub use error::NodeError;
pub use node::{Node, NodeTools};
pub use quorate_rpc::LogControl;
