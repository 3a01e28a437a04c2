//! Groups change, and offsets are committed. Every item of a coalesced command is judged by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_types::{
    CoordinatorEpoch, ErrorCode, GroupEpoch, GroupId, GroupShard, MemberId, TopicId, TopicPartition,
};

use crate::apply::Change;
use crate::command::Outcome;
use crate::group::{
    CommittedOffset, GROUP_SHARDS, Group, Member, Offsets, Owned, Shard, coordinator_among,
};
use crate::group_command::{
    AlterGroup, Committer, GroupCommit, MemberChange, OffsetToCommit, RefusedItem,
};
use crate::image::BrokerState;

/// A group with epochs from here on leaves the others theirs: half of them all.
const LASTING: GroupEpoch = GroupEpoch::new(1 << 31);

impl Change<'_> {
    /// Gives every shard to the active broker that it falls to. A coordinator that is no more active,
    /// or not the same life any more, is none: the epoch rises.
    pub(crate) fn place_shards(&mut self) {
        let brokers = self.image.brokers.values();
        let active = brokers.filter(|broker| broker.state == BrokerState::Active);
        let active: Vec<_> = active.map(|broker| broker.node).collect();
        for shard in (0..GROUP_SHARDS).map(GroupShard::new) {
            let known = self.image.shard(shard);
            let coordinator = coordinator_among(shard, active.iter().copied());
            if coordinator != known.coordinator {
                let epoch = known.epoch.next();
                let shards = &mut self.image.shards;
                shards.insert(shard, Shard { coordinator, epoch });
            }
        }
    }

    fn coordinates(&self, group: &GroupId, epoch: CoordinatorEpoch) -> Result<(), ErrorCode> {
        if self.image.coordinator(group).epoch == epoch || self.planted.any_coordinator_epoch {
            Ok(())
        } else {
            Err(ErrorCode::NotCoordinator)
        }
    }

    pub(crate) fn alter_groups(&mut self, changes: &[AlterGroup]) -> Outcome {
        let mut refused = Vec::new();
        for (group, alter) in (0..).zip(changes) {
            if let Err(code) = self.alter_group(alter) {
                let item = 0;
                refused.push(RefusedItem { group, item, code });
            }
        }
        Outcome::Judged { refused }
    }

    fn alter_group(&mut self, alter: &AlterGroup) -> Result<(), ErrorCode> {
        self.coordinates(&alter.group, alter.coordinator_epoch)?;
        let known = self.image.groups.get(&alter.group);
        let mut is_seen = known.map(|group| group.version()) == alter.version;
        is_seen |= alter.delete && known.is_some() && self.planted.any_group_version;
        if !is_seen {
            return Err(match alter.version {
                Some(_) if known.is_none() => ErrorCode::GroupIdNotFound,
                _ => ErrorCode::StaleGroupEpoch,
            });
        }
        let mut group = known.map_or_else(|| self.new_group(), |known| Group::clone(known));
        if !alter.delete {
            raise(&mut group)?;
        }
        for member in &alter.gone {
            release_all(&mut group, member)?;
        }
        // What somebody gives up another may get in the same change.
        for change in &alter.members {
            self.enter(&mut group, change)?;
            release(&mut group, change)?;
        }
        for change in &alter.members {
            revoke(&mut group, change)?;
            self.assign(&mut group, change)?;
        }
        if !group.members.is_empty() {
            group.empty_since = None;
        } else if group.empty_since.is_none() {
            group.empty_since = Some(self.time);
        }
        if alter.delete {
            if !group.members.is_empty() {
                return Err(ErrorCode::NonEmptyGroup);
            }
            self.image.groups.remove(&alter.group);
            self.image.offsets.remove(&alter.group);
            if group.epoch < LASTING {
                let former = &mut self.image.former_epochs;
                *former = group.epoch.max(*former);
            }
        } else {
            let group = Arc::new(group);
            self.image.groups.insert(alter.group.clone(), group);
        }
        Ok(())
    }

    /// Its epochs begin above those of groups that were deleted: a commit of before, that comes late when
    /// its member has joined again under its id, is of an older epoch than what the member has now.
    fn new_group(&self) -> Group {
        Group {
            born: self.at.index,
            epoch: self.image.former_epochs,
            ..Group::default()
        }
    }

    fn enter(&self, group: &mut Group, change: &MemberChange) -> Result<(), ErrorCode> {
        let epoch = group.epoch;
        if let Some(member) = group.touch(&change.member, epoch) {
            if let Some(profile) = &change.profile {
                member.profile = profile.clone();
            }
        } else {
            let profile = change.profile.clone();
            let member = Member {
                epoch,
                profile: profile.ok_or(ErrorCode::UnknownMemberId)?,
                owned: Default::default(),
            };
            let members = &mut group.members;
            members.insert(change.member.clone(), Arc::new(member));
        }
        Ok(())
    }

    fn assign(&self, group: &mut Group, change: &MemberChange) -> Result<(), ErrorCode> {
        for partition in &change.assign {
            if self.image.partition(partition).is_none() {
                return Err(ErrorCode::UnknownTopicOrPartition);
            }
            let since = match group.owners.get(partition) {
                // Not to be given up after all: it has been the member's all the time.
                Some(owner) if *owner == change.member => None,
                Some(_) if !self.planted.assign_before_release => {
                    return Err(ErrorCode::InvalidRequest);
                }
                _ => Some(group.epoch),
            };
            let owners = &mut group.owners;
            owners.insert(*partition, change.member.clone());
            let member = group.touch(&change.member, group.epoch);
            let member = member.ok_or(ErrorCode::UnknownMemberId)?;
            let known = member.owned.get(partition).map(|owned| owned.since);
            let Some(since) = since.or(known) else {
                return Err(ErrorCode::InvalidRequest);
            };
            let owned = Owned {
                since,
                revoking: false,
            };
            member.owned.insert(*partition, owned);
        }
        Ok(())
    }

    pub(crate) fn commit_offsets(&mut self, commits: &[GroupCommit]) -> Outcome {
        let mut refused = Vec::new();
        for (group, commit) in (0..).zip(commits) {
            let mut refuse = |item, code| refused.push(RefusedItem { group, item, code });
            match self.committer(commit) {
                Err(code) => {
                    let items = commit.offsets.len() as u32;
                    (0..items).for_each(|item| refuse(item, code));
                }
                Ok(member) => {
                    let mut offsets = self.image.offsets(&commit.group);
                    for (item, offset) in (0..).zip(&commit.offsets) {
                        let by = commit.by.as_ref().zip(member.as_deref());
                        if let Err(code) = self.commit(&mut offsets, by, offset) {
                            refuse(item, code);
                        }
                    }
                    if !offsets.is_empty() {
                        let all = &mut self.image.offsets;
                        all.insert(commit.group.clone(), offsets);
                    } else {
                        self.image.offsets.remove(&commit.group);
                    }
                }
            }
        }
        Outcome::Judged { refused }
    }

    /// The member that commits; none: somebody outside, for a group without members, which exists
    /// from then on.
    fn committer(&mut self, commit: &GroupCommit) -> Result<Option<Arc<Member>>, ErrorCode> {
        self.coordinates(&commit.group, commit.coordinator_epoch)?;
        let group = self.image.groups.get(&commit.group);
        let Some(by) = &commit.by else {
            let mut group = group.map_or_else(|| self.new_group(), |group| Group::clone(group));
            if !group.members.is_empty() {
                return Err(ErrorCode::NonEmptyGroup);
            }
            // Its offsets are kept for some time after the last that came: whoever proposed that it goes had
            // not seen them.
            raise(&mut group)?;
            group.empty_since = Some(self.time);
            let group = Arc::new(group);
            self.image.groups.insert(commit.group.clone(), group);
            return Ok(None);
        };
        let group = group.ok_or(ErrorCode::GroupIdNotFound)?;
        let member = group.members.get(&by.member);
        let member = member.ok_or(ErrorCode::UnknownMemberId)?;
        if by.epoch > member.epoch {
            return Err(ErrorCode::FencedMemberEpoch);
        }
        Ok(Some(Arc::clone(member)))
    }

    fn commit(
        &self,
        offsets: &mut Offsets,
        by: Option<(&Committer, &Member)>,
        commit: &OffsetToCommit,
    ) -> Result<(), ErrorCode> {
        let partition = commit.partition;
        if self.image.partition(&partition).is_none() {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        let mut order = None;
        if let Some((by, member)) = by {
            // With it would go the order of its commits.
            if commit.offset.is_none() {
                return Err(ErrorCode::InvalidRequest);
            }
            let owned = member.owned.get(&partition);
            let owned = owned.ok_or(ErrorCode::PartitionNotOwned)?;
            if by.epoch < owned.since && !self.planted.any_member_epoch {
                return Err(ErrorCode::StaleMemberEpoch);
            }
            order = by.seq.map(|seq| (owned.since, seq));
            let last = offsets.get(&partition).and_then(|known| known.by);
            // Overtaken by a newer one of the same member, or a repeat.
            let old = order.is_some_and(|order| last.is_some_and(|last| order <= last));
            if old && !self.planted.any_commit_order {
                return Ok(());
            }
        }
        let Some(offset) = commit.offset else {
            offsets.remove(&partition);
            return Ok(());
        };
        let committed = CommittedOffset {
            offset,
            leader_epoch: commit.leader_epoch,
            metadata: commit.metadata.clone(),
            time: self.time,
            by: order,
        };
        offsets.insert(partition, committed);
        Ok(())
    }

    /// A topic is gone: nobody owns its partitions, and nothing of them is committed.
    pub(crate) fn forget_in_groups(&mut self, topic: TopicId) {
        let owning = self.image.groups.iter().filter(|(_, group)| {
            let mut owned = group.owners.keys();
            owned.any(|partition| partition.topic_id == topic)
        });
        let owning: Vec<GroupId> = owning.map(|(id, _)| id.clone()).collect();
        for id in owning {
            if let Some(group) = self.image.groups.get_mut(&id) {
                Arc::make_mut(group).forget_topic(topic);
            }
        }
        let gone = |offsets: &Offsets| -> Vec<TopicPartition> {
            let gone = offsets.keys().filter(|at| at.topic_id == topic);
            gone.copied().collect()
        };
        let concerned = self.image.offsets.iter();
        let concerned: Vec<(GroupId, Vec<TopicPartition>)> = concerned
            .map(|(id, offsets)| (id.clone(), gone(offsets)))
            .filter(|(_, gone)| !gone.is_empty())
            .collect();
        for (id, gone) in concerned {
            let Some(offsets) = self.image.offsets.get_mut(&id) else {
                continue;
            };
            for partition in gone {
                offsets.remove(&partition);
            }
            if offsets.is_empty() {
                self.image.offsets.remove(&id);
            }
        }
    }
}

