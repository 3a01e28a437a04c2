//! What the rest of the node sees of the applied log: the newest image and the latest events.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_metadata::{ClusterEvent, MetadataImage};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// So many events are kept for those who ask later.
const EVENTS: usize = 10_000;
/// A subscriber that lags by more misses events (and is told how many).
const LAG: usize = 1_024;

pub(crate) struct View {
    images: watch::Sender<Arc<MetadataImage>>,
    events: Mutex<VecDeque<ClusterEvent>>,
    announced: broadcast::Sender<ClusterEvent>,
    /// Nothing will be applied any more.
    pub(crate) ended: CancellationToken,
}

impl View {
    pub(crate) fn new(image: &MetadataImage) -> Self {
        Self {
            images: watch::Sender::new(Arc::new(image.clone())),
            events: Mutex::new(VecDeque::new()),
            announced: broadcast::Sender::new(LAG),
            ended: CancellationToken::new(),
        }
    }

    /// Shows a newer image, and what happened on the way to it.
    pub(crate) fn publish(&self, image: &MetadataImage, events: Vec<ClusterEvent>) {
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

    pub(crate) fn events(&self) -> Vec<ClusterEvent> {
        self.events.lock().iter().cloned().collect()
    }

    pub(crate) fn subscribe_events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.announced.subscribe()
    }
}
