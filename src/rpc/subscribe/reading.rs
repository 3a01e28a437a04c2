//! From what is assigned to records: where each partition begins, then its reader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll, StreamExt};
use quorate_proto::v1;
use quorate_types::{ErrorCode, LeaderEpoch, Offset, TopicPartition};
use quorate_wire::ErrorInfo;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::asking::asked;
use super::holdings::Turn;
use super::join::Join;
use crate::consume::{Given, PartitionReader, turns};
use crate::edge::Edge;
use crate::groups::by_topic;
use crate::starts::Start;

/// How long this node's image may lag behind a coordinator's, before it is taken for right.
const SHOWN: Duration = Duration::from_secs(30);

/// A partition, whenever it came to the member.
pub(super) type Taken = (TopicPartition, Turn);

/// What comes of a partition.
pub(super) enum Read {
    /// Where it begins, with its reader.
    Begun(Box<PartitionReader>, Begins),
    /// It is read on elsewhere, for this reason.
    Moved(Box<PartitionReader>, Offset, ErrorInfo),
    /// Records.
    Records(Given),
    Failed(ErrorInfo),
    /// This node does not show the partition.
    Unknown,
}

/// Where a partition begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begins {
    pub(super) offset: Offset,
    /// As committed, not as the client says.
    pub(super) committed: bool,
}

/// Places that were asked for.
type Places = Vec<(Taken, Option<(Offset, Option<LeaderEpoch>)>)>;

/// The readers of one member.
pub(super) struct Reading {
    edge: Edge,
    turns: Arc<Semaphore>,
    places: FuturesUnordered<BoxFuture<'static, Result<Places, ErrorInfo>>>,
    beginning: FuturesUnordered<BoxFuture<'static, (Taken, Read)>>,
    readers: SelectAll<BoxStream<'static, (Taken, Read)>>,
    /// Ends a reader when it is dropped.
    running: BTreeMap<TopicPartition, DropGuard>,
}

impl Reading {
    pub(super) fn new(edge: &Edge) -> Self {
        Self {
            edge: edge.clone(),
            turns: turns(),
            places: FuturesUnordered::new(),
            beginning: FuturesUnordered::new(),
            readers: SelectAll::new(),
            running: BTreeMap::new(),
        }
    }

    /// Asks where partitions begin: as committed, else where the client says. The coordinator's image
    /// may be ahead of this node's: what it does not show yet is waited for.
    pub(super) fn begin(&mut self, join: &Join, taken: Vec<Taken>) {
        let image = self.edge.image();
        let is_shown = |(at, _): &Taken| image.partition(at).is_some();
        let (shown, later): (Vec<_>, Vec<_>) = taken.into_iter().partition(is_shown);
        self.ask(join, shown);
        self.ask(join, later);
    }

    fn ask(&mut self, join: &Join, taken: Vec<Taken>) {
        if taken.is_empty() {
            return;
        }
        let (edge, group) = (self.edge.clone(), join.group.clone());
        self.places.push(Box::pin(async move {
            let mut images = edge.quorum().images();
            let shown = images.wait_for(|image| {
                let mut all = taken.iter();
                all.all(|(at, _)| image.partition(at).is_some())
            });
            // What is not there then is deleted.
            let _late = timeout(SHOWN, shown).await.map(drop);
            let mut committed = BTreeMap::new();
            let mut after = None;
            // Of none all would be told.
            let image = edge.image();
            let mut more = taken.iter().any(|(at, _)| image.partition(at).is_some());
            while more {
                let page = asked(None, || {
                    let image = edge.image();
                    // A topic that is deleted meanwhile is taken away from the member soon.
                    let known = taken.iter().map(|(at, _)| *at);
                    let known = known.filter(|at| image.partition(at).is_some());
                    let request = v1::FetchOffsetsRequest {
                        group: group.clone(),
                        partitions: by_topic(&image, known),
                        after: after.clone(),
                    };
                    edge.group_offsets(request, false)
                });
                let page = page.await?;
                after = page.offsets.last().map(|last| v1::PartitionPlace {
                    topic_id: last.topic_id.clone(),
                    partition: last.partition,
                });
                more = page.more && after.is_some();
                committed.extend(offsets_of(page));
            }
            let place = |taken: &Taken| (*taken, committed.get(&taken.0).copied());
            Ok(taken.iter().map(place).collect())
        }));
    }

    /// The next place ([`Self::read`] goes on from there), records where they may be sent, or a failure,
    /// of all where there is no partition. Pending where there is nothing.
    pub(super) async fn next(&mut self, join: &Join, records: bool) -> (Option<Taken>, Read) {
        loop {
            tokio::select! {
                Some(places) = self.places.next() => match places {
                    Ok(places) => self.find(join, places),
                    Err(error) => return (None, Read::Failed(error)),
                },
                Some((taken, begun)) = self.beginning.next() => return (Some(taken), begun),
                Some((taken, read)) = self.readers.next(), if records => {
                    return (Some(taken), read);
                }
                else => std::future::pending().await,
            }
        }
    }

    fn reader(&self, join: &Join, at: TopicPartition, start: Start) -> Option<PartitionReader> {
        let image = self.edge.image();
        let topic = image.topic(at.topic_id)?;
        let (edge, turns) = (&self.edge, &self.turns);
        let reader = PartitionReader::new(edge, &topic.name, at, start, join.most, turns);
        Some(reader)
    }

