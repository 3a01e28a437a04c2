//! Groups in the image: who their members are, what each owns, and the offsets that they committed.
//!
//! Invariant: a partition has one owner in a group, at most. `owners` and the members' own lists say
//! the same; only [`Group::alter`] and [`Group::forget_topic`] change them, and both raise the epoch.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use quorate_types::{
    Assignor, CommitSeq, CoordinatorEpoch, GroupEpoch, GroupId, GroupShard, InstanceId,
    LeaderEpoch, MemberId, NodeId, Offset, RaftIndex, Timestamp, TopicId, TopicName,
    TopicPartition,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::image::MetadataImage;

/// Shares that groups fall into, by the hash of their ids; a fixed number.
pub const GROUP_SHARDS: u32 = 64;

/// The share that a group falls into.
pub fn group_shard(group: &GroupId) -> GroupShard {
    let hash = xxh3_64(group.as_str().as_bytes());
    GroupShard::new((hash % u64::from(GROUP_SHARDS)) as u32)
}

/// Which of the nodes a shard falls to: rendezvous hashing, so that one that comes or goes moves its
/// own shards only.
pub(crate) fn coordinator_among(
    shard: GroupShard,
    nodes: impl Iterator<Item = NodeId>,
) -> Option<NodeId> {
    let weight = |node: &NodeId| {
        xxh3_64_with_seed(&node.get().to_be_bytes(), u64::from(shard.get()) << 1 | 1)
    };
    nodes.max_by_key(|node| (weight(node), *node))
}

/// Who coordinates the groups of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// None: no broker is active.
    pub coordinator: Option<NodeId>,
    /// Bumped whenever it changes.
    pub epoch: CoordinatorEpoch,
}

/// A partition in a member's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    /// The epoch at which the member got it: commits of an older one do not count (KIP-1251).
    pub since: GroupEpoch,
    /// The member is to give it up, and has not said yet that it did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoking: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberProfile {
    /// What it is known by over its restarts (KIP-345).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What its program calls itself; shown only.
    pub client_id: String,
    /// Where it is; shown only.
    pub client_host: String,
    /// The topics that it reads, existing or not.
    pub topics: BTreeSet<TopicName>,
    /// A heartbeat must come so often, in milliseconds.
    pub session_timeout_ms: u32,
    /// What is to be given up must be given up within so many milliseconds.
    pub rebalance_timeout_ms: u32,
    /// The assignor that it wishes for.
    pub assignor: Assignor,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The group's epoch at the last change that concerned this member.
    pub epoch: GroupEpoch,
    /// What it says of itself.
    pub profile: MemberProfile,
    /// What it owns, with what it is still to give up.
    pub owned: OrdMap<TopicPartition, Owned>,
}

impl Member {
    /// What it may read: what it owns and is not to give up.
    pub fn assigned(&self) -> impl Iterator<Item = TopicPartition> {
        let owned = self.owned.iter().filter(|(_, owned)| !owned.revoking);
        owned.map(|(partition, _)| *partition)
    }

    /// What it is to give up and has not given up yet.
    pub fn revoking(&self) -> impl Iterator<Item = TopicPartition> {
        let owned = self.owned.iter().filter(|(_, owned)| owned.revoking);
        owned.map(|(partition, _)| *partition)
    }
}

/// A group as somebody saw it: one that was deleted and made anew is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupVersion {
    /// The entry that made it.
    pub born: RaftIndex,
    /// How often it has changed since.
    pub epoch: GroupEpoch,
}

/// A consumer group's members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// The entry that made it.
    pub born: RaftIndex,
    /// Bumped on every change of what is here.
    pub epoch: GroupEpoch,
    /// Its members.
    pub members: OrdMap<MemberId, Arc<Member>>,
    /// Who owns what.
    pub owners: OrdMap<TopicPartition, MemberId>,
    /// Since when it has had no members, by a proposer's clock; none while it has.
    pub empty_since: Option<Timestamp>,
}

/// The offset up to which a group has read a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommittedOffset {
    /// The next to be read.
    pub offset: Offset,
    /// The epoch of the record before it, as its reader saw it (KIP-320).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
    /// What the reader keeps beside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// When, by the proposer's clock.
    pub time: Timestamp,
    /// By whom, in the order of ownership, and in which order of its own: what is not newer changes
    /// nothing. None where the reader did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<(GroupEpoch, CommitSeq)>,
}

/// The offsets of one group.
pub type Offsets = OrdMap<TopicPartition, CommittedOffset>;

impl Group {
    /// What a change must have seen of it to be applied.
    pub fn version(&self) -> GroupVersion {
        GroupVersion {
            born: self.born,
            epoch: self.epoch,
        }
    }

