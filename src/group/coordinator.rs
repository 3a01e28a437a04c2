//! The coordinator of the groups whose shards are this node's: takes heartbeats, ends sessions,
//! proposes what is next, and answers once that is in the image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use quorate_metadata::{AlterGroup, GROUP_SHARDS, Group, Member, MetadataImage, group_shard};
use quorate_types::{
    CoordinatorEpoch, ErrorCode, Faults, GroupEpoch, GroupId, GroupShard, MemberId, NoFaults,
    NodeId,
};

use crate::events::{
    Action, Answer, Context, GroupError, GroupTiming, Heartbeat, Leave, ProposalId, ProposalResult,
    RequestId,
};
use crate::plan::next_change_with;
use crate::planted::Planted;
use crate::sessions::{GroupState, Poll, Proposed, Session, may_change, session_timeout};

/// A proposal without an outcome, or refused, is made anew after so long.
const RETRY: Duration = Duration::from_millis(50);
/// Who joins or leaves is told that the quorum does not decide after so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A longer pause between two events is this node's, and ends nobody's session.
const STALL: Duration = Duration::from_millis(500);
/// How often groups without members are looked for whose time is over.
const SWEEP: Duration = Duration::from_secs(30);
/// Heartbeats that have waited are answered together, so many times in a heartbeat interval: a node with
/// many members at rest is woken for many of them at a time.
const SLOTS: u32 = 32;

/// The coordinator of one node.
#[derive(Debug)]
pub struct Coordinator {
    me: NodeId,
    timing: GroupTiming,
    /// When this life of the node began: what the image says may be long past until the controller
    /// has been heard since.
    began: Duration,
    image: Arc<MetadataImage>,
    /// The shards that this node coordinates, with the epoch at which it does.
    shards: BTreeMap<GroupShard, CoordinatorEpoch>,
    groups: BTreeMap<GroupId, GroupState>,
    proposals: BTreeMap<ProposalId, GroupId>,
    /// Deletions that are asked for, with the request to answer.
    deletions: BTreeMap<ProposalId, RequestId>,
    next_proposal: ProposalId,
    due: BTreeSet<(Duration, GroupId)>,
    due_of: BTreeMap<GroupId, Duration>,
    ticked: Duration,
    /// When it was asked for something last.
    awake: Duration,
    swept: Duration,
    planted: Planted,
}

impl Coordinator {
    /// Of node `me`; it coordinates nothing before it is shown an image.
    pub fn new(me: NodeId, timing: GroupTiming, now: Duration) -> Self {
        Self::new_with::<NoFaults>(me, timing, now)
    }

    /// The same under planted faults: for the simulator.
    pub fn new_with<F: Faults>(me: NodeId, timing: GroupTiming, now: Duration) -> Self {
        Self {
            me,
            timing,
            began: now,
            image: Arc::new(MetadataImage::new()),
            shards: BTreeMap::new(),
            groups: BTreeMap::new(),
            proposals: BTreeMap::new(),
            deletions: BTreeMap::new(),
            next_proposal: ProposalId::default(),
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            ticked: now,
            awake: now,
            swept: now,
            planted: Planted::of::<F>(),
        }
    }

    /// When it wants a [`Self::tick`] at the latest, besides those that come regularly.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Groups with members or changes under way, here.
    pub fn active_groups(&self) -> usize {
        self.groups.len()
    }

