//! Which brokers live: sessions, probes, fencing, controlled shutdown, preferred leaders. Pure:
//! time and events in, proposals and probes out; run by the active controller.
//!
//! Invariants: silence alone fences only after a whole session; a process is taken for gone
//! earlier only when its address refuses connections twice while its stream is down (the quorum's
//! own finding about the leader before counts too); a new
//! controller gives everybody one full session.

mod liveness;
#[cfg(test)]
mod tests;

pub use liveness::{
    Action, ConnectionId, Heartbeat, HeartbeatAnswer, Liveness, LivenessTiming, Probe, ProbeResult,
};
