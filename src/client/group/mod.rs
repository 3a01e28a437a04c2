//! Consumer groups: a member that reads what falls to it, and what can be asked about groups.
//!
//! [`member`] knows what a member may read, purely; [`session`] keeps it a member; [`consumer`] is
//! what users hold; [`commit`] and [`start`] speak of offsets; [`coordinator`] finds whom to ask.

mod admin;
mod commit;
mod consumer;
mod coordinator;
mod member;
mod options;
mod session;
mod start;

pub use commit::OffsetToCommit;
pub use consumer::{GroupConsumer, GroupEvent};
pub use options::{GroupOptions, StartPosition};
