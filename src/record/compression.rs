//! Codecs of a batch's records, by Kafka's numbers and names.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use bytes::Bytes;

use crate::header::BatchError;

/// How a batch's records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy, in the framing of Kafka's Java client (xerial).
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// RFC 8878 (KIP-110).
    Zstd,
}

/// Text that names no codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression: none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompression(pub String);

impl Compression {
    /// Every codec.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec of that number.
    pub fn from_id(id: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.id() == id)
    }

    /// Its number in a batch's attributes.
    pub const fn id(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| UnknownCompression(text.to_owned()))
    }
}

/// Head of the framing that Kafka's Java client writes: magic, version 1, compatible with 1.
const XERIAL_HEAD: [u8; 16] = [
    0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1,
];
const XERIAL_BLOCK: usize = 32 << 10;

/// Compresses; writing to memory does not fail.
pub(crate) fn compress(codec: Compression, body: &[u8]) -> Vec<u8> {
    const IN_MEMORY: &str = "writing to memory does not fail";
    match codec {
        Compression::None => body.to_vec(),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            out.write_all(body).expect(IN_MEMORY);
            out.finish().expect(IN_MEMORY)
        }
        Compression::Snappy => {
            let mut out = XERIAL_HEAD.to_vec();
            for block in body.chunks(XERIAL_BLOCK) {
                let packed = snap::raw::Encoder::new()
                    .compress_vec(block)
                    .expect("a block is 32 KiB");
                out.extend_from_slice(&(packed.len() as u32).to_be_bytes());
                out.extend_from_slice(&packed);
            }
            out
        }
        Compression::Lz4 => {
            let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
            out.write_all(body).expect(IN_MEMORY);
            out.finish().expect(IN_MEMORY)
        }
        Compression::Zstd => zstd::encode_all(body, 3).expect(IN_MEMORY),
    }
}

/// Decompresses at most `limit` bytes.
pub(crate) fn decompress(
    codec: Compression,
    body: Bytes,
    limit: usize,
) -> Result<Bytes, BatchError> {
    match codec {
        Compression::None => Ok(body),
        Compression::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(&body[..]), limit),
        Compression::Snappy => unpack_snappy(&body, limit),
        Compression::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(&body[..]), limit),
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(&body[..])
                .map_err(|_| BatchError::Records("zstd does not start"))?;
            read_bounded(decoder, limit)
        }
    }
}

fn read_bounded(source: impl Read, limit: usize) -> Result<Bytes, BatchError> {
    let mut out = Vec::new();
    source
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|_| BatchError::Records("compressed records are corrupt"))?;
    if out.len() > limit {
        return Err(BatchError::TooLarge { limit });
    }
    Ok(out.into())
}

fn unpack_snappy(body: &[u8], limit: usize) -> Result<Bytes, BatchError> {
    const CORRUPT: BatchError = BatchError::Records("compressed records are corrupt");
    let mut out = Vec::new();
    let mut unpack = |block: &[u8]| -> Result<(), BatchError> {
        let size = snap::raw::decompress_len(block).map_err(|_| CORRUPT)?;
        if out.len().saturating_add(size) > limit {
            return Err(BatchError::TooLarge { limit });
        }
        out.extend(
            snap::raw::Decoder::new()
                .decompress_vec(block)
                .map_err(|_| CORRUPT)?,
        );
        Ok(())
    };
    let Some(mut rest) = body.strip_prefix(&XERIAL_HEAD[..]) else {
        unpack(body)?;
        return Ok(out.into());
    };
    while !rest.is_empty() {
        let (length, blocks) = rest.split_first_chunk::<4>().ok_or(CORRUPT)?;
        let (block, after) = blocks
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or(CORRUPT)?;
        unpack(block)?;
        rest = after;
    }
    Ok(out.into())
}