/// # Errors
/// `INVALID_REQUEST` where the epochs are used up: the group can only be deleted.
fn raise(group: &mut Group) -> Result<(), ErrorCode> {
    let next = group.epoch.checked_next();
    group.epoch = next.ok_or(ErrorCode::InvalidRequest)?;
    Ok(())
}

fn release_all(group: &mut Group, id: &MemberId) -> Result<(), ErrorCode> {
    let member = group.members.remove(id);
    let member = member.ok_or(ErrorCode::UnknownMemberId)?;
    for partition in member.owned.keys() {
        group.owners.remove(partition);
    }
    Ok(())
}

fn release(group: &mut Group, change: &MemberChange) -> Result<(), ErrorCode> {
    for partition in &change.release {
        if group.owners.get(partition) != Some(&change.member) {
            return Err(ErrorCode::PartitionNotOwned);
        }
        group.owners.remove(partition);
        if let Some(member) = group.touch(&change.member, group.epoch) {
            member.owned.remove(partition);
        }
    }
    Ok(())
}

fn revoke(group: &mut Group, change: &MemberChange) -> Result<(), ErrorCode> {
    let epoch: GroupEpoch = group.epoch;
    let wanted: BTreeSet<&TopicPartition> = change.revoke.iter().collect();
    for partition in wanted {
        let member = group.touch(&change.member, epoch);
        let owned = member.and_then(|member| member.owned.get_mut(partition));
        owned.ok_or(ErrorCode::PartitionNotOwned)?.revoking = true;
    }
    Ok(())
}
