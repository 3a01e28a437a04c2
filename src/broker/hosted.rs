//! What the plane publishes about each hosted partition: readers take it from here and never wait
//! for the plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::RwLock;
use quorate_log::LogReader;
use quorate_metadata::DataLoss;
use quorate_record::LeaderEpochCache;
use quorate_types::{LeaderEpoch, Offset, TopicPartition};
use tokio::sync::watch;

use crate::Disk;

/// The state of a hosted replica as of its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Published {
    /// The epoch that this node leads at, and where that epoch begins.
    pub(crate) leading: Option<(LeaderEpoch, Offset)>,
    /// The newest epoch known here.
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    pub(crate) high_watermark: Offset,
    /// Leader epoch of the last unclean election, and how much is on record of what it lost.
    pub(crate) unclean: Option<(LeaderEpoch, Option<DataLoss>)>,
}

/// A hosted partition, for those who look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostedPartition {
    /// Which.
    pub id: TopicPartition,
    /// Whether this node leads it.
    pub leading: bool,
    /// First offset of the log here.
    pub log_start: Offset,
    /// End of the log here, exclusive.
    pub log_end: Offset,
    /// The high watermark as known here.
    pub high_watermark: Offset,
}

/// One hosted partition, for readers.
pub(crate) struct Hosted {
    pub(crate) reader: LogReader<Disk>,
    pub(crate) state: watch::Sender<Published>,
    /// Refreshed with every change of role, and while leading complete for every epoch.
    pub(crate) epochs: RwLock<LeaderEpochCache>,
    /// What unclean elections lost; refreshed while leading.
    pub(crate) losses: RwLock<Vec<DataLoss>>,
    /// A reader has told the plane that the log cannot be read, and the plane has not taken it yet.
    pub(crate) unreadable: AtomicBool,
}

impl Hosted {
    /// Tells who still waits that this node has the partition no more.
    pub(crate) fn retire(&self) {
        self.state.send_modify(|state| state.leading = None);
    }
}

/// All hosted partitions.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    partitions: Arc<RwLock<BTreeMap<TopicPartition, Arc<Hosted>>>>,
}

impl Registry {
    pub(crate) fn get(&self, id: &TopicPartition) -> Option<Arc<Hosted>> {
        self.partitions.read().get(id).cloned()
    }

    pub(crate) fn insert(
        &self,
        id: TopicPartition,
        reader: LogReader<Disk>,
        epochs: LeaderEpochCache,
    ) -> Arc<Hosted> {
        let hosted = Arc::new(Hosted {
            reader,
            state: watch::Sender::default(),
            epochs: RwLock::new(epochs),
            losses: RwLock::default(),
            unreadable: AtomicBool::new(false),
        });
        self.partitions.write().insert(id, Arc::clone(&hosted));
        hosted
    }

    pub(crate) fn remove(&self, id: &TopicPartition) {
        self.partitions.write().remove(id);
    }

    /// All of them, as they are now.
    pub(crate) fn list(&self) -> Vec<HostedPartition> {
        let partitions = self.partitions.read();
        let of = |(id, hosted): (&TopicPartition, &Arc<Hosted>)| {
            let state = *hosted.state.borrow();
            HostedPartition {
                id: *id,
                leading: state.leading.is_some(),
                log_start: state.log_start,
                log_end: state.log_end,
                high_watermark: state.high_watermark,
            }
        };
        partitions.iter().map(of).collect()
    }

    /// How many partitions this node leads.
    pub(crate) fn led(&self) -> u32 {
        let partitions = self.partitions.read();
        let led = partitions
            .values()
            .filter(|hosted| hosted.state.borrow().leading.is_some());
        u32::try_from(led.count()).unwrap_or(u32::MAX)
    }
}
