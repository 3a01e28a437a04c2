//! What this member has promised: its vote and its last entry, as of the last sync of the Raft log,
//! in a file of its own beside sled's. An opening compares: sled forgets without a word what lies
//! behind a damaged byte, and a cut file looks to it like a short one.
//!
//! `promised` = two records of [`SLOT`] bytes, written by turns, the newer whole one counts; each
//! is magic, number (rising), length, JSON, CRC-32 of all before it, zeros. It never says more than
//! what sled holds durably: a promise that grows is noted after sled's sync, without a sync of its
//! own (so a power loss may leave an older one, never a process's end), and one that shrinks (a cut
//! of the log) is synced here before sled is told.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::ids::{RaftLogId, Vote};

pub(crate) const PROMISED: &str = "promised";
const MAGIC: &[u8; 4] = b"QRP\x01";
const SLOT: usize = 1024;
const HEAD: usize = 16;

/// What other members may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<RaftLogId>,
}

/// The open file.
pub(crate) struct Promised {
    file: File,
    number: u64,
    noted: Promise,
    /// What the next sync of sled makes durable.
    coming: Promise,
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc.to_be_bytes()
}

fn encode(number: u64, promise: &Promise) -> io::Result<[u8; SLOT]> {
    let json = codec::to_json(promise);
    let mut out = [0; SLOT];
    if HEAD + json.len() + 4 > SLOT {
        let what = format!("a promise of {} bytes does not fit its file", json.len());
        return Err(io::Error::other(what));
    }
    out[..4].copy_from_slice(MAGIC);
    out[4..12].copy_from_slice(&number.to_be_bytes());
    out[12..HEAD].copy_from_slice(&(json.len() as u32).to_be_bytes());
    let end = HEAD + json.len();
    out[HEAD..end].copy_from_slice(&json);
    let crc = crc(&out[..end]);
    out[end..end + 4].copy_from_slice(&crc);
    Ok(out)
}

fn decode(slot: &[u8]) -> Option<(u64, Promise)> {
    let rest = slot.strip_prefix(MAGIC)?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (json, rest) = rest.split_at_checked(length)?;
    let (stored, zeros) = rest.split_first_chunk::<4>()?;
    if *stored != crc(&slot[..HEAD + length]) || zeros.iter().any(|byte| *byte != 0) {
        return None;
    }
    Some((u64::from_be_bytes(*number), codec::from_json(json).ok()?))
}

/// What is wrong with the file's bytes, and where.
pub(crate) fn fault(file: &[u8]) -> Option<(u64, String)> {
    let bad = (0..2).find(|slot| {
        let slot = file.get(slot * SLOT..(slot + 1) * SLOT);
        slot.and_then(decode).is_none()
    })?;
    let what = "one of the two records of what this member has promised is not whole";
    Some(((bad * SLOT).min(file.len()) as u64, what.to_owned()))
}

impl Promised {
    /// The newest promise; none where there is no file.
    ///
    /// # Errors
    /// Of the disk; `InvalidData` where neither record is whole.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Promise>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        if let Some((position, why)) = fault(&bytes) {
            tracing::warn!(file = %path.display(), position, why, "the other record is taken");
        }
        let newest = bytes
            .chunks_exact(SLOT)
            .filter_map(decode)
            .max_by_key(|(number, _)| *number);
        match newest {
            Some((_, promise)) => Ok(Some(promise)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what this member has promised cannot be read",
            )),
        }
    }

    /// Begins the file anew with what sled holds durably now; on the disk when it returns, but for
    /// its name.
    pub(crate) fn begin(path: &Path, now: Promise) -> io::Result<Self> {
        let beside = path.with_extension("tmp");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&beside)?;
        let mut begun = Self {
            file,
            number: 0,
            noted: now,
            coming: now,
        };
        begun.write()?;
        begun.write()?;
        begun.file.sync_all()?;
        fs::rename(&beside, path)?;
        Ok(begun)
    }

    pub(crate) fn voted(&mut self, vote: Vote) {
        self.coming.vote = Some(vote);
    }

    pub(crate) fn appended(&mut self, last: RaftLogId) {
        self.coming.last = Some(last);
    }

    /// The log is about to end before index `from`, after `before`: nothing more is promised from
    /// now on.
    pub(crate) fn cut(&mut self, from: u64, before: Option<RaftLogId>) -> io::Result<()> {
        let reaches = |last: Option<RaftLogId>| last.is_some_and(|last| last.index >= from);
        if reaches(self.coming.last) {
            self.coming.last = before;
        }
        if reaches(self.noted.last) {
            self.noted.last = before;
            self.write()?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Everything written to sled so far is on the disk.
    pub(crate) fn kept(&mut self) -> io::Result<()> {
        if self.noted == self.coming {
            return Ok(());
        }
        self.noted = self.coming;
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.number += 1;
        let place = (self.number % 2) * SLOT as u64;
        self.file
            .write_all_at(&encode(self.number, &self.noted)?, place)
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;
    use tempfile::TempDir;

    use super::*;
    use crate::ids::{RaftId, TypeConfig};

    fn at(index: u64) -> RaftLogId {
        log_id::<TypeConfig>(1, RaftId::from(1), index)
    }

    #[test]
    fn a_changed_byte_leaves_the_record_before_and_never_a_wrong_one() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(PROMISED);
        let mut promised = Promised::begin(&path, Promise::default()).unwrap();
        let mut said = vec![];
        for index in 1..4 {
            promised.voted(Vote::new(index, RaftId::from(2)));
            promised.appended(at(index));
            promised.kept().unwrap();
            said.push(Promised::read(&path).unwrap().unwrap());
        }
        assert_eq!(said[2].last, Some(at(3)));
        let whole = fs::read(&path).unwrap();
        assert_eq!(fault(&whole), None);
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 4;
            fs::write(&path, &flipped).unwrap();
            assert!(fault(&flipped).is_some());
            let read = Promised::read(&path).unwrap().unwrap();
            assert!(said[1..].contains(&read), "{position}: {read:?}");
        }
        fs::write(&path, &whole[..100]).unwrap();
        assert!(Promised::read(&path).is_err());
    }

    #[test]
    fn a_cut_is_noted_at_once() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(PROMISED);
        let now = Promise {
            vote: None,
            last: Some(at(9)),
        };
        let mut promised = Promised::begin(&path, now).unwrap();
        promised.cut(5, Some(at(4))).unwrap();
        assert_eq!(Promised::read(&path).unwrap().unwrap().last, Some(at(4)));
        promised.cut(8, Some(at(7))).unwrap();
        assert_eq!(Promised::read(&path).unwrap().unwrap().last, Some(at(4)));
    }
}
