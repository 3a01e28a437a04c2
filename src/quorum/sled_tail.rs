//! What sled leaves away without a word. When it opens a file, sled takes its log for ended at the
//! first message whose checksum does not fit, and zeroes what follows: a torn write looks the
//! same to it as a changed byte in the middle. Here the file as it was is searched for whole
//! messages above the end that sled took.
//!
//! This reads sled 0.34's file format: segments that begin with a header of 20 bytes, then
//! messages, each with a CRC-32 over itself; a message's number in the log (LSN) is its segment's
//! number times the segment's size, and its place in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk::{CONF, SEGMENT};

const SEGMENT_HEADER: usize = 20;
/// No message header is longer.
const MESSAGE_HEADER: usize = 32;
const CAP: u8 = 2;
const BATCH_MANIFEST: u8 = 3;
/// The largest kind of message that there is.
const LAST_KIND: u8 = 12;
const SNAPSHOT: &str = "snap.";
/// The end of a page table's name until it is whole.
const UNFINISHED: &str = ".generating";
/// sled takes settings of no more bytes for missing, and writes them anew.
const NO_SETTINGS: usize = 8;

/// Where sled's log ended for it, while the file goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// In the file, in bytes.
    pub(crate) position: u64,
    pub(crate) kind: TailKind,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TailKind {
    /// A whole message lies beyond, at this position.
    Dropped(u64),
    /// A batch of messages is there, but not all of it.
    UnfinishedBatch,
    /// There is the beginning of a message, or what is left of one.
    Unfinished,
}

struct Message {
    kind: u8,
    segment: u64,
    size: usize,
    whole: bool,
}

/// sled's numbers: one byte up to 240, else a first byte that says how many follow.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    match *first {
        0..=240 => Some((u64::from(*first), rest)),
        241..=248 => {
            let (next, rest) = rest.split_first()?;
            let high = 256 * (u64::from(*first) - 241);
            Some((240 + high + u64::from(*next), rest))
        }
        249 => {
            let (next, rest) = rest.split_first_chunk::<2>()?;
            Some((2288 + 256 * u64::from(next[0]) + u64::from(next[1]), rest))
        }
        more => {
            let (next, rest) = rest.split_at_checked(usize::from(more) - 247)?;
            let value = next
                .iter()
                .rev()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            Some((value, rest))
        }
    }
}

fn crc32(parts: [&[u8]; 2]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

/// The message that begins here, where it could be one.
fn message(bytes: &[u8]) -> Option<Message> {
    let head = &bytes[..bytes.len().min(MESSAGE_HEADER)];
    let (stored, rest) = head.split_first_chunk::<4>()?;
    let (&kind, rest) = rest.split_first()?;
    if kind == 0 || kind > LAST_KIND {
        return None;
    }
    let (length, rest) = number(rest)?;
    let (segment, rest) = number(rest)?;
    let (_page, rest) = number(rest)?;
    let body_at = head.len() - rest.len();
    let size = body_at.checked_add(usize::try_from(length).ok()?)?;
    if size > SEGMENT {
        return None;
    }
    let body = bytes.get(body_at..size);
    let whole = body.is_some_and(|body| {
        let computed = crc32([body, &bytes[4..body_at]]) ^ u32::MAX;
        computed == u32::from_le_bytes(*stored)
    });
    Some(Message {
        kind,
        segment,
        size,
        whole,
    })
}

/// The LSN in a segment's header, where that is whole.
fn header_lsn(segment: &[u8]) -> Option<u64> {
    let header = segment.get(..SEGMENT_HEADER)?;
    let stored = u32::from_le_bytes(header[..4].try_into().ok()?) ^ u32::MAX;
    let lsn = i64::from_le_bytes(header[4..12].try_into().ok()?) ^ i64::MAX;
    (stored == crc32([&header[4..], &[]]))
        .then(|| u64::try_from(lsn).ok())
        .flatten()
}

/// Whether a file is a page table that was not written whole: its process ended before.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(SNAPSHOT) && name.ends_with(UNFINISHED)
}

/// What is wrong with one of sled's small files by its own checksum: its settings (`conf`) and its
/// page table (`snap.`). None where it is another file, and where it counts as missing.
pub(crate) fn small_file_fault(name: &str, file: &[u8]) -> Option<String> {
    let after_body = match name {
        // A power loss soon after the first start may leave them so; they say nothing that this
        // node does not know.
        CONF if file.len() <= NO_SETTINGS => return None,
        CONF => 4,
        _ if is_unfinished(name) => return None,
        _ if name.starts_with(SNAPSHOT) => 12,
        _ => return None,
    };
    let (Some(body), Some(stored)) = (
        file.len().checked_sub(after_body).map(|end| &file[..end]),
        file.last_chunk::<4>(),
    ) else {
        return Some(format!("{} bytes, cut off", file.len()));
    };
    let (stored, computed) = (u32::from_le_bytes(*stored), crc32([body, &[]]));
    (stored != computed).then(|| format!("CRC-32 is {computed:08x}, the file says {stored:08x}"))
}