    /// Changes a member, which then is at the epoch that is given.
    pub(crate) fn touch(&mut self, id: &MemberId, epoch: GroupEpoch) -> Option<&mut Member> {
        let member = Arc::make_mut(self.members.get_mut(id)?);
        member.epoch = epoch;
        Some(member)
    }

    /// Takes a deleted topic's partitions from their owners; says whether there were any.
    pub(crate) fn forget_topic(&mut self, topic: TopicId) -> bool {
        let owned = self.owners.iter().filter(|(id, _)| id.topic_id == topic);
        let owned: Vec<(TopicPartition, MemberId)> = owned
            .map(|(partition, owner)| (*partition, owner.clone()))
            .collect();
        if owned.is_empty() {
            return false;
        }
        // With its epochs used up it can only be deleted.
        self.epoch = self.epoch.checked_next().unwrap_or(self.epoch);
        let epoch = self.epoch;
        for (partition, owner) in owned {
            self.owners.remove(&partition);
            if let Some(member) = self.touch(&owner, epoch) {
                member.owned.remove(&partition);
            }
        }
        true
    }
}

impl MetadataImage {
    /// All groups.
    pub fn groups(&self) -> &OrdMap<GroupId, Arc<Group>> {
        &self.groups
    }

    /// One group.
    pub fn group(&self, id: &GroupId) -> Option<&Arc<Group>> {
        self.groups.get(id)
    }

    /// What a group has committed; empty where it has nothing, or does not exist.
    pub fn offsets(&self, id: &GroupId) -> Offsets {
        self.offsets.get(id).cloned().unwrap_or_default()
    }

    /// Who coordinates a shard.
    pub fn shard(&self, shard: GroupShard) -> Shard {
        self.shards.get(&shard).copied().unwrap_or_default()
    }

    /// Who coordinates a group.
    pub fn coordinator(&self, group: &GroupId) -> Shard {
        self.shard(group_shard(group))
    }
}

/// A group as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredGroup {
    id: GroupId,
    born: RaftIndex,
    epoch: GroupEpoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    empty_since: Option<Timestamp>,
    members: Vec<StoredMember>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMember {
    id: MemberId,
    epoch: GroupEpoch,
    profile: MemberProfile,
    owned: Vec<(TopicPartition, Owned)>,
}

pub(crate) fn store_groups(groups: &OrdMap<GroupId, Arc<Group>>) -> Vec<StoredGroup> {
    let member = |(id, member): (&MemberId, &Arc<Member>)| StoredMember {
        id: id.clone(),
        epoch: member.epoch,
        profile: member.profile.clone(),
        owned: member.owned.iter().map(|(at, how)| (*at, *how)).collect(),
    };
    let group = |(id, group): (&GroupId, &Arc<Group>)| StoredGroup {
        id: id.clone(),
        born: group.born,
        epoch: group.epoch,
        empty_since: group.empty_since,
        members: group.members.iter().map(member).collect(),
    };
    groups.iter().map(group).collect()
}

pub(crate) fn load_groups(stored: Vec<StoredGroup>) -> OrdMap<GroupId, Arc<Group>> {
    let group = |stored: StoredGroup| {
        let mut group = Group {
            born: stored.born,
            epoch: stored.epoch,
            empty_since: stored.empty_since,
            ..Group::default()
        };
        for member in stored.members {
            for (partition, _) in &member.owned {
                group.owners.insert(*partition, member.id.clone());
            }
            let loaded = Member {
                epoch: member.epoch,
                profile: member.profile,
                owned: member.owned.into_iter().collect(),
            };
            group.members.insert(member.id, Arc::new(loaded));
        }
        (stored.id, Arc::new(group))
    };
    stored.into_iter().map(group).collect()
}

/// Offsets as they are stored.
pub(crate) type StoredOffsets = Vec<(GroupId, Vec<(TopicPartition, CommittedOffset)>)>;

pub(crate) fn store_offsets(offsets: &OrdMap<GroupId, Offsets>) -> StoredOffsets {
    let of = |(id, offsets): (&GroupId, &Offsets)| {
        let each = offsets.iter().map(|(at, offset)| (*at, offset.clone()));
        (id.clone(), each.collect())
    };
    offsets.iter().map(of).collect()
}

pub(crate) fn load_offsets(stored: StoredOffsets) -> OrdMap<GroupId, Offsets> {
    let of = |(id, offsets): (GroupId, Vec<(TopicPartition, CommittedOffset)>)| {
        (id, offsets.into_iter().collect::<Offsets>())
    };
    stored.into_iter().map(of).collect()
}
