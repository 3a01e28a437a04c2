//! Assignors: everything is shared out, evenly, and what can stay stays.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quorate_types::{Assignor, InstanceId, MemberId, PartitionId, TopicId, TopicPartition};

use crate::{Assignment, Subscriber, assign};

fn topic(id: u8) -> TopicId {
    TopicId::from_bytes([id; 16])
}

fn member(id: usize) -> MemberId {
    MemberId::new(&format!("m{id}")).unwrap()
}

fn at(of: u8, partition: u32) -> TopicPartition {
    TopicPartition::new(topic(of), PartitionId::new(partition))
}

fn reading(topics: &[u8]) -> Subscriber {
    Subscriber {
        topics: topics.iter().map(|id| topic(*id)).collect(),
        ..Subscriber::default()
    }
}

fn group(topics: &[&[u8]]) -> BTreeMap<MemberId, Subscriber> {
    let numbered = topics.iter().enumerate();
    numbered.map(|(id, of)| (member(id), reading(of))).collect()
}

/// The same group after each has what it is to have.
fn settled(
    members: &BTreeMap<MemberId, Subscriber>,
    assignment: &Assignment,
) -> BTreeMap<MemberId, Subscriber> {
    let mut members = members.clone();
    for (id, member) in &mut members {
        member.has = assignment[id].clone();
    }
    members
}

fn sizes(assignment: &Assignment) -> Vec<usize> {
    assignment.values().map(BTreeSet::len).collect()
}

fn moved(before: &Assignment, after: &Assignment) -> usize {
    let kept = before.iter().map(|(id, had)| {
        let has = after.get(id);
        has.map_or(0, |has| had.intersection(has).count())
    });
    before.values().map(BTreeSet::len).sum::<usize>() - kept.sum::<usize>()
}

#[test]
fn a_member_that_joins_takes_its_share_and_no_more_moves() {
    let topics = BTreeMap::from([(topic(1), 6)]);
    let two = group(&[&[1], &[1]]);
    let before = assign(Assignor::Uniform, &two, &topics);
    assert_eq!(sizes(&before), [3, 3]);
    let mut three = settled(&two, &before);
    three.insert(member(2), reading(&[1]));
    let after = assign(Assignor::Uniform, &three, &topics);
    assert_eq!(sizes(&after), [2, 2, 2]);
    assert_eq!(moved(&before, &after), 2);
    let mut left = settled(&three, &after);
    left.remove(&member(0));
    let rest = assign(Assignor::Uniform, &left, &topics);
    assert_eq!(sizes(&rest), [3, 3]);
    for (id, has) in &rest {
        assert!(has.is_superset(&after[id]), "{id} keeps what it has");
    }
}

#[test]
fn who_is_one_too_many_gets_nothing_and_takes_over_when_another_goes() {
    let topics = BTreeMap::from([(topic(1), 2)]);
    for assignor in Assignor::ALL {
        let members = group(&[&[1], &[1], &[1]]);
        let assignment = assign(assignor, &members, &topics);
        assert_eq!(sizes(&assignment), [1, 1, 0], "{assignor}");
        let mut left = settled(&members, &assignment);
        left.remove(&member(0));
        assert_eq!(sizes(&assign(assignor, &left, &topics)), [1, 1]);
    }
}

#[test]
fn range_gives_the_same_numbers_of_topics_that_belong_together() {
    let topics = BTreeMap::from([(topic(1), 4), (topic(2), 4)]);
    let assignment = assign(
        Assignor::Range,
        &group(&[&[1, 2], &[1, 2], &[1, 2]]),
        &topics,
    );
    let numbers = |of: u8| -> Vec<Vec<u32>> {
        let of_topic = |has: &BTreeSet<TopicPartition>| {
            let its = has.iter().filter(|id| id.topic_id == topic(of));
            its.map(|id| id.partition.get()).collect()
        };
        assignment.values().map(of_topic).collect()
    };
    assert_eq!(numbers(1), [vec![0, 1], vec![2], vec![3]]);
    assert_eq!(numbers(1), numbers(2));
}

