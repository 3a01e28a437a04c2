//! What differs between two images: costs what changed, not what there is.

use imbl::ordmap::DiffItem;
use quorate_types::{NodeId, PartitionId, TopicPartition};

use crate::image::MetadataImage;

/// What a node reacts to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// Brokers registered or changed.
    pub brokers: Vec<NodeId>,
    /// Partitions made or changed.
    pub partitions: Vec<TopicPartition>,
    /// Partitions gone.
    pub deleted: Vec<TopicPartition>,
}

impl Delta {
    /// What is to be done to come from `old` to `new`; images in between may have been skipped.
    pub fn between(old: &MetadataImage, new: &MetadataImage) -> Self {
        let mut delta = Self::default();
        for item in old.brokers.diff(&new.brokers) {
            match item {
                DiffItem::Add(node, _) | DiffItem::Remove(node, _) => delta.brokers.push(*node),
                DiffItem::Update { new: (node, _), .. } => delta.brokers.push(*node),
            }
        }
        for item in old.topics.diff(&new.topics) {
            // New settings concern every partition.
            if let DiffItem::Update {
                new: (_, topic), ..
            } = item
            {
                let ids = (0..topic.partitions).map(PartitionId::new);
                let ids = ids.map(|number| TopicPartition::new(topic.id, number));
                delta.partitions.extend(ids);
            }
        }
        for item in old.partitions.diff(&new.partitions) {
            match item {
                DiffItem::Add(id, _) => delta.partitions.push(*id),
                DiffItem::Update { new: (id, _), .. } => delta.partitions.push(*id),
                DiffItem::Remove(id, _) => delta.deleted.push(*id),
            }
        }
        delta.partitions.sort_unstable();
        delta.partitions.dedup();
        delta
    }
}
