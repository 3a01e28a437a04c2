//! Each node's clocks: the monotonic one runs a little fast or slow, the wall clock jumps.

use std::time::Duration;

use quorate_types::Timestamp;

/// The clocks of one machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeClock {
    /// Parts per thousand that the monotonic clock runs faster than the world's time.
    fast: i64,
    /// What it showed when the world began.
    began: Duration,
    /// How far the wall clock is off, in milliseconds.
    pub(super) wall_off: i64,
}

impl NodeClock {
    pub(super) fn new(fast: i64, began: Duration) -> Self {
        Self {
            fast,
            began,
            wall_off: 0,
        }
    }

    /// What the monotonic clock shows.
    pub(super) fn now(&self, world: Duration) -> Duration {
        let micros = world.as_micros() as i64;
        self.began + Duration::from_micros((micros + micros * self.fast / 1_000) as u64)
    }

    /// How long it is in the world's time until the clock shows `at`; nothing where it is past.
    pub(super) fn until(&self, world: Duration, at: Duration) -> Duration {
        let left = at.saturating_sub(self.now(world)).as_micros() as i64;
        Duration::from_micros((left * 1_000 / (1_000 + self.fast)) as u64)
    }

    /// The wall clock.
    pub(super) fn wall(&self, world: Duration) -> Timestamp {
        let millis = 1_000_000 + world.as_millis() as i64 + self.wall_off;
        Timestamp::from_millis(millis.max(0))
    }
}
