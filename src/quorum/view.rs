//! What the rest of the node sees of the applied log: the newest image and the latest events.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_metadata::{ClusterEvent, MetadataImage};
use quorate_types::RaftIndex;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// So many events are kept for those who ask later.
const EVENTS: usize = 10_000;
/// A subscriber that lags by more misses events (and is told how many).
const LAG: usize = 1_024;
/// The rolling hashes of so many entries are kept, to be compared with those of brokers that are
/// behind.
const HASHES: usize = 4_096;

/// The rolling hash as of one entry.
pub(crate) type HashAt = (RaftIndex, u64);

/// What an image says of itself.
pub(crate) fn hash_of(image: &MetadataImage) -> HashAt {
    (image.applied().index, image.rolling_hash())
}

pub(crate) struct View {
    images: watch::Sender<Arc<MetadataImage>>,
    events: Mutex<VecDeque<ClusterEvent>>,
    announced: broadcast::Sender<ClusterEvent>,
    /// By index, rising.
    hashes: Mutex<VecDeque<HashAt>>,
    /// Nothing will be applied any more.
    pub(crate) ended: CancellationToken,
}

impl View {
    pub(crate) fn new(image: &MetadataImage) -> Self {
        Self {
            images: watch::Sender::new(Arc::new(image.clone())),
            events: Mutex::new(VecDeque::new()),
            announced: broadcast::Sender::new(LAG),
            hashes: Mutex::new(VecDeque::from([hash_of(image)])),
            ended: CancellationToken::new(),
        }
    }

    /// Shows a newer image, what happened on the way to it, and the hashes of that way.
    pub(crate) fn publish(
        &self,
        image: &MetadataImage,
        events: Vec<ClusterEvent>,
        hashes: Vec<HashAt>,
    ) {
        {
            let mut kept = self.hashes.lock();
            kept.extend(hashes);
            let surplus = kept.len().saturating_sub(HASHES);
            kept.drain(..surplus);
        }
        self.images.send_replace(Arc::new(image.clone()));
        if events.is_empty() {
            return;
        }
        let mut kept = self.events.lock();
        for event in events {
            if kept.len() == EVENTS {
                kept.pop_front();
            }
            kept.push_back(event.clone());
            // Nobody may be listening.
            let _ = self.announced.send(event);
        }
    }

    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.images.borrow().clone()
    }

    pub(crate) fn images(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.images.subscribe()
    }

    /// The rolling hash as of the entry at `index`, where that is among the latest applied here.
    pub(crate) fn hash_at(&self, index: RaftIndex) -> Option<u64> {
        let hashes = self.hashes.lock();
        let found = hashes.binary_search_by_key(&index, |(index, _)| *index);
        found.ok().map(|place| hashes[place].1)
    }

    pub(crate) fn events(&self) -> Vec<ClusterEvent> {
        self.events.lock().iter().cloned().collect()
    }

    pub(crate) fn subscribe_events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.announced.subscribe()
    }
}
