//! `quorate group reset-offsets`: where a group without members is to go on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt, stream};
use quorate_client::{Client, ClientError, OffsetToCommit};
use quorate_proto::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_types::{ErrorCode, Offset, PartitionId, Timestamp};
use serde_json::{Value, json};

use crate::cli::{Global, OutputFormat};
use crate::consume;
use crate::failure::{Failure, Outcome};
use crate::group_args::{ResetArgs, ResetTo};
use crate::output::{self, Column};
use crate::{client, told};

/// Leaders are asked about so many partitions at once.
const AT_ONCE: usize = 32;

/// What is to become of one partition.
struct Change {
    topic: String,
    partition: PartitionId,
    before: Option<Offset>,
    after: Offset,
}

/// What is committed.
type Committed = BTreeMap<(String, PartitionId), Offset>;

/// The part of a partition's log that can be read.
#[derive(Debug, Clone, Copy)]
struct Log {
    start: Offset,
    end: Offset,
}

impl Log {
    fn nearest(self, offset: i128) -> Offset {
        let (start, end) = (i128::from(self.start.get()), i128::from(self.end.get()));
        let inside = offset.clamp(start, end.max(start));
        Offset::new(u64::try_from(inside).unwrap_or_default())
    }
}

pub(crate) async fn run(global: &Global, args: ResetArgs) -> Outcome {
    consume::twice("partition", &args.partition)?;
    consume::twice("topic", &args.topic)?;
    if !args.partition.is_empty() && args.topic.len() != 1 {
        let why = "--partition is for one --topic";
        return Err(Failure::usage(failure(&args), why));
    }
    let client = client(global)?;
    let failed = |error: &ClientError| told(failure(&args), error);
    // What is not there is told whether the group has members or not.
    let mut partitions = Vec::new();
    for topic in &args.topic {
        partitions.extend(wanted(&client, &args, topic).await?);
    }
    let before = committed(&client, &args).await?;
    if args.all_topics {
        let topics: BTreeSet<&String> = before.keys().map(|(topic, _)| topic).collect();
        if topics.is_empty() {
            return Err(Failure::new(failure(&args), "it has committed nothing"));
        }
        for topic in topics {
            partitions.extend(wanted(&client, &args, topic).await?);
        }
    }
    let changes = stream::iter(partitions)
        .map(async |(topic, partition)| {
            let place = (topic, partition);
            let before = before.get(&place).copied();
            let after = after(&client, &args, &place, before).await?;
            let (topic, partition) = place;
            Ok(Change {
                topic,
                partition,
                before,
                after,
            })
        })
        .buffered(AT_ONCE);
    let changes: Vec<Change> = changes.try_collect().await?;
    if !args.dry_run {
        let offset = |change: &Change| {
            OffsetToCommit::new(change.topic.clone(), change.partition, change.after)
        };
        let offsets: Vec<OffsetToCommit> = changes.iter().map(offset).collect();
        let altered = client.alter_offsets(&args.group, &offsets).await;
        altered.map_err(|error| failed(&error))?;
    }
    show(global, &args, &changes)
}

/// The partitions of a topic that are to be changed.
async fn wanted(
    client: &Client,
    args: &ResetArgs,
    topic: &str,
) -> Result<Vec<(String, PartitionId)>, Failure> {
    let info = client.topic(topic).await;
    let info = info.map_err(|error| told(failure(args), &error))?;
    let count = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
    let numbers: Vec<u32> = match &args.partition[..] {
        [] => (0..count).collect(),
        named => named.to_vec(),
    };
    if let Some(number) = numbers.iter().find(|number| **number >= count) {
        let why = format!("topic {topic} has {count} partitions, no {number}");
        return Err(Failure::new(failure(args), why));
    }
    let each = numbers.into_iter().map(PartitionId::new);
    Ok(each
        .map(|partition| (topic.to_owned(), partition))
        .collect())
}

fn failure(args: &ResetArgs) -> String {
    format!("the offsets of group {} were not reset", args.group)
}

