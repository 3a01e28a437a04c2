//! What runs came to, counted.

/// Of one run, or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that led to something, all phases.
    pub steps: u64,
    /// Those of them while faults struck.
    pub faulty: u64,
    /// All events.
    pub events: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Batches acknowledged with `acks=all`.
    pub acked: u64,
    /// Leader epochs begun after the first.
    pub elections: u64,
    /// Unclean elections.
    pub unclean: u64,
    /// Logs cut while their process ran.
    pub truncations: u64,
    /// Processes started.
    pub starts: u64,
    /// Replicas found damaged.
    pub damaged: u64,
    /// Topics deleted.
    pub deleted: u64,
    /// Groups deleted.
    pub groups_deleted: u64,
    /// Commits of offsets that were decided.
    pub commits: u64,
    /// Partitions that members of groups took.
    pub taken: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.faulty += other.faulty;
        self.events += other.events;
        self.faults += other.faults;
        self.acked += other.acked;
        self.elections += other.elections;
        self.unclean += other.unclean;
        self.truncations += other.truncations;
        self.starts += other.starts;
        self.damaged += other.damaged;
        self.deleted += other.deleted;
        self.groups_deleted += other.groups_deleted;
        self.commits += other.commits;
        self.taken += other.taken;
    }
}
