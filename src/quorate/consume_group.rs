//! `quorate consume --group`: reads as a member of a group. What is committed was written to stdout and
//! flushed before: the member commits what earlier polls returned, and what could not be written is
//! taken back.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use quorate_client::{
    Assignment, Client, ClientError, Consumed, ConsumerOptions, GroupConsumer, GroupEvent,
    GroupOptions, StartPosition, TopicPartition,
};
use quorate_proto::v1;
use quorate_proto::v1::list_offsets_request::{Latest, Position};
use quorate_types::Offset;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::cli::ConsumeArgs;
use crate::consume::{offset, print, skipped};
use crate::failure::{Failure, Outcome};
use crate::format::Format;
use crate::parse::Start;
use crate::told;

/// How often who has no partitions asks whether any are to come.
const ASK: Duration = Duration::from_secs(1);
/// Signals so close together are one wish: `timeout` signals its child, and then the group of both.
const ONE_WISH: Duration = Duration::from_millis(250);
/// Leaving takes no longer where the cluster answers; else it is told what is waited for.
const NOTICE: Duration = Duration::from_secs(1);

/// What ends the command from outside.
struct Stop {
    terminated: Signal,
    interrupted: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new("cannot read", error);
        Ok(Self {
            terminated: signal(SignalKind::terminate()).map_err(failed)?,
            interrupted: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }

    /// A wish beside the one that was noticed just now.
    async fn asked_again(&mut self) {
        let over = sleep(ONE_WISH);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                () = self.asked() => {}
            }
        }
        self.asked().await;
    }
}

/// What is left to be read.
struct Left {
    records: u64,
    /// Where `--exit-at-end` ends, of the partitions that are behind; none without it.
    ends: Option<BTreeMap<TopicPartition, Offset>>,
    /// Whether any partition has fallen to the member.
    assigned: bool,
    /// Records that are being written.
    writing: Option<Writing>,
}

/// Some of a partition, on their way to stdout.
struct Writing {
    partition: TopicPartition,
    first: Offset,
    /// What was read behind them, and is not to be written.
    rest: Option<Offset>,
    done: JoinHandle<io::Result<()>>,
}

impl Writing {
    /// Writes beside whatever else there is to do: a reader that takes nothing keeps nobody from leaving.
    fn begin(
        partition: TopicPartition,
        read: &Consumed,
        printed: usize,
        text: Vec<u8>,
    ) -> Option<Self> {
        let offset = |place: usize| read.records.get(place).map(|record| record.offset);
        let (first, rest) = (offset(0)?, offset(printed));
        let done = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(&text).and_then(|()| out.flush())
        });
        Some(Self {
            partition,
            first,
            rest,
            done,
        })
    }

    /// What is not written is not done, and is read again by whoever is next.
    fn take_back(&self, member: &mut GroupConsumer, written: bool) -> Result<(), ClientError> {
        let from = if written { self.rest } else { Some(self.first) };
        from.map_or(Ok(()), |from| member.seek(&self.partition, from))
    }
}

impl Left {
    fn is_over(&self) -> bool {
        let at_end = self.ends.as_ref().is_some_and(BTreeMap::is_empty);
        self.records == 0 || (at_end && self.assigned)
    }

    fn gone(&mut self, partitions: &[TopicPartition]) {
        if let Some(ends) = &mut self.ends {
            partitions.iter().for_each(|partition| {
                ends.remove(partition);
            });
        }
    }

    /// Notes that a partition is read up to there; says whether it is done with.
    fn reached(&mut self, partition: &TopicPartition, next: Offset) -> bool {
        let Some(ends) = &mut self.ends else {
            return false;
        };
        if ends.get(partition).is_some_and(|end| next >= *end) {
            ends.remove(partition);
        }
        !ends.contains_key(partition)
    }
}

