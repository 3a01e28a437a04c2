//! The seeded simulator: three nodes, one partition and its registration, on the shipped log, the
//! shipped replication cores and the shipped metadata image. Network, disk, clock, quorum,
//! controller and clients are simulated, with delay, loss, reordering, crashes, pauses, power loss
//! of what was not synced, failing and stalling syncs. After every step each invariant's checker
//! looks. One seed gives one run, always the same.
//!
//! Not simulated yet: several partitions, wiped disks, flipped bits, drifting clocks, changes of
//! settings, deleted topics, and the shell around the cores.

mod clients;
mod controller;
mod disk;
mod faults;
mod invariants;
mod network;
mod process;
mod quorum;
mod seeds;
mod sight;
mod trace;
mod world;

pub use disk::SimDisk;
pub use seeds::{Failure, Totals, first_failure, run, seeds_from_environment};
pub use world::Run;
