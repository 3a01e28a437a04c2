//! What becomes of records: decided a batch at a time, and where a batch was split, a part at a time.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_types::PartitionId;
use tokio::sync::Notify;

use crate::error::ClientError;

/// Where a record has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// The partition.
    pub partition: PartitionId,
    /// Its offset; none with `acks=0`.
    pub offset: Option<i64>,
    /// The epoch it was appended at.
    pub leader_epoch: i32,
    /// Replicas that have it.
    pub replicas: u32,
    /// Replicas that have it on their disks.
    pub fsynced: u32,
}

/// A decision for the records from `from` on, up to `to`.
#[derive(Debug)]
struct Decision {
    from: i64,
    to: i64,
    result: Result<Acked, ClientError>,
}

/// The fates of the records that were gathered together; a few decisions at most.
#[derive(Debug, Default)]
struct Fate {
    decisions: Mutex<Vec<Decision>>,
    decided: Notify,
}

/// The side of a fate that decides it, for some of its records; dropped undecided, they were never
/// sent or nobody heard.
#[derive(Debug)]
pub(crate) struct Fateful {
    fate: Arc<Fate>,
    /// The first record that this decides.
    from: i64,
    /// The one after the last.
    to: i64,
}

impl Default for Fateful {
    fn default() -> Self {
        Self {
            fate: Arc::default(),
            from: 0,
            to: i64::MAX,
        }
    }
}

impl Fateful {
    /// Takes `result`, the answer for the first of the records, for all of them. The first word
    /// counts.
    pub(crate) fn decide(mut self, result: Result<Acked, ClientError>) {
        self.settle(result);
    }

    fn settle(&mut self, result: Result<Acked, ClientError>) {
        let (from, to) = (self.from, self.to);
        if from < to {
            self.from = to;
            let decision = Decision { from, to, result };
            self.fate.decisions.lock().push(decision);
            self.fate.decided.notify_waiters();
        }
    }

    /// Gives the first `records` of these to a fate of their own, and keeps the rest.
    pub(crate) fn split_off_first(&mut self, records: u32) -> Self {
        let at = self.from.saturating_add(i64::from(records)).min(self.to);
        let first = Self {
            fate: Arc::clone(&self.fate),
            from: self.from,
            to: at,
        };
        self.from = at;
        first
    }

    /// The side that waits, for the record with this number among those gathered.
    pub(crate) fn delivery(&self, index: i64) -> Delivery {
        Delivery {
            fate: Arc::clone(&self.fate),
            index,
        }
    }
}

impl Drop for Fateful {
    fn drop(&mut self) {
        self.settle(Err(ClientError::Closed));
    }
}

/// A record on its way. May be dropped: [`crate::Producer::flush`] waits for all of them.
#[derive(Debug, Clone)]
pub struct Delivery {
    fate: Arc<Fate>,
    index: i64,
}

impl Delivery {
    /// Waits until the record is delivered or has failed; bounded by the delivery time-out.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::TimedOut`] the record may be in the log or not.
    pub async fn wait(&self) -> Result<Acked, ClientError> {
        loop {
            let decided = self.fate.decided.notified();
            if let Some(result) = self.result() {
                return result;
            }
            decided.await;
        }
    }

    fn result(&self) -> Option<Result<Acked, ClientError>> {
        let decisions = self.fate.decisions.lock();
        let mine = |of: &&Decision| (of.from..of.to).contains(&self.index);
        let Decision { from, result, .. } = decisions.iter().find(mine)?;
        Some(result.clone().map(|first| Acked {
            offset: first.offset.map(|offset| offset + self.index - from),
            ..first
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(offset: i64) -> Acked {
        Acked {
            partition: PartitionId::new(0),
            offset: Some(offset),
            leader_epoch: 1,
            replicas: 3,
            fsynced: 3,
        }
    }

    #[tokio::test]
    async fn each_part_of_a_split_batch_has_its_own_fate() {
        let mut rest = Fateful::default();
        let deliveries: Vec<Delivery> = (0..5).map(|index| rest.delivery(index)).collect();
        let first = rest.split_off_first(2);
        let second = rest.split_off_first(2);
        rest.decide(Ok(acked(90)));
        first.decide(Ok(acked(10)));
        assert_eq!(deliveries[1].wait().await.unwrap().offset, Some(11));
        assert_eq!(deliveries[4].wait().await.unwrap().offset, Some(90));
        drop(second);
        for lost in &deliveries[2..4] {
            assert!(matches!(lost.wait().await, Err(ClientError::Closed)));
        }
    }
}