/// What the group has committed; only where it has no members.
async fn committed(client: &Client, args: &ResetArgs) -> Result<Committed, Failure> {
    let described = match client.describe_group(&args.group).await {
        Ok(described) => described,
        // It comes to be.
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {
            return Ok(Committed::new());
        }
        Err(error) => return Err(told(failure(args), &error)),
    };
    let members = described.members.len() as u64;
    if members > 0 {
        let members = output::counted(members, "member", "members");
        let failure = Failure::new(failure(args), format!("NON_EMPTY_GROUP: it has {members}"));
        return Err(failure.hint("stop its members first, or wait until their sessions have ended"));
    }
    // What a partition has committed is read where commits are decided.
    let offsets = client.committed_offsets(&args.group).await;
    let offsets = offsets.map_err(|error| told(failure(args), &error))?;
    let each = offsets.into_iter().filter_map(|of| {
        let partition = PartitionId::from_signed(of.partition).ok()?;
        Some(((of.topic, partition), Offset::from_signed(of.offset).ok()?))
    });
    Ok(each.collect())
}

/// Where a partition is to go on, moved into its log.
async fn after(
    client: &Client,
    args: &ResetArgs,
    (topic, partition): &(String, PartitionId),
    before: Option<Offset>,
) -> Result<Offset, Failure> {
    let find = |position| consume::offset(client, topic, *partition, position);
    let log = Log {
        start: find(Position::Earliest(Earliest {}))
            .await?
            .unwrap_or_default(),
        end: find(Position::Latest(Latest {})).await?.unwrap_or_default(),
    };
    let ResetTo {
        to_offset,
        to_earliest,
        to_timestamp,
        by_duration,
        to_current,
        shift_by,
        ..
    } = args.to;
    let name = format!("{topic}-{partition}");
    let time = to_timestamp.or_else(|| by_duration.map(|ago| before_now(SystemTime::now(), ago)));
    let wanted = if let Some(offset) = to_offset {
        i128::from(offset.get())
    } else if let Some(by) = shift_by {
        let Some(before) = before else {
            let why = format!("nothing is committed of {name}: there is nothing to shift");
            return Err(Failure::new(failure(args), why).hint("name the others with --partition"));
        };
        i128::from(before.get()) + i128::from(by)
    } else if let Some(before) = before.filter(|_| to_current) {
        i128::from(before.get())
    } else if let Some(time) = time {
        let found = find(Position::TimestampMs(time.millis())).await?;
        i128::from(found.unwrap_or(log.end).get())
    } else if to_earliest {
        i128::from(log.start.get())
    } else {
        i128::from(log.end.get())
    };
    let after = log.nearest(wanted);
    if i128::from(after.get()) != wanted {
        let Log { start, end } = log;
        eprintln!("{name}: {wanted} lies outside of its log, {start} to {end}: {after} is taken");
    }
    Ok(after)
}

/// The time that was so long ago, at most at the beginning of 1970.
fn before_now(now: SystemTime, ago: Duration) -> Timestamp {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = since.saturating_sub(ago).as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

fn show(global: &Global, args: &ResetArgs, changes: &[Change]) -> Outcome {
    match global.output {
        OutputFormat::Json => {
            let row = |change: &Change| {
                json!({
                    "topic": change.topic,
                    "partition": change.partition.get(),
                    "before": change.before.map(Offset::get),
                    "after": change.after.get(),
                })
            };
            let rows: Vec<Value> = changes.iter().map(row).collect();
            output::json(&rows)
        }
        OutputFormat::Text => {
            let columns: [Column<Change>; 4] = [
                Column::words("TOPIC", |change| change.topic.clone()),
                Column::number("PARTITION", |change| change.partition.to_string()),
                Column::number("BEFORE", |change| output::or_dash(change.before)),
                Column::number("AFTER", |change| change.after.to_string()),
            ];
            let done = match args.dry_run {
                true => "would go on",
                false => "goes on",
            };
            output::line(format!("group {} {done} at", args.group))?;
            output::line(output::table(&columns, changes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_of_the_log_is_moved_to_its_nearer_end() {
        let log = Log {
            start: Offset::new(10),
            end: Offset::new(20),
        };
        for (wanted, nearest) in [(-5, 10), (9, 10), (15, 15), (20, 20), (1 << 70, 20)] {
            assert_eq!(log.nearest(wanted).get(), nearest);
        }
    }

    #[test]
    fn a_time_ago_begins_with_1970() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        let ago = |seconds| before_now(now, Duration::from_secs(seconds)).millis();
        assert_eq!((ago(0), ago(30), ago(1_000)), (100_000, 70_000, 0));
    }
}
