//! What the tests of whole clusters share: real processes on ports that the kernel gives, one
//! cluster at a time on the machine, and a history that knows what must be in the log.

mod harness;
pub mod sim;

pub use harness::{Cluster, acknowledged_after, eventually, produce_raw, raw_key};
