//! R8 and what a registration must be like after every entry: ISR and ELR are disjoint, the ELR is
//! empty where the ISR is large enough, the leader is in the ISR, epochs do not fall, and the ISR is
//! emptied only by a registration that tells of a loss (R9).
//!
//! Not verified: who is chosen where several may lead.

use std::sync::Arc;

use quorate_metadata::{Command, RegisterBroker, Registration};
use quorate_types::TopicPartition;

use super::{Entry, EntryChecker, Found};

pub(super) struct RegistrationIsSound;

impl EntryChecker for RegistrationIsSound {
    fn name(&self) -> &'static str {
        "R8 the ISR and the ELR"
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        for (id, after) in entry.after.partitions() {
            let before = entry.before.partition(id);
            if before.is_some_and(|before| Arc::ptr_eq(before, after)) {
                continue;
            }
            let minimum = entry
                .after
                .topic(id.topic_id)
                .map_or(0, |topic| after.effective_min_isr(&topic.settings));
            let wrong = if after.isr.iter().any(|node| after.elr.contains(node)) {
                Some("a node is in the ISR and in the ELR")
            } else if after.isr.len() >= minimum && !after.elr.is_empty() {
                Some("the ISR is large enough, the ELR is not empty")
            } else if after
                .leader
                .is_some_and(|leader| !after.isr.contains(&leader))
            {
                Some("the leader is not in the ISR")
            } else if before.is_some_and(|before| {
                before.leader_epoch > after.leader_epoch
                    || before.partition_epoch >= after.partition_epoch
            }) {
                Some("an epoch does not rise")
            } else if before.is_some_and(|before| was_emptied(entry, *id, before, after)) {
                Some("the last member left the ISR without a loss")
            } else {
                None
            };
            if let Some(wrong) = wrong {
                return Err((Some(*id), format!("{wrong}: {after:?}")));
            }
        }
        Ok(())
    }
}

fn was_emptied(
    entry: &Entry<'_>,
    id: TopicPartition,
    before: &Registration,
    after: &Registration,
) -> bool {
    let emptied = after.isr.is_empty() && !before.isr.is_empty();
    let tells_of_loss = |command: &Command| match command {
        Command::RegisterBroker(register) => has_lost(entry, id, before, register),
        _ => false,
    };
    emptied && !entry.envelope.commands.iter().any(tells_of_loss)
}

/// Whether a registration says that its node may have lost something of the partition.
fn has_lost(
    entry: &Entry<'_>,
    id: TopicPartition,
    before: &Registration,
    register: &RegisterBroker,
) -> bool {
    let Some(known) = entry.before.broker(register.node) else {
        return false;
    };
    let cache_lost = register.boot != known.boot && register.clean_epoch != Some(known.epoch);
    register.directory != known.directory
        || register.damaged.iter().any(|of| of.partition == id)
        || cache_lost && !before.fsync_established
}
