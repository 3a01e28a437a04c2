//! What a coordinator is told, and what it wants done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{AlterGroup, MemberProfile, MetadataImage};
use quorate_types::{ErrorCode, GroupEpoch, GroupId, MemberId, NodeId, Timestamp, TopicPartition};

/// Times and bounds of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupTiming {
    /// How often a member is to send a heartbeat, and how long one waits for news at most.
    pub heartbeat_interval: Duration,
    /// Session timeouts that members may ask for: the shortest, that of who asks for none, the longest.
    pub session: (Duration, Duration, Duration),
    /// Members of a group at most.
    pub max_members: usize,
    /// Groups of the cluster at most.
    pub max_groups: usize,
    /// Offsets of a group without members are kept so long.
    pub offsets_retention: Duration,
    /// Who has heard nothing from the controller for so long may have been replaced: it answers
    /// nothing.
    pub contact: Duration,
}

impl Default for GroupTiming {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            heartbeat_interval: seconds(5),
            session: (seconds(1), seconds(45), seconds(1_800)),
            max_members: 1_000,
            max_groups: 10_000,
            offsets_retention: seconds(7 * 24 * 3_600),
            contact: seconds(3),
        }
    }
}

/// What is so while an event is taken.
pub struct Context<'a> {
    /// This node's clock.
    pub now: Duration,
    /// The wall clock: for what is kept for days.
    pub wall: Timestamp,
    /// When the last heartbeat was sent, by this node's clock, that the controller answered and whose
    /// answer counts: the image has since reached what the controller's had. Before the coordinator
    /// began where there is none.
    pub controller_contact: Duration,
    /// The newest image.
    pub image: &'a Arc<MetadataImage>,
}

/// A heartbeat that is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A proposal whose outcome is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ProposalId(pub u64);

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProposalResult {
    /// It is applied.
    Applied,
    /// It changed nothing.
    Refused(ErrorCode),
    /// Not known: it may be applied, now or later.
    Unknown,
}

/// Whether a member goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leave {
    /// It stays.
    #[default]
    No,
    /// It goes for good.
    ForGood,
    /// A static member that comes back under its instance id: it keeps what it has until its session
    /// ends (KIP-345). Of any other member the same as for good.
    ForNow,
}

/// A member's word (KIP-848).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// In which group.
    pub group: GroupId,
    /// Who.
    pub member: MemberId,
    /// Its epoch as it knows it; 0: it joins.
    pub epoch: GroupEpoch,
    /// All that it has now and may read. What it was to give up and is not here any more counts as
    /// given up, where the epoch is the present one.
    pub owned: BTreeSet<TopicPartition>,
    /// What it says of itself: when it joins, and best in every heartbeat. A change that is answered is
    /// not decided yet: with the coordinator it may be lost, and whoever says it again is sure of it.
    pub profile: Option<MemberProfile>,
    /// Whether it goes.
    pub leave: Leave,
    /// The answer may wait for news for so long.
    pub wait: Duration,
}

/// What a member is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// All that it may read; what it has beyond is to be given up.
    pub assigned: Vec<TopicPartition>,
    /// How often it is to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// Its session ends so long after the last that was heard.
    pub session_timeout: Duration,
}

/// Why a heartbeat failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Another node coordinates the group.
    #[error("another node coordinates the group")]
    NotCoordinator {
        /// Which, as far as is known.
        coordinator: Option<NodeId>,
    },
    /// This node has not heard from the controller for too long.
    #[error("this node is cut off from the controller")]
    CutOff,
    /// The group has no such member.
    #[error(
        "the group has no member {0}: it left, or its session ended; join anew with a new member id"
    )]
    UnknownMember(MemberId),
    /// There is no such group.
    #[error("there is no group {0}")]
    UnknownGroup(GroupId),
    /// The member is at an older epoch than it says.
    #[error("the member is at epoch {current}, the request's is newer")]
    FencedEpoch {
        /// Its epoch.
        current: GroupEpoch,
    },
    /// A member of that instance id lives.
    #[error(
        "a member of the instance id lives and has not left: wait until its session has ended, or \
         choose another instance id"
    )]
    UnreleasedInstance,
    /// There are as many members as a group may have.
    #[error("the group has {0} members, as many as a group may have (`group-max-members`)")]
    GroupFull(usize),
    /// There are as many groups as there may be.
    #[error("there are {0} groups, as many as there may be (`max-groups`)")]
    TooManyGroups(usize),
    /// The group has members.
    #[error("the group has members ({0}): stop them first")]
    NonEmpty(usize),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The quorum did not decide in time.
    #[error("the metadata quorum did not decide in time")]
    Undecided,
    /// Too much waits for the quorum already.
    #[error("too many bytes of commits wait for the metadata quorum: try again later")]
    Throttled,
}

impl GroupError {
    /// The code that clients see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotCoordinator { coordinator: None } | Self::CutOff => {
                ErrorCode::CoordinatorNotAvailable
            }
            Self::NotCoordinator { .. } => ErrorCode::NotCoordinator,
            Self::UnknownMember(_) => ErrorCode::UnknownMemberId,
            Self::UnknownGroup(_) => ErrorCode::GroupIdNotFound,
            Self::FencedEpoch { .. } => ErrorCode::FencedMemberEpoch,
            Self::UnreleasedInstance => ErrorCode::UnreleasedInstanceId,
            Self::GroupFull(_) | Self::TooManyGroups(_) => ErrorCode::GroupMaxSizeReached,
            Self::NonEmpty(_) => ErrorCode::NonEmptyGroup,
            Self::Invalid(_) => ErrorCode::InvalidRequest,
            Self::Undecided => ErrorCode::RequestTimedOut,
            Self::Throttled => ErrorCode::ThrottlingQuotaExceeded,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Propose a change; its outcome is told by [`crate::Coordinator::proposed`].
    Propose {
        /// Its name.
        id: ProposalId,
        /// What.
        change: AlterGroup,
    },
    /// Answer a heartbeat, once.
    Answer {
        /// Which.
        request: RequestId,
        /// With what.
        result: Result<Answer, GroupError>,
    },
}
