//! What is proposed about groups. Many are coalesced into one command, and each is judged by itself:
//! the outcome names those that were refused.

use quorate_types::{
    CommitSeq, CoordinatorEpoch, ErrorCode, GroupEpoch, GroupId, LeaderEpoch, MemberId, Offset,
    TopicPartition,
};
use serde::{Deserialize, Serialize};

use crate::command::code_by_name;
use crate::group::{GroupVersion, MemberProfile};

/// A change of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberChange {
    /// Which member.
    pub member: MemberId,
    /// What it says of itself; needed of a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<MemberProfile>,
    /// Given up by it: free from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub release: Vec<TopicPartition>,
    /// To be given up by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoke: Vec<TopicPartition>,
    /// Its from now on: free ones, or its own that it was to give up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assign: Vec<TopicPartition>,
}

impl MemberChange {
    /// One that changes nothing yet.
    pub fn of(member: MemberId) -> Self {
        Self {
            member,
            profile: None,
            release: Vec::new(),
            revoke: Vec::new(),
            assign: Vec::new(),
        }
    }
}

/// A change of one group, by its coordinator: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlterGroup {
    /// Which group.
    pub group: GroupId,
    /// The epoch that the proposer coordinates at.
    pub coordinator_epoch: CoordinatorEpoch,
    /// The group as the proposer saw it; none: it does not exist.
    pub version: Option<GroupVersion>,
    /// Members that are no more; what they own is free.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<MemberId>,
    /// Members that are new, or change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberChange>,
    /// The group goes, with its offsets, where no member is left then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
}

/// An offset to commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffsetToCommit {
    /// Of which partition.
    pub partition: TopicPartition,
    /// The next to be read; none: what is committed is taken back.
    pub offset: Option<Offset>,
    /// The epoch of the record before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
    /// What the reader keeps beside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
}

/// The member that commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committer {
    /// Its id.
    pub member: MemberId,
    /// Its epoch as it knows it.
    pub epoch: GroupEpoch,
    /// Rises with each of its commits; none where it does not count them (Kafka's clients).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<CommitSeq>,
}

/// What one member commits at a time. Each item is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCommit {
    /// Of which group.
    pub group: GroupId,
    /// The epoch that the proposer coordinates at.
    pub coordinator_epoch: CoordinatorEpoch,
    /// Who commits; none: somebody outside, for a group without members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Committer>,
    /// What.
    pub offsets: Vec<OffsetToCommit>,
}

/// One of many that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedItem {
    /// Which of the command's groups, from 0.
    pub group: u32,
    /// Which of its items, from 0; 0 where it has none.
    pub item: u32,
    /// Why, by Kafka's name.
    #[serde(with = "code_by_name")]
    pub code: ErrorCode,
}
