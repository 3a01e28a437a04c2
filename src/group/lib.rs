//! Consumer groups: who is a member, what each is to have, and how partitions move from one to the
//! next. Pure: it takes values and time and gives decisions; the same code runs in the server and in
//! the simulator. What is decided is proposed to the quorum and holds once it is in the image, so
//! that a coordinator that takes over has nothing to load.
//!
//! Invariant: a partition is given to its next owner only after the last one's word that it has given
//! it up, or its end, is applied (KIP-848). Two things are this coordinator's alone and not in the
//! image: when each member was last heard, and heartbeats that wait for their answers.

mod assign;
#[cfg(test)]
mod assign_tests;
mod coordinator;
mod events;
#[cfg(test)]
mod join_tests;
mod plan;
#[cfg(test)]
mod plan_tests;
mod planted;
mod sessions;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wait_tests;

pub use assign::{Assignment, Subscriber, assign};
pub use coordinator::Coordinator;
pub use events::{
    Action, Answer, Context, GroupError, GroupTiming, Heartbeat, Leave, ProposalId, ProposalResult,
    RequestId,
};
pub use plan::{Wishes, next_change};
