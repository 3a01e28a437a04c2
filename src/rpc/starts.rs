//! Where the partitions of a `Consume` begin.

use std::collections::BTreeSet;

use quorate_proto::v1;
use quorate_types::{ErrorCode, LeaderEpoch, Offset, PartitionId};
use quorate_wire::ErrorInfo;

use crate::edge::Edge;

/// Partitions of one stream.
const PARTITIONS_MAX: usize = 1_024;

/// Where a partition begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    Offset(Offset, Option<LeaderEpoch>),
    Position(v1::Position),
    Timestamp(i64),
}

/// The partitions of a request, each with its place.
pub(crate) fn starts(
    request: &v1::ConsumeRequest,
    count: u32,
) -> Result<Vec<(PartitionId, Start)>, ErrorInfo> {
    use v1::consume_request::Start as Common;
    use v1::partition_start::Start as Own;
    let bad = |message: String| ErrorInfo::new(ErrorCode::InvalidRequest, message);
    let position = |number: i32| {
        let position = v1::Position::try_from(number);
        position.map_err(|_| bad(format!("{number} is no position")))
    };
    let common = match request.start {
        Some(Common::Position(number)) => Start::Position(position(number)?),
        Some(Common::TimestampMs(at)) => Start::Timestamp(at),
        None => Start::Position(v1::Position::Latest),
    };
    if request.partitions.is_empty() {
        if count as usize > PARTITIONS_MAX {
            return Err(bad(format!(
                "the topic has {count} partitions, one stream reads {PARTITIONS_MAX} at most: name \
                 some"
            )));
        }
        let all = (0..count).map(|number| (PartitionId::new(number), common));
        return Ok(all.collect());
    }
    if request.partitions.len() > PARTITIONS_MAX {
        return Err(bad(format!(
            "{} partitions: one stream reads {PARTITIONS_MAX} at most",
            request.partitions.len()
        )));
    }
    let mut seen = BTreeSet::new();
    let mut starts = Vec::with_capacity(request.partitions.len());
    for named in &request.partitions {
        let partition = Edge::partition(named.partition)?;
        if partition.get() >= count {
            return Err(ErrorInfo::new(
                ErrorCode::UnknownTopicOrPartition,
                format!(
                    "topic {} has {count} partitions, no {partition}",
                    request.topic
                ),
            ));
        }
        if !seen.insert(partition) {
            return Err(bad(format!("partition {partition} is named twice")));
        }
        let start = match named.start {
            Some(Own::Offset(offset)) => {
                let offset = Offset::from_signed(offset).map_err(|error| bad(error.to_string()))?;
                let epoch = named.last_fetched_epoch.map(LeaderEpoch::from_signed);
                let epoch = epoch.transpose().map_err(|error| bad(error.to_string()))?;
                Start::Offset(offset, epoch)
            }
            Some(Own::Position(number)) => Start::Position(position(number)?),
            Some(Own::TimestampMs(at)) => Start::Timestamp(at),
            None => common,
        };
        starts.push((partition, start));
    }
    Ok(starts)
}
