//! R17: a registration says that what is acknowledged is on the disks only while the topic's
//! durability is `fsync`.
//!
//! Not verified: that it is on the disks; that is I8.

use super::{Entry, EntryChecker, Found};
use quorate_types::Durability;

pub(super) struct EstablishedUnderFsync;

impl EntryChecker for EstablishedUnderFsync {
    fn name(&self) -> &'static str {
        "R17 on the disks only with fsync"
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        for (id, registration) in entry.after.partitions() {
            let topic = entry.after.topic(id.topic_id);
            let page_cache =
                topic.is_some_and(|topic| topic.settings.durability == Durability::PageCache);
            if page_cache && registration.fsync_established {
                return Err((Some(*id), format!("{registration:?}")));
            }
        }
        Ok(())
    }
}
