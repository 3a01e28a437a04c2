//! Convergence: once faults stop, a group has its live programs as members and nobody else; every
//! partition of a topic that one of them reads is owned by exactly one that reads it and knows it,
//! nobody waits to give something up, shares are as even as the group's assignor makes them, and
//! whoever is one too many has nothing. Within the bound of I9.
//!
//! Not verified: how many moves it took, and that nobody lost what it could have kept.

use std::collections::{BTreeMap, BTreeSet};

use quorate_metadata::{Group, MetadataImage};
use quorate_types::{Assignor, MemberId, TopicId, TopicPartition};

use crate::sim::groups::{Groups, Seat};
use crate::sim::world::World;

pub(in crate::sim) const NAME: &str = "groups converge";

/// What is not well yet.
pub(in crate::sim) fn unsettled(world: &World) -> Option<String> {
    let groups = world.groups.as_deref()?;
    (0..groups.ids.len()).find_map(|number| group_unsettled(world, groups, number))
}

fn group_unsettled(world: &World, groups: &Groups, number: usize) -> Option<String> {
    let image = world.quorum.latest();
    let live: Vec<&Seat> = groups
        .seats
        .iter()
        .filter(|seat| seat.group == number && !seat.is_over())
        .collect();
    if live.is_empty() {
        return None;
    }
    if let Some(seat) = live.iter().find(|seat| !seat.up || seat.is_busy()) {
        return Some(format!("{} is not done: {:?}", seat.id, seat.owned_now()));
    }
    let id = &groups.ids[number];
    let Some(group) = image.group(id) else {
        return Some(format!("there is no group {id}"));
    };
    let members: BTreeSet<&MemberId> = group.members.keys().collect();
    let programs: BTreeSet<&MemberId> = live.iter().map(|seat| &seat.id).collect();
    if members != programs {
        return Some(format!("members {members:?}, programs {programs:?}"));
    }
    for seat in &live {
        let registered: BTreeSet<TopicPartition> = group
            .members
            .get(&seat.id)
            .map(|member| member.assigned().collect())
            .unwrap_or_default();
        let owned: BTreeSet<TopicPartition> = seat.owns(world.now).collect();
        if owned != registered {
            let name = &seat.id;
            return Some(format!("{name} owns {owned:?}, registered {registered:?}"));
        }
    }
    unshared(image, &live, group)
}

fn unshared(image: &MetadataImage, live: &[&Seat], group: &Group) -> Option<String> {
    let mut readers: BTreeMap<TopicId, (u32, Vec<&MemberId>)> = BTreeMap::new();
    for seat in live {
        let topics = seat.topics().iter();
        for topic in topics.filter_map(|name| image.topic_by_name(name)) {
            let entry = readers.entry(topic.id);
            entry
                .or_insert((topic.partitions, Vec::new()))
                .1
                .push(&seat.id);
        }
    }
    let total: u32 = readers.values().map(|(partitions, _)| partitions).sum();
    if group.owners.len() != total as usize {
        return Some(format!("of {total} partitions owned: {:?}", group.owners));
    }
    let mut load: BTreeMap<&MemberId, usize> = BTreeMap::new();
    let mut of_topic: BTreeMap<(TopicId, &MemberId), usize> = BTreeMap::new();
    for (partition, owner) in &group.owners {
        *load.entry(owner).or_default() += 1;
        *of_topic.entry((partition.topic_id, owner)).or_default() += 1;
    }
    let ranges = live.iter().all(|seat| seat.assignor() == Assignor::Range);
    for (partition, owner) in &group.owners {
        let topic = partition.topic_id;
        let Some((_, readers)) = readers.get(&topic).filter(|(_, of)| of.contains(&owner)) else {
            return Some(format!("{owner} does not read {partition}"));
        };
        let share = |of: &MemberId| {
            let share = if ranges {
                of_topic.get(&(topic, of))
            } else {
                load.get(of)
            };
            share.copied().unwrap_or_default()
        };
        if let Some(other) = readers.iter().find(|of| share(of) + 1 < share(owner)) {
            return Some(format!("{owner} has more than {other}: {:?}", group.owners));
        }
    }
    None
}
