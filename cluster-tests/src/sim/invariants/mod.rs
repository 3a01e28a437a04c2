//! One checker an invariant of src/replication/README.md, looked at after every step.

use super::sight::Sight;

mod i01_one_leader_an_epoch;
mod i02_replicas_agree;
mod i03_later_leaders_hold_acked;
mod i04_high_watermark;
mod i05_committed_isr;
mod i06_epochs_rise;
mod i07_sequences_once;
mod i08_electable_hold_acked;
mod i10_one_batch_a_place;
mod i11_flushed_is_on_disk;

/// Looks at the world after each step and remembers what it needs.
pub trait Checker {
    /// Which invariant, in words.
    fn name(&self) -> &'static str;

    /// Looks once.
    ///
    /// # Errors
    /// What contradicts the invariant.
    fn check(&mut self, sight: &Sight<'_>) -> Result<(), String>;
}

/// All checkers, fresh. I9 is the settle phase of a run; I12 comes with groups.
pub fn all() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(i01_one_leader_an_epoch::OneLeaderAnEpoch::default()),
        Box::new(i02_replicas_agree::ReplicasAgree::default()),
        Box::new(i03_later_leaders_hold_acked::LaterLeadersHoldAcked::default()),
        Box::new(i04_high_watermark::HighWatermark::default()),
        Box::new(i05_committed_isr::CommittedIsr),
        Box::new(i06_epochs_rise::EpochsRise),
        Box::new(i07_sequences_once::SequencesOnce),
        Box::new(i08_electable_hold_acked::ElectableHoldAcked::default()),
        Box::new(i10_one_batch_a_place::OneBatchAPlace::default()),
        Box::new(i11_flushed_is_on_disk::FlushedIsOnDisk),
    ]
}
