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

/// The readers of each topic, each by its number among the members, in the order of their places:
/// instance id where there is one, else member id.
fn readers(
    members: &BTreeMap<MemberId, Subscriber>,
    topics: &BTreeMap<TopicId, u32>,
) -> BTreeMap<TopicId, Vec<usize>> {
    let mut places: Vec<(&str, usize, &Subscriber)> = members
        .iter()
        .enumerate()
        .map(|(number, (id, member))| {
            let place = member.instance.as_ref().map(InstanceId::as_str);
            (place.unwrap_or(id.as_str()), number, member)
        })
        .collect();
    places.sort_unstable_by_key(|(place, number, _)| (*place, *number));
    let of = |topic: &TopicId| {
        let reading = places.iter().filter(|(_, _, of)| of.topics.contains(topic));
        reading.map(|(_, number, _)| *number).collect()
    };
    topics.keys().map(|topic| (*topic, of(topic))).collect()
}

/// Of each topic a row of neighbours; the first members get one more where it does not come out even.
fn range(members: &BTreeMap<MemberId, Subscriber>, topics: &BTreeMap<TopicId, u32>) -> Assignment {
    let mut shares = vec![BTreeSet::new(); members.len()];
    for (topic, readers) in readers(members, topics) {
        if readers.is_empty() {
            continue;
        }
        let count = topics[&topic] as usize;
        let (each, more) = (count / readers.len(), count % readers.len());
        let mut rest = partitions(topic, topics[&topic]);
        for (place, member) in readers.into_iter().enumerate() {
            let share = each + usize::from(place < more);
            shares[member].extend(rest.by_ref().take(share));
        }
    }
    named(members, shares)
}

/// Shares in the order of the members.
fn named(
    members: &BTreeMap<MemberId, Subscriber>,
    shares: Vec<BTreeSet<TopicPartition>>,
) -> Assignment {
    members.keys().cloned().zip(shares).collect()
}

/// What is being shared out: members by their numbers.
struct Shares {
    of: Vec<BTreeSet<TopicPartition>>,
    readers: BTreeMap<TopicId, Vec<usize>>,
}

impl Shares {
    fn load(&self, member: usize) -> usize {
        self.of[member].len()
    }

    /// Who of a topic's readers has least; the first of several.
    fn least(&self, topic: TopicId) -> Option<usize> {
        let readers = self.readers.get(&topic)?;
        readers.iter().copied().min_by_key(|of| self.load(*of))
    }

    fn give(&mut self, member: usize, partition: TopicPartition) {
        self.of[member].insert(partition);
    }
}

/// Evenly: no partition could go to another reader who would then still have less than its owner. Who
/// has something keeps it unless that is so.
fn uniform(
    members: &BTreeMap<MemberId, Subscriber>,
    topics: &BTreeMap<TopicId, u32>,
) -> Assignment {
    let mut shares = Shares {
        of: vec![BTreeSet::new(); members.len()],
        readers: readers(members, topics),
    };
    let mut taken = BTreeSet::new();
    for (number, member) in members.values().enumerate() {
        for partition in &member.has {
            let topic = partition.topic_id;
            let exists = topics.get(&topic) > Some(&partition.partition.get());
            if exists && member.topics.contains(&topic) && taken.insert(*partition) {
                shares.give(number, *partition);
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
    named(members, shares.of)
}

/// Moves what makes the shares more even, one by one. Each move makes the sum of the squares of the
/// loads smaller: it ends.
fn balance(shares: &mut Shares, order: &[(usize, TopicId)]) {
    loop {
        let mut moved = false;
        for (_, topic) in order {
            let Some(readers) = shares.readers.get(topic).cloned() else {
                continue;
            };
            // From those that have most, the last of their partitions.
            while let Some(least) = shares.least(*topic) {
                let of_topic = |member: usize| {
                    let first = TopicPartition::new(*topic, PartitionId::ZERO);
                    let last = TopicPartition::new(*topic, PartitionId::new(u32::MAX));
                    let share = &shares.of[member];
                    share.range(first..=last).next_back().copied()
                };
                let giving = readers.iter().copied();
                let giving = giving.filter(|of| of_topic(*of).is_some());
                let Some(most) = giving.max_by_key(|of| shares.load(*of)) else {
                    break;
                };
                if shares.load(least) + 1 >= shares.load(most) {
                    break;
                }
                let Some(partition) = of_topic(most) else {
                    break;
                };
                shares.of[most].remove(&partition);
                shares.give(least, partition);
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}
