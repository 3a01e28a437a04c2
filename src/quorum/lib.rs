//! The metadata quorum: one Raft group (openraft, its log in sled) holds what the cluster knows.
//! [`QuorumHandle`] is the only door: propose, the current image, who leads. The rest has never
//! heard of openraft.
//!
//! Invariants: votes and entries are on the disk before anyone relies on them; a member speaks
//! only under (node id, directory id); a call that is not for this member is refused; images
//! change only by applied entries.

mod codec;
mod config;
mod core;
mod disk;
mod failover;
#[cfg(test)]
mod fault_tests;
mod guarded;
mod handle;
mod ids;
mod in_flight;
mod inspect;
mod inspect_log;
#[cfg(test)]
mod inspect_tests;
mod log_store;
mod membership;
mod network;
mod outage;
mod outcomes;
mod peers;
mod promised;
mod propose;
mod quorum;
mod service;
mod sled_tail;
mod snapshots;
mod state_machine;
mod view;
mod writer;

#[cfg(test)]
pub(crate) mod store_tests;
#[cfg(test)]
mod sync_trace_tests;

pub use config::{QuorumConfig, QuorumError};
pub use core::{Gone, Leadership};
pub use handle::{QuorumDescription, QuorumHandle, QuorumMember};
pub use ids::{InvalidRaftId, RaftId};
pub use inspect::{
    EntryLines, InspectError, MetadataCopy, MetadataEntry, MetadataMember, MetadataSummary,
};
pub use propose::{ProposeError, ReadIndexError};
pub use quorum::Quorum;
pub use service::RaftService;
