//! What each idempotent producer has appended last: enough to refuse gaps and recognise repeats
//! (R11, KIP-98, KIP-360).

use std::collections::{BTreeMap, VecDeque};

use quorate_types::{Offset, ProducerEpoch, ProducerId, Sequence};

use crate::header::{BatchHeader, ProducerTag};

/// Batches remembered of each producer: as many as may be in flight.
const WINDOW: usize = 5;

/// Producers remembered of a partition; the one that has been silent longest is forgotten first.
const PRODUCERS_MAX: usize = 100_000;

/// A batch as its producer's state remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Appended {
    base_sequence: Sequence,
    record_count: u32,
    base_offset: Offset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: ProducerEpoch,
    last: VecDeque<Appended>,
}

impl Producer {
    fn next_sequence(&self) -> Sequence {
        self.last.back().map_or(Sequence::ZERO, |batch| {
            batch.base_sequence.plus(batch.record_count)
        })
    }

    fn last_end(&self) -> Offset {
        self.last.back().map_or(Offset::ZERO, |batch| {
            batch.base_offset.plus(u64::from(batch.record_count))
        })
    }
}

/// What a batch is to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceCheck {
    /// The next one: append it.
    Append,
    /// Appended before, at these offsets.
    Duplicate {
        /// Offset of its first record.
        base: Offset,
        /// Offset after its last record.
        end: Offset,
    },
}

/// Why a batch must not be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// It leaves a gap.
    #[error("sequence {got} is not the expected {expected}")]
    OutOfOrder {
        /// What would follow.
        expected: Sequence,
        /// What came.
        got: Sequence,
    },
    /// It is older than the last five batches.
    #[error("sequence {got} is older than the last {WINDOW} batches")]
    Duplicate {
        /// What came.
        got: Sequence,
    },
    /// A newer instance of the producer has appended.
    #[error("producer epoch {got} is older than {current}")]
    StaleEpoch {
        /// The newest seen.
        current: ProducerEpoch,
        /// What came.
        got: ProducerEpoch,
    },
}

/// What is remembered of one producer, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerState {
    /// The producer.
    pub id: ProducerId,
    /// Its newest instance.
    pub epoch: ProducerEpoch,
    /// Its last batches, oldest first, five at most: sequence of the first record, how many
    /// records, offset of the first.
    pub last: Vec<(Sequence, u32, Offset)>,
}

/// The producers of one partition. Deterministic: equal logs give equal states.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProducerStates {
    producers: BTreeMap<ProducerId, Producer>,
}

impl ProducerStates {
    /// Judges a batch of `record_count` records before it is appended.
    ///
    /// # Errors
    /// [`SequenceError`]; the state is unchanged either way.
    pub fn check(
        &self,
        tag: &ProducerTag,
        record_count: u32,
    ) -> Result<SequenceCheck, SequenceError> {
        let got = tag.base_sequence;
        let Some(producer) = self.producers.get(&tag.id) else {
            // Unknown: its first batch, or a forgotten one whose state went with the log.
            return if got == Sequence::ZERO {
                Ok(SequenceCheck::Append)
            } else {
                Err(SequenceError::OutOfOrder {
                    expected: Sequence::ZERO,
                    got,
                })
            };
        };
        if tag.epoch < producer.epoch {
            return Err(SequenceError::StaleEpoch {
                current: producer.epoch,
                got: tag.epoch,
            });
        }
        if tag.epoch > producer.epoch {
            return if got == Sequence::ZERO {
                Ok(SequenceCheck::Append)
            } else {
                Err(SequenceError::OutOfOrder {
                    expected: Sequence::ZERO,
                    got,
                })
            };
        }
        let same =
            |batch: &&Appended| batch.base_sequence == got && batch.record_count == record_count;
        if let Some(batch) = producer.last.iter().find(same) {
            let base = batch.base_offset;
            return Ok(SequenceCheck::Duplicate {
                base,
                end: base.plus(u64::from(batch.record_count)),
            });
        }
        let expected = producer.next_sequence();
        if got == expected {
            return Ok(SequenceCheck::Append);
        }
        // Sequences wrap at 2^31: what lies in the half behind is old, in the half ahead a gap.
        let behind = (expected.get().wrapping_sub(got.get())) & 0x7fff_ffff;
        if behind < 1 << 30 {
            Err(SequenceError::Duplicate { got })
        } else {
            Err(SequenceError::OutOfOrder { expected, got })
        }
    }

