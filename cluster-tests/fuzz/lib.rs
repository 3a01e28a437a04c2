//! The targets, and what of cluster-tests they need: the same files, taken in by path, so that
//! neither the quorum's store nor a node is built with a sanitizer.

#[path = "../src/sim/disk.rs"]
mod disk;
#[path = "../src/fuzzed/mod.rs"]
pub mod fuzzed;
#[path = "../src/hostile.rs"]
pub mod hostile;

/// By the path that it has in cluster-tests.
pub mod sim {
    pub use crate::disk::SimDisk;
}
