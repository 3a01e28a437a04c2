//! What the tests of whole clusters share: real processes on ports that the kernel gives, one
//! cluster at a time on the machine, and a history that knows what must be in the log.

mod containers;
pub mod fuzzed;
mod gaps;
mod harness;
pub mod hostile;
mod member;
pub mod power;
mod proxy;
pub mod sim;
mod view;

pub use containers::Containers;
pub use gaps::{Figures, Story};
pub use harness::{
    Cluster, describe_raw, memory_bound, metric, produce_raw, raw_key, ready, resident,
};
pub use member::{MemberProcess, Told, What, monotonic};
pub use proxy::Proxy;
pub use view::{View, acknowledged_after, eventually};
