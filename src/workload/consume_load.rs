//! The load of `bench consume`: reads what a topic holds, from its beginning to its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::{Assignment, Client, ClientError, ConsumerOptions};
use quorate_proto::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_types::{Offset, PartitionId};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::latencies::Latencies;
use crate::monitor::Monitor;
use crate::produce_load::{CpuMeter, partitions_of, processes};
use crate::report::{LoadFailed, Report};
use crate::schedule::Plan;

/// What is read.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// Which topic, which must exist.
    pub topic: String,
    /// Ends by time or by records, whatever comes first; its rate does not count. Records read in
    /// the warm-up are not measured.
    pub plan: Plan,
    /// How consumers work.
    pub consumer: ConsumerOptions,
}

/// A partition's records that were there at the beginning.
#[derive(Debug, Clone, Copy)]
struct Range {
    partition: PartitionId,
    start: Offset,
    end: Offset,
}

/// What one consumer has read.
#[derive(Default)]
struct Read {
    latencies: Latencies,
    records: u64,
    bytes: u64,
    warm_up: u64,
    failed: u64,
    first_error: Option<String>,
    last: Option<Instant>,
}

/// Reads with one consumer a client, each with its share of the partitions, and reports. Latencies
/// are those of fetches that brought records.
///
/// # Errors
/// [`LoadFailed`] where it could not begin, or a task died; what cannot be read is counted.
pub async fn consume(
    clients: &[Client],
    options: &ConsumeOptions,
    monitor: &Arc<Monitor>,
) -> Result<Report, LoadFailed> {
    let partitions = partitions_of(clients, &options.topic).await?;
    let mut shares: BTreeMap<usize, Vec<Range>> = BTreeMap::new();
    let mut left = 0;
    for number in 0..partitions {
        let index = number as usize % clients.len().max(1);
        let range = range(&clients[index], &options.topic, PartitionId::new(number)).await;
        let range = range.map_err(LoadFailed::client("the topic's offsets are not known"))?;
        left += range.end.get() - range.start.get();
        shares.entry(index).or_default().push(range);
    }
    // Taken by all consumers together.
    let left = options.plan.records.map_or(left, |most| left.min(most));
    let left = Arc::new(AtomicI64::new(i64::try_from(left).unwrap_or(i64::MAX)));
    let processes = processes(clients).await?;
    let begin = Instant::now();
    let measure_from = begin + options.plan.warm_up;
    let until = measure_from + options.plan.duration;
    let meter = CpuMeter::start(processes, measure_from);
    let mut readers = JoinSet::new();
    for (index, ranges) in shares {
        let reader = Reader {
            client: clients[index].clone(),
            options: options.clone(),
            ranges,
            measure_from,
            until,
            left: Arc::clone(&left),
            monitor: Arc::clone(monitor),
        };
        readers.spawn(reader.run());
    }
    let mut all = Read::default();
    while let Some(read) = readers.join_next().await {
        all.add(read?);
    }
    let (cpu_seconds, nodes_cpu_seconds) = meter.finish().await;
    let took = all.last.map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(measure_from)
    });
    let mut report = Report {
        records: all.records,
        warm_up_records: all.warm_up,
        failed: all.failed,
        first_error: all.first_error,
        latency: all.latencies.percentiles(),
        stopped_early: monitor.stop.is_cancelled(),
        cpu_seconds,
        nodes_cpu_seconds,
        ..Report::default()
    };
    report.set_rates(all.bytes, took);
    Ok(report)
}

async fn range(client: &Client, topic: &str, partition: PartitionId) -> Result<Range, ClientError> {
    let at = async |position| {
        let found = client.list_offset(topic, partition, position).await?;
        let wrong = |error| ClientError::Protocol(format!("{topic}-{partition}: {error}"));
        Offset::from_signed(found.unwrap_or(0)).map_err(wrong)
    };
    Ok(Range {
        partition,
        start: at(Position::Earliest(Earliest {})).await?,
        end: at(Position::Latest(Latest {})).await?,
    })
}

impl Read {
    fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies);
        self.records += other.records;
        self.bytes += other.bytes;
        self.warm_up += other.warm_up;
        self.failed += other.failed;
        self.first_error = self.first_error.take().or(other.first_error);
        self.last = self.last.max(other.last);
    }
}

struct Reader {
    client: Client,
    options: ConsumeOptions,
    ranges: Vec<Range>,
    measure_from: Instant,
    until: Instant,
    left: Arc<AtomicI64>,
    monitor: Arc<Monitor>,
}

impl Reader {
    async fn run(self) -> Read {
        let mut read = Read::default();
        let mut open: BTreeMap<PartitionId, Offset> = self
            .ranges
            .iter()
            .filter(|range| range.start < range.end)
            .map(|range| (range.partition, range.end))
            .collect();
        let assigned = self.ranges.iter().filter(|range| range.start < range.end);
        let assigned = assigned.map(|range| Assignment {
            topic: self.options.topic.clone(),
            partition: range.partition,
            offset: range.start,
        });
        let mut consumer = self
            .client
            .consumer(assigned.collect(), self.options.consumer);
        // A partition that failed stays open.
        while open.len() as u64 > read.failed && self.left.load(Ordering::Relaxed) > 0 {
            let polled = tokio::select! {
                polled = consumer.poll() => polled,
                () = self.monitor.stop.cancelled() => break,
                () = sleep_until(self.until.into()) => break,
            };
            let now = Instant::now();
            let consumed = match polled {
                None => break,
                Some(Ok(consumed)) => consumed,
                Some(Err(error)) => {
                    // It ends one partition; the others go on.
                    read.failed += 1;
                    self.monitor.add_failed(1);
                    read.first_error.get_or_insert_with(|| error.to_string());
                    continue;
                }
            };
            let Some(end) = open.get(&consumed.partition).copied() else {
                continue;
            };
            let within = consumed.records.iter().filter(|record| record.offset < end);
            let (mut records, mut bytes) = (0_u64, 0);
            for record in within {
                records += 1;
                let size = |part: &Option<_>| part.as_ref().map_or(0, bytes_of);
                bytes += size(&record.key) + size(&record.value);
            }
            if consumed.next >= end {
                open.remove(&consumed.partition);
            }
            if records == 0 {
                continue;
            }
            self.left.fetch_sub(records as i64, Ordering::Relaxed);
            self.monitor.add_done(records);
            if now >= self.measure_from {
                read.records += records;
                read.bytes += bytes;
                read.latencies.record(consumed.took);
                read.last = Some(now);
            } else {
                read.warm_up += records;
            }
        }
        read
    }
}

fn bytes_of<T: AsRef<[u8]>>(part: &T) -> u64 {
    part.as_ref().len() as u64
}
