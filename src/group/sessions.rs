//! What a coordinator knows of a group beside the image: when each member was last heard, who waits
//! for an answer, and what is to change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_metadata::{Group, GroupVersion, Member, MemberProfile};
use quorate_types::{GroupEpoch, InstanceId, MemberId, TopicPartition};

use crate::events::{ProposalId, RequestId};
use crate::plan::Wishes;
use crate::planted::Planted;

/// A heartbeat that waits for news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Poll {
    pub(crate) request: RequestId,
    /// What the member knows.
    pub(crate) epoch: GroupEpoch,
    pub(crate) until: Duration,
}

/// One member's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// It is over without a word until then.
    pub(crate) ends: Duration,
    /// Where it has not given up by then what it is to give up, nothing that it says counts any more.
    pub(crate) gives_up_by: Option<Duration>,
    /// What it is to give up.
    revoking: BTreeSet<TopicPartition>,
    /// It is told that it is no member: it is one only until the session that it was promised is over.
    pub(crate) refused: bool,
    /// It is not in the image yet: its session begins when it is.
    pub(crate) joining: bool,
    /// It has left for now (KIP-345).
    pub(crate) away: bool,
    pub(crate) poll: Option<Poll>,
}

/// A proposal under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proposed {
    pub(crate) id: ProposalId,
    /// The group before it.
    pub(crate) from: Option<GroupVersion>,
    /// It is applied, and the image is behind.
    pub(crate) applied: bool,
}

/// A group as its coordinator has it.
#[derive(Debug, Default)]
pub(crate) struct GroupState {
    pub(crate) sessions: BTreeMap<MemberId, Session>,
    pub(crate) wishes: Wishes,
    /// Members that leave and wait for the answer, each until then.
    pub(crate) leaving: BTreeMap<MemberId, (RequestId, Duration)>,
    pub(crate) proposed: Option<Proposed>,
    /// After a proposal without an outcome.
    pub(crate) not_before: Duration,
    /// Something may have to be proposed.
    pub(crate) dirty: bool,
}

impl GroupState {
    /// Follows the image: members that it shows have a session, where they are new to this coordinator
    /// a whole one, counted from when the former one can have answered them for the last time; others
    /// have none, but for those that are about to join.
    pub(crate) fn follow(
        &mut self,
        group: Option<&Group>,
        now: Duration,
        former_may_answer: Duration,
        planted: &Planted,
    ) {
        let empty = Group::default();
        let group = group.unwrap_or(&empty);
        for (id, member) in &group.members {
            let session = self.sessions.entry(id.clone()).or_insert_with(|| {
                let whole = session_timeout(member);
                let silent = planted.no_session_at_takeover;
                Session::new(if silent {
                    now
                } else {
                    now + former_may_answer + whole
                })
            });
            if std::mem::take(&mut session.joining) {
                session.ends = now + session_timeout(member);
            }
            session.follow(member, now);
        }
        let wishes = &mut self.wishes;
        wishes.gone.retain(|id| group.members.contains_key(id));
        wishes.profiles.retain(|id, profile| {
            let member = group.members.get(id);
            // Who joined twice may have said something else the second time.
            member.is_none_or(|member| may_change(profile, member))
        });
        wishes.given_up.retain(|id, given_up| {
            let member = group.members.get(id);
            given_up.retain(|at| {
                member.is_some_and(|member| member.owned.get(at).is_some_and(|how| how.revoking))
            });
            !given_up.is_empty()
        });
        self.dirty = true;
    }

    /// Whether a member's end is proposed, or sure to be: an answer would promise it what others may
    /// have got by then.
    pub(crate) fn is_going(&self, id: &MemberId, now: Duration) -> bool {
        let session = self.sessions.get(id);
        self.wishes.gone.contains(id)
            || session.is_some_and(|of| of.refused || of.ends <= now || of.is_late(now))
    }

    /// Whether somebody else is about to join under an instance id.
    pub(crate) fn is_joining_as(&self, instance: &InstanceId, but: &MemberId) -> bool {
        let mut profiles = self.wishes.profiles.iter();
        profiles.any(|(id, profile)| id != but && profile.instance.as_ref() == Some(instance))
    }

    /// Who is known under an instance id.
    pub(crate) fn of_instance<'a>(group: &'a Group, instance: &InstanceId) -> Option<&'a MemberId> {
        let mut members = group.members.iter();
        let found = members.find(|(_, member)| member.profile.instance.as_ref() == Some(instance));
        found.map(|(id, _)| id)
    }

    /// Whether nothing here is worth keeping.
    pub(crate) fn is_idle(&self) -> bool {
        self.sessions.is_empty()
            && self.leaving.is_empty()
            && self.proposed.is_none()
            && self.wishes == Wishes::default()
    }
}

impl Session {
    pub(crate) fn new(ends: Duration) -> Self {
        Self {
            ends,
            gives_up_by: None,
            revoking: BTreeSet::new(),
            refused: false,
            joining: false,
            away: false,
            poll: None,
        }
    }

    /// What it is to give up it has the rebalance timeout for, anew each time that it has given
    /// something up: what was revoked later is not to be given up sooner.
    fn follow(&mut self, member: &Member, now: Duration) {
        let revoking: BTreeSet<TopicPartition> = member.revoking().collect();
        let goes_on = !revoking.is_empty() && self.revoking.is_subset(&revoking);
        let limit = Duration::from_millis(member.profile.rebalance_timeout_ms.into());
        self.gives_up_by = match self.gives_up_by {
            Some(by) if goes_on => Some(by),
            _ => (!revoking.is_empty()).then_some(now + limit),
        };
        self.revoking = revoking;
    }

    /// When something is to be done about it, at the latest.
    pub(crate) fn deadline(&self) -> Duration {
        let polled = self.poll.map(|poll| poll.until);
        let gives_up_by = self.gives_up_by.filter(|_| !self.refused);
        let deadlines = [Some(self.ends), gives_up_by, polled];
        deadlines.into_iter().flatten().min().unwrap_or(self.ends)
    }

    /// Whether the member has had its time for what it is to give up.
    pub(crate) fn is_late(&self, now: Duration) -> bool {
        self.gives_up_by.is_some_and(|by| by <= now)
    }

    /// Whether the member may be taken for gone: it was promised nothing beyond.
    pub(crate) fn is_over(&self, now: Duration, planted: &Planted) -> bool {
        self.ends <= now || planted.end_late_at_once && self.is_late(now)
    }
}

/// Takes from what a member says now what it cannot change while it lives: nodes may see it at different
/// addresses; who it is, and how long its session lasts, which a member reckons with that has not heard
/// the last answer, it said when it joined. Says whether anything else is new.
pub(crate) fn may_change(profile: &mut MemberProfile, member: &Member) -> bool {
    profile.client_host.clone_from(&member.profile.client_host);
    profile.instance.clone_from(&member.profile.instance);
    profile.session_timeout_ms = member.profile.session_timeout_ms;
    *profile != member.profile
}

pub(crate) fn session_timeout(member: &Member) -> Duration {
    Duration::from_millis(member.profile.session_timeout_ms.into())
}
