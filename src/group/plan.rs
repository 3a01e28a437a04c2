//! The next step of a group towards what its members are to have. It depends on the image and on
//! what is wished alone: whoever coordinates comes to the same.

use std::collections::{BTreeMap, BTreeSet};

use quorate_metadata::{AlterGroup, Group, MemberChange, MemberProfile, MetadataImage};
use quorate_types::{Assignor, GroupId, MemberId, TopicId, TopicPartition};

use crate::assign::{Subscriber, assign};
use crate::planted::Planted;

/// Of one change, about as it is written in the metadata log. What does not fit follows in the next
/// one: an entry stays well below what a message between voters may have.
pub(crate) const CHANGE_BYTES: usize = 512 << 10;
/// What a partition takes in it, ...
const PARTITION_BYTES: usize = 72;
/// ... and a member and what it says of itself, beside its topics' names.
const MEMBER_BYTES: usize = 512;

/// What is to change beside who has what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Members that go.
    pub gone: BTreeSet<MemberId>,
    /// Members that come, or say something new of themselves.
    pub profiles: BTreeMap<MemberId, MemberProfile>,
    /// What members have given up.
    pub given_up: BTreeMap<MemberId, BTreeSet<TopicPartition>>,
}

/// A member as it will be.
struct Next<'a> {
    profile: &'a MemberProfile,
    /// What it has and is not to give up.
    has: BTreeSet<TopicPartition>,
    /// What it is to give up, and has not.
    revoking: BTreeSet<TopicPartition>,
    /// What its predecessor had.
    prefers: BTreeSet<TopicPartition>,
    change: MemberChange,
}

/// The change to propose next; none where nothing is to be done.
pub fn next_change(image: &MetadataImage, id: &GroupId, wishes: &Wishes) -> Option<AlterGroup> {
    next_change_with(image, id, wishes, &Planted::default())
}

pub(crate) fn next_change_with(
    image: &MetadataImage,
    id: &GroupId,
    wishes: &Wishes,
    planted: &Planted,
) -> Option<AlterGroup> {
    let group = image.group(id);
    let empty = Group::default();
    let known = group.map_or(&empty, |group| &**group);
    let gone = known.members.keys().filter(|id| wishes.gone.contains(*id));
    let gone: Vec<MemberId> = gone.cloned().collect();
    let mut room = CHANGE_BYTES;
    let mut members = next_members(known, wishes, &mut room);
    inherit(known, &gone, &mut members);
    let topics = topics_of(image, &members);
    let target = assign(assignor(&members), &subscribers(&members, image), &topics);
    let taken: BTreeSet<TopicPartition> = members
        .values()
        .flat_map(|member| member.has.iter().chain(&member.revoking).copied())
        .collect();
    for (id, member) in &mut members {
        let Some(target) = target.get(id) else {
            continue;
        };
        let surplus = member.has.difference(target).copied();
        member.change.revoke.extend(surplus);
        let own = target.intersection(&member.revoking);
        let taken = if planted.assign_before_release {
            &member.has
        } else {
            &taken
        };
        let free = target.difference(taken);
        member.change.assign.extend(own.chain(free).copied());
    }
    let changes = members.into_values().map(|member| member.change);
    let changes = changes.filter(says_something);
    let changes = changes.filter_map(|change| cut(change, &mut room));
    let members: Vec<MemberChange> = changes.filter(says_something).collect();
    (!gone.is_empty() || !members.is_empty()).then(|| AlterGroup {
        group: id.clone(),
        coordinator_epoch: image.coordinator(id).epoch,
        version: group.map(|group| group.version()),
        gone,
        members,
        delete: false,
    })
}

/// As much of a change as there is room for, beside what it gives up, which others may get in the same
/// one. A member that is not there yet comes with what it says of itself or not at all.
fn cut(mut change: MemberChange, room: &mut usize) -> Option<MemberChange> {
    let mut takes = MEMBER_BYTES;
    if let Some(profile) = &change.profile {
        let names = profile.topics.iter().map(|name| name.as_str().len() + 3);
        takes += names.sum::<usize>();
    }
    // One fits always.
    if takes > *room && *room < CHANGE_BYTES {
        change.profile = None;
        change.revoke.clear();
        change.assign.clear();
        return (!change.release.is_empty()).then_some(change);
    }
    *room = room.saturating_sub(takes);
    for partitions in [&mut change.revoke, &mut change.assign] {
        partitions.truncate(*room / PARTITION_BYTES);
        *room -= partitions.len() * PARTITION_BYTES;
    }
    Some(change)
}

