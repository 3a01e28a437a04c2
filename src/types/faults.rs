//! Planted faults, for the proof that the simulator's checkers can fail. A set of faults is a type,
//! so that none can reach the shipped binary by a flag or a feature.

/// Which rules are broken on purpose; none by default. Rules and invariants are those of the
/// protocol's README.
pub trait Faults: Send + 'static {
    /// A new follower cuts its log to its high watermark instead of asking where histories part
    /// (against R4).
    const TRUNCATE_TO_HW: bool = false;
    /// `acks=all` is answered at the append (against R3).
    const ACK_EARLY: bool = false;
    /// A repeat is answered before its original is committed (against R11).
    const DUPLICATE_EARLY: bool = false;
    /// What waits when the leadership goes is answered with success (against R3).
    const SUCCESS_AFTER_LOSS: bool = false;
    /// Requests and batches of any leader epoch are taken (against R1).
    const ANY_EPOCH: bool = false;
    /// A leader takes subscriptions of any leader epoch (against R4).
    const ANY_SUBSCRIPTION: bool = false;
    /// A restarted leader goes on in the epoch that its last life led at (against R1).
    const RESUME_OLD_EPOCH: bool = false;
    /// An `Ack` counts whatever subscription it names (against "subscriptions fence everything").
    const UNBOUND_ACKS: bool = false;
    /// A follower is proposed into the ISR by its log's end, flushed or not (against R5).
    const JOIN_BY_LEO: bool = false;
    /// A follower is proposed into the ISR by what an earlier life of its broker acked (against R5,
    /// KIP-903).
    const JOIN_BY_OLD_LIFE: bool = false;
    /// A follower is caught up by its log's end, flushed or not: a stalled disk never leaves the ISR
    /// (against R5).
    const STALLED_STAYS: bool = false;
    /// The high watermark is taken over the committed ISR instead of the maximal one (against R2).
    const HW_OVER_COMMITTED: bool = false;
    /// An ISR proposal without an answer is forgotten (against R2).
    const FORGET_PROPOSAL: bool = false;
    /// Durability is called established before the others have synced (against R17).
    const ESTABLISH_EARLY: bool = false;
    /// The end that a flush of before a truncation names counts (against R13).
    const STALE_FLUSH: bool = false;
    /// Producers keep their state over a truncation (against R4).
    const KEEP_PRODUCERS: bool = false;
    /// A truncation leaves one batch too many (against R4).
    const SHORT_CUT: bool = false;
    /// A command is applied under another term than it names.
    const ANY_TERM: bool = false;
    /// A member of an ISR may be of any registration of its broker (against R5, KIP-903).
    const ANY_BROKER_EPOCH: bool = false;
    /// Fencing takes the last member out of an ISR (against R8).
    const DROP_LAST_MEMBER: bool = false;
    /// `fsync_established` survives a change to `page-cache` (against R17).
    const KEEP_ESTABLISHED: bool = false;
    /// A command about a group is applied whoever coordinates it.
    const ANY_COORDINATOR_EPOCH: bool = false;
    /// A commit counts also where the partition came to its member at a newer epoch.
    const ANY_MEMBER_EPOCH: bool = false;
    /// An older commit of a member that comes late is taken.
    const ANY_COMMIT_ORDER: bool = false;
    /// The deletion of a group is applied to what it has become since, or to another of that name.
    const ANY_GROUP_VERSION: bool = false;
    /// A partition is given to its next owner before the last one has given it up (against KIP-848).
    const ASSIGN_BEFORE_RELEASE: bool = false;
    /// A coordinator answers however long it has not heard from the controller.
    const ANSWER_CUT_OFF: bool = false;
    /// What a member of an older epoch says that it has counts as what it has now.
    const OLD_WORD_COUNTS: bool = false;
    /// A coordinator that takes over takes members for silent that it has never heard.
    const NO_SESSION_AT_TAKEOVER: bool = false;
    /// A member whose end is proposed is answered as if it stayed.
    const ANSWER_WHO_GOES: bool = false;
    /// Who has not given up in time is ended at once, not when its session is over.
    const END_LATE_AT_ONCE: bool = false;
}

/// The protocol as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFaults;

impl Faults for NoFaults {}
