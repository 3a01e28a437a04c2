//! The load of `bench end-to-end`: each record carries when it was meant to be sent, and a consumer
//! in the same process measures from then until it has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_client::{Assignment, Client, Consumer, ConsumerOptions};
use quorate_proto::v1::list_offsets_request::{Latest, Position};
use quorate_types::{Offset, PartitionId};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::drive::{Tally, drive};
use crate::monitor::Monitor;
use crate::payload::{Payload, Stamp};
use crate::produce_load::{
    CpuMeter, ProduceOptions, batch_sinks, begin, partitions_of, processes, report,
};
use crate::report::{LoadFailed, Report};

/// What was acknowledged is waited for so long at the consumers.
const ARRIVAL: Duration = Duration::from_secs(10);

/// What the consumers have seen.
#[derive(Default)]
struct Arrived {
    tally: Mutex<Tally>,
    records: AtomicU64,
    news: Notify,
}

/// Produces, and consumes it in the same process; latencies run from the time a record was meant to
/// be sent until it is consumed. Records go to all partitions by turns. `consumers` share the
/// partitions.
///
/// # Errors
/// [`LoadFailed`] where it could not begin, or a task died; what fails or never arrives is counted.
pub async fn end_to_end(
    producers: &[Client],
    consumers: &[Client],
    options: &ProduceOptions,
    fetching: ConsumerOptions,
    monitor: &Arc<Monitor>,
) -> Result<Report, LoadFailed> {
    let partitions = partitions_of(producers, &options.topic).await?;
    partitions_of(consumers, &options.topic).await?;
    let stamp = Stamp {
        run: rand::random(),
        base: Instant::now(),
    };
    let assigned = assignments(consumers, &options.topic, partitions).await?;
    let processes = processes(producers).await?;
    let arrived = Arc::<Arrived>::default();
    let ended = CancellationToken::new();
    let sinks = batch_sinks(producers, options, partitions);
    let sinks = sinks.into_iter().map(|sink| sink.spread()).collect();
    let payload = Payload::new(options.record_bytes, Some(stamp));
    let (begin, schedule) = begin(options.plan);
    let mut readers = JoinSet::new();
    for (client, assigned) in consumers.iter().zip(assigned) {
        let consumer = client.consumer(assigned, fetching);
        let reading = read(
            consumer,
            stamp,
            schedule.measure_from(),
            Arc::clone(&arrived),
        );
        let ended = ended.clone();
        readers.spawn(async move {
            ended.run_until_cancelled(reading).await;
        });
    }
    let meter = CpuMeter::start(processes, begin + options.plan.warm_up);
    let bound = options.max_in_flight;
    let (sent, pace) = drive(sinks, &schedule, &payload, bound, monitor).await?;
    // A record that failed may have been written all the same: more may arrive than is waited for.
    let acknowledged = sent.acknowledged + sent.warm_up;
    let all = async {
        while arrived.records.load(Ordering::SeqCst) < acknowledged {
            arrived.news.notified().await;
        }
    };
    let missing = match tokio::time::timeout(ARRIVAL, all).await {
        Ok(()) => 0,
        Err(_) => acknowledged.saturating_sub(arrived.records.load(Ordering::SeqCst)),
    };
    ended.cancel();
    while let Some(reader) = readers.join_next().await {
        reader?;
    }
    let mut tally = std::mem::take(&mut *arrived.tally.lock());
    let error = sent.first_error.unwrap_or_default();
    tally.fail(sent.failed, error);
    tally.fail(missing, "acknowledged and not consumed in time");
    let size = payload.size();
    Ok(report(tally, &pace, &schedule, size, meter, monitor).await)
}

/// Each consumer's partitions, from their present ends.
async fn assignments(
    consumers: &[Client],
    topic: &str,
    partitions: u32,
) -> Result<Vec<Vec<Assignment>>, LoadFailed> {
    let mut assigned = vec![Vec::new(); consumers.len()];
    for number in 0..partitions {
        let index = number as usize % consumers.len().max(1);
        let partition = PartitionId::new(number);
        let end = consumers[index]
            .list_offset(topic, partition, Position::Latest(Latest {}))
            .await
            .map_err(LoadFailed::client("the topic's ends are not known"))?;
        let offset = end.and_then(|end| Offset::from_signed(end).ok());
        assigned[index].push(Assignment {
            topic: topic.to_owned(),
            partition,
            offset: offset.unwrap_or_default(),
        });
    }
    Ok(assigned)
}

async fn read(mut consumer: Consumer, stamp: Stamp, measure_from: Instant, arrived: Arc<Arrived>) {
    while let Some(consumed) = consumer.poll().await {
        let now = Instant::now();
        let mut tally = arrived.tally.lock();
        let records = match consumed {
            Ok(consumed) => consumed.records,
            Err(error) => {
                tally.fail(1, error);
                continue;
            }
        };
        let values = records.iter().filter_map(|record| record.value.as_deref());
        let mut count = 0;
        for meant in values.filter_map(|value| stamp.read(value)) {
            count += 1;
            if meant >= measure_from {
                tally.acknowledged += 1;
                tally.latencies.record(now.saturating_duration_since(meant));
                tally.last = Some(now);
            } else {
                tally.warm_up += 1;
            }
        }
        drop(tally);
        arrived.records.fetch_add(count, Ordering::SeqCst);
        arrived.news.notify_one();
    }
}
