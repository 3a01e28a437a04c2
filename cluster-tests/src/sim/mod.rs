//! The seeded simulator: a whole cluster in one thread. Brokers with several partitions on the
//! shipped log and the shipped replication cores, controllers with the shipped `Liveness`, the
//! shipped metadata image. Network, disks, clocks, the quorum's log, the broker's shell and clients
//! are simulated, with delay, loss, repetition, reordering, crashes, pauses, power loss of what was
//! not synced, failing and stalling syncs, flipped bits, replaced disks, drifting clocks. Some runs
//! have consumer groups, with the shipped coordinator and simulated members. After every step each
//! invariant's checker looks. One seed gives one run, always the same.
//!
//! Not simulated: Raft itself (the quorum is one log that everybody agrees on), reassignment, expiry
//! and deletion of groups, and the shell's threads.

mod bring_up;
mod clients;
mod clock;
mod consumers;
mod controller;
mod cores;
mod counts;
mod disk;
mod disk_faults;
#[cfg(test)]
mod disk_tests;
mod faults;
mod groups;
mod hosting;
mod invariants;
mod network;
mod node;
mod plan;
mod quorum;
mod replica;
mod schedule;
mod seeds;
mod session;
mod settle;
mod sight;
mod streams;
mod topics;
mod trace;
mod watched;
mod world;

pub use counts::Counts;
pub use disk::SimDisk;
pub use seeds::{Failure, Run, Totals, first_failure, run, seeds_from_environment};
