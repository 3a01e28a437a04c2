//! The active controller: runs `liveness` where Raft leads, and only there. What it starts by
//! itself names its term, so that a controller that was replaced without noticing changes nothing.

mod active;
mod agreement;
mod handle;

pub use active::{Prober, start};
pub use agreement::Difference;
pub use handle::{ControllerHandle, NotActive, Told};
pub use quorate_liveness::{
    ConnectionId, Heartbeat, HeartbeatAnswer, LivenessTiming, Probe, ProbeResult,
};
