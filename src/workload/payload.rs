//! Values for records: random bytes made once, another piece of them for each record, so that
//! neither their making nor a lucky compression decides a figure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// A piece comes again after so many bytes, which is more than a batch holds by default.
const POOL: usize = 2 << 20;
/// What a stamp takes of a value.
pub(crate) const STAMP_BYTES: usize = 16;

/// Marks the values of one run, and tells when each was to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) run: u64,
    pub(crate) base: Instant,
}

impl Stamp {
    /// When a value of this run was to be sent; none for another's value.
    pub(crate) fn read(&self, value: &[u8]) -> Option<Instant> {
        let (run, rest) = value.split_first_chunk()?;
        let nanos = rest.first_chunk()?;
        if u64::from_be_bytes(*run) != self.run {
            return None;
        }
        self.base
            .checked_add(Duration::from_nanos(u64::from_be_bytes(*nanos)))
    }

    fn write(&self, value: &mut [u8], at: Instant) {
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        value[..8].copy_from_slice(&self.run.to_be_bytes());
        value[8..STAMP_BYTES].copy_from_slice(&nanos.to_be_bytes());
    }
}

/// Gives values of one size. Cheap to clone; clones begin at the same piece.
#[derive(Clone)]
pub(crate) struct Payload {
    pool: Arc<[u8]>,
    size: usize,
    at: usize,
    stamp: Option<Stamp>,
    stamped: Vec<u8>,
}

impl Payload {
    /// Values of `size` bytes, with a stamp at least [`STAMP_BYTES`].
    pub(crate) fn new(size: usize, stamp: Option<Stamp>) -> Self {
        let size = if stamp.is_some() {
            size.max(STAMP_BYTES)
        } else {
            size
        };
        let mut pool = vec![0; POOL + size];
        // The same bytes in every run: figures are to be compared.
        StdRng::seed_from_u64(7).fill_bytes(&mut pool);
        Self {
            pool: pool.into(),
            size,
            at: 0,
            stamp,
            stamped: Vec::new(),
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The value of the next record, which is to be sent at `at`.
    pub(crate) fn next(&mut self, at: Instant) -> &[u8] {
        let piece = &self.pool[self.at..self.at + self.size];
        self.at = (self.at + self.size) % POOL;
        match &self.stamp {
            None => piece,
            Some(stamp) => {
                self.stamped.clear();
                self.stamped.extend_from_slice(piece);
                stamp.write(&mut self.stamped, at);
                &self.stamped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_and_do_not_end() {
        let mut payload = Payload::new(1_000, None);
        let now = Instant::now();
        let first = payload.next(now).to_vec();
        assert_eq!(first.len(), 1_000);
        for _ in 0..3 * POOL / 1_000 {
            assert_ne!(payload.next(now), first);
        }
    }

    #[test]
    fn a_stamp_tells_the_time_and_knows_its_own_run() {
        let stamp = Stamp {
            run: 5,
            base: Instant::now(),
        };
        let at = stamp.base + Duration::from_micros(1_234_567);
        let mut payload = Payload::new(1, Some(stamp));
        let value = payload.next(at).to_vec();
        assert_eq!(value.len(), STAMP_BYTES);
        assert_eq!(stamp.read(&value), Some(at));
        let other = Stamp { run: 6, ..stamp };
        assert_eq!(other.read(&value), None);
        assert_eq!(stamp.read(&value[..15]), None);
    }
}