    /// Takes the newest image.
    pub fn take_image(&mut self, cx: &Context<'_>, out: &mut Vec<Action>) {
        self.wake(cx);
        let old = std::mem::replace(&mut self.image, Arc::clone(cx.image));
        let mut concerned = self.follow_shards(out);
        for item in old.groups().diff(self.image.groups()) {
            let (DiffItem::Add(id, _)
            | DiffItem::Remove(id, _)
            | DiffItem::Update { new: (id, _), .. }) = item;
            if self.shards.contains_key(&group_shard(id)) {
                concerned.insert(id.clone());
            }
        }
        let counts = |image: &MetadataImage| -> Vec<_> {
            let topics = image.topics().values();
            topics.map(|topic| (topic.id, topic.partitions)).collect()
        };
        if !old.topics().ptr_eq(self.image.topics()) && counts(&old) != counts(&self.image) {
            concerned.extend(self.groups.keys().cloned());
        }
        for id in concerned {
            let image = Arc::clone(&self.image);
            let group = image.group(&id).map(|group| &**group);
            let state = self.groups.entry(id.clone()).or_default();
            let former = self.timing.former_may_answer();
            state.follow(group, cx.now, former, &self.planted);
            self.settle(cx, &id, out);
        }
    }

    /// Takes over shards that have become this node's, and lets go those that are not any more; gives
    /// the groups of the former.
    fn follow_shards(&mut self, out: &mut Vec<Action>) -> BTreeSet<GroupId> {
        let (mut gained, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for shard in (0..GROUP_SHARDS).map(GroupShard::new) {
            let now = self.image.shard(shard);
            let mine = (now.coordinator == Some(self.me)).then_some(now.epoch);
            let before = match mine {
                Some(epoch) => self.shards.insert(shard, epoch),
                None => self.shards.remove(&shard),
            };
            if before.is_some() && before != mine {
                lost.insert(shard);
            }
            if mine.is_some() && before != mine {
                gained.insert(shard);
            }
        }
        if !lost.is_empty() {
            let gone = self
                .groups
                .keys()
                .filter(|id| lost.contains(&group_shard(id)));
            for id in gone.cloned().collect::<Vec<_>>() {
                self.drop_group(&id, out);
            }
        }
        if gained.is_empty() {
            return BTreeSet::new();
        }
        let groups = self.image.groups().iter();
        let with_members = groups.filter(|(_, group)| !group.members.is_empty());
        with_members
            .map(|(id, _)| id)
            .filter(|id| gained.contains(&group_shard(id)))
            .cloned()
            .collect()
    }

    fn drop_group(&mut self, id: &GroupId, out: &mut Vec<Action>) {
        self.put_off(id, None);
        let Some(state) = self.groups.remove(id) else {
            return;
        };
        let polls = state
            .sessions
            .into_values()
            .filter_map(|session| session.poll);
        let polls = polls.map(|poll| poll.request);
        let leaving = state.leaving.into_values().map(|(request, _)| request);
        for request in polls.chain(leaving) {
            let result = Err(self.elsewhere(id));
            out.push(Action::Answer { request, result });
        }
    }

    fn elsewhere(&self, id: &GroupId) -> GroupError {
        let coordinator = self.image.coordinator(id).coordinator;
        GroupError::NotCoordinator {
            coordinator: coordinator.filter(|node| *node != self.me),
        }
    }

    /// Whether this node may answer for a group now.
    ///
    /// # Errors
    /// [`GroupError::NotCoordinator`], [`GroupError::CutOff`].
    pub fn check(&self, cx: &Context<'_>, id: &GroupId) -> Result<CoordinatorEpoch, GroupError> {
        let epoch = self.shards.get(&group_shard(id));
        let epoch = epoch.ok_or_else(|| self.elsewhere(id))?;
        if self.is_cut_off(cx) {
            return Err(GroupError::CutOff);
        }
        Ok(*epoch)
    }

    fn is_cut_off(&self, cx: &Context<'_>) -> bool {
        let silent = cx.now.saturating_sub(cx.controller_contact);
        let cut_off = silent > self.timing.contact || cx.controller_contact < self.began;
        cut_off && !self.planted.answer_cut_off
    }

    /// Takes a heartbeat; it is answered once, now or later.
    pub fn heartbeat(
        &mut self,
        cx: &Context<'_>,
        request: RequestId,
        beat: Heartbeat,
        out: &mut Vec<Action>,
    ) {
        self.wake(cx);
        let id = beat.group.clone();
        match self.take(cx, request, beat, out) {
            Ok(()) => self.settle(cx, &id, out),
            Err(error) => {
                let result = Err(error);
                out.push(Action::Answer { request, result });
            }
        }
    }

    fn take(
        &mut self,
        cx: &Context<'_>,
        request: RequestId,
        beat: Heartbeat,
        out: &mut Vec<Action>,
    ) -> Result<(), GroupError> {
        self.check(cx, &beat.group)?;
        let image = Arc::clone(&self.image);
        let group = image.group(&beat.group).map(|group| &**group);
        let member = group.and_then(|group| group.members.get(&beat.member));
        let Some(member) = member else {
            return self.join(cx, request, beat, group, out);
        };
        if beat.epoch > member.epoch {
            let current = member.epoch;
            return Err(GroupError::FencedEpoch { current });
        }
        let for_now = beat.leave == Leave::ForNow && member.profile.instance.is_some();
        let leaves = beat.leave != Leave::No && !for_now;
        let state = self.groups.entry(beat.group.clone()).or_default();
        if state.is_going(&beat.member, cx.now) && !leaves && !self.planted.answer_who_goes {
            return Err(GroupError::UnknownMember(beat.member));
        }
        let ends = cx.now + session_timeout(member);
        let session = state.sessions.entry(beat.member.clone());
        let session = session.or_insert_with(|| Session::new(ends));
        session.ends = session.ends.max(ends);
        let polls = session.poll.take();
        if let Some(poll) = polls {
            let result = Ok(self.timing.answer(member));
            let request = poll.request;
            out.push(Action::Answer { request, result });
        }
        if leaves {
            state.wishes.gone.insert(beat.member.clone());
            let until = cx.now + PATIENCE;
            if let Some((former, _)) = state.leaving.insert(beat.member, (request, until)) {
                let result = Err(GroupError::Undecided);
                let request = former;
                out.push(Action::Answer { request, result });
            }
            state.dirty = true;
            return Ok(());
        }
        session.away = for_now;
        if for_now {
            let result = Ok(self.timing.answer(member));
            out.push(Action::Answer { request, result });
            return Ok(());
        }
        if let Some(mut profile) = beat.profile
            && may_change(&mut profile, member)
        {
            state.wishes.profiles.insert(beat.member.clone(), profile);
            state.dirty = true;
        }
        // An older word of it says nothing of what it has now.
        if beat.epoch == member.epoch || self.planted.old_word_counts {
            let given_up: BTreeSet<_> = member
                .revoking()
                .filter(|at| !beat.owned.contains(at))
                .collect();
            if !given_up.is_empty() {
                state.wishes.given_up.insert(beat.member, given_up);
                state.dirty = true;
            }
        }
        session.poll = Some(Poll {
            request,
            epoch: beat.epoch,
            until: self.timing.answered_by(cx.now, beat.wait),
        });
        Ok(())
    }

    fn join(
        &mut self,
        cx: &Context<'_>,
        request: RequestId,
        beat: Heartbeat,
        group: Option<&Group>,
        out: &mut Vec<Action>,
    ) -> Result<(), GroupError> {
        if beat.leave != Leave::No {
            return Err(match group {
                Some(_) => GroupError::UnknownMember(beat.member),
                None => GroupError::UnknownGroup(beat.group),
            });
        }
        if beat.epoch > GroupEpoch::ZERO {
            return Err(GroupError::UnknownMember(beat.member));
        }
        let Some(profile) = beat.profile else {
            let message = "a member that joins says which topics it reads".to_owned();
            return Err(GroupError::Invalid(message));
        };
        let groups = self.image.groups().len();
        if group.is_none() && groups >= self.timing.max_groups {
            return Err(GroupError::TooManyGroups(groups));
        }
        let state = self.groups.entry(beat.group.clone()).or_default();
        let joining = state
            .wishes
            .profiles
            .keys()
            .filter(|id| **id != beat.member);
        let joining = joining.filter(|id| group.is_none_or(|of| !of.members.contains_key(*id)));
        let members = group.map_or(0, |group| group.members.len()) + joining.count();
        let joining_as = |instance| state.is_joining_as(instance, &beat.member);
        if profile.instance.as_ref().is_some_and(joining_as) {
            return Err(GroupError::UnreleasedInstance);
        }
        let former = profile
            .instance
            .as_ref()
            .and_then(|instance| GroupState::of_instance(group?, instance).cloned());
        if let Some(former) = former {
            let away = state.sessions.get(&former).is_some_and(|of| of.away);
            if !away {
                return Err(GroupError::UnreleasedInstance);
            }
            state.wishes.gone.insert(former);
        } else if members >= self.timing.max_members {
            return Err(GroupError::GroupFull(members));
        }
        let until = cx.now + PATIENCE;
        let session = state.sessions.entry(beat.member.clone());
        let session = session.or_insert_with(|| Session::new(until));
        session.ends = until;
        session.joining = true;
        let poll = Poll {
            request,
            epoch: GroupEpoch::ZERO,
            until,
        };
        if let Some(former) = session.poll.replace(poll) {
            let result = Err(GroupError::Undecided);
            let request = former.request;
            out.push(Action::Answer { request, result });
        }
        state.wishes.profiles.insert(beat.member, profile);
        state.dirty = true;
        Ok(())
    }

    /// Proposes that a group without members goes, with its offsets; answered when it is decided.
    pub fn delete(
        &mut self,
        cx: &Context<'_>,
        request: RequestId,
        id: &GroupId,
        out: &mut Vec<Action>,
    ) {
        let checked = self.check(cx, id).and_then(|coordinator_epoch| {
            let group = self.image.group(id);
            let group = group.ok_or_else(|| GroupError::UnknownGroup(id.clone()))?;
            match group.members.len() {
                0 => Ok(deletion(id, coordinator_epoch, group)),
                members => Err(GroupError::NonEmpty(members)),
            }
        });
        match checked {
            Ok(change) => {
                let id = self.name_proposal();
                self.deletions.insert(id, request);
                out.push(Action::Propose { id, change });
            }
            Err(error) => {
                let result = Err(error);
                out.push(Action::Answer { request, result });
            }
        }
    }

    fn name_proposal(&mut self) -> ProposalId {
        self.next_proposal.0 += 1;
        self.next_proposal
    }

    /// Takes the outcome of a proposal.
    pub fn proposed(
        &mut self,
        cx: &Context<'_>,
        id: ProposalId,
        result: ProposalResult,
        out: &mut Vec<Action>,
    ) {
        self.wake(cx);
        if let Some(request) = self.deletions.remove(&id) {
            let result = match result {
                ProposalResult::Applied => Ok(self.timing.farewell()),
                ProposalResult::Refused(ErrorCode::NonEmptyGroup) => Err(GroupError::NonEmpty(1)),
                ProposalResult::Refused(_) | ProposalResult::Unknown => Err(GroupError::Undecided),
            };
            out.push(Action::Answer { request, result });
            return;
        }
        let Some(group) = self.proposals.remove(&id) else {
            return;
        };
        if let Some(state) = self.groups.get_mut(&group)
            && let Some(proposed) = &mut state.proposed
            && proposed.id == id
        {
            if result == ProposalResult::Applied {
                proposed.applied = true;
            } else {
                state.proposed = None;
                state.not_before = cx.now + RETRY;
            }
            state.dirty = true;
            self.settle(cx, &group, out);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, cx: &Context<'_>, out: &mut Vec<Action>) {
        self.wake(cx);
        let since = cx.now.saturating_sub(self.ticked);
        self.ticked = cx.now;
        if self.is_cut_off(cx) {
            self.extend_sessions(since);
        }
        while let Some((at, id)) = self.due.first().cloned()
            && at <= cx.now
        {
            self.put_off(&id, None);
            self.settle(cx, &id, out);
        }
        if cx.now.saturating_sub(self.swept) >= SWEEP {
            self.swept = cx.now;
            self.sweep(cx, out);
        }
    }

    /// Looks first, whatever the event, whether this node stood still: heartbeats may wait to be taken.
    fn wake(&mut self, cx: &Context<'_>) {
        let since = cx.now.saturating_sub(self.awake);
        self.awake = cx.now;
        if since > STALL {
            self.extend_sessions(since);
        }
    }

    /// Nobody could be heard for so long.
    fn extend_sessions(&mut self, by: Duration) {
        for session in self
            .groups
            .values_mut()
            .flat_map(|of| of.sessions.values_mut())
        {
            session.ends += by;
            session.gives_up_by = session.gives_up_by.map(|at| at + by);
        }
    }

    /// Groups without members go when the time of their offsets is over.
    fn sweep(&mut self, cx: &Context<'_>, out: &mut Vec<Action>) {
        let keep = i64::try_from(self.timing.offsets_retention.as_millis()).unwrap_or(i64::MAX);
        let image = Arc::clone(&self.image);
        let over = image.groups().iter().filter(|(_, group)| {
            let since = group.empty_since.map(|at| at.millis().saturating_add(keep));
            since.is_some_and(|over| over < cx.wall.millis())
        });
        for (id, group) in over {
            if let Ok(epoch) = self.check(cx, id) {
                let change = deletion(id, epoch, group);
                let id = self.name_proposal();
                out.push(Action::Propose { id, change });
            }
        }
    }

    /// Notes when a group is to be looked at again.
    fn put_off(&mut self, id: &GroupId, until: Option<Duration>) {
        if let Some(before) = self.due_of.remove(id) {
            self.due.remove(&(before, id.clone()));
        }
        if let Some(until) = until {
            self.due_of.insert(id.clone(), until);
            self.due.insert((until, id.clone()));
        }
    }

    /// What follows from any change of a group: sessions that are over, the next proposal, answers.
    fn settle(&mut self, cx: &Context<'_>, id: &GroupId, out: &mut Vec<Action>) {
        let image = Arc::clone(&self.image);
        let group = image.group(id).map(|group| &**group);
        let Some(state) = self.groups.get_mut(id) else {
            return;
        };
        state.answer(&self.timing, &self.planted, group, cx.now, out);
        state.note_applied(group);
        let mut proposing = None;
        if state.dirty && state.proposed.is_none() && state.not_before <= cx.now {
            state.dirty = false;
            proposing = next_change_with(&image, id, &state.wishes, &self.planted);
        }
        if let Some(change) = proposing {
            let proposal = self.name_proposal();
            self.propose(proposal, change, out);
        }
        let Some(state) = self.groups.get(id) else {
            return;
        };
        if state.is_idle() {
            self.groups.remove(id);
            return self.put_off(id, None);
        }
        // What follows for those whose end is proposed follows from its outcome.
        let sessions = state.sessions.iter();
        let sessions = sessions.filter(|(id, _)| !state.wishes.gone.contains(*id));
        let sessions = sessions.map(|(_, session)| session.deadline());
        let leaving = state.leaving.values().map(|(_, until)| *until);
        let retry = state.dirty.then_some(state.not_before.max(cx.now + RETRY));
        let until = sessions.chain(leaving).chain(retry).min();
        self.put_off(
            id,
            until.map(|at| at.max(cx.now + Duration::from_millis(1))),
        );
    }

    fn propose(&mut self, id: ProposalId, change: AlterGroup, out: &mut Vec<Action>) {
        self.proposals.insert(id, change.group.clone());
        if let Some(state) = self.groups.get_mut(&change.group) {
            state.proposed = Some(Proposed {
                id,
                from: change.version,
                applied: false,
            });
        }
        out.push(Action::Propose { id, change });
    }
}

fn deletion(id: &GroupId, coordinator_epoch: CoordinatorEpoch, group: &Group) -> AlterGroup {
    AlterGroup {
        group: id.clone(),
        coordinator_epoch,
        version: Some(group.version()),
        gone: Vec::new(),
        members: Vec::new(),
        delete: true,
    }
}

impl GroupState {
    /// Sessions that are over, and heartbeats that have waited long enough, or have news.
    fn answer(
        &mut self,
        timing: &GroupTiming,
        planted: &Planted,
        group: Option<&Group>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let member = |id: &MemberId| group.and_then(|group| group.members.get(id));
        let mut ended = Vec::new();
        for (id, session) in &mut self.sessions {
            let Some(member) = member(id) else {
                let joining = self.wishes.profiles.contains_key(id);
                if joining && session.ends > now {
                    continue;
                }
                if let Some(poll) = session.poll.take() {
                    let error = if joining {
                        GroupError::Undecided
                    } else {
                        GroupError::UnknownMember(id.clone())
                    };
                    let request = poll.request;
                    let result = Err(error);
                    out.push(Action::Answer { request, result });
                }
                ended.push(id.clone());
                continue;
            };
            let over = session.is_over(now, planted);
            if over && self.wishes.gone.insert(id.clone()) {
                self.dirty = true;
            }
            session.refused |= (over || session.is_late(now)) && !planted.answer_who_goes;
            if session.refused
                && let Some(poll) = session.poll.take()
            {
                let request = poll.request;
                let result = Err(GroupError::UnknownMember(id.clone()));
                out.push(Action::Answer { request, result });
            }
            if let Some(poll) = session.poll
                && (poll.epoch != member.epoch || poll.until <= now)
            {
                session.poll = None;
                let request = poll.request;
                let result = Ok(timing.answer(member));
                out.push(Action::Answer { request, result });
            }
        }
        for id in ended {
            self.sessions.remove(&id);
            if self.wishes.profiles.remove(&id).is_some() {
                self.dirty = true;
            }
        }
        self.leaving.retain(|id, (request, until)| {
            let result = match member(id) {
                None => Ok(timing.farewell()),
                Some(_) if *until <= now => Err(GroupError::Undecided),
                Some(_) => return true,
            };
            let request = *request;
            out.push(Action::Answer { request, result });
            false
        });
    }

    /// Once the image shows what was proposed, or something newer, the next may be proposed.
    fn note_applied(&mut self, group: Option<&Group>) {
        let now = group.map(Group::version);
        let seen = |proposed: &Proposed| proposed.applied && now != proposed.from;
        if self.proposed.as_ref().is_some_and(seen) {
            self.proposed = None;
        }
    }
}

impl GroupTiming {
    /// How long a coordinator that was replaced may go on answering by an old image: as long as it
    /// heard from the controller before that, and a part more since their clocks differ.
    fn former_may_answer(&self) -> Duration {
        self.contact + self.contact / 8
    }

    /// When a heartbeat without news is answered: after `wait` at most, which is a heartbeat interval at
    /// most, and less than one of [`SLOTS`] sooner where that is little of it.
    fn answered_by(&self, now: Duration, wait: Duration) -> Duration {
        let wait = wait.min(self.heartbeat_interval);
        let until = now + wait;
        let slot = self.heartbeat_interval / SLOTS;
        if wait < slot * 8 || slot.is_zero() {
            return until;
        }
        let sooner = u64::try_from(until.as_nanos() % slot.as_nanos()).unwrap_or(0);
        until - Duration::from_nanos(sooner)
    }

    fn answer(&self, member: &Member) -> Answer {
        Answer {
            epoch: member.epoch,
            assigned: member.assigned().collect(),
            heartbeat_interval: self.heartbeat_interval,
            session_timeout: session_timeout(member),
        }
    }

    /// To who has left.
    fn farewell(&self) -> Answer {
        Answer {
            epoch: GroupEpoch::ZERO,
            assigned: Vec::new(),
            heartbeat_interval: self.heartbeat_interval,
            session_timeout: Duration::ZERO,
        }
    }
}
