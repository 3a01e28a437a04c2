//! `quorate bench`: load from inside the binary. The loads are in the room `workload`; here are the
//! topic that they use, the clients, Ctrl-C, and the settings that are told with the result.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use quorate_client::{Client, ClientOptions, ConsumerOptions, ProducerOptions};
use quorate_types::ErrorCode;
use quorate_workload::{ConsumeOptions, LoadFailed, Monitor, Plan, ProduceOptions, Report};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::bench_args::{
    BenchCommand, ConsumeBench, EndToEndBench, LengthArgs, ProduceBench, ReadArgs, TopicArgs,
    WriteArgs,
};
use crate::bench_failover::Killed;
use crate::cli::{AcksArg, Global};
use crate::failure::{Failure, Outcome};
use crate::{bench_failover, bench_report, told};

/// A topic that was just made is known to every node after so long.
const KNOWN: Duration = Duration::from_secs(2);
/// Without --records a run is measured so long, with it at most so long.
const DURATION: Duration = Duration::from_secs(10);
const DURATION_OF_RECORDS: Duration = Duration::from_secs(600);
/// Records that are read where nobody says how many.
const RECORDS_TO_READ: u64 = 1_000_000;
/// A record that could not be delivered for so long has failed.
const DELIVERY: Duration = Duration::from_secs(30);
/// Records in flight: bytes of them, but at most so many; and where each is a request.
const IN_FLIGHT_BYTES: usize = 16 << 20;
const IN_FLIGHT: usize = 100_000;
const REQUESTS_IN_FLIGHT: usize = 1_000;
/// What a record costs in the producer's buffer beside its value.
const RECORD_OVERHEAD: usize = 32;
/// The buffer's bounds: beyond them the bound of records in flight is not reached.
const BUFFER: (usize, usize) = (32 << 20, 512 << 20);

/// A load that has run: what it measured, and with which settings.
pub(crate) type Measured = Result<(Report, Value), Failure>;

pub(crate) async fn run(global: &Global, command: BenchCommand) -> Outcome {
    let monitor = Arc::<Monitor>::default();
    let (name, topic) = match &command {
        BenchCommand::Produce(args) => ("produce", &args.topic),
        BenchCommand::Consume(args) => ("consume", &args.topic),
        BenchCommand::EndToEnd(args) => ("end-to-end", &args.topic),
        BenchCommand::Failover(args) => ("failover", &args.topic),
    };
    let client = clients(global, 1)?.remove(0);
    let killed = Killed::default();
    let used = Used::new(&client, topic).await?;
    let topic = used.name.clone();
    let load = async {
        match &command {
            BenchCommand::Produce(args) => produce(global, &topic, args, &monitor).await,
            BenchCommand::Consume(args) => consume(global, &topic, args, &monitor).await,
            BenchCommand::EndToEnd(args) => end_to_end(global, &topic, args, &monitor).await,
            BenchCommand::Failover(args) => {
                bench_failover::run(&client, &topic, args, &killed, &monitor).await
            }
        }
    };
    let measured = tokio::select! {
        measured = load => measured,
        failure = interrupted(&monitor) => Err(failure),
        () = bench_report::progress(Arc::clone(&monitor)) => Err(Failure::Said),
    };
    // Whatever ended the load, and wherever in it: no node is left dead.
    killed.start().await;
    let left = used.leave(&client).await;
    let (report, settings) = measured?;
    bench_report::print(global.output, name, settings, &report)?;
    left
}

/// The first Ctrl-C ends the load, which still reports; the second gives up.
async fn interrupted(monitor: &Monitor) -> Failure {
    let what = "the load was not finished";
    for last in [false, true] {
        if let Err(error) = tokio::signal::ctrl_c().await {
            return Failure::new(what, error);
        }
        monitor.stop.cancel();
        if !last {
            eprintln!("ending early; Ctrl-C again gives up");
        }
    }
    Failure::new(what, "interrupted twice")
}

/// The topic of a run.
struct Used {
    name: String,
    delete: bool,
}

impl Used {
    async fn new(client: &Client, args: &TopicArgs) -> Result<Self, Failure> {
        if let Some(name) = &args.topic {
            let name = name.clone();
            return Ok(Self {
                name,
                delete: false,
            });
        }
        let name = format!("bench-{:016x}", rand::random::<u64>());
        let config = args.config.iter().cloned().collect();
        let replicas = args.replication_factor.unwrap_or(0);
        client
            .create_topic(&name, args.partitions, replicas, config)
            .await
            .map_err(|error| told(format!("topic {name} was not created"), &error))?;
        Ok(Self {
            name,
            delete: !args.keep_topic,
        })
    }

