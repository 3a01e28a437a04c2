//! I9: once faults stop, each partition with a live ISR or ELR member is led again, takes writes
//! where enough of its replicas live, and all of those are in sync and hold the same; within a bound
//! of simulated time. So it is where one node stays down, stays cut off, or has a disk that never
//! syncs again: then without that one. What an unclean election lost has been told (R7). Replicas of
//! deleted topics are set aside (R14).
//!
//! Not verified: partitions whose members of ISR and ELR are all gone for good, how long writes were
//! refused meanwhile, and two nodes that stay broken. That all is told of a loss where a replica was
//! damaged or wiped as well, or lost what it had not synced.

use std::collections::BTreeSet;

use quorate_metadata::Registration;
use quorate_types::{Durability, NodeId, TopicPartition};

use crate::sim::plan::Residue;
use crate::sim::sight::{Acked, Seen};
use crate::sim::watched::Watched;
use crate::sim::world::{Violation, World};

pub(in crate::sim) const NAME: &str = "I9 all is well once faults stop";

/// What is not well yet.
pub(in crate::sim) fn unsettled(world: &World) -> Option<Violation> {
    for node in world.node_ids() {
        let well = world.plan.residue.node() != Some(node);
        if well && let Some(why) = node_unsettled(world, node) {
            return Some((None, why));
        }
    }
    let partitions = world.partitions.iter();
    partitions
        .filter_map(|(id, watched)| Some((Some(*id), partition_unsettled(world, *id, watched)?)))
        .next()
}

fn node_unsettled(world: &World, node: NodeId) -> Option<String> {
    let Some(process) = world.process(node) else {
        return Some(format!("node {node} is down"));
    };
    let image = world.quorum.latest();
    let hosted = process.slots.keys().copied();
    let listed = process.ledger.hosted();
    let mut all = hosted.chain(listed);
    let stray = all.find(|id| {
        let registration = image.partition(id);
        !registration.is_some_and(|registration| registration.has_replica(node))
    });
    stray.map(|id| format!("node {node} has not set {id} aside"))
}

fn partition_unsettled(world: &World, id: TopicPartition, watched: &Watched) -> Option<String> {
    let image = world.quorum.latest();
    let Some(registration) = image.partition(&id) else {
        return Some("there is no registration".to_owned());
    };
    let topic = image.topic(id.topic_id)?;
    let electable = registration.isr.iter().chain(&registration.elr);
    if !electable.into_iter().any(|node| world.is_well(*node)) {
        return None;
    }
    let replicas = registration.replicas.iter().map(|replica| replica.node);
    let well: BTreeSet<NodeId> = replicas.filter(|node| world.is_well(*node)).collect();
    if let Residue::Stalled(node) = world.plan.residue
        && registration.leader == Some(node)
        && world.clients.at_rest(id)
        && watched
            .seen
            .get(&node)
            .is_some_and(|seen| seen.flushed == seen.log_end)
    {
        // It has nothing to flush, and gives way with the first batch.
        return None;
    }
    let Some(leader) = registration.leader.filter(|leader| well.contains(leader)) else {
        return Some(format!("no leader that can work: {registration:?}"));
    };
    let mut isr: BTreeSet<NodeId> = registration.isr.iter().copied().collect();
    if let Residue::Stalled(node) = world.plan.residue {
        // It may stay where nobody waits for disks, or where its disk has all there is.
        let waits = topic.settings.durability == Durability::Fsync;
        let ends = |seen: &Seen| seen.flushed == watched.seen.get(&leader).map_or(0, |s| s.log_end);
        if !waits || watched.seen.get(&node).is_some_and(ends) {
            isr.remove(&node);
        }
    }
    if isr != well {
        return Some(format!("the ISR is not {well:?}: {registration:?}"));
    }
    let writable = well.len() >= registration.effective_min_isr(&topic.settings);
    if writable && !world.clients.at_rest(id) {
        return Some("a producer still waits for its answer".to_owned());
    }
    logs_unsettled(watched, &well, writable, leader).or_else(|| {
        let all_back = world.plan.residue == Residue::Nothing && !watched.damaged;
        all_back
            .then(|| untold_loss(registration, watched, leader))
            .flatten()
    })
}

fn logs_unsettled(
    watched: &Watched,
    well: &BTreeSet<NodeId>,
    writable: bool,
    leader: NodeId,
) -> Option<String> {
    let Some(first) = watched.seen.get(&leader) else {
        return Some(format!("node {leader} has no replica"));
    };
    let level = |seen: &Seen| {
        let from = seen.log_start.max(first.log_start);
        let kept = |of: &Seen| of.batches.partition_point(|batch| batch.end <= from);
        seen.batches[kept(seen)..] == first.batches[kept(first)..]
            && seen.log_end == first.log_end
            && seen.flushed == seen.log_end
            && (!writable || seen.high_watermark == seen.log_end)
    };
    for node in well {
        match watched.seen.get(node) {
            None => return Some(format!("node {node} has no replica")),
            Some(seen) if !level(seen) => {
                let of = |seen: &Seen| (seen.log_end, seen.flushed, seen.high_watermark);
                let what = (of(seen), of(first));
                return Some(format!("nodes {node} and {leader} differ: {what:?}"));
            }
            Some(_) => {}
        }
    }
    None
}

/// R7: every acknowledged batch that is gone lies in a range that was told.
fn untold_loss(registration: &Registration, watched: &Watched, leader: NodeId) -> Option<String> {
    let holder = watched.seen.get(&leader)?;
    let told = |election, base: u64, end: u64| {
        registration.losses.iter().any(|loss| {
            loss.epoch >= election
                && loss.from.get() <= base
                && loss.to.is_none_or(|to| to.get() >= end)
        })
    };
    let mut lost = watched
        .doubtful
        .iter()
        .filter(|(_, acked)| acked.end > watched.given_up && !holder.holds(acked));
    // What is below the beginning of the new history is gone like anything that retention took.
    let from = |acked: &Acked| acked.base.max(holder.log_start);
    let untold = lost.find(|(election, acked)| {
        from(acked) < acked.end && !told(*election, from(acked), acked.end)
    });
    untold.map(|(election, acked)| {
        let losses = &registration.losses;
        format!("the election at {election} lost {acked:?}; told is {losses:?}")
    })
}