/// Where sled's log ends by the newest snapshot in the directory `recovered`, which sled has just
/// opened: it writes one whenever it has come further.
fn end_of(recovered: &Path) -> io::Result<u64> {
    let mut end = 0;
    for entry in std::fs::read_dir(recovered)? {
        let name = entry?.file_name();
        let lsn = name.to_str().and_then(|name| name.strip_prefix(SNAPSHOT));
        if let Some(lsn) = lsn.and_then(|lsn| u64::from_str_radix(lsn, 16).ok()) {
            end = end.max(lsn);
        }
    }
    Ok(end)
}

/// Looks in the file `original` for what sled took no notice of when it opened the copy of it in
/// `recovered`. A segment of 2 MiB is in memory at a time.
pub(crate) fn left_away(original: &Path, recovered: &Path) -> io::Result<Option<Tail>> {
    let end = end_of(recovered)?;
    let file = File::open(original)?;
    let length = file.metadata()?.len();
    let size = SEGMENT as u64;
    let (mut tip, mut above) = (None, end);
    let mut dropped: Option<u64> = None;
    let mut buffer = vec![0; SEGMENT];
    for base in (0..length).step_by(SEGMENT) {
        let have = size.min(length - base) as usize;
        let segment = &mut buffer[..have];
        file.read_exact_at(segment, base)?;
        let segment = &*segment;
        let lsn = header_lsn(segment);
        if lsn.is_some_and(|lsn| lsn.saturating_add(size) <= end) {
            continue;
        }
        if lsn == Some(end / size * size) {
            tip = at_tip(segment, base, end);
            // Of a batch that is not whole the other messages are no sign of damage; what was
            // written after it is.
            if let Some(last) = batch_end(segment, end) {
                above = last.saturating_add(1);
            }
        }
        if dropped.is_none() {
            dropped = whole_above(segment, base, above);
        }
    }
    Ok(match (dropped, tip) {
        (Some(at), tip) => Some(Tail {
            position: tip.map_or(at, |tip| tip.position),
            kind: TailKind::Dropped(at),
        }),
        (None, tip) => tip,
    })
}

/// What is in the segment where sled's log ends, from there on.
fn at_tip(segment: &[u8], base: u64, end: u64) -> Option<Tail> {
    let place = (end % SEGMENT as u64) as usize;
    let rest = segment.get(place.max(SEGMENT_HEADER)..)?;
    let position = base + place.max(SEGMENT_HEADER) as u64;
    let number = end / SEGMENT as u64;
    let found = message(rest).filter(|message| message.segment == number);
    let kind = match found {
        Some(message) if message.kind == CAP && message.whole => return None,
        Some(message) if message.kind == BATCH_MANIFEST && message.whole => {
            TailKind::UnfinishedBatch
        }
        Some(_) => TailKind::Unfinished,
        // In a segment that was used before, older messages may follow.
        None if base == number * SEGMENT as u64 => {
            let first = rest.iter().position(|byte| *byte != 0)?;
            return Some(Tail {
                position: position + first as u64,
                kind: TailKind::Unfinished,
            });
        }
        None => return None,
    };
    Some(Tail { position, kind })
}

/// The LSN of the last message of the batch that begins at sled's end, where one does.
fn batch_end(segment: &[u8], end: u64) -> Option<u64> {
    let rest = segment.get((end % SEGMENT as u64) as usize..)?;
    let manifest = message(rest).filter(|found| found.whole && found.kind == BATCH_MANIFEST)?;
    let body = rest[..manifest.size].last_chunk::<8>()?;
    u64::try_from(i64::from_le_bytes(*body)).ok()
}

/// The first whole message of a segment that is above sled's end.
fn whole_above(segment: &[u8], base: u64, end: u64) -> Option<u64> {
    let mut at = SEGMENT_HEADER;
    while at + 8 < segment.len() {
        match message(&segment[at..]).filter(|message| message.whole) {
            Some(message) => {
                let lsn = message
                    .segment
                    .checked_mul(SEGMENT as u64)?
                    .checked_add(at as u64)?;
                if lsn >= end && message.kind != CAP {
                    return Some(base + at as u64);
                }
                at += message.size;
            }
            None => at += 1,
        }
    }
    None
}
