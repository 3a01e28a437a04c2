//! Planted faults, for the proof that the checkers can fail. A fault is a type, so that none can
//! reach the shipped binary by a flag or a feature.

/// Which rules are broken on purpose; none by default.
pub trait Faults: Send + 'static {
    /// A new follower cuts its log to its high watermark instead of asking where histories part
    /// (against R4).
    const TRUNCATE_TO_HW: bool = false;
    /// An `Ack` counts whatever subscription it names (against "subscriptions fence everything").
    const UNBOUND_ACKS: bool = false;
    /// A restarted leader goes on in the epoch that its last life led at (against R1).
    const RESUME_OLD_EPOCH: bool = false;
    /// Durability is called established before the others have synced (against R17).
    const ESTABLISH_EARLY: bool = false;
}

/// The protocol as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFaults;

impl Faults for NoFaults {}
