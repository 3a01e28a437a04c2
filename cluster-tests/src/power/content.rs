//! The bytes of one file: as processes see them, as they are on the disk, and what lies between.
//!
//! Until a file is synced the kernel may have written any of its dirty pages, at any time, or none,
//! and a page that was on its way is torn between two sectors. The length goes its own way: where it
//! is on the disk before the pages are, zeros are read.

use rand::Rng;
use rand::rngs::StdRng;

use super::Fate;
use super::unsynced::Unsynced;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// Older changes count as written back: a kernel does so within half a minute.
const UNSYNCED: usize = 4096;

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    /// The file was cut to this length, or made so long.
    Length(usize),
}

/// The bytes of one file.
#[derive(Debug, Default)]
pub(super) struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Unsynced<Change>,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, written) => {
            let end = at + written.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(written);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

impl Content {
    pub(super) fn len(&self) -> usize {
        self.now.len()
    }

    pub(super) fn read(&self, at: usize, length: usize) -> &[u8] {
        let end = at.saturating_add(length).min(self.now.len());
        self.now.get(at..end).unwrap_or_default()
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.change(Change::Write(at, bytes.to_vec()));
    }

    pub(super) fn set_len(&mut self, length: usize) {
        self.change(Change::Length(length));
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.unsynced.push(change);
        if self.unsynced.len() > UNSYNCED {
            self.sync(self.unsynced.mark() - UNSYNCED as u64 / 2);
        }
    }

    /// Where a sync begins; see [`sync`](Self::sync).
    pub(super) fn mark(&self) -> u64 {
        self.unsynced.mark()
    }

    /// Makes durable what was done before `mark`.
    pub(super) fn sync(&mut self, mark: u64) {
        for change in self.unsynced.synced(mark) {
            apply(&mut self.durable, &change);
        }
    }

    /// The power goes and comes back: what is on the disk is what processes see. Returns in how many
    /// bytes that differs from before.
    pub(super) fn lose_power(&mut self, fate: Fate, random: &mut StdRng) -> u64 {
        let changes = self.unsynced.take();
        if changes.is_empty() {
            return 0;
        }
        let left = match fate {
            Fate::Nothing => std::mem::take(&mut self.durable),
            Fate::Everything => self.now.clone(),
            Fate::Some => self.some(&changes, random),
        };
        let differing = self.now.iter().zip(&left).filter(|(was, is)| was != is);
        let lost = differing.count() + self.now.len().abs_diff(left.len());
        self.durable.clone_from(&left);
        self.now = left;
        lost as u64
    }

    /// What is left where each dirty page, and the length, were written at a time of their own.
    fn some(&self, changes: &[Change], random: &mut StdRng) -> Vec<u8> {
        let mut left = self.durable.clone();
        left.resize(left.len().max(self.now.len()), 0);
        let mut pages: Vec<usize> = changes.iter().flat_map(pages_of).collect();
        pages.sort_unstable();
        pages.dedup();
        for page in pages {
            let early = random.random_range(0..=changes.len());
            let late = random.random_range(early..=changes.len());
            let versions = [early, late].map(|done| self.page(page, &changes[..done]));
            let torn = random.random_bool(0.5);
            for sector in (0..PAGE).step_by(SECTOR) {
                let version = &versions[usize::from(torn && random.random_bool(0.5))];
                let start = page * PAGE + sector;
                let end = (start + SECTOR).min(left.len());
                if start < end {
                    left[start..end].copy_from_slice(&version[sector..sector + end - start]);
                }
            }
        }
        let done = random.random_range(0..=changes.len());
        let length = changes[..done]
            .iter()
            .fold(self.durable.len(), length_after);
        left.resize(length, 0);
        left
    }

    /// A page after the first changes.
    fn page(&self, page: usize, changes: &[Change]) -> Vec<u8> {
        let start = page * PAGE;
        let end = (start + PAGE).min(self.durable.len());
        let mut bytes = self.durable.get(start..end).unwrap_or_default().to_vec();
        bytes.resize(PAGE, 0);
        for change in changes {
            match change {
                Change::Write(at, written) => {
                    let (from, to) = (start.max(*at), (start + PAGE).min(at + written.len()));
                    if from < to {
                        bytes[from - start..to - start]
                            .copy_from_slice(&written[from - at..to - at]);
                    }
                }
                Change::Length(length) => {
                    bytes[length.saturating_sub(start).min(PAGE)..].fill(0);
                }
            }
        }
        bytes
    }
}

fn pages_of(change: &Change) -> std::ops::Range<usize> {
    match change {
        Change::Write(at, written) => at / PAGE..(at + written.len()).div_ceil(PAGE),
        Change::Length(length) => length / PAGE..length / PAGE + 1,
    }
}

fn length_after(length: usize, change: &Change) -> usize {
    match change {
        Change::Write(at, written) => length.max(at + written.len()),
        Change::Length(length) => *length,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn written(synced: &[u8], then: &[u8]) -> Content {
        let mut content = Content::default();
        content.write(0, synced);
        content.sync(content.mark());
        content.write(synced.len(), then);
        content
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_goes_or_stays_by_its_fate() {
        let mut random = StdRng::seed_from_u64(1);
        let mut content = written(b"kept", b"lost");
        assert_eq!(content.lose_power(Fate::Nothing, &mut random), 4);
        assert_eq!(content.read(0, 100), b"kept");
        let mut content = written(b"kept", b"lucky");
        assert_eq!(content.lose_power(Fate::Everything, &mut random), 0);
        assert_eq!(content.read(0, 100), b"keptlucky");
        assert_eq!(content.lose_power(Fate::Nothing, &mut random), 0);
        assert_eq!(content.len(), 9);
    }

    #[test]
    fn a_sync_under_way_keeps_nothing_that_came_after_its_beginning() {
        let mut content = written(b"kept", b"too");
        let mark = content.mark();
        content.write(7, b"late");
        content.sync(mark);
        content.lose_power(Fate::Nothing, &mut StdRng::seed_from_u64(1));
        assert_eq!(content.read(0, 100), b"kepttoo");
    }

    #[test]
    fn pages_sectors_and_the_length_are_each_lost_or_kept_but_never_what_was_synced() {
        let (mut holes, mut torn, mut short) = (0, 0, 0);
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut content = written(&[1; PAGE], &[2; 3 * PAGE]);
            let whole = content.len();
            content.lose_power(Fate::Some, &mut random);
            assert_eq!(content.read(0, PAGE), [1; PAGE]);
            let rest = content.read(PAGE, whole);
            assert!(rest.iter().all(|byte| [0, 2].contains(byte)));
            let pages: Vec<_> = rest.chunks(PAGE).collect();
            let kept = |page: &&[u8]| page.iter().all(|byte| *byte == 2);
            short += usize::from(content.len() < whole);
            let half = |page: &&&[u8]| page.contains(&0) && page.contains(&2);
            torn += pages.iter().filter(half).count();
            let first_lost = pages.iter().position(|page| !kept(page));
            holes += usize::from(first_lost.is_some_and(|at| pages[at..].iter().any(kept)));
        }
        assert!(
            holes > 10 && torn > 10 && short > 10,
            "{holes} {torn} {short}"
        );
    }

    #[test]
    fn a_cut_that_was_not_synced_is_undone() {
        let mut content = written(&[1; 100], b"");
        content.set_len(10);
        content.write(10, &[2; 5]);
        content.lose_power(Fate::Nothing, &mut StdRng::seed_from_u64(1));
        assert_eq!(content.read(0, 200), [1; 100]);
    }
}
