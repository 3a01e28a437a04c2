//! What a reader is told of records that an unclean election lost (R7).

use quorate_metadata::DataLoss;
use quorate_types::{LeaderEpoch, Offset};

use crate::calls::FetchError;

/// What is known of unclean elections where a fetch is answered.
pub(crate) struct Losses<'a> {
    /// Leader epoch of the last one.
    pub(crate) unclean_epoch: Option<LeaderEpoch>,
    /// What is on record, oldest first.
    pub(crate) on_record: &'a [DataLoss],
}

impl Losses<'_> {
    /// Whether a reader at `offset` is concerned: one that knows of no later leader epoch than `known`
    /// and whose history parts from the log at `parts_at`, where it does. Gives where its next read
    /// must end, so that it does not pass the lost range unnoticed.
    ///
    /// # Errors
    /// [`FetchError::DataLoss`] with what is lost for that reader.
    pub(crate) fn tell(
        &self,
        known: LeaderEpoch,
        offset: Offset,
        parts_at: Option<Offset>,
    ) -> Result<Option<Offset>, FetchError> {
        let Some(epoch) = self.unclean_epoch.filter(|epoch| *epoch > known) else {
            return Ok(None);
        };
        let unknown = self.on_record.iter().filter(|loss| loss.epoch > known);
        let end = unknown.clone().filter_map(|loss| loss.to).max();
        if let Some(parts_at) = parts_at {
            // What the reader has read was there, whoever has come back since to tell of it. Part of
            // what it has not read yet may have been given anew, too.
            let told = unknown.map(|loss| loss.from).min();
            let from = parts_at.min(offset).min(told.unwrap_or(parts_at));
            let to = end.unwrap_or_default().max(offset).max(from.plus(1));
            return Err(FetchError::DataLoss { epoch, from, to });
        }
        let (Some(to), Some(from)) = (end, unknown.map(|loss| loss.from).min()) else {
            return Ok(None);
        };
        if offset < from {
            return Ok(Some(from));
        }
        if offset < to {
            return Err(FetchError::DataLoss {
                epoch,
                from: offset,
                to,
            });
        }
        Ok(None)
    }

    /// The same for a reader that says nothing of epochs and asks for what is beyond the log's end.
    pub(crate) fn beyond_end(&self, offset: Offset) -> Option<FetchError> {
        let loss = self.on_record.last()?;
        let lost = loss.from <= offset && loss.to.is_none_or(|to| offset <= to);
        lost.then(|| FetchError::DataLoss {
            epoch: loss.epoch,
            from: loss.from,
            to: loss.to.unwrap_or(offset).max(offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(epoch: u32, from: u64, to: Option<u64>) -> DataLoss {
        DataLoss {
            epoch: LeaderEpoch::new(epoch),
            from: Offset::new(from),
            to: to.map(Offset::new),
        }
    }

    /// What a reader is told that knows `known` and is at `offset`: where its next read ends, or what
    /// is lost.
    fn told(
        on_record: &[DataLoss],
        known: u32,
        offset: u64,
        parts_at: Option<u64>,
    ) -> Result<Option<u64>, (u64, u64)> {
        let losses = Losses {
            unclean_epoch: Some(LeaderEpoch::new(7)),
            on_record,
        };
        let (known, offset) = (LeaderEpoch::new(known), Offset::new(offset));
        match losses.tell(known, offset, parts_at.map(Offset::new)) {
            Ok(end) => Ok(end.map(Offset::get)),
            Err(FetchError::DataLoss { from, to, .. }) => Err((from.get(), to.get())),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_reader_is_told_once_and_never_passes_the_range_unnoticed() {
        let lost = [loss(7, 100, Some(130))];
        assert_eq!(told(&lost, 6, 40, None), Ok(Some(100)), "up to the range");
        assert_eq!(told(&lost, 6, 100, None), Err((100, 130)));
        assert_eq!(told(&lost, 6, 110, None), Err((110, 130)));
        assert_eq!(told(&lost, 6, 130, None), Ok(None));
        assert_eq!(told(&lost, 7, 100, None), Ok(None), "it knows");
        // What it has read and the log has not.
        assert_eq!(told(&lost, 6, 140, Some(100)), Err((100, 140)));
        assert_eq!(
            told(&[], 6, 140, Some(100)),
            Err((100, 140)),
            "nobody told yet"
        );
        assert_eq!(told(&[loss(7, 100, None)], 6, 100, None), Ok(None));
        // It was in the middle of what the new history has other records for.
        assert_eq!(told(&[loss(7, 40, None)], 6, 45, Some(50)), Err((40, 45)));
        assert_eq!(told(&[], 6, 45, Some(50)), Err((45, 46)));
    }

    #[test]
    fn several_elections_that_a_reader_does_not_know_are_one_range() {
        let lost = [loss(5, 60, Some(90)), loss(7, 100, Some(130))];
        assert_eq!(told(&lost, 4, 50, None), Ok(Some(60)));
        assert_eq!(told(&lost, 4, 70, None), Err((70, 130)));
        assert_eq!(told(&lost, 5, 70, None), Ok(Some(100)));
    }

    #[test]
    fn beyond_the_logs_end_a_loss_is_no_wrong_offset() {
        let lost = [loss(7, 100, Some(130))];
        let losses = Losses {
            unclean_epoch: Some(LeaderEpoch::new(7)),
            on_record: &lost,
        };
        assert!(losses.beyond_end(Offset::new(120)).is_some());
        assert!(losses.beyond_end(Offset::new(131)).is_none());
        assert!(losses.beyond_end(Offset::new(99)).is_none());
    }
}