pub(crate) async fn run(
    client: &Client,
    args: &ConsumeArgs,
    group: &str,
    format: &Format,
) -> Outcome {
    if !args.partition.is_empty() {
        let what = format!("cannot read as a member of group {group}");
        let why = "a group shares all partitions of its topics among its members";
        return Err(Failure::usage(what, why).hint("leave out --partition, or --group"));
    }
    // One that does not exist a member would wait for.
    for topic in &args.topics {
        let known = client.topic(topic).await;
        known.map_err(|error| told(format!("cannot read {topic}"), &error))?;
    }
    let mut left = Left {
        records: args.max.unwrap_or(u64::MAX),
        ends: args.exit_at_end.then(BTreeMap::new),
        assigned: false,
        writing: None,
    };
    if left.is_over() {
        return Ok(());
    }
    let joining = client.group(GroupOptions {
        start: match args.from {
            Start::Beginning => StartPosition::Earliest,
            Start::End => StartPosition::Latest,
            Start::At(offset) => StartPosition::Offset(offset),
            Start::Time(time) => StartPosition::Timestamp(time),
        },
        client_id: "quorate consume".to_owned(),
        fetch: ConsumerOptions {
            skip_corrupt: args.skip_corrupt,
            ..ConsumerOptions::default()
        },
        ..GroupOptions::new(group, args.topics.clone())
    });
    let what = format!("cannot join group {group}");
    let mut member = joining.map_err(|error| Failure::usage(what, error))?;
    let mut stop = Stop::new()?;
    let read = tokio::select! {
        read = read(client, args, format, &mut member, &mut left) => read,
        () = stop.asked() => Ok(()),
    };
    // Stdout may take nothing any more. What the member has lost meanwhile it does not commit.
    if let Some(mut writing) = left.writing.take() {
        let written = timeout(NOTICE, &mut writing.done).await;
        let _lost = writing.take_back(&mut member, matches!(written, Ok(Ok(Ok(())))));
    }
    let notice = async {
        sleep(NOTICE).await;
        eprintln!("committing, and leaving group {group}; once more ends at once");
        std::future::pending().await
    };
    // Who does not want to wait for that says so once more.
    let closed = tokio::select! {
        closed = member.close() => closed,
        () = stop.asked_again() => {
            let what = format!("what was read last may not be committed in group {group}");
            return Err(Failure::new(what, "it was ended before the group had answered"));
        }
        () = notice => Ok(()),
    };
    let what = format!("what was read last may not be committed in group {group}");
    read.and(closed.map_err(|error| told(what, &error)))
}

/// Reads until all is read. May be dropped while it waits: what is being written is in `left`.
async fn read(
    client: &Client,
    args: &ConsumeArgs,
    format: &Format,
    member: &mut GroupConsumer,
    left: &mut Left,
) -> Outcome {
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !left.is_over() {
        let waits = left.ends.is_some() && !left.assigned && member.is_member();
        let event = tokio::select! {
            event = member.poll() => event,
            _ = ask.tick(), if waits => {
                if has_none(client, &args.group, &member.member_id()).await {
                    eprintln!("no partition falls to this member: the others read them all");
                    return Ok(());
                }
                continue;
            }
        };
        match event {
            Ok(GroupEvent::Records(read)) => write(format, member, &read, left).await?,
            Ok(GroupEvent::Assigned(assigned)) => note_ends(client, member, left, assigned).await?,
            Ok(GroupEvent::Revoked(revoked)) => left.gone(&revoked),
            Ok(GroupEvent::Lost(lost)) => {
                eprintln!("the group took this member for gone; it joins anew");
                left.gone(&lost);
            }
            Ok(_) => {}
            Err(error) => {
                let ((topic, partition), next) = skipped(error, args.skip_corrupt)?;
                let partition = TopicPartition::new(topic, partition);
                if left.reached(&partition, next) {
                    pause(member, &partition)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the group is at rest and has nothing for this member.
async fn has_none(client: &Client, group: &Option<String>, member: &str) -> bool {
    let Ok(described) = client
        .describe_group(group.as_deref().unwrap_or_default())
        .await
    else {
        return false;
    };
    let state = described.group.map(|group| group.state());
    let mine = described.members.iter().find(|of| of.member_id == member);
    let none = mine.is_some_and(|of| of.partitions.iter().all(|of| of.partitions.is_empty()));
    state == Some(v1::GroupState::Stable) && none
}

/// What is behind its end is kept, and not to be printed.
fn pause(member: &mut GroupConsumer, partition: &TopicPartition) -> Outcome {
    let paused = member.pause(partition);
    paused.map_err(|error| Failure::new("cannot read on", error))
}

async fn note_ends(
    client: &Client,
    member: &mut GroupConsumer,
    left: &mut Left,
    assigned: Vec<Assignment>,
) -> Outcome {
    let Some(ends) = &mut left.ends else {
        return Ok(());
    };
    for of in assigned {
        let latest = Position::Latest(Latest {});
        let end = offset(client, &of.topic, of.partition, latest).await?;
        let end = end.unwrap_or_default();
        if of.offset < end {
            ends.insert(of.topic_partition(), end);
        } else {
            pause(member, &of.topic_partition())?;
        }
    }
    left.assigned = true;
    Ok(())
}

async fn write(
    format: &Format,
    member: &mut GroupConsumer,
    read: &Consumed,
    left: &mut Left,
) -> Outcome {
    let partition = TopicPartition::new(read.topic.clone(), read.partition);
    let ends = left.ends.as_ref();
    let until = ends.and_then(|ends| ends.get(&partition).copied());
    let mut text = Vec::new();
    let printed = print(format, &mut text, read, until, &mut left.records);
    let printed = printed.map_err(Failure::stdout)?;
    left.writing = Writing::begin(partition.clone(), read, printed, text);
    let mut outcome = Ok(());
    if let Some(writing) = &mut left.writing {
        let done = (&mut writing.done).await.map_err(io::Error::other);
        let written = done.and_then(|written| written);
        let back = writing.take_back(member, written.is_ok());
        back.map_err(|error| Failure::new("cannot read on", error))?;
        outcome = written.map_err(Failure::stdout);
    }
    left.writing = None;
    if left.reached(&partition, read.next) {
        pause(member, &partition)?;
    }
    outcome
}