    /// Reads a partition on from another place, which [`Self::read`] does once it is found.
    pub(super) fn move_to(&mut self, join: &Join, taken: Taken, start: Start, why: ErrorInfo) {
        self.stop(&taken.0);
        // Else it is deleted, and taken away soon.
        if let Some(mut reader) = self.reader(join, taken.0, start) {
            self.beginning.push(Box::pin(async move {
                let read = match reader.begin().await {
                    Ok(offset) => Read::Moved(Box::new(reader), offset, why),
                    Err(error) => Read::Failed(error),
                };
                (taken, read)
            }));
        }
    }

    fn find(&mut self, join: &Join, places: Places) {
        for (taken, committed) in places {
            let start =
                committed.map_or(join.start, |(offset, epoch)| Start::Offset(offset, epoch));
            let reader = self.reader(join, taken.0, start);
            self.beginning.push(Box::pin(async move {
                let Some(mut reader) = reader else {
                    return (taken, Read::Unknown);
                };
                let read = match reader.begin().await {
                    Ok(offset) => {
                        let committed = committed.is_some();
                        Read::Begun(Box::new(reader), Begins { offset, committed })
                    }
                    Err(error) => Read::Failed(error),
                };
                (taken, read)
            }));
        }
    }

    /// Reads a partition from its place on.
    pub(super) fn read(&mut self, taken: Taken, reader: PartitionReader) {
        let token = CancellationToken::new();
        let records = stream::unfold(Some(reader), move |reader| async move {
            let mut reader = reader?;
            match reader.next_response().await {
                Ok(Some(given)) => Some(((taken, Read::Records(given)), Some(reader))),
                Ok(None) => None,
                Err(error) => Some(((taken, Read::Failed(error)), None)),
            }
        });
        let until = token.clone().cancelled_owned();
        self.readers.push(records.take_until(until).boxed());
        self.running.insert(taken.0, token.drop_guard());
    }

    /// Reads a partition no further.
    pub(super) fn stop(&mut self, at: &TopicPartition) {
        self.running.remove(at);
    }
}

fn offsets_of(
    answer: v1::FetchOffsetsResponse,
) -> BTreeMap<TopicPartition, (Offset, Option<LeaderEpoch>)> {
    let of = |offset: v1::CommittedOffset| {
        let id = quorate_wire::topic_id(&offset.topic_id).ok()?;
        let partition = Edge::partition(offset.partition).ok()?;
        let next = Offset::from_signed(offset.offset).ok()?;
        let epoch = offset.leader_epoch.map(LeaderEpoch::from_signed);
        // What a client made up does not say where the record before is from.
        let epoch = epoch.and_then(Result::ok);
        Some((TopicPartition::new(id, partition), (next, epoch)))
    };
    answer.offsets.into_iter().filter_map(of).collect()
}

/// Where a partition is read on whose reading ended like that; none: it is not.
pub(super) fn goes_on(error: &ErrorInfo, usual: Start) -> Option<Start> {
    let place = |key: &str| {
        let place = error.metadata.get(key);
        place.and_then(|place| place.parse().ok()).map(Offset::new)
    };
    let read = place("offset");
    let before = |key| place(key).zip(read).map(|(place, read)| place.min(read));
    match error.code {
        // What was read is of another history (KIP-320), from there on at most: nothing is passed over.
        ErrorCode::OffsetOutOfRange => match before("diverging_offset") {
            Some(parts) => Some(Start::Offset(parts, None)),
            None => Some(usual),
        },
        ErrorCode::DataLoss => before("lost_from").map(|lost| Start::Offset(lost, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn went_wrong(code: ErrorCode, places: &[(&str, u64)]) -> ErrorInfo {
        let mut error = ErrorInfo::new(code, "");
        for (key, place) in places {
            error.metadata.insert((*key).to_owned(), place.to_string());
        }
        error
    }

    #[test]
    fn a_reader_whose_history_parts_passes_over_nothing() {
        let usual = Start::Position(v1::Position::Latest);
        let at = |error: &ErrorInfo| match goes_on(error, usual) {
            Some(Start::Offset(offset, None)) => Some(offset.get()),
            Some(Start::Position(v1::Position::Latest)) => None,
            other => panic!("{other:?}"),
        };
        let parted = |parts, read| {
            let places = [("diverging_offset", parts), ("offset", read)];
            went_wrong(ErrorCode::OffsetOutOfRange, &places)
        };
        assert_eq!(at(&parted(7, 10)), Some(7));
        // Only the epoch that was committed is another one than the log has.
        assert_eq!(at(&parted(12, 10)), Some(10));
        let outside = went_wrong(ErrorCode::OffsetOutOfRange, &[("offset", 10)]);
        assert_eq!(at(&outside), None);
        let lost = [("lost_from", 4), ("offset", 10)];
        assert_eq!(at(&went_wrong(ErrorCode::DataLoss, &lost)), Some(4));
        assert!(goes_on(&went_wrong(ErrorCode::CorruptMessage, &[]), usual).is_none());
        assert!(goes_on(&went_wrong(ErrorCode::DataLoss, &[]), usual).is_none());
    }
}
