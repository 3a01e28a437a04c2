//! The load of `bench produce`: records to one topic, in batches or each as a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_client::{Client, ProducerOptions};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::batch_sink::BatchSink;
use crate::cpu::{CpuTime, Processes};
use crate::drive::{Pace, Tally, drive};
use crate::monitor::Monitor;
use crate::payload::Payload;
use crate::report::{LoadFailed, Report, millis};
use crate::request_sink::{RequestOptions, RequestSink};
use crate::schedule::{Plan, Schedule};

/// What is produced.
#[derive(Debug, Clone)]
pub struct ProduceOptions {
    /// To which topic, which must exist.
    pub topic: String,
    /// How long and how fast.
    pub plan: Plan,
    /// Bytes of a value; there are no keys.
    pub record_bytes: usize,
    /// Records without an acknowledgement, a producer; then it waits.
    pub max_in_flight: usize,
    /// How producers work; with `one_per_request` acks, compression and request time-out of it.
    pub producer: ProducerOptions,
    /// Each record is a request of its own, on one stream a producer.
    pub one_per_request: bool,
}

/// Produces with one producer a client, and reports.
///
/// # Errors
/// [`LoadFailed`] where it could not begin, or a task died; a record that fails is counted.
pub async fn produce(
    clients: &[Client],
    options: &ProduceOptions,
    monitor: &Arc<Monitor>,
) -> Result<Report, LoadFailed> {
    let partitions = partitions_of(clients, &options.topic).await?;
    let payload = Payload::new(options.record_bytes, None);
    let processes = processes(clients).await?;
    if !options.one_per_request {
        let sinks = batch_sinks(clients, options, partitions);
        let (begin, schedule) = begin(options.plan);
        let meter = CpuMeter::start(processes, begin + options.plan.warm_up);
        let bound = options.max_in_flight;
        let (tally, pace) = drive(sinks, &schedule, &payload, bound, monitor).await?;
        return Ok(report(tally, &pace, &schedule, payload.size(), meter, monitor).await);
    }
    let requests = RequestOptions {
        acks: options.producer.acks,
        compression: options.producer.compression,
        timeout: options.producer.request_timeout,
    };
    let mut sinks = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        let mut sink = RequestSink::new(client, requests, &options.topic, partitions, index);
        let opened = sink.open().await;
        opened.map_err(LoadFailed::client("a stream was not opened"))?;
        sinks.push(sink);
    }
    let (begin, schedule) = begin(options.plan);
    let meter = CpuMeter::start(processes, begin + options.plan.warm_up);
    let bound = options.max_in_flight;
    let (tally, pace) = drive(sinks, &schedule, &payload, bound, monitor).await?;
    Ok(report(tally, &pace, &schedule, payload.size(), meter, monitor).await)
}

pub(crate) fn begin(plan: Plan) -> (Instant, Arc<Schedule>) {
    let begin = Instant::now();
    (begin, Arc::new(Schedule::new(begin, plan)))
}

/// One producer a client, each beginning at another partition.
pub(crate) fn batch_sinks(
    clients: &[Client],
    options: &ProduceOptions,
    partitions: u32,
) -> Vec<BatchSink> {
    let producers = clients.iter().enumerate();
    producers
        .map(|(index, client)| {
            let bytes = options.record_bytes;
            BatchSink::new(
                client,
                options.producer,
                &options.topic,
                partitions,
                bytes,
                index,
            )
        })
        .collect()
}

/// The topic's partitions, and every client knows their leaders.
pub(crate) async fn partitions_of(clients: &[Client], topic: &str) -> Result<u32, LoadFailed> {
    let mut partitions = 0;
    for client in clients {
        let info = client.topic(topic).await;
        let info = info.map_err(LoadFailed::client("the topic is not known"))?;
        partitions = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
    }
    Ok(partitions)
}

/// The processes of the nodes, where they run here.
pub(crate) async fn processes(clients: &[Client]) -> Result<Processes, LoadFailed> {
    let Some(client) = clients.first() else {
        return Ok(Processes::default());
    };
    let metadata = client.refresh().await;
    let metadata = metadata.map_err(LoadFailed::client("the cluster does not answer"))?;
    let nodes: Vec<_> = metadata.brokers.values().cloned().collect();
    Ok(tokio::task::spawn_blocking(move || Processes::find(&nodes)).await?)
}

/// CPU time from the beginning of the measured part.
pub(crate) struct CpuMeter {
    processes: Processes,
    before: JoinHandle<CpuTime>,
}

impl CpuMeter {
    pub(crate) fn start(processes: Processes, from: Instant) -> Self {
        let measured = processes.clone();
        let before = tokio::spawn(async move {
            sleep_until(from.into()).await;
            measured.cpu()
        });
        Self { processes, before }
    }

    /// Seconds of this process and of the nodes; nothing where the measured part never began.
    pub(crate) async fn finish(self) -> (f64, Option<f64>) {
        if !self.before.is_finished() {
            self.before.abort();
        }
        match self.before.await {
            Ok(before) => self.processes.cpu().since(&before),
            Err(_) => (0.0, None),
        }
    }
}

/// Puts together what a driven load has measured.
pub(crate) async fn report(
    tally: Tally,
    pace: &Pace,
    schedule: &Schedule,
    record_bytes: usize,
    meter: CpuMeter,
    monitor: &Monitor,
) -> Report {
    let (cpu_seconds, nodes_cpu_seconds) = meter.finish().await;
    let took = tally.last.map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(schedule.measure_from())
    });
    let mut report = Report {
        records: tally.acknowledged,
        warm_up_records: tally.warm_up,
        failed: tally.failed,
        first_error: tally.first_error,
        latency: tally.latencies.percentiles(),
        behind_ms: schedule.is_open_loop().then(|| millis(pace.behind)),
        waited_for_room_ms: millis(pace.waited),
        stopped_early: monitor.stop.is_cancelled(),
        cpu_seconds,
        nodes_cpu_seconds,
        ..Report::default()
    };
    report.set_rates(tally.acknowledged * record_bytes as u64, took);
    report
}
