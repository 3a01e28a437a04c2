//! `quorate group reset-offsets`: where a group without members is to go on.

use std::collections::BTreeMap;

use quorate_client::{Client, ClientError, OffsetToCommit};
use quorate_proto::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_types::{ErrorCode, Offset, PartitionId};
use serde_json::{Value, json};

use crate::cli::{Global, OutputFormat};
use crate::consume;
use crate::failure::{Failure, Outcome};
use crate::group_args::{ResetArgs, ResetTo};
use crate::output::{self, Column};
use crate::{client, told};

/// What is to become of one partition.
struct Change {
    partition: PartitionId,
    before: Option<Offset>,
    after: Offset,
}

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
    let client = client(global)?;
    let failed = |error: &ClientError| told(failure(&args), error);
    let info = client.topic(&args.topic).await;
    let info = info.map_err(|error| failed(&error))?;
    let count = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
    let partitions: Vec<u32> = match &args.partition[..] {
        [] => (0..count).collect(),
        named => named.to_vec(),
    };
    if let Some(number) = partitions.iter().find(|number| **number >= count) {
        let why = format!("topic {} has {count} partitions, no {number}", args.topic);
        return Err(Failure::new(failure(&args), why));
    }
    let before = committed(&client, &args).await?;
    let mut changes = Vec::new();
    for partition in partitions.into_iter().map(PartitionId::new) {
        let before = before.get(&partition).copied();
        let after = after(&client, &args, partition, before).await?;
        changes.push(Change {
            partition,
            before,
            after,
        });
    }
    if !args.dry_run {
        let offset = |change: &Change| {
            OffsetToCommit::new(args.topic.clone(), change.partition, change.after)
        };
        let offsets: Vec<OffsetToCommit> = changes.iter().map(offset).collect();
        let altered = client.alter_offsets(&args.group, &offsets).await;
        altered.map_err(|error| failed(&error))?;
    }
    show(global, &args, &changes)
}

fn failure(args: &ResetArgs) -> String {
    format!("the offsets of group {} were not reset", args.group)
}

/// What the group has committed of the topic; only where it has no members.
async fn committed(
    client: &Client,
    args: &ResetArgs,
) -> Result<BTreeMap<PartitionId, Offset>, Failure> {
    let described = match client.describe_group(&args.group).await {
        Ok(described) => described,
        // It comes to be.
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {
            return Ok(BTreeMap::new());
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
    let of_topic = offsets.into_iter().filter(|of| of.topic == args.topic);
    let each = of_topic.filter_map(|of| {
        let partition = PartitionId::from_signed(of.partition).ok()?;
        Some((partition, Offset::from_signed(of.offset).ok()?))
    });
    Ok(each.collect())
}

/// Where a partition is to go on, moved into its log.
async fn after(
    client: &Client,
    args: &ResetArgs,
    partition: PartitionId,
    before: Option<Offset>,
) -> Result<Offset, Failure> {
    let find = |position| consume::offset(client, &args.topic, partition, position);
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
        shift_by,
        ..
    } = args.to;
    let name = format!("{}-{partition}", args.topic);
    let wanted = if let Some(offset) = to_offset {
        i128::from(offset.get())
    } else if let Some(by) = shift_by {
        let Some(before) = before else {
            let why = format!("nothing is committed of {name}: there is nothing to shift");
            return Err(Failure::new(failure(args), why).hint("name the others with --partition"));
        };
        i128::from(before.get()) + i128::from(by)
    } else if let Some(time) = to_timestamp {
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

fn show(global: &Global, args: &ResetArgs, changes: &[Change]) -> Outcome {
    match global.output {
        OutputFormat::Json => {
            let row = |change: &Change| {
                json!({
                    "topic": args.topic,
                    "partition": change.partition.get(),
                    "before": change.before.map(Offset::get),
                    "after": change.after.get(),
                })
            };
            let rows: Vec<Value> = changes.iter().map(row).collect();
            output::json(&rows)
        }
        OutputFormat::Text => {
            let columns: [Column<Change>; 3] = [
                Column::number("PARTITION", |change| change.partition.to_string()),
                Column::number("BEFORE", |change| output::or_dash(change.before)),
                Column::number("AFTER", |change| change.after.to_string()),
            ];
            let done = match args.dry_run {
                true => "would go on in",
                false => "goes on in",
            };
            output::line(format!("group {} {done} {}", args.group, args.topic))?;
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
}