#[test]
fn a_static_member_keeps_its_place_under_another_member_id() {
    let topics = BTreeMap::from([(topic(1), 4)]);
    let named = |name: &str| Subscriber {
        instance: Some(InstanceId::new(name).unwrap()),
        ..reading(&[1])
    };
    let of = |assignment: Assignment, id| assignment[&member(id)].clone();
    let before = BTreeMap::from([(member(1), named("a")), (member(2), named("b"))]);
    let after = BTreeMap::from([(member(9), named("a")), (member(2), named("b"))]);
    let before = of(assign(Assignor::Range, &before, &topics), 1);
    assert_eq!(of(assign(Assignor::Range, &after, &topics), 9), before);
}

#[test]
fn what_is_gone_or_no_longer_read_is_nobodys() {
    let topics = BTreeMap::from([(topic(1), 2)]);
    let mut members = group(&[&[1], &[2]]);
    members.get_mut(&member(0)).unwrap().has = [at(1, 0), at(1, 7), at(2, 0)].into();
    members.get_mut(&member(1)).unwrap().has = [at(1, 1)].into();
    let assignment = assign(Assignor::Uniform, &members, &topics);
    assert_eq!(assignment[&member(0)], [at(1, 0), at(1, 1)].into());
    assert!(assignment[&member(1)].is_empty());
}

#[test]
fn ten_thousand_partitions_and_a_thousand_members_are_shared_out_evenly() {
    let topics = BTreeMap::from([(topic(1), 10_000)]);
    let members: BTreeMap<_, _> = (0..1_000).map(|id| (member(id), reading(&[1]))).collect();
    let assignment = assign(Assignor::Uniform, &members, &topics);
    assert!(sizes(&assignment).iter().all(|size| *size == 10));
}

fn any_group() -> impl Strategy<Value = (BTreeMap<MemberId, Subscriber>, BTreeMap<TopicId, u32>)> {
    let subscriptions = prop::collection::vec(prop::collection::btree_set(0..4_u8, 0..4), 1..8);
    let partitions = prop::collection::vec(0..12_u32, 4);
    let had = prop::collection::vec((0..8_usize, 0..4_u8, 0..12_u32), 0..20);
    (subscriptions, partitions, had).prop_map(|(subscriptions, partitions, had)| {
        let read = |of: BTreeSet<u8>| reading(&of.into_iter().collect::<Vec<_>>());
        let numbered = subscriptions.into_iter().enumerate();
        let mut members: BTreeMap<_, _> = numbered.map(|(id, of)| (member(id), read(of))).collect();
        let mut taken = BTreeSet::new();
        for (id, of, partition) in had {
            if let Some(member) = members.get_mut(&member(id))
                && taken.insert(at(of, partition))
            {
                member.has.insert(at(of, partition));
            }
        }
        let topics = (0..4).zip(partitions).map(|(id, count)| (topic(id), count));
        (members, topics.collect())
    })
}

proptest! {
    #[test]
    fn every_partition_that_somebody_reads_has_one_owner_who_reads_it(
        (members, topics) in any_group()
    ) {
        for assignor in Assignor::ALL {
            let assignment = assign(assignor, &members, &topics);
            let mut owned = BTreeSet::new();
            for (id, has) in &assignment {
                for partition in has {
                    prop_assert!(owned.insert(*partition), "{partition} twice");
                    prop_assert!(members[id].topics.contains(&partition.topic_id));
                    prop_assert!(partition.partition.get() < topics[&partition.topic_id]);
                }
            }
            let read = topics.iter().filter(|(topic, _)| {
                members.values().any(|member| member.topics.contains(*topic))
            });
            let all: usize = read.map(|(_, count)| *count as usize).sum();
            prop_assert_eq!(owned.len(), all);
        }
    }

    #[test]
    fn no_move_would_make_a_uniform_assignment_more_even_and_a_second_one_moves_nothing(
        (members, topics) in any_group()
    ) {
        let assignment = assign(Assignor::Uniform, &members, &topics);
        for has in assignment.values() {
            for partition in has {
                for (id, other) in &assignment {
                    let reads = members[id].topics.contains(&partition.topic_id);
                    prop_assert!(!reads || other.len() + 1 >= has.len());
                }
            }
        }
        let again = assign(Assignor::Uniform, &settled(&members, &assignment), &topics);
        prop_assert_eq!(again, assignment);
    }
}
