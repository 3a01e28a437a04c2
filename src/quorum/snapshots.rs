//! Snapshots of the image as files: written beside the old one, synced, then swapped in by a
//! rename. A file whose checksum does not hold is as if it were not there.
//!
//! `snapshot-<term>-<index>` = magic, length of the head, head (JSON: what the snapshot covers),
//! length of the image, image, XXH3-64 of all before it; numbers big-endian.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::codec;
use crate::ids::SnapshotMeta;

const MAGIC: &[u8; 8] = b"QRSNAP\0\x01";
const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = "unfinished";

/// A whole snapshot: what it covers, and the encoded image.
#[derive(Debug, Clone)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) image: Bytes,
}

/// The directory that snapshots are kept in.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    path: PathBuf,
    /// One file is written at a time: a snapshot can arrive while another is being made.
    saving: Arc<Mutex<()>>,
}

impl Snapshots {
    /// Opens or makes the directory; what an earlier life left unfinished goes.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        match fs::remove_file(path.join(UNFINISHED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        sync_dir(&path)?;
        if let Some(parent) = path.parent().filter(|parent| parent.is_dir()) {
            sync_dir(parent)?;
        }
        Ok(Self {
            path,
            saving: Arc::default(),
        })
    }

    /// Snapshot files, the newest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if let Some(position) = name.to_str().and_then(position_in) {
                found.push((position, self.path.join(&name)));
            }
        }
        found.sort();
        Ok(found.into_iter().rev().map(|(_, path)| path).collect())
    }

    /// Every file by its name, the newest first, and what it says.
    pub(crate) fn check(&self) -> io::Result<Vec<(String, io::Result<StoredSnapshot>)>> {
        let files = self.files()?;
        let read = |path: &PathBuf| fs::read(path).and_then(|bytes| parse(&bytes));
        Ok(files
            .iter()
            .map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (name.into_owned(), read(path))
            })
            .collect())
    }

    /// The newest snapshot that is whole.
    pub(crate) fn load(&self) -> io::Result<Option<StoredSnapshot>> {
        for path in self.files()? {
            match parse(&fs::read(&path)?) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "snapshot ignored");
                }
            }
        }
        Ok(None)
    }

    /// Keeps a snapshot; the older ones go once it is durable.
    pub(crate) fn save(&self, snapshot: &StoredSnapshot) -> io::Result<()> {
        let _one_at_a_time = self.saving.lock();
        let position = position_of(&snapshot.meta);
        let target = self
            .path
            .join(format!("{PREFIX}{:020}-{:020}", position.0, position.1));
        let unfinished = self.path.join(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        write(&mut file, snapshot)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&unfinished, &target)?;
        sync_dir(&self.path)?;
        for older in self.files()?.into_iter().filter(|path| *path < target) {
            fs::remove_file(older)?;
        }
        #[cfg(test)]
        if let Some(power) = crate::fault_tests::power::of(&self.path) {
            power.check()?;
        }
        Ok(())
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn position_of(meta: &SnapshotMeta) -> (u64, u64) {
    meta.last_log_id
        .as_ref()
        .map_or((0, 0), |id| (id.committed_leader_id().term, id.index))
}

fn position_in(name: &str) -> Option<(u64, u64)> {
    let (term, index) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((term.parse().ok()?, index.parse().ok()?))
}

fn write(file: &mut File, snapshot: &StoredSnapshot) -> io::Result<()> {
    let head = codec::to_json(&snapshot.meta);
    let parts: [&[u8]; 5] = [
        MAGIC,
        &(head.len() as u64).to_be_bytes(),
        &head,
        &(snapshot.image.len() as u64).to_be_bytes(),
        &snapshot.image,
    ];
    let mut checksum = Xxh3::new();
    for part in parts {
        checksum.update(part);
        file.write_all(part)?;
    }
    file.write_all(&checksum.digest().to_be_bytes())
}

fn parse(bytes: &[u8]) -> io::Result<StoredSnapshot> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "it is torn or damaged");
    let (body, checksum) = bytes.split_last_chunk::<8>().ok_or_else(torn)?;
    let mut hash = Xxh3::new();
    hash.update(body);
    if hash.digest() != u64::from_be_bytes(*checksum) {
        return Err(torn());
    }
    let body = body.strip_prefix(MAGIC).ok_or_else(torn)?;
    let (head, body) = part(body).ok_or_else(torn)?;
    let (image, rest) = part(body).ok_or_else(torn)?;
    if !rest.is_empty() {
        return Err(torn());
    }
    Ok(StoredSnapshot {
        meta: codec::from_json(head)?,
        image: Bytes::copy_from_slice(image),
    })
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;
    use crate::ids::{RaftId, TypeConfig};

    fn snapshot(index: u64, image: &'static [u8]) -> StoredSnapshot {
        StoredSnapshot {
            meta: SnapshotMeta {
                last_log_id: Some(log_id::<TypeConfig>(1, RaftId::from(1), index)),
                ..SnapshotMeta::default()
            },
            image: Bytes::from_static(image),
        }
    }

    #[test]
    fn the_newest_snapshot_replaces_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path().join("s")).unwrap();
        assert!(snapshots.load().unwrap().is_none());
        snapshots.save(&snapshot(3, b"three")).unwrap();
        snapshots.save(&snapshot(12, b"twelve")).unwrap();
        let loaded = snapshots.load().unwrap().unwrap();
        assert_eq!(loaded.image, "twelve");
        assert_eq!(loaded.meta, snapshot(12, b"").meta);
        assert_eq!(snapshots.files().unwrap().len(), 1);
    }

    #[test]
    fn a_torn_snapshot_is_ignored_and_an_unfinished_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path().to_owned()).unwrap();
        snapshots.save(&snapshot(3, b"three")).unwrap();
        let whole = fs::read(&snapshots.files().unwrap()[0]).unwrap();
        fs::write(dir.path().join(UNFINISHED), &whole[..9]).unwrap();
        let newer = dir.path().join(format!("{PREFIX}{:020}-{:020}", 1, 9));
        for length in 0..whole.len() {
            fs::write(&newer, &whole[..length]).unwrap();
            assert_eq!(snapshots.load().unwrap().unwrap().image, "three");
        }
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 4;
            fs::write(&newer, &flipped).unwrap();
            assert_eq!(snapshots.load().unwrap().unwrap().image, "three");
        }
        let reopened = Snapshots::open(dir.path().to_owned()).unwrap();
        assert!(!dir.path().join(UNFINISHED).exists());
        assert_eq!(reopened.load().unwrap().unwrap().image, "three");
    }
}
