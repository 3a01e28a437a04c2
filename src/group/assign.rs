//! Assignors: who is to have which partitions. Pure functions of members, topics and of what each
//! has now; the same input gives the same answer on every node.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{Assignor, InstanceId, MemberId, PartitionId, TopicId, TopicPartition};

/// A member as an assignor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscriber {
    /// What it is known by over its restarts: it takes the place of its predecessor.
    pub instance: Option<InstanceId>,
    /// The topics that it reads, of those that exist.
    pub topics: BTreeSet<TopicId>,
    /// What it has, and is not to give up.
    pub has: BTreeSet<TopicPartition>,
}

/// What each member is to have.
pub type Assignment = BTreeMap<MemberId, BTreeSet<TopicPartition>>;

/// Shares the partitions of the topics (with their numbers of partitions) among those that read them.
/// Every partition that somebody reads is somebody's; who is one too many gets nothing.
pub fn assign(
    assignor: Assignor,
    members: &BTreeMap<MemberId, Subscriber>,
    topics: &BTreeMap<TopicId, u32>,
) -> Assignment {
    match assignor {
        Assignor::Uniform => uniform(members, topics),
        Assignor::Range => range(members, topics),
    }
}

fn partitions(topic: TopicId, count: u32) -> impl Iterator<Item = TopicPartition> {
    (0..count).map(move |number| TopicPartition::new(topic, PartitionId::new(number)))
}

/// The readers of each topic, by place: instance id where there is one, else member id.
fn readers<'a>(
    members: &'a BTreeMap<MemberId, Subscriber>,
    topics: &BTreeMap<TopicId, u32>,
) -> BTreeMap<TopicId, Vec<&'a MemberId>> {
    let mut places: Vec<(&str, &MemberId, &Subscriber)> = members
        .iter()
        .map(|(id, member)| {
            let place = member.instance.as_ref().map(InstanceId::as_str);
            (place.unwrap_or(id.as_str()), id, member)
        })
        .collect();
    places.sort_unstable_by_key(|(place, id, _)| (*place, *id));
    let of = |topic: &TopicId| {
        let reading = places.iter().filter(|(_, _, of)| of.topics.contains(topic));
        reading.map(|(_, id, _)| *id).collect()
    };
    topics.keys().map(|topic| (*topic, of(topic))).collect()
}

/// Of each topic a row of neighbours; the first members get one more where it does not come out even.
fn range(members: &BTreeMap<MemberId, Subscriber>, topics: &BTreeMap<TopicId, u32>) -> Assignment {
    let mut assignment: Assignment = members
        .keys()
        .map(|member| (member.clone(), BTreeSet::new()))
        .collect();
    for (topic, readers) in readers(members, topics) {
        if readers.is_empty() {
            continue;
        }
        let count = topics[&topic] as usize;
        let (each, more) = (count / readers.len(), count % readers.len());
        let mut rest = partitions(topic, topics[&topic]);
        for (place, member) in readers.into_iter().enumerate() {
            let share = each + usize::from(place < more);
            if let Some(assigned) = assignment.get_mut(member) {
                assigned.extend(rest.by_ref().take(share));
            }
        }
    }
    assignment
}

/// What is being shared out, with how much each has.
struct Shares<'a> {
    of: BTreeMap<&'a MemberId, BTreeSet<TopicPartition>>,
    readers: BTreeMap<TopicId, Vec<&'a MemberId>>,
}

impl<'a> Shares<'a> {
    fn load(&self, member: &MemberId) -> usize {
        self.of.get(member).map_or(0, BTreeSet::len)
    }

    /// Who of a topic's readers has least; the first of several.
    fn least(&self, topic: TopicId) -> Option<&'a MemberId> {
        let readers = self.readers.get(&topic)?;
        readers.iter().copied().min_by_key(|id| self.load(id))
    }

    fn give(&mut self, member: &'a MemberId, partition: TopicPartition) {
        self.of.entry(member).or_default().insert(partition);
    }
}

/// Evenly: no partition could go to another reader who would then still have less than its owner. Who
/// has something keeps it unless that is so.
fn uniform(
    members: &BTreeMap<MemberId, Subscriber>,
    topics: &BTreeMap<TopicId, u32>,
) -> Assignment {
    let mut shares = Shares {
        of: members.keys().map(|id| (id, BTreeSet::new())).collect(),
        readers: readers(members, topics),
    };
    let mut taken = BTreeSet::new();
    for (id, member) in members {
        for partition in &member.has {
            let topic = partition.topic_id;
            let exists = topics.get(&topic) > Some(&partition.partition.get());
            if exists && member.topics.contains(&topic) && taken.insert(*partition) {
                shares.give(id, *partition);
            }
        }
    }
    // Those that few can take come first.
    let mut order: Vec<(usize, TopicId)> = shares
        .readers
        .iter()
        .map(|(topic, readers)| (readers.len(), *topic))
        .collect();
    order.sort_unstable();
    for (_, topic) in &order {
        for partition in partitions(*topic, topics[topic]) {
            if !taken.contains(&partition)
                && let Some(least) = shares.least(*topic)
            {
                shares.give(least, partition);
            }
        }
    }
    balance(&mut shares, &order);
    let named = |(id, share): (&MemberId, BTreeSet<TopicPartition>)| (id.clone(), share);
    shares.of.into_iter().map(named).collect()
}

/// Moves what makes the shares more even, one by one. Each move makes the sum of the squares of the
/// loads smaller: it ends.
fn balance(shares: &mut Shares<'_>, order: &[(usize, TopicId)]) {
    loop {
        let mut moved = false;
        for (_, topic) in order {
            let Some(readers) = shares.readers.get(topic).cloned() else {
                continue;
            };
            // From those that have most, the last of their partitions.
            while let Some(least) = shares.least(*topic) {
                let of_topic = |id: &MemberId| {
                    let first = TopicPartition::new(*topic, PartitionId::ZERO);
                    let last = TopicPartition::new(*topic, PartitionId::new(u32::MAX));
                    let share = shares.of.get(id)?;
                    share.range(first..=last).next_back().copied()
                };
                let giving = readers.iter().copied().filter(|id| of_topic(id).is_some());
                let Some(most) = giving.max_by_key(|id| shares.load(id)) else {
                    break;
                };
                if shares.load(least) + 1 >= shares.load(most) {
                    break;
                }
                let Some(partition) = of_topic(most) else {
                    break;
                };
                if let Some(share) = shares.of.get_mut(most) {
                    share.remove(&partition);
                }
                shares.give(least, partition);
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}
