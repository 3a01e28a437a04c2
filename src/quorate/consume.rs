//! `quorate consume`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};

use quorate_client::{Assignment, Client, ClientError, Consumed, ConsumerOptions};
use quorate_proto::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_types::{ErrorCode, Offset, PartitionId};

use crate::cli::{ConsumeArgs, Global, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::format::Format;
use crate::parse::{HOW_A_TIME_IS_WRITTEN, Start};
use crate::{client, consume_group, told};

/// Where to begin in each partition, and where `--exit-at-end` ends.
struct Plan {
    assigned: Vec<Assignment>,
    ends: BTreeMap<(String, PartitionId), Offset>,
}

pub(crate) async fn offset(
    client: &Client,
    topic: &str,
    partition: PartitionId,
    position: Position,
) -> Result<Option<Offset>, Failure> {
    let found = client.list_offset(topic, partition, position).await;
    let found = found.map_err(|error| told(format!("cannot read {topic}-{partition}"), &error))?;
    Ok(found.and_then(|offset| Offset::from_signed(offset).ok()))
}

/// A name or number that was given twice; it would be read twice.
pub(crate) fn twice<T: Ord + std::fmt::Display>(what: &str, given: &[T]) -> Outcome {
    let mut seen = BTreeSet::new();
    match given.iter().find(|one| !seen.insert(*one)) {
        Some(one) => Err(Failure::usage(
            format!("cannot read {what} {one}"),
            "it is named twice",
        )),
        None => Ok(()),
    }
}

/// How records are printed, where that and what is to be read are given rightly.
fn checked(output: OutputFormat, args: &ConsumeArgs) -> Result<Format, Failure> {
    twice("topic", &args.topics)?;
    twice("partition", &args.partition)?;
    let template = match (&args.format, output) {
        (Some(format), _) => format,
        (None, OutputFormat::Json) => return Ok(Format::Json),
        (None, OutputFormat::Text) => "{value}",
    };
    Format::parse(template).map_err(|why| Failure::usage("cannot use --format", why))
}

async fn plan(client: &Client, args: &ConsumeArgs) -> Result<Plan, Failure> {
    let mut plan = Plan {
        assigned: Vec::new(),
        ends: BTreeMap::new(),
    };
    for topic in &args.topics {
        let what = format!("cannot read {topic}");
        let info = client
            .topic(topic)
            .await
            .map_err(|error| told(&what, &error))?;
        let count = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
        let wanted: Vec<u32> = if args.partition.is_empty() {
            (0..count).collect()
        } else {
            args.partition.clone()
        };
        for number in wanted {
            if number >= count {
                let why = format!("it has {count} partitions, no {number}");
                return Err(Failure::new(what, why));
            }
            let partition = PartitionId::new(number);
            let end = offset(client, topic, partition, Position::Latest(Latest {})).await?;
            let end = end.unwrap_or_default();
            let start = match args.from {
                Start::Beginning => {
                    offset(client, topic, partition, Position::Earliest(Earliest {})).await?
                }
                Start::End => Some(end),
                Start::At(at) => Some(at),
                Start::Time(at) => {
                    let position = Position::TimestampMs(at.millis());
                    Some(
                        offset(client, topic, partition, position)
                            .await?
                            .unwrap_or(end),
                    )
                }
            };
            let start = start.unwrap_or_default();
            if args.exit_at_end && start >= end {
                if start > end {
                    let why = format!("OFFSET_OUT_OF_RANGE: {topic}-{number} ends at offset {end}");
                    let what = format!("cannot read {topic} from offset {start}");
                    return Err(Failure::new(what, why).hint(HOW_A_TIME_IS_WRITTEN));
                }
                continue;
            }
            plan.ends.insert((topic.clone(), partition), end);
            plan.assigned.push(Assignment {
                topic: topic.clone(),
                partition,
                offset: start,
            });
        }
    }
    Ok(plan)
}

pub(crate) async fn run(global: &Global, args: ConsumeArgs) -> Outcome {
    let format = checked(global.output, &args)?;
    if args.exit_at_end && args.from == Start::End && args.group.is_none() {
        eprintln!("nothing will be printed: it begins at the end; see --from");
    }
    let client = client(global)?;
    if let Some(group) = &args.group {
        return consume_group::run(&client, &args, group, &format).await;
    }
    let Plan { assigned, mut ends } = plan(&client, &args).await?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
    let mut left = args.max.unwrap_or(u64::MAX);
    if assigned.is_empty() || left == 0 {
        return Ok(());
    }
    let options = ConsumerOptions {
        skip_corrupt: args.skip_corrupt,
        ..ConsumerOptions::default()
    };
    let mut consumer = client.consumer(assigned, options);
    while let Some(consumed) = consumer.poll().await {
        let consumed = match consumed {
            Ok(consumed) => consumed,
            Err(error) => {
                let (key, next) = skipped(error, args.skip_corrupt)?;
                if args.exit_at_end && ends.get(&key).is_some_and(|end| next >= *end) {
                    ends.remove(&key);
                    if ends.is_empty() {
                        return Ok(());
                    }
                }
                continue;
            }
        };
        let key = (consumed.topic.clone(), consumed.partition);
        let end = ends.get(&key).copied();
        if args.exit_at_end && end.is_none() {
            continue;
        }
        let until = end.filter(|_| args.exit_at_end);
        print(&format, &mut out, &consumed, until, &mut left).map_err(Failure::stdout)?;
        if until.is_some_and(|end| consumed.next >= end) {
            ends.remove(&key);
        }
        // What is there is shown before the next wait.
        out.flush().map_err(Failure::stdout)?;
        if left == 0 || (args.exit_at_end && ends.is_empty()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells of records that cannot be decoded where they may be skipped; gives their partition and the
/// offset behind them. Any other error is the end.
pub(crate) fn skipped(
    error: ClientError,
    skip: bool,
) -> Result<((String, PartitionId), Offset), Failure> {
    let ClientError::Corrupt {
        topic,
        partition,
        next,
        ..
    } = &error
    else {
        let out_of_range = error.code() == Some(ErrorCode::OffsetOutOfRange);
        let failure = told("reading stopped", &error);
        return Err(if out_of_range {
            failure.hint(HOW_A_TIME_IS_WRITTEN)
        } else {
            failure
        });
    };
    if !skip {
        return Err(Failure::new("reading stopped", &error).hint(format!(
            "`quorate consume {topic} --partition {partition} --from {next}` reads on behind them, \
             and --skip-corrupt goes past all such records"
        )));
    }
    eprintln!("skipped: {error}");
    Ok(((topic.clone(), *partition), *next))
}

/// Prints records up to an end, and says how many.
pub(crate) fn print(
    format: &Format,
    out: &mut impl Write,
    consumed: &Consumed,
    until: Option<Offset>,
    left: &mut u64,
) -> io::Result<usize> {
    let mut printed = 0;
    for record in &consumed.records {
        if *left == 0 || until.is_some_and(|end| record.offset >= end) {
            break;
        }
        format.write(out, &consumed.topic, consumed.partition.get(), record)?;
        *left -= 1;
        printed += 1;
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn what_is_asked_for_wrongly_is_wrong_usage() {
        let of = |given: &[&str]| {
            let all = ["quorate", "consume"].iter().chain(given);
            let cli = Cli::try_parse_from(all).unwrap();
            let Command::Consume(args) = cli.command else {
                panic!("{:?}", cli.command);
            };
            checked(cli.global.output, &args)
        };
        assert!(of(&["t", "--partition", "0", "--partition", "1"]).is_ok());
        for (given, says) in [
            (&["t", "--format", "{bogus}"][..], "--format"),
            (
                &["t", "--partition", "0", "--partition", "0"],
                "partition 0",
            ),
            (&["t", "u", "t"], "topic t"),
        ] {
            let failure = of(given).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{failure}");
            assert!(failure.to_string().contains(says), "{failure}");
        }
    }
}
