//! What the outside sees of a running load, and how it ends one early.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// The progress of a load.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Cancelled, the load ends early and still reports what it measured.
    pub stop: CancellationToken,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Monitor {
    /// Records acknowledged or read so far, the warm-up's too.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Records that have failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn add_done(&self, records: u64) {
        self.done.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn add_failed(&self, records: u64) {
        self.failed.fetch_add(records, Ordering::Relaxed);
    }
}
