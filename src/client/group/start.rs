//! Where the partitions begin that have fallen to a member: where the group left off, else where its
//! options say.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, stream};
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_types::{LeaderEpoch, Offset, TopicId};
use tokio::time::timeout;

use super::commit::ONE_TRY;
use super::coordinator::Coordinator;
use super::member::{Held, by_topic};
use super::options::StartPosition;
use crate::client::Patience;
use crate::error::ClientError;

/// Leaders are asked for so many partitions at once.
const AT_ONCE: usize = 32;
/// One that does not answer for so long is asked again later: the others are read meanwhile. A look-up
/// by time may have to read, and has all the time of a call.
const LISTED: Duration = Duration::from_secs(2);

/// Where a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) offset: Offset,
    /// The epoch of the record before it, as it was committed.
    pub(super) leader_epoch: Option<LeaderEpoch>,
    /// Whether it is what the group has committed.
    pub(super) committed: bool,
}

/// Where these begin, each as far as its leader says so.
///
/// # Errors
/// [`ClientError`] where it is not known what the group has committed.
pub(super) async fn find(
    coordinator: &Coordinator,
    group: &str,
    start: StartPosition,
    wanted: Vec<Held>,
) -> Result<Vec<(Held, Result<Begin, ClientError>)>, ClientError> {
    let committed = begins(coordinator, group, &wanted).await?;
    let begin = |held: Held| {
        let known = committed.get(&(held.topic_id, held.partition.to_signed()));
        let known = known.copied();
        async move {
            let begin = match known {
                Some(begin) => Ok(begin),
                None => {
                    let listed = listed(coordinator, &held, start).await;
                    listed.map(|offset| Begin {
                        offset,
                        leader_epoch: None,
                        committed: false,
                    })
                }
            };
            (held, begin)
        }
    };
    let found = stream::iter(wanted).map(begin).buffer_unordered(AT_ONCE);
    Ok(found.collect().await)
}

/// What a group has committed of these partitions; of none: of all.
pub(super) async fn committed(
    coordinator: &Coordinator,
    group: &str,
    partitions: Vec<v1::TopicPartitions>,
    patience: &mut Patience,
) -> Result<Vec<v1::CommittedOffset>, ClientError> {
    let mut request = v1::FetchOffsetsRequest {
        group: group.to_owned(),
        partitions,
        after: None,
    };
    let call =
        |mut groups: GroupsClient<_>, request| async move { groups.fetch_offsets(request).await };
    let mut offsets: Vec<v1::CommittedOffset> = Vec::new();
    loop {
        let page = coordinator.until(&request, ONE_TRY, patience, call).await?;
        // Whoever answers goes on behind, or the pages would never end.
        let more = page.more && !page.offsets.is_empty();
        offsets.extend(page.offsets);
        if !more {
            return Ok(offsets);
        }
        request.after = offsets.last().map(|last| v1::PartitionPlace {
            topic_id: last.topic_id.clone(),
            partition: last.partition,
        });
    }
}

async fn begins(
    coordinator: &Coordinator,
    group: &str,
    wanted: &[Held],
) -> Result<BTreeMap<(TopicId, i32), Begin>, ClientError> {
    let mut patience = Patience::steadfast(coordinator.client().options().call_timeout);
    let offsets = committed(coordinator, group, by_topic(wanted), &mut patience).await?;
    let each = offsets.into_iter().map(|committed| {
        let wrong = |why: String| ClientError::Protocol(format!("a committed offset: {why}"));
        let topic_id = TopicId::from_slice(&committed.topic_id);
        let topic_id = topic_id.ok_or_else(|| wrong("a topic id has 16 bytes".to_owned()))?;
        let offset =
            Offset::from_signed(committed.offset).map_err(|error| wrong(error.to_string()))?;
        let begin = Begin {
            offset,
            leader_epoch: committed
                .leader_epoch
                .and_then(|epoch| LeaderEpoch::from_signed(epoch).ok()),
            committed: true,
        };
        Ok(((topic_id, committed.partition), begin))
    });
    each.collect()
}

async fn listed(
    coordinator: &Coordinator,
    held: &Held,
    start: StartPosition,
) -> Result<Offset, ClientError> {
    let list = async |position| {
        let client = coordinator.client();
        let limit = match position {
            Position::TimestampMs(_) => client.options().call_timeout,
            _ => LISTED,
        };
        let listed = client.list_offset(&held.topic, held.partition, position);
        let late = |_| ClientError::TimedOut("the leader does not answer".to_owned());
        timeout(limit, listed).await.map_err(late)?
    };
    let offset_of = |found: Option<i64>| {
        let found = found.map(Offset::from_signed).transpose();
        let found = found.map_err(|error| ClientError::Protocol(error.to_string()))?;
        Ok(found.unwrap_or_default())
    };
    let found = match start {
        // What is read from there on is committed: it is to be there.
        StartPosition::Offset(offset) => {
            let first = offset_of(list(Position::Earliest(Earliest {})).await?)?;
            let end = offset_of(list(Position::Latest(Latest {})).await?)?;
            return Ok(offset.max(first).min(end.max(first)));
        }
        StartPosition::Earliest => list(Position::Earliest(Earliest {})).await?,
        StartPosition::Latest => list(Position::Latest(Latest {})).await?,
        StartPosition::Timestamp(at) => match list(Position::TimestampMs(at.millis())).await? {
            None => list(Position::Latest(Latest {})).await?,
            found => found,
        },
    };
    offset_of(found)
}
