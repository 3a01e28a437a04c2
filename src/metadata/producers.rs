//! Epochs of producer ids that were given out by the quorum (KIP-360): each to one asker only, so
//! that nobody writes under the epoch of another.
//!
//! Only ids are kept here for which a further epoch was asked; every other is at epoch 0.

use imbl::OrdMap;
use quorate_types::{ErrorCode, ProducerEpoch, ProducerId};
use serde::{Deserialize, Serialize};

use crate::apply::Change;
use crate::command::Outcome;

/// Ids whose epochs are kept; of more, the oldest ids are forgotten.
const KEPT_MAX: usize = 100_000;

/// The epoch of an id that nobody may use any more: no batch can carry it.
const CLOSED: ProducerEpoch = ProducerEpoch::new(ProducerEpoch::LAST.get() + 1);

/// The epoch of each id for which one above 0 was given out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProducerEpochs {
    given: OrdMap<ProducerId, ProducerEpoch>,
    /// Of ids below, that are not in `given`, nobody knows any more which epochs were given out.
    forgotten_below: ProducerId,
}

/// The same as it is stored.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredProducerEpochs {
    given: Vec<(ProducerId, ProducerEpoch)>,
    forgotten_below: ProducerId,
}

impl StoredProducerEpochs {
    pub(crate) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.forgotten_below == ProducerId::ZERO
    }
}

impl From<&ProducerEpochs> for StoredProducerEpochs {
    fn from(epochs: &ProducerEpochs) -> Self {
        Self {
            given: epochs.given.iter().map(|(id, at)| (*id, *at)).collect(),
            forgotten_below: epochs.forgotten_below,
        }
    }
}

impl From<StoredProducerEpochs> for ProducerEpochs {
    fn from(stored: StoredProducerEpochs) -> Self {
        Self {
            given: stored.given.into_iter().collect(),
            forgotten_below: stored.forgotten_below,
        }
    }
}

impl ProducerEpochs {
    /// The newest epoch that was given out, as far as is known.
    pub(crate) fn of(&self, id: ProducerId) -> ProducerEpoch {
        self.given.get(&id).copied().unwrap_or_default()
    }

    fn is_forgotten(&self, id: ProducerId) -> bool {
        id < self.forgotten_below && !self.given.contains_key(&id)
    }

    fn give(&mut self, id: ProducerId, epoch: ProducerEpoch) {
        self.given.insert(id, epoch);
        if self.given.len() > KEPT_MAX
            && let Some(oldest) = self.given.get_min().map(|(id, _)| *id)
        {
            self.given.remove(&oldest);
            self.forgotten_below = self.forgotten_below.max(oldest.next());
        }
    }
}

impl Change<'_> {
    /// Gives the next epoch of an id to whoever names the newest one, and to nobody else. Where
    /// there is no next one, or it is not known any more which was the newest, a new id is given; in
    /// the first case nobody may use the old one any more.
    pub(crate) fn bump_producer_epoch(&mut self, id: ProducerId, epoch: ProducerEpoch) -> Outcome {
        if id.get() >= self.image.next_producer_id {
            let message = format!("producer id {id} was never given out");
            return Outcome::refused(ErrorCode::UnknownProducerId, message);
        }
        let epochs = &mut self.image.producer_epochs;
        if !epochs.is_forgotten(id) {
            let newest = epochs.of(id);
            if newest == CLOSED {
                let message =
                    format!("producer id {id} has no epochs left: another took its place");
                return Outcome::refused(ErrorCode::InvalidProducerEpoch, message);
            }
            if epoch != newest {
                let message = format!("producer id {id} is at epoch {newest}, not {epoch}");
                return Outcome::refused(ErrorCode::InvalidProducerEpoch, message);
            }
            let next = newest.next();
            epochs.give(id, next);
            if next != CLOSED {
                return Outcome::ProducerEpoch { id, epoch: next };
            }
        }
        let id = ProducerId::new(self.image.next_producer_id);
        self.image.next_producer_id += 1;
        let epoch = ProducerEpoch::ZERO;
        Outcome::ProducerEpoch { id, epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Cluster;
    use crate::{Command, MetadataImage, Refusal};

    fn bump(cluster: &mut Cluster, id: u64, epoch: u16) -> Result<(u64, u16), ErrorCode> {
        let (id, epoch) = (ProducerId::new(id), ProducerEpoch::new(epoch));
        match cluster.run(Command::BumpProducerEpoch { id, epoch }) {
            Outcome::ProducerEpoch { id, epoch } => Ok((id.get(), epoch.get())),
            Outcome::Refused(Refusal { code, .. }) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn newest(image: &MetadataImage, id: u64) -> u16 {
        image.producer_epoch(ProducerId::new(id)).get()
    }

    #[test]
    fn an_epoch_is_given_to_whoever_names_the_newest_and_to_nobody_twice() {
        let mut cluster = Cluster::default();
        cluster.run(Command::AllocateProducerIds { count: 2 });
        assert_eq!(bump(&mut cluster, 0, 0), Ok((0, 1)));
        for stale_or_invented in [0, 2, 7] {
            let refused = bump(&mut cluster, 0, stale_or_invented);
            assert_eq!(refused, Err(ErrorCode::InvalidProducerEpoch));
        }
        assert_eq!(bump(&mut cluster, 0, 1), Ok((0, 2)));
        assert_eq!(bump(&mut cluster, 2, 0), Err(ErrorCode::UnknownProducerId));
        let read = MetadataImage::decode(&cluster.image.encode()).unwrap();
        assert_eq!((newest(&read, 0), newest(&read, 1)), (2, 0));
    }

    #[test]
    fn an_id_without_epochs_left_is_closed_and_another_takes_its_place() {
        let mut cluster = Cluster::default();
        cluster.run(Command::AllocateProducerIds { count: 5 });
        for epoch in 0..32_767 {
            assert_eq!(bump(&mut cluster, 3, epoch), Ok((3, epoch + 1)));
        }
        assert_eq!(bump(&mut cluster, 3, 32_767), Ok((5, 0)));
        assert_eq!(newest(&cluster.image, 3), 32_768);
        for epoch in [32_767, 32_768] {
            let refused = bump(&mut cluster, 3, epoch);
            assert_eq!(refused, Err(ErrorCode::InvalidProducerEpoch));
        }
        assert_eq!(bump(&mut cluster, 5, 0), Ok((5, 1)));
    }

    #[test]
    fn of_an_id_whose_epochs_are_forgotten_none_is_given_out_again() {
        let mut cluster = Cluster::default();
        let kept = KEPT_MAX as u64;
        cluster.image.next_producer_id = kept + 2;
        let epochs = &mut cluster.image.producer_epochs;
        for id in 1..=kept {
            epochs.give(ProducerId::new(id), ProducerEpoch::new(1));
        }
        assert_eq!(bump(&mut cluster, kept + 1, 0), Ok((kept + 1, 1)));
        // Both of 0, which was at its first epoch, and of 1, nobody knows any more.
        assert_eq!(bump(&mut cluster, 0, 0), Ok((kept + 2, 0)));
        assert_eq!(bump(&mut cluster, 1, 0), Ok((kept + 3, 0)));
        assert_eq!(bump(&mut cluster, 2, 1), Ok((2, 2)));
        let read = MetadataImage::decode(&cluster.image.encode()).unwrap();
        assert_eq!(read, cluster.image);
    }
}