    /// Notes a batch that the log holds; `header` has its final offset. Batches without a
    /// producer change nothing.
    pub fn update(&mut self, header: &BatchHeader) {
        let Some(tag) = header.producer else { return };
        if header.is_control {
            return;
        }
        let producer = self.producers.entry(tag.id).or_insert_with(|| Producer {
            epoch: tag.epoch,
            last: VecDeque::new(),
        });
        if producer.epoch != tag.epoch {
            producer.epoch = tag.epoch;
            producer.last.clear();
        }
        if producer.last.len() == WINDOW {
            producer.last.pop_front();
        }
        producer.last.push_back(Appended {
            base_sequence: tag.base_sequence,
            record_count: header.record_count,
            base_offset: header.base_offset,
        });
        if self.producers.len() > PRODUCERS_MAX {
            let silent = self
                .producers
                .iter()
                .min_by_key(|(_, producer)| producer.last_end());
            if let Some(id) = silent.map(|(id, _)| *id) {
                self.producers.remove(&id);
            }
        }
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// All of them, by their ids.
    pub fn iter(&self) -> impl Iterator<Item = ProducerState> + '_ {
        self.producers.iter().map(|(id, producer)| ProducerState {
            id: *id,
            epoch: producer.epoch,
            last: producer
                .last
                .iter()
                .map(|batch| (batch.base_sequence, batch.record_count, batch.base_offset))
                .collect(),
        })
    }

    /// The state as bytes, for snapshots; framing and checksum are the file's.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.producers.len() as u32).to_be_bytes());
        for (id, producer) in &self.producers {
            out.extend_from_slice(&id.get().to_be_bytes());
            out.extend_from_slice(&producer.epoch.get().to_be_bytes());
            out.push(producer.last.len() as u8);
            for batch in &producer.last {
                out.extend_from_slice(&batch.base_sequence.get().to_be_bytes());
                out.extend_from_slice(&batch.record_count.to_be_bytes());
                out.extend_from_slice(&batch.base_offset.get().to_be_bytes());
            }
        }
        out
    }

    /// Reads [`Self::encode`]'s bytes; none where they are not such.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let count = u32::from_be_bytes(take(&mut rest)?);
        let mut producers = BTreeMap::new();
        for _ in 0..count {
            let id = ProducerId::new(u64::from_be_bytes(take(&mut rest)?));
            let epoch = ProducerEpoch::new(u16::from_be_bytes(take(&mut rest)?));
            let [batches] = take::<1>(&mut rest)?;
            let mut last = VecDeque::with_capacity(WINDOW);
            if usize::from(batches) > WINDOW {
                return None;
            }
            for _ in 0..batches {
                last.push_back(Appended {
                    base_sequence: Sequence::new(u32::from_be_bytes(take(&mut rest)?)),
                    record_count: u32::from_be_bytes(take(&mut rest)?),
                    base_offset: Offset::new(u64::from_be_bytes(take(&mut rest)?)),
                });
            }
            producers.insert(id, Producer { epoch, last });
        }
        rest.is_empty().then_some(Self { producers })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, Compression};
    use quorate_types::{LeaderEpoch, Timestamp};

    fn tag(epoch: u16, sequence: u32) -> ProducerTag {
        ProducerTag {
            id: ProducerId::new(7),
            epoch: ProducerEpoch::new(epoch),
            base_sequence: Sequence::new(sequence),
        }
    }

    fn append(states: &mut ProducerStates, tag: ProducerTag, count: u32, at: u64) {
        let mut builder = BatchBuilder::new(Compression::None).producer(tag);
        for _ in 0..count {
            builder.push(Timestamp::from_millis(1), None, Some(b"v"), &[]);
        }
        let batch = builder
            .build()
            .stamped(Offset::new(at), LeaderEpoch::new(1));
        states.update(batch.header());
    }

    #[test]
    fn a_repeat_within_the_window_names_its_original_offsets() {
        let mut states = ProducerStates::default();
        for i in 0..6 {
            assert_eq!(states.check(&tag(0, i * 2), 2), Ok(SequenceCheck::Append));
            append(&mut states, tag(0, i * 2), 2, u64::from(i) * 10);
        }
        let duplicate = SequenceCheck::Duplicate {
            base: Offset::new(10),
            end: Offset::new(12),
        };
        assert_eq!(states.check(&tag(0, 2), 2), Ok(duplicate));
        let old = SequenceError::Duplicate {
            got: Sequence::ZERO,
        };
        assert_eq!(states.check(&tag(0, 0), 2), Err(old));
        let gap = SequenceError::OutOfOrder {
            expected: Sequence::new(12),
            got: Sequence::new(14),
        };
        assert_eq!(states.check(&tag(0, 14), 2), Err(gap));
    }

    #[test]
    fn a_newer_epoch_begins_at_zero_and_fences_the_older() {
        let mut states = ProducerStates::default();
        append(&mut states, tag(0, 0), 3, 0);
        assert!(states.check(&tag(1, 3), 1).is_err());
        assert_eq!(states.check(&tag(1, 0), 1), Ok(SequenceCheck::Append));
        append(&mut states, tag(1, 0), 1, 3);
        assert!(matches!(
            states.check(&tag(0, 3), 1),
            Err(SequenceError::StaleEpoch { .. })
        ));
    }

    #[test]
    fn a_state_is_read_back_as_it_was_written_and_never_from_half_of_it() {
        let mut states = ProducerStates::default();
        append(&mut states, tag(3, 0), 3, 0);
        append(&mut states, tag(3, 3), 1, 3);
        let bytes = states.encode();
        assert_eq!(ProducerStates::decode(&bytes), Some(states));
        for cut in 0..bytes.len() {
            assert_eq!(ProducerStates::decode(&bytes[..cut]), None);
        }
    }
}
