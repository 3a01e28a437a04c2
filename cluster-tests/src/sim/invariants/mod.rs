//! One checker an invariant of src/replication/README.md, looked at after every step, and some for
//! rules that a break of an invariant would show late.

use quorate_metadata::{Envelope, LogId, MetadataImage, Outcome};
use quorate_types::TopicPartition;

use super::sight::Sight;

pub(super) mod g01_single_ownership;
pub(super) mod g02_groups_converge;
mod g03_coordinator_epochs;
mod g04_deletions;
mod i01_one_leader_an_epoch;
mod i02_replicas_agree;
mod i03_later_leaders_hold_acked;
mod i04_high_watermark;
mod i05_committed_isr;
mod i06_epochs_rise;
mod i07_sequences_once;
mod i08_electable_hold_acked;
pub(super) mod i09_liveness;
mod i10_one_batch_a_place;
mod i11_flushed_is_on_disk;
mod i12_committed_offsets;
mod k903_members;
mod q01_named_term;
mod r01_by_epoch;
mod r03_success_is_committed;
mod r04_subscriptions;
mod r08_registration;
mod r17_established;

pub(super) use g04_deletions::Deletions;
pub(super) use i12_committed_offsets::CommittedOffsets;

/// Looks at one partition after each step that touches it, and remembers what it needs.
pub trait Checker {
    /// Which invariant, in words.
    fn name(&self) -> &'static str;

    /// Looks once.
    ///
    /// # Errors
    /// What contradicts the invariant.
    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String>;
}

/// The checkers of one partition, fresh. I9 is looked at when faults are over; I12 and
/// deletions are about groups.
pub fn all() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(i01_one_leader_an_epoch::OneLeaderAnEpoch::default()),
        Box::new(i02_replicas_agree::ReplicasAgree::default()),
        Box::new(i03_later_leaders_hold_acked::LaterLeadersHoldAcked::default()),
        Box::new(i04_high_watermark::HighWatermark::default()),
        Box::new(i05_committed_isr::CommittedIsr),
        Box::new(i06_epochs_rise::EpochsRise),
        Box::new(i07_sequences_once::SequencesOnce::default()),
        Box::new(i08_electable_hold_acked::ElectableHoldAcked::default()),
        Box::new(i10_one_batch_a_place::OneBatchAPlace::default()),
        Box::new(i11_flushed_is_on_disk::FlushedIsOnDisk),
        Box::new(r01_by_epoch::ByEpoch),
        Box::new(r03_success_is_committed::SuccessIsCommitted),
        Box::new(r04_subscriptions::Subscriptions),
    ]
}

/// What contradicts, and in which partition.
pub type Found = (Option<TopicPartition>, String);

/// An entry of the quorum's log, applied.
pub struct Entry<'a> {
    /// The image before.
    pub before: &'a MetadataImage,
    /// The image with it.
    pub after: &'a MetadataImage,
    /// What was proposed.
    pub envelope: &'a Envelope,
    /// Where it is.
    pub at: LogId,
    /// What became of it.
    pub outcome: &'a Outcome,
    /// It was applied before, and did nothing now.
    pub repeat: bool,
}

/// Looks at each entry that the quorum applies.
pub trait EntryChecker {
    /// Which rule, in words.
    fn name(&self) -> &'static str;

    /// Looks once.
    ///
    /// # Errors
    /// What contradicts the rule.
    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found>;
}

/// The checkers of the quorum's entries, fresh.
pub fn entries() -> Vec<Box<dyn EntryChecker>> {
    vec![
        Box::new(q01_named_term::NamedTerm),
        Box::new(k903_members::MembersAreCurrent),
        Box::new(r08_registration::RegistrationIsSound),
        Box::new(r17_established::EstablishedUnderFsync),
        Box::new(g01_single_ownership::OneOwner),
        Box::new(g03_coordinator_epochs::CoordinatorEpochs),
    ]
}
