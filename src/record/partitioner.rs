//! Which partition a record goes to, as Kafka's Java client decides.

use quorate_types::PartitionId;

/// MurmurHash2 with Kafka's seed; equal to `Utils.murmur2` of Kafka's Java client.
pub fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

/// The partition of a key among `partitions` (at least 1).
pub fn partition_for_key(key: &[u8], partitions: u32) -> PartitionId {
    let positive = (murmur2(key) & 0x7fff_ffff) as u32;
    PartitionId::new(positive % partitions.max(1))
}

/// Keeps records without a key on one partition until told to move on (KIP-480): full batches
/// instead of many small ones.
#[derive(Debug, Clone)]
pub struct StickyPartitioner {
    current: u32,
}

impl StickyPartitioner {
    /// Starts at a partition that `seed` decides, so that many clients do not start at the same.
    pub fn new(seed: u32) -> Self {
        Self { current: seed }
    }

    /// The partition for the next record without a key.
    pub fn current(&self, partitions: u32) -> PartitionId {
        PartitionId::new(self.current % partitions.max(1))
    }

    /// Moves on, once a batch is complete.
    pub fn advance(&mut self) {
        self.current = self.current.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafkas_client() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }
}