    async fn leave(self, client: &Client) -> Outcome {
        if !self.delete {
            return Ok(());
        }
        let deleted = client.delete_topic(&self.name).await;
        deleted.map_err(|error| told(format!("topic {} was not deleted", self.name), &error))
    }
}

/// Clients with connections of their own.
fn clients(global: &Global, count: u16) -> Result<Vec<Client>, Failure> {
    let one = || Client::new(global.bootstrap.clone(), ClientOptions::default());
    let clients: Result<Vec<Client>, _> = (0..count).map(|_| one()).collect();
    clients.map_err(|error| Failure::new("cannot reach a cluster", error))
}

/// Why a load was not run, for people.
pub(crate) fn not_run(error: LoadFailed) -> Failure {
    match &error {
        LoadFailed::Client { what, source } => told(*what, source),
        _ => Failure::new("the load could not be run", error),
    }
}

/// A flag's value as it is typed.
fn typed(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn plan(length: &LengthArgs, rate: Option<f64>) -> Plan {
    let default = match length.records {
        Some(_) => DURATION_OF_RECORDS,
        None => DURATION,
    };
    Plan {
        warm_up: length.warm_up,
        duration: length.duration.unwrap_or(default),
        records: length.records,
        rate,
    }
}

fn options(
    topic: &str,
    plan: Plan,
    write: &WriteArgs,
    one_per_request: bool,
    settings: &mut Value,
) -> ProduceOptions {
    let record_bytes = write.record_size as usize;
    let each = record_bytes + RECORD_OVERHEAD;
    let default = if one_per_request {
        REQUESTS_IN_FLIGHT
    } else {
        (IN_FLIGHT_BYTES / each).clamp(1, IN_FLIGHT)
    };
    let max_in_flight = write.max_in_flight.map_or(default, |most| most as usize);
    let add = [
        ("record_size", json!(write.record_size)),
        ("producers", json!(write.producers)),
        ("acks", json!(typed(&write.acks))),
        ("compression", json!(typed(&write.compression))),
        ("max_in_flight", json!(max_in_flight)),
        ("one_per_request", json!(one_per_request)),
        ("rate", json!(plan.rate)),
        ("loop", json!(plan.rate.map_or("closed", |_| "open"))),
        ("records", json!(plan.records)),
        ("duration_ms", json!(in_ms(plan.duration))),
        ("warm_up_ms", json!(in_ms(plan.warm_up))),
    ];
    for (name, value) in add {
        settings[name] = value;
    }
    if !one_per_request {
        settings["batch_size"] = json!(write.batch_size);
        settings["linger_ms"] = json!(in_ms(write.linger));
    }
    ProduceOptions {
        topic: topic.to_owned(),
        plan,
        record_bytes,
        max_in_flight,
        producer: ProducerOptions {
            acks: write.acks.into(),
            linger: write.linger,
            batch_bytes: write.batch_size as usize,
            compression: write.compression.into(),
            buffer_bytes: (max_in_flight * each).clamp(BUFFER.0, BUFFER.1),
            delivery_timeout: DELIVERY,
            ..ProducerOptions::default()
        },
        one_per_request,
    }
}

pub(crate) fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the topic is like. A node that is behind may not know it yet.
pub(crate) async fn described(client: &Client, topic: &str) -> Result<Value, Failure> {
    let deadline = Instant::now() + KNOWN;
    let mut again = interval(Duration::from_millis(20));
    let found = loop {
        again.tick().await;
        match client.describe_topic(topic).await {
            Ok(found) => break found,
            Err(error)
                if error.code() == Some(ErrorCode::UnknownTopicOrPartition)
                    && Instant::now() < deadline => {}
            Err(error) => return Err(told(format!("cannot describe topic {topic}"), &error)),
        }
    };
    let replicas = found.partitions.first().map_or(0, |p| p.replicas.len());
    Ok(json!({
        "topic": topic,
        "partitions": found.partitions.len(),
        "replication_factor": replicas,
        "config": found.config,
    }))
}

async fn produce(
    global: &Global,
    topic: &str,
    args: &ProduceBench,
    monitor: &Arc<Monitor>,
) -> Measured {
    let clients = clients(global, args.write.producers)?;
    let mut settings = described(&clients[0], topic).await?;
    let plan = plan(&args.length, args.rate);
    let one = args.one_per_request;
    let options = options(topic, plan, &args.write, one, &mut settings);
    let report = quorate_workload::produce(&clients, &options, monitor).await;
    Ok((report.map_err(not_run)?, settings))
}

fn fetching(read: &ReadArgs) -> ConsumerOptions {
    ConsumerOptions {
        fetch_bytes: read.fetch_size,
        ..ConsumerOptions::default()
    }
}

async fn consume(
    global: &Global,
    topic: &str,
    args: &ConsumeBench,
    monitor: &Arc<Monitor>,
) -> Measured {
    let clients = clients(global, args.read.consumers)?;
    let mut settings = described(&clients[0], topic).await?;
    if args.topic.topic.is_none() {
        settings["record_size"] = json!(args.record_size);
        settings["compression"] = json!(typed(&args.compression));
        fill(&clients[0], topic, args, monitor).await?;
    }
    let add = [
        ("consumers", json!(args.read.consumers)),
        ("fetch_size", json!(args.read.fetch_size)),
        ("records", json!(args.records)),
        ("duration_ms", json!(in_ms(args.duration))),
        ("warm_up_ms", json!(in_ms(args.warm_up))),
    ];
    for (name, value) in add {
        settings[name] = value;
    }
    let options = ConsumeOptions {
        topic: topic.to_owned(),
        plan: Plan {
            warm_up: args.warm_up,
            duration: args.duration,
            records: args.records,
            rate: None,
        },
        consumer: fetching(&args.read),
    };
    let report = quorate_workload::consume(&clients, &options, monitor).await;
    Ok((report.map_err(not_run)?, settings))
}

/// Writes what is to be read, over as many batches as a producer makes of it; --duration is of the
/// reading.
async fn fill(
    client: &Client,
    topic: &str,
    args: &ConsumeBench,
    monitor: &Arc<Monitor>,
) -> Outcome {
    let write = WriteArgs {
        record_size: args.record_size,
        producers: 1,
        acks: AcksArg::All,
        compression: args.compression,
        batch_size: 256 << 10,
        linger: Duration::from_millis(5),
        max_in_flight: None,
    };
    let wanted = args.records.unwrap_or(RECORDS_TO_READ);
    let plan = Plan {
        warm_up: Duration::ZERO,
        duration: DURATION_OF_RECORDS,
        records: Some(wanted),
        rate: None,
    };
    let options = options(topic, plan, &write, false, &mut json!({}));
    let clients = [client.clone()];
    let filled = quorate_workload::produce(&clients, &options, monitor).await;
    filled_with(wanted, &filled.map_err(not_run)?)
}

/// Less than was wanted is not worth a reading: it would measure something else.
fn filled_with(wanted: u64, filled: &Report) -> Outcome {
    let what = "the topic could not be filled";
    match &filled.first_error {
        Some(error) => Err(Failure::new(what, error)),
        None if filled.records < wanted => {
            let why = format!("{} of {wanted} records were written", filled.records);
            Err(Failure::new(what, why))
        }
        None => Ok(()),
    }
}

async fn end_to_end(
    global: &Global,
    topic: &str,
    args: &EndToEndBench,
    monitor: &Arc<Monitor>,
) -> Measured {
    let producers = clients(global, args.write.producers)?;
    let consumers = clients(global, args.read.consumers)?;
    let mut settings = described(&producers[0], topic).await?;
    let plan = plan(&args.length, Some(args.rate));
    let options = options(topic, plan, &args.write, false, &mut settings);
    settings["consumers"] = json!(args.read.consumers);
    settings["fetch_size"] = json!(args.read.fetch_size);
    let fetching = fetching(&args.read);
    let report =
        quorate_workload::end_to_end(&producers, &consumers, &options, fetching, monitor).await;
    Ok((report.map_err(not_run)?, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_less_than_is_to_be_read_is_not_filled() {
        let report = |records, error: Option<&str>| Report {
            records,
            first_error: error.map(str::to_owned),
            ..Report::default()
        };
        assert!(filled_with(10, &report(10, None)).is_ok());
        let short = filled_with(10, &report(9, None)).unwrap_err();
        assert!(short.to_string().contains("9 of 10"), "{short}");
        assert!(filled_with(10, &report(10, Some("refused"))).is_err());
    }
}
