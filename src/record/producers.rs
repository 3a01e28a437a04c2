//! What each idempotent producer has appended last: enough to refuse gaps and recognise repeats
//! (R11, KIP-98, KIP-360). Whoever has been silent for long is forgotten (KIP-854).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate_types::{Offset, ProducerEpoch, ProducerId, Sequence};

use crate::header::{BatchHeader, ProducerTag};

/// Batches remembered of each producer: as many as may be in flight.
const WINDOW: usize = 5;

/// Producers remembered of a partition; the one that has been silent longest is forgotten first.
const PRODUCERS_MAX: usize = 100_000;

/// Whole rounds ([`ProducerStates::age`]) of silence after which a producer is forgotten.
pub const SILENT_ROUNDS: u8 = 24;

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
    /// Rounds that have ended since its last batch came, the one in which it came among them.
    silent: u8,
}

impl Producer {
    fn new(epoch: ProducerEpoch) -> Self {
        Self {
            epoch,
            last: VecDeque::with_capacity(WINDOW),
            silent: 0,
        }
    }

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
    /// Nothing is remembered of its producer, and it is not a first batch.
    #[error("sequence {got} of a producer of whom nothing is remembered")]
    UnknownProducer {
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

/// The producers of one partition.
///
/// Equal logs give states that differ in one way only: who has been silent for long may be known
/// to one replica and forgotten by another, since each forgets by itself, by a clock that only
/// ever runs slow (it begins anew with each opening, and stands still while the process does).
/// That is harmless: what a replica does not know it refuses, unless the producer begins anew (a
/// first sequence), and where one has begun anew, all forget what was before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProducerStates {
    producers: BTreeMap<ProducerId, Producer>,
    /// The same, whoever has been silent longest first.
    by_end: BTreeSet<(Offset, ProducerId)>,
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
            // Its first batch; or it was forgotten, or what it wrote went with the log. Kafka takes
            // any sequence then: a repeat of what was forgotten would be in the log twice.
            return if got == Sequence::ZERO {
                Ok(SequenceCheck::Append)
            } else {
                Err(SequenceError::UnknownProducer { got })
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
        let producer = self
            .producers
            .entry(tag.id)
            .or_insert_with(|| Producer::new(tag.epoch));
        self.by_end.remove(&(producer.last_end(), tag.id));
        // A leader that had forgotten the producer took a first sequence at the same epoch. What was
        // before must not be found for one of the sequences that follow now.
        let anew =
            tag.base_sequence == Sequence::ZERO && producer.next_sequence() != Sequence::ZERO;
        if producer.epoch != tag.epoch || anew {
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
        producer.silent = 0;
        self.by_end.insert((producer.last_end(), tag.id));
        if self.producers.len() > PRODUCERS_MAX
            && let Some((_, silent)) = self.by_end.pop_first()
        {
            self.producers.remove(&silent);
        }
    }

    /// Ends a round: whoever has appended nothing for [`SILENT_ROUNDS`] whole rounds is forgotten.
    /// Gives how many were.
    pub fn age(&mut self) -> usize {
        let before = self.producers.len();
        let by_end = &mut self.by_end;
        self.producers.retain(|id, producer| {
            producer.silent += 1;
            // The round in which its last batch came was no whole one.
            let stays = producer.silent <= SILENT_ROUNDS;
            if !stays {
                by_end.remove(&(producer.last_end(), *id));
            }
            stays
        });
        before - self.producers.len()
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

    /// The state as bytes, for snapshots; framing and checksum are the file's. Not how long each has
    /// been silent: it counts from when the state is read.
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
            if usize::from(batches) > WINDOW {
                return None;
            }
            let mut producer = Producer::new(epoch);
            for _ in 0..batches {
                let sequence = u32::from_be_bytes(take(&mut rest)?);
                let record_count = u32::from_be_bytes(take(&mut rest)?);
                let base = u64::from_be_bytes(take(&mut rest)?);
                // No log has them: numbers are signed where they come from.
                let end = base.checked_add(u64::from(record_count))?;
                if i32::try_from(sequence).is_err() || i64::try_from(end).is_err() {
                    return None;
                }
                producer.last.push_back(Appended {
                    base_sequence: Sequence::new(sequence),
                    record_count,
                    base_offset: Offset::new(base),
                });
            }
            producers.insert(id, producer);
        }
        let ends = producers
            .iter()
            .map(|(id, producer)| (producer.last_end(), *id));
        let by_end = ends.collect();
        rest.is_empty().then_some(Self { producers, by_end })
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
        tag_of(7, epoch, sequence)
    }

    fn tag_of(id: u64, epoch: u16, sequence: u32) -> ProducerTag {
        ProducerTag {
            id: ProducerId::new(id),
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
    fn numbers_that_no_log_has_are_not_read() {
        let mut states = ProducerStates::default();
        append(&mut states, tag(0, 0), 1, 5);
        let good = states.encode();
        assert_eq!(ProducerStates::decode(&good), Some(states));
        let offset = good.len() - 8;
        let sequence = offset - 8;
        for (at, bytes) in [
            (offset, &u64::MAX.to_be_bytes()[..]),
            (offset, &i64::MAX.to_be_bytes()[..]),
            (sequence, &u32::MAX.to_be_bytes()[..]),
        ] {
            let mut wrong = good.clone();
            wrong[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(ProducerStates::decode(&wrong), None);
        }
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

    fn silence(states: &mut ProducerStates, rounds: u8) -> usize {
        (0..rounds).map(|_| states.age()).sum()
    }

    #[test]
    fn who_is_silent_for_all_rounds_is_forgotten_and_who_appends_is_not() {
        let mut states = ProducerStates::default();
        append(&mut states, tag_of(1, 0, 0), 1, 0);
        append(&mut states, tag_of(2, 0, 0), 1, 1);
        assert_eq!(silence(&mut states, SILENT_ROUNDS), 0, "23 whole ones");
        append(&mut states, tag_of(2, 0, 1), 1, 2);
        assert_eq!(states.age(), 1);
        let known: Vec<u64> = states.iter().map(|state| state.id.get()).collect();
        assert_eq!(known, [2]);
        let got = Sequence::new(1);
        let unknown = Err(SequenceError::UnknownProducer { got });
        assert_eq!(states.check(&tag_of(1, 0, 1), 1), unknown);
        assert_eq!(
            states.check(&tag_of(1, 1, 0), 1),
            Ok(SequenceCheck::Append),
            "a new instance is taken as it always is"
        );
        assert_eq!(silence(&mut states, SILENT_ROUNDS), 1);
        assert_eq!(states, ProducerStates::default());
    }

    #[test]
    fn what_a_state_is_read_from_counts_silence_anew() {
        let mut states = ProducerStates::default();
        append(&mut states, tag(0, 0), 1, 0);
        silence(&mut states, SILENT_ROUNDS);
        let mut read = ProducerStates::decode(&states.encode()).unwrap();
        assert_eq!((states.age(), read.age()), (1, 0));
    }

    #[test]
    fn one_that_begins_anew_leaves_nothing_of_before_to_be_found() {
        // Two replicas: the one that leads has forgotten the producer, the other has not.
        let (mut forgetful, mut mindful) = (ProducerStates::default(), ProducerStates::default());
        for sequence in 0..5 {
            append(&mut mindful, tag(0, sequence), 1, u64::from(sequence));
        }
        assert_eq!(forgetful.check(&tag(0, 0), 1), Ok(SequenceCheck::Append));
        append(&mut forgetful, tag(0, 0), 1, 5);
        append(&mut mindful, tag(0, 0), 1, 5);
        assert_eq!(mindful, forgetful);
        // The next one is new: it must not be taken for the one at offset 1.
        assert_eq!(mindful.check(&tag(0, 1), 1), Ok(SequenceCheck::Append));
    }

    #[test]
    fn sequences_that_wrap_to_zero_do_not_begin_anew() {
        let mut states = ProducerStates::default();
        let last = i32::MAX as u32;
        append(&mut states, tag(0, last), 1, 0);
        append(&mut states, tag(0, 0), 1, 1);
        let duplicate = SequenceCheck::Duplicate {
            base: Offset::ZERO,
            end: Offset::new(1),
        };
        assert_eq!(states.check(&tag(0, last), 1), Ok(duplicate));
    }

    #[test]
    fn of_too_many_producers_the_one_that_is_silent_longest_is_forgotten() {
        let mut states = ProducerStates::default();
        let count = PRODUCERS_MAX as u64;
        for id in 0..count {
            append(&mut states, tag_of(id, 0, 0), 1, id);
        }
        append(&mut states, tag_of(0, 0, 1), 1, count);
        append(&mut states, tag_of(count, 0, 0), 1, count + 1);
        assert_eq!(states.len(), PRODUCERS_MAX);
        let gone = |id: u64| states.check(&tag_of(id, 0, 1), 1).is_err();
        assert!(!gone(0) && gone(1) && !gone(2) && !gone(count));
    }
}
