//! The codecs of a batch's records.

use std::io::{Read, Write};

use bytes::Bytes;
use quorate_types::Compression;

use crate::header::BatchError;

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