fn says_something(change: &MemberChange) -> bool {
    let MemberChange {
        member: _,
        profile,
        release,
        revoke,
        assign,
    } = change;
    profile.is_some() || !release.is_empty() || !revoke.is_empty() || !assign.is_empty()
}

/// Who will be there, with what they have once they have given up what they say they have, as far as
/// there is room: what is free may go to others in the same change.
fn next_members<'a>(
    known: &'a Group,
    wishes: &'a Wishes,
    room: &mut usize,
) -> BTreeMap<MemberId, Next<'a>> {
    let mut members = BTreeMap::new();
    let staying = known.members.iter();
    for (id, member) in staying.filter(|(id, _)| !wishes.gone.contains(*id)) {
        let mut change = MemberChange::of(id.clone());
        let profile = wishes.profiles.get(id);
        change.profile = profile
            .filter(|profile| **profile != member.profile)
            .cloned();
        let revoking: BTreeSet<TopicPartition> = member.revoking().collect();
        let given_up = wishes.given_up.get(id);
        let released = given_up.map(|given_up| revoking.intersection(given_up).copied());
        let released = released.into_iter().flatten();
        change
            .release
            .extend(released.take(*room / PARTITION_BYTES));
        *room -= change.release.len() * PARTITION_BYTES;
        let kept = revoking.iter().filter(|at| !change.release.contains(at));
        let next = Next {
            profile: profile.unwrap_or(&member.profile),
            has: member.assigned().collect(),
            revoking: kept.copied().collect(),
            prefers: BTreeSet::new(),
            change,
        };
        members.insert(id.clone(), next);
    }
    for (id, profile) in &wishes.profiles {
        if !known.members.contains_key(id) && !wishes.gone.contains(id) {
            let mut change = MemberChange::of(id.clone());
            change.profile = Some(profile.clone());
            let next = Next {
                profile,
                has: BTreeSet::new(),
                revoking: BTreeSet::new(),
                prefers: BTreeSet::new(),
                change,
            };
            members.insert(id.clone(), next);
        }
    }
    members
}

/// Who comes under the instance id of one that goes takes over what that one had (KIP-345).
fn inherit(known: &Group, gone: &[MemberId], members: &mut BTreeMap<MemberId, Next<'_>>) {
    for id in gone {
        let Some(former) = known.members.get(id) else {
            continue;
        };
        let Some(instance) = &former.profile.instance else {
            continue;
        };
        let heir = members.values_mut().find(|member| {
            let new = !known.members.contains_key(&member.change.member);
            new && member.profile.instance.as_ref() == Some(instance)
        });
        if let Some(heir) = heir {
            heir.prefers.extend(former.assigned());
        }
    }
}

/// The assignor that most members wish for; of several the first.
fn assignor(members: &BTreeMap<MemberId, Next<'_>>) -> Assignor {
    let wish = |assignor: &Assignor| {
        let wishing = members.values();
        wishing
            .filter(|member| member.profile.assignor == *assignor)
            .count()
    };
    let mut most = Assignor::default();
    for assignor in Assignor::ALL {
        if wish(&assignor) > wish(&most) {
            most = assignor;
        }
    }
    most
}

fn topics_of(
    image: &MetadataImage,
    members: &BTreeMap<MemberId, Next<'_>>,
) -> BTreeMap<TopicId, u32> {
    let names = members.values().flat_map(|member| &member.profile.topics);
    let known = names.filter_map(|name| image.topic_by_name(name));
    known.map(|topic| (topic.id, topic.partitions)).collect()
}

fn subscribers(
    members: &BTreeMap<MemberId, Next<'_>>,
    image: &MetadataImage,
) -> BTreeMap<MemberId, Subscriber> {
    let subscriber = |(id, member): (&MemberId, &Next<'_>)| {
        let topics = member.profile.topics.iter();
        let known = topics.filter_map(|name| image.topic_by_name(name));
        let subscriber = Subscriber {
            instance: member.profile.instance.clone(),
            topics: known.map(|topic| topic.id).collect(),
            has: member.has.union(&member.prefers).copied().collect(),
        };
        (id.clone(), subscriber)
    };
    members.iter().map(subscriber).collect()
}
