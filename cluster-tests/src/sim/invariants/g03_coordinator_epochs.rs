//! Coordinator epochs: what is proposed about a group at another epoch than the one it is coordinated
//! at when that is applied is refused and changes nothing; so an isolated former coordinator changes
//! nothing. The epoch of a shard rises with each change of its coordinator, and never falls.
//!
//! Not verified: who is chosen, and that it lives.

use quorate_metadata::{Command, GROUP_SHARDS, Outcome};
use quorate_types::{CoordinatorEpoch, GroupId, GroupShard};

use super::{Entry, EntryChecker, Found};

pub(super) struct CoordinatorEpochs;

impl EntryChecker for CoordinatorEpochs {
    fn name(&self) -> &'static str {
        "coordinator epochs"
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        let items: Vec<(&GroupId, CoordinatorEpoch)> = match &entry.envelope.commands[..] {
            [Command::AlterGroups { changes }] => {
                let item = changes.iter();
                item.map(|of| (&of.group, of.coordinator_epoch)).collect()
            }
            [Command::CommitOffsets { commits }] => {
                let item = commits.iter();
                item.map(|of| (&of.group, of.coordinator_epoch)).collect()
            }
            _ => return shards_are_sound(entry).map_err(|why| (None, why)),
        };
        if entry.repeat {
            return Ok(());
        }
        for (number, (id, epoch)) in (0..).zip(&items) {
            let present = entry.before.coordinator(id).epoch;
            let refused = match entry.outcome {
                Outcome::Refused(_) => true,
                Outcome::Judged { refused } => refused.iter().any(|of| of.group == number),
                _ => false,
            };
            if *epoch != present && !refused {
                let why = format!("{id}: taken at epoch {epoch}, it is coordinated at {present}");
                return Err((None, why));
            }
            let fenced = items
                .iter()
                .all(|(of, epoch)| of != id || *epoch != present);
            let same = entry.before.group(id) == entry.after.group(id)
                && entry.before.offsets(id) == entry.after.offsets(id);
            if fenced && !same {
                return Err((None, format!("{id}: changed by a former coordinator")));
            }
        }
        Ok(())
    }
}

fn shards_are_sound(entry: &Entry<'_>) -> Result<(), String> {
    for shard in (0..GROUP_SHARDS).map(GroupShard::new) {
        let (before, after) = (entry.before.shard(shard), entry.after.shard(shard));
        let moved = before.coordinator != after.coordinator;
        if before.epoch > after.epoch || moved && before.epoch == after.epoch {
            return Err(format!("shard {shard}: {after:?} after {before:?}"));
        }
    }
    Ok(())
}
