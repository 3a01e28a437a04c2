//! Where a topic's replicas go: leaders one broker after the other, replicas over racks first.

use quorate_types::NodeId;

/// Replicas of each partition, the preferred leader first. `brokers` (with their racks) are sorted
/// by node; `factor` is at most their number.
pub(crate) fn place(
    brokers: &[(NodeId, Option<&str>)],
    partitions: u32,
    factor: usize,
    seed: u64,
) -> Vec<Vec<NodeId>> {
    let order = interleave(brokers);
    let count = order.len();
    let start = (seed % count as u64) as usize;
    let shift = (seed / count as u64 % count as u64) as usize;
    (0..partitions as usize)
        .map(|partition| {
            let first = (start + partition) % count;
            // Each round over all brokers the followers shift, so that those of one leader are
            // not always the same.
            let gap = 1 + (shift + partition / count) % (count - 1).max(1);
            follow(&order, first, gap, factor)
        })
        .collect()
}

fn follow(
    order: &[(NodeId, Option<&str>)],
    first: usize,
    gap: usize,
    factor: usize,
) -> Vec<NodeId> {
    let count = order.len();
    let others = (0..count - 1).map(|i| (first + 1 + (gap - 1 + i) % (count - 1).max(1)) % count);
    let ring: Vec<usize> = std::iter::once(first).chain(others).collect();
    let mut chosen: Vec<usize> = Vec::with_capacity(factor);
    // First one of each rack, then whoever is next.
    for fresh_racks_only in [true, false] {
        for at in &ring {
            let rack = order[*at].1;
            let known = rack.is_some() && chosen.iter().any(|other| order[*other].1 == rack);
            if chosen.len() < factor && !chosen.contains(at) && !(fresh_racks_only && known) {
                chosen.push(*at);
            }
        }
    }
    chosen.into_iter().map(|at| order[at].0).collect()
}

/// Brokers so that neighbours are of different racks as far as that goes.
fn interleave<'a>(brokers: &[(NodeId, Option<&'a str>)]) -> Vec<(NodeId, Option<&'a str>)> {
    let mut racks: Vec<Vec<(NodeId, Option<&'a str>)>> = Vec::new();
    for broker in brokers {
        match racks.iter_mut().find(|members| members[0].1 == broker.1) {
            Some(members) => members.push(*broker),
            None => racks.push(vec![*broker]),
        }
    }
    let longest = racks.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|at| {
            racks
                .iter()
                .filter_map(move |members| members.get(at).copied())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn nodes(racks: &[&'static str]) -> Vec<(NodeId, Option<&'static str>)> {
        let rack = |name: &'static str| (!name.is_empty()).then_some(name);
        (1..)
            .zip(racks)
            .map(|(id, name)| (NodeId::new(id), rack(name)))
            .collect()
    }

    #[test]
    fn leaders_and_replicas_are_spread_evenly() {
        for (brokers, partitions, factor) in
            [(3, 6, 3), (5, 10, 3), (4, 12, 2), (1, 3, 1), (2, 4, 2)]
        {
            for seed in 0..50 {
                let placed = place(&nodes(&vec![""; brokers]), partitions, factor, seed);
                let mut leaders = BTreeMap::new();
                let mut replicas = BTreeMap::new();
                for partition in &placed {
                    assert_eq!(partition.iter().collect::<BTreeSet<_>>().len(), factor);
                    *leaders.entry(partition[0]).or_insert(0) += 1;
                    for node in partition {
                        *replicas.entry(*node).or_insert(0) += 1;
                    }
                }
                let even = partitions as usize / brokers;
                assert!(leaders.values().all(|led| *led == even), "{leaders:?}");
                assert!(
                    replicas.values().all(|n| *n == even * factor),
                    "{replicas:?}"
                );
            }
        }
    }

    #[test]
    fn replicas_are_on_different_racks_where_there_are_enough() {
        let brokers = nodes(&["a", "a", "b", "b", "c", "c"]);
        for seed in 0..50 {
            for partition in place(&brokers, 12, 3, seed) {
                let rack = |node: &NodeId| brokers[node.get() as usize - 1].1;
                assert_eq!(partition.iter().map(rack).collect::<BTreeSet<_>>().len(), 3);
            }
        }
    }
}
