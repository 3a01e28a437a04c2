//! I12: committed offsets fall only by reset or deletion. An older commit undoes no newer one, what
//! was acknowledged stays, and a read at the coordinator tells at least what had been acknowledged
//! when it was asked for. Somebody outside commits only where the group has no members.
//!
//! Not verified: the epochs, times and metadata beside offsets, members that go back on purpose, and
//! expiry.

use std::collections::{BTreeMap, BTreeSet};

use quorate_metadata::{Command, GroupCommit, MetadataImage, OffsetToCommit, Offsets};
use quorate_types::{GroupId, TopicPartition};

use super::{Entry, Found};

const NAME: &str = "I12 committed offsets";

/// What was acknowledged.
#[derive(Default)]
pub(in crate::sim) struct CommittedOffsets {
    acknowledged: BTreeMap<(GroupId, TopicPartition), u64>,
    /// Set anew, once at least: an acknowledgement of before may come late.
    reset: BTreeSet<(GroupId, TopicPartition)>,
}

impl CommittedOffsets {
    /// What is committed at least.
    pub(in crate::sim) fn acknowledged(&self, group: &GroupId, id: &TopicPartition) -> u64 {
        let known = self.acknowledged.get(&(group.clone(), *id));
        known.copied().unwrap_or_default()
    }

    /// A commit was called taken.
    ///
    /// # Errors
    /// Less than that is committed.
    pub(in crate::sim) fn acknowledge(
        &mut self,
        commit: &GroupCommit,
        item: &OffsetToCommit,
        image: &MetadataImage,
    ) -> Result<(), Found> {
        let place = (commit.group.clone(), item.partition);
        let gone =
            image.partition(&item.partition).is_none() || image.group(&commit.group).is_none();
        let Some(offset) = item
            .offset
            .filter(|_| !gone && !self.reset.contains(&place))
        else {
            return Ok(());
        };
        let committed = image.offsets(&commit.group);
        let committed = committed.get(&item.partition).map(|of| of.offset);
        if commit.by.is_some() && committed < Some(offset) {
            let why = format!("{NAME}: {offset} is acknowledged, committed is {committed:?}");
            return Err((Some(item.partition), why));
        }
        let known = self.acknowledged.entry(place).or_default();
        *known = (*known).max(offset.get());
        Ok(())
    }

    /// An entry is applied.
    ///
    /// # Errors
    /// An offset that falls, and must not.
    pub(in crate::sim) fn follow(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        let concerned = match &entry.envelope.commands[..] {
            [Command::AlterGroups { changes }] => changes.iter().map(|of| &of.group).collect(),
            [Command::CommitOffsets { commits }] => commits.iter().map(|of| &of.group).collect(),
            // Topics go with what is committed of them.
            [Command::DeleteTopic { topic_id }] => {
                self.acknowledged
                    .retain(|(_, id), _| id.topic_id != *topic_id);
                BTreeSet::new()
            }
            _ => BTreeSet::new(),
        };
        if let [Command::CommitOffsets { commits }] = &entry.envelope.commands[..] {
            self.set_twice(commits);
        }
        for id in concerned {
            let (before, after) = (entry.before.offsets(id), entry.after.offsets(id));
            self.look(entry, id, &before, &after)?;
        }
        Ok(())
    }

    /// What one entry sets more than once from outside: the first is acknowledged, and gone already.
    fn set_twice(&mut self, commits: &[GroupCommit]) {
        let mut set = BTreeSet::new();
        for commit in commits.iter().filter(|of| of.by.is_none()) {
            for item in &commit.offsets {
                let place = (commit.group.clone(), item.partition);
                if !set.insert(place.clone()) {
                    self.acknowledged.remove(&place);
                    self.reset.insert(place);
                }
            }
        }
    }

    fn look(
        &mut self,
        entry: &Entry<'_>,
        id: &GroupId,
        before: &Offsets,
        after: &Offsets,
    ) -> Result<(), Found> {
        let deleted = entry.after.group(id).is_none();
        let had_members = entry
            .before
            .group(id)
            .is_some_and(|group| !group.members.is_empty());
        for (partition, committed) in before {
            let now = after.get(partition);
            if now.is_some_and(|now| now.offset >= committed.offset) {
                continue;
            }
            if !deleted && (had_members || !is_reset(entry, id, partition)) {
                let was = committed.offset;
                let why = format!("{NAME}: {id} falls from {was} to {now:?}");
                return Err((Some(*partition), why));
            }
            let place = (id.clone(), *partition);
            self.acknowledged.remove(&place);
            self.reset.insert(place);
        }
        Ok(())
    }

    /// What a read must not tell.
    pub(in crate::sim) fn too_low(
        &self,
        group: &GroupId,
        asked: &BTreeMap<TopicPartition, u64>,
        told: &BTreeMap<TopicPartition, u64>,
    ) -> Option<(TopicPartition, String)> {
        let low = asked.iter().find(|(id, floor)| {
            let known = self.acknowledged.contains_key(&(group.clone(), **id));
            let reset = self.reset.contains(&(group.clone(), **id));
            known && !reset && told.get(id).copied().unwrap_or_default() < **floor
        });
        low.map(|(id, floor)| {
            let why = format!(
                "{NAME}: {floor} was acknowledged, a read tells {:?}",
                told.get(id)
            );
            (*id, why)
        })
    }
}

fn is_reset(entry: &Entry<'_>, id: &GroupId, partition: &TopicPartition) -> bool {
    let [Command::CommitOffsets { commits }] = &entry.envelope.commands[..] else {
        return false;
    };
    let outside = commits
        .iter()
        .filter(|of| of.group == *id && of.by.is_none());
    outside
        .flat_map(|of| &of.offsets)
        .any(|item| item.partition == *partition)
}
