//! Single ownership: at no simulated time do two live members of a group own the same partition. A
//! member owns what it took from an answer and has not given up yet, as long as its session holds by
//! its own clock, counted from when it sent the last heartbeat that was answered; so does a program
//! that sleeps. And in the image a partition is in one member's list at most, its owner's.
//!
//! Not verified: programs that go on reading when their session is over, and clocks that run apart by
//! more than the members' margin.

use std::sync::Arc;

use quorate_types::TopicPartition;

use super::{Entry, EntryChecker, Found};
use crate::sim::groups::Seat;

const NAME: &str = "single ownership";

/// Looks at what a member has just taken.
///
/// # Errors
/// Another that owns it, too.
pub(in crate::sim) fn check(
    seats: &[Seat],
    taker: usize,
    new: &[TopicPartition],
    now: std::time::Duration,
) -> Result<(), (TopicPartition, String)> {
    let me = &seats[taker];
    for partition in new.iter().filter(|id| me.owns_one(now, id)) {
        let others = seats.iter().enumerate();
        let mut others = others.filter(|(seat, of)| *seat != taker && of.group == me.group);
        if let Some((_, other)) = others.find(|(_, of)| of.owns_one(now, partition)) {
            let why = format!("{NAME}: {} takes what {} owns", me.id, other.id);
            return Err((*partition, why));
        }
    }
    Ok(())
}

/// The same in the image.
pub(super) struct OneOwner;

impl EntryChecker for OneOwner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        if entry.before.groups().ptr_eq(entry.after.groups()) {
            return Ok(());
        }
        for (id, group) in entry.after.groups() {
            let before = entry.before.group(id);
            if before.is_some_and(|before| Arc::ptr_eq(before, group)) {
                continue;
            }
            let mut listed = 0;
            for (name, member) in &group.members {
                for partition in member.owned.keys() {
                    listed += 1;
                    if group.owners.get(partition) != Some(name) {
                        let why = format!("{name} has what {:?} owns", group.owners.get(partition));
                        return Err((Some(*partition), why));
                    }
                }
            }
            if listed != group.owners.len() {
                let why = format!("{id}: owners without a member: {:?}", group.owners);
                return Err((None, why));
            }
        }
        Ok(())
    }
}
