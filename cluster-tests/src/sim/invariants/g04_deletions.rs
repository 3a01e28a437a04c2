//! Deletions: a group goes only without members, and only as its coordinator saw it when it proposed
//! that. Who joined since then, and what was committed, stays, be it in another group of that name.
//!
//! Not verified: that a group goes that nobody touches, and expiry, which proposes the same.

use std::collections::{BTreeMap, BTreeSet};

use quorate_metadata::{AlterGroup, Command, Outcome};
use quorate_types::GroupId;

use super::{Entry, Found};

const NAME: &str = "deletions of groups";

/// Deletions that were proposed.
#[derive(Default)]
pub(in crate::sim) struct Deletions {
    /// With the index of the newest entry that the proposer had seen.
    proposed: Vec<(AlterGroup, u64)>,
    /// The entry that changed a group last.
    changed: BTreeMap<GroupId, u64>,
}

impl Deletions {
    /// Somebody who has seen so much proposes this.
    pub(in crate::sim) fn propose(&mut self, change: &AlterGroup, seen: u64) {
        if change.delete {
            self.proposed.push((change.clone(), seen));
        }
    }

    /// An entry is applied; gives how many groups it deleted.
    ///
    /// # Errors
    /// One that must not go.
    pub(in crate::sim) fn follow(&mut self, entry: &Entry<'_>) -> Result<u64, Found> {
        if entry.repeat {
            return Ok(0);
        }
        let (mut deleted, index) = (0, entry.at.index.get());
        match &entry.envelope.commands[..] {
            [Command::AlterGroups { changes }] => {
                let applied = (0..)
                    .zip(changes)
                    .filter(|(at, _)| !is_refused(entry, *at, 1));
                let mut seen = BTreeSet::new();
                for (_, change) in applied {
                    let is_first = seen.insert(&change.group);
                    if !change.delete {
                        self.changed.insert(change.group.clone(), index);
                        continue;
                    }
                    deleted += 1;
                    let before = entry.before.group(&change.group).filter(|_| is_first);
                    if before.is_some_and(|group| !group.members.is_empty()) {
                        let why = format!("{NAME}: {} goes with members", change.group);
                        return Err((None, why));
                    }
                    self.goes(change).map_err(|why| (None, why))?;
                }
            }
            [Command::CommitOffsets { commits }] => {
                for (at, commit) in (0..).zip(commits) {
                    if !is_refused(entry, at, commit.offsets.len()) {
                        self.changed.insert(commit.group.clone(), index);
                    }
                }
            }
            _ => {}
        }
        Ok(deleted)
    }

    fn goes(&self, change: &AlterGroup) -> Result<(), String> {
        let mut proposed = self.proposed.iter().rev();
        let seen = proposed.find(|(of, _)| of == change).map(|(_, seen)| *seen);
        let changed = self.changed.get(&change.group).copied();
        if seen.is_none() || seen < changed {
            let id = &change.group;
            return Err(format!(
                "{NAME}: {id} goes by what was seen at {seen:?}, and changed at {changed:?}"
            ));
        }
        Ok(())
    }
}

/// Whether all of so many items of one of a command's groups were refused.
fn is_refused(entry: &Entry<'_>, group: u32, items: usize) -> bool {
    match entry.outcome {
        Outcome::Judged { refused } => {
            refused.iter().filter(|of| of.group == group).count() >= items
        }
        _ => true,
    }
}
