//! What goes wrong with data at rest: bits that flip, disks that are replaced; and retention, which
//! takes data on purpose.

use quorate_log::Dir;
use quorate_record::{Batch, BatchHeader};
use quorate_replication::Event;
use quorate_types::{NodeId, Offset};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::trace::note;
use super::world::World;

impl World {
    /// A bit flips in a log at rest, while the process is down and others have the data. Not in a
    /// batch's length, where the last one would look as if it had never been written whole.
    pub(super) fn flip(&mut self, node: NodeId) {
        if self.node(node).dark || !self.others_hold_all(node) || self.node(node).flipped {
            return;
        }
        let slots = self.process(node).map(|process| &process.slots);
        let folders: Vec<String> = slots.map_or_else(Vec::new, |slots| {
            slots.values().map(|slot| slot.path.clone()).collect()
        });
        let Some(folder) = folders.choose(&mut self.rng).cloned() else {
            return;
        };
        self.kill(node);
        self.start_later(node);
        let disk = self.node(node).disk.clone();
        // Closed segments below the recovery point are not read at a start: see the damage tests.
        let names = disk.list(&folder).unwrap_or_default();
        let mut logs = names.into_iter().map(|entry| entry.name);
        let Some(name) = logs.rfind(|name| name.ends_with(".log")) else {
            return;
        };
        let path = format!("{folder}/{name}");
        let bytes = disk.bytes_of(&path);
        let mut places = Vec::new();
        let mut at = 0;
        while let Some(size) = bytes
            .get(at..)
            .and_then(|rest| BatchHeader::size_of(rest).ok())
        {
            let Some(batch) = bytes.get(at..at + size) else {
                break;
            };
            if Batch::parse(batch.to_vec().into()).is_err() {
                break;
            }
            places.push(at + 16..at + size);
            at += size;
        }
        if let Some(place) = places.choose(&mut self.rng).cloned() {
            let byte = self.rng.random_range(place);
            note!(self, None, "node {node}: a bit flips in {path} at {byte}");
            disk.flip(&path, byte, self.rng.random_range(0..8));
            self.node_mut(node).flipped = true;
        }
    }

    /// A node comes back with an empty disk, where others have its data.
    pub(super) fn wipe(&mut self, node: NodeId) {
        let others_wiped = self.nodes.values().any(|other| other.wiped);
        if !self.others_hold_all(node) || others_wiped {
            return;
        }
        self.kill(node);
        note!(self, None, "node {node}: its disk is replaced");
        let number = self.node(node).lives + 1;
        let state = self.node_mut(node);
        state.take_new_disk(node, number);
        state.wiped = true;
        state.last_image = 0;
        self.marked.retain(|(of, _)| *of != node);
        for id in self.replicas_on(node) {
            if let Some(watched) = self.partitions.get_mut(&id) {
                watched.damaged = true;
            }
        }
        self.start_later(node);
    }

    /// Retention takes what is old from a log.
    pub(super) fn delete_before(&mut self, node: NodeId) {
        for id in self.replicas_on(node) {
            let slot = self.process(node).and_then(|p| p.slots.get(&id));
            let Some(at) = slot.map(|slot| slot.core.positions()) else {
                continue;
            };
            if at.high_watermark > at.start {
                let offset = self.rng.random_range(at.start..=at.high_watermark);
                note!(self, Some(id), "node {node}: retention up to {offset}");
                let offset = Offset::new(offset);
                self.step(node, id, Event::DeleteBefore { offset });
            }
        }
    }
}
