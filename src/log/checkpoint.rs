//! Small files that a restart relies on, each with a format version and a CRC.
//!
//! `checkpoint` is a sequence of records appended as the log advances, the last whole one counts:
//! so that taking one costs no sync of its own (the next flush covers it). The others are replaced
//! as a whole.

use quorate_record::LeaderEpochCache;
use quorate_types::{LeaderEpoch, Offset};

const VERSION: u8 = 1;

/// Bytes of one record in the `checkpoint` file.
pub(crate) const POSITIONS_LEN: usize = 32;

/// How far a log had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Positions {
    pub(crate) high_watermark: Offset,
    pub(crate) recovery_point: Offset,
    pub(crate) log_start: Offset,
}

impl Positions {
    pub(crate) fn encode(self) -> [u8; POSITIONS_LEN] {
        let mut out = [0; POSITIONS_LEN];
        out[0] = VERSION;
        out[4..12].copy_from_slice(&self.high_watermark.get().to_be_bytes());
        out[12..20].copy_from_slice(&self.recovery_point.get().to_be_bytes());
        out[20..28].copy_from_slice(&self.log_start.get().to_be_bytes());
        let crc = crc(&out[..28]);
        out[28..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let (body, stored) = record.split_at_checked(28)?;
        if stored != crc(body).to_be_bytes() || body[0] != VERSION {
            return None;
        }
        let number = |at: usize| {
            body[at..at + 8]
                .iter()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        Some(Self {
            high_watermark: Offset::new(number(4)),
            recovery_point: Offset::new(number(12)),
            log_start: Offset::new(number(20)),
        })
    }

    /// The last whole record of a `checkpoint` file.
    pub(crate) fn last_of(file: &[u8]) -> Option<Self> {
        file.chunks_exact(POSITIONS_LEN)
            .rev()
            .find_map(Self::decode)
    }
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Puts version and CRC around a body.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 8);
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    out.extend_from_slice(body);
    let crc = crc(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// The body of a framed file; none where it is torn, corrupt or of another version.
pub(crate) fn unframe(file: &[u8]) -> Option<&[u8]> {
    let (framed, stored) = file.split_last_chunk::<4>()?;
    let (head, body) = framed.split_first_chunk::<4>()?;
    (u32::from_be_bytes(*stored) == crc(framed) && head[0] == VERSION).then_some(body)
}

/// What is wrong with a framed file, and where in it; none where nothing is. A checksum that does
/// not fit is at 0: it may be any byte.
pub(crate) fn frame_fault(file: &[u8]) -> Option<(u64, String)> {
    if unframe(file).is_some() {
        return None;
    }
    let Some((framed, stored)) = file.split_last_chunk::<4>().filter(|(f, _)| f.len() >= 4) else {
        let what = format!("{} bytes, cut off: it has 8 at least", file.len());
        return Some((file.len() as u64, what));
    };
    let (stored, computed) = (u32::from_be_bytes(*stored), crc(framed));
    Some(if stored == computed {
        (0, format!("format version {} is not known", framed[0]))
    } else {
        let what = format!("CRC-32C is {computed:08x}, the file says {stored:08x}");
        (0, what)
    })
}

pub(crate) fn encode_epochs(epochs: &LeaderEpochCache) -> Vec<u8> {
    let mut body = Vec::with_capacity(epochs.entries().len() * 12);
    for (epoch, first) in epochs.entries() {
        body.extend_from_slice(&epoch.get().to_be_bytes());
        body.extend_from_slice(&first.get().to_be_bytes());
    }
    frame(&body)
}

pub(crate) fn decode_epochs(file: &[u8]) -> Option<LeaderEpochCache> {
    let body = unframe(file)?;
    if !body.len().is_multiple_of(12) {
        return None;
    }
    let entries: Option<Vec<_>> = body
        .chunks_exact(12)
        .map(|entry| {
            let number = |part: &[u8]| part.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            // Those that no batch can have make the file as good as none.
            Some((
                LeaderEpoch::from_signed(number(&entry[..4]) as u32 as i32).ok()?,
                Offset::from_signed(number(&entry[4..]) as i64).ok()?,
            ))
        })
        .collect();
    LeaderEpochCache::from_entries(entries?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_offsets_that_no_batch_can_have_are_not_read() {
        let stored = |epoch: u32, first: u64| {
            let entry = [&epoch.to_be_bytes()[..], &first.to_be_bytes()].concat();
            decode_epochs(&frame(&entry)).is_some()
        };
        assert!(stored(i32::MAX as u32, i64::MAX as u64));
        assert!(!stored(1 << 31, 0));
        assert!(!stored(0, 1 << 63));
    }
}
