//! The ISR protocol of one partition, as pure state machines: time and events in, actions out. No
//! sockets, clocks, tasks or locks; files only through the partition's log and its `Dir`, so that
//! the simulator runs this very code. The rules (R1–R17) and invariants (I1–I12) that the code
//! names are in README.md beside this file.

#[cfg(test)]
mod disk_tests;
mod divergence;
mod events;
mod follower;
#[cfg(test)]
mod follower_tests;
mod leader;
mod leader_isr;
mod leader_produce;
mod leader_push;
#[cfg(test)]
mod loss_tests;
mod messages;
#[cfg(test)]
mod producer_tests;
mod replica;
mod replica_flush;
#[cfg(test)]
mod tests;
mod view;

pub use events::{
    Action, Context, Event, Produce, ProduceError, Produced, ProposalId, ProposalResult, RequestId,
    Status, StreamId, StreamRoom, Timing,
};
pub use messages::{
    Accepted, Ack, Batches, Diverged, FollowerMessage, Heartbeat, LeaderMessage, OutOfRange,
    Subscribe, SubscriptionError, Unsubscribe,
};
pub use quorate_types::{Faults, NoFaults};
pub use replica::Replica;
pub use view::PartitionView;
