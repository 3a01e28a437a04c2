//! Disks that lose what was not synced when the power goes, and a cluster of three nodes on them.
//!
//! A [`PowerDisk`] is a FUSE file system in this process whose content is in memory twice: as
//! processes see it, and as it would be on the medium. `fsync`, `fdatasync` and the sync of a
//! directory carry the first over to the second: of a file its bytes and its length, of a directory
//! its names. A sync takes a while, covers what was written before it began and counts once it has
//! ended. At a power loss each file and each directory keeps all, none or a part of the rest, drawn
//! from a seed: pages written in any order and torn between sectors, the length before the bytes,
//! some names without those before them.
//!
//! So it is harsher than the usual file systems: none of its names is made durable by the sync of the
//! file. What it cannot show: a drive that answers a flush before it is done, or that damages what was
//! durable before; the bugs of a real file system; the `syncfs` that a flush of more than 64 logs uses
//! (the kernel does not pass it on to FUSE, so a test stays below that); mappings of files, which
//! nothing under test has.

mod cluster;
mod content;
mod disk;
mod mount;
mod names;
mod unsynced;

pub use cluster::{Dropped, PowerCluster};
pub use mount::PowerDisk;

/// What becomes of the changes of one file or directory that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Nothing,
    Some,
    Everything,
}

/// What a power loss took from a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes that are other than they were, or gone.
    pub bytes: u64,
    /// Files with such bytes.
    pub files: u64,
    /// Names made, renamed or removed to no effect.
    pub names: u64,
}

impl std::ops::AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
        self.names += other.names;
    }
}
