//! `quorate bench`: its flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_config::parse_duration as duration;

use crate::cli::{AcksArg, CompressionArg};
use crate::parse::config_pair;

/// No run is longer.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// `quorate bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How fast records are taken, and how long each waits for its acknowledgement
    #[command(after_help = "Examples:\n  \
        quorate bench produce --record-size 1000 --producers 2\n  \
        quorate bench produce --rate 1000 --duration 30s      latency at a steady rate\n  \
        quorate bench produce --one-per-request               each record a request of its own")]
    Produce(ProduceBench),
    /// How fast records are read, from the beginning of a topic to its end
    #[command(after_help = "Examples:\n  \
        quorate bench consume --records 1000000    writes them first, to a topic of its own\n  \
        quorate bench consume --topic demo --consumers 3")]
    Consume(ConsumeBench),
    /// How long a record takes from the producer to a consumer
    #[command(after_help = "Example:\n  quorate bench end-to-end --rate 5000 --duration 20s")]
    EndToEnd(EndToEndBench),
    /// How long clients wait when leaders change, and whether anything acknowledged is lost
    #[command(after_help = "Examples:\n  \
        quorate bench failover --duration 30s      watches; kills nothing itself\n  \
        quorate bench failover --kill --kills 5    kills nodes of a running `quorate dev`")]
    Failover(FailoverBench),
}

/// Which topic.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topic")]
pub struct TopicArgs {
    /// An existing topic; by default one of its own is created, and deleted at the end
    #[arg(
        long,
        conflicts_with_all = ["partitions", "replication_factor", "config", "keep_topic"]
    )]
    pub topic: Option<String>,

    /// Leave the created topic there
    #[arg(long)]
    pub keep_topic: bool,

    /// Partitions of the created topic
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub partitions: u32,

    /// Replicas of each; by default 3, or the number of brokers where it is smaller
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub replication_factor: Option<u32>,

    /// A setting of the created topic by Kafka's name; may be repeated
    #[arg(long = "config", value_parser = config_pair, value_name = "KEY=VALUE")]
    pub config: Vec<(String, String)>,
}

/// How much.
#[derive(Debug, Args)]
#[command(next_help_heading = "Length")]
pub struct LengthArgs {
    /// Measure so many records, for at most 10 minutes or --duration
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub records: Option<u64>,

    /// Measure for so long [default: 10s without --records]
    #[arg(long, value_parser = run_duration)]
    pub duration: Option<Duration>,

    /// What is sent so long before is not measured
    #[arg(long, value_parser = warm_up, default_value = "1s")]
    pub warm_up: Duration,
}

/// How records are written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Writing")]
pub struct WriteArgs {
    /// Bytes of a record's value, random ones; there is no key
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub record_size: u32,

    /// Producers, each with connections of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub producers: u16,

    /// When a record counts as written
    #[arg(long, value_enum, default_value_t = AcksArg::All, allow_negative_numbers = true)]
    pub acks: AcksArg,

    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,

    /// A batch of so many bytes is sent at once
    #[arg(long, default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(1..=16 << 20), value_name = "BYTES")]
    pub batch_size: u32,

    /// How long a batch waits for more records
    #[arg(long, value_parser = run_duration, default_value = "5ms")]
    pub linger: Duration,

    /// Records without an acknowledgement, a producer; then it waits [default: 16 MiB of them, at
    /// most 100000; 1000 with --one-per-request]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    pub max_in_flight: Option<u32>,
}

/// `quorate bench produce`.
#[derive(Debug, Args)]
pub struct ProduceBench {
    #[command(flatten)]
    pub topic: TopicArgs,
    #[command(flatten)]
    pub length: LengthArgs,
    #[command(flatten)]
    pub write: WriteArgs,

    /// Records a second over all producers: each has its time and its latency runs from then, so
    /// that a stall is counted for every record that it delays. Without: as fast as they are
    /// acknowledged, latencies from the send
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,

    /// Each record is a request of its own, pipelined on one ProduceStream of one connection; it
    /// goes to partitions that this connection's node leads. Not idempotent; no batches
    #[arg(long, conflicts_with_all = ["batch_size", "linger"])]
    pub one_per_request: bool,
}

/// `quorate bench consume`.
#[derive(Debug, Args)]
pub struct ConsumeBench {
    #[command(flatten)]
    pub topic: TopicArgs,

    /// Read so many records at most; a topic of its own gets so many first [default: all;
    /// 1000000 in a topic of its own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub records: Option<u64>,

    /// Read for so long at most
    #[arg(long, value_parser = run_duration, default_value = "10m")]
    pub duration: Duration,

    /// What is read so long at first is not measured
    #[arg(long, value_parser = warm_up, default_value = "0s")]
    pub warm_up: Duration,

    /// Bytes of a record's value in a topic of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub record_size: u32,

    /// How batches in a topic of its own are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,

    #[command(flatten)]
    pub read: ReadArgs,
}

/// How records are read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reading")]
pub struct ReadArgs {
    /// Consumers, which share the partitions, each with connections of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub consumers: u16,

    /// Bytes of one fetch at most
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=64 << 20), value_name = "BYTES")]
    pub fetch_size: u32,
}

/// `quorate bench end-to-end`.
#[derive(Debug, Args)]
pub struct EndToEndBench {
    #[command(flatten)]
    pub topic: TopicArgs,
    #[command(flatten)]
    pub length: LengthArgs,
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub read: ReadArgs,

    /// Records a second over all producers; latencies run from the time each is meant to be sent
    #[arg(long, value_parser = rate, default_value = "1000")]
    pub rate: f64,
}

/// `quorate bench failover`.
#[derive(Debug, Args)]
pub struct FailoverBench {
    #[command(flatten)]
    pub topic: TopicArgs,

    /// Measure for so long at most [default: 30s, with --kill 1m for each kill]
    #[arg(long, value_parser = run_duration)]
    pub duration: Option<Duration>,

    /// Write so long before anything counts
    #[arg(long, value_parser = warm_up, default_value = "1s")]
    pub warm_up: Duration,

    /// Records a second over all partitions, with acks=all
    #[arg(long, value_parser = rate, default_value = "2000")]
    pub rate: f64,

    /// Kill nodes of a running `quorate dev` with SIGKILL by turns and start them again, each when
    /// all replicas are in sync
    #[arg(long)]
    pub kill: bool,

    /// How many kills
    #[arg(long, default_value_t = 3, requires = "kill", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub kills: u32,

    /// The node of the active controller has its turns too
    #[arg(long, requires = "kill")]
    pub controller: bool,

    /// Which running `quorate dev` is meant [default: the last started]
    #[arg(long, requires = "kill", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Reads a rate above 0.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e8).contains(&rate) => Ok(rate),
        _ => Err("must be records a second: a number from 0.001 to 100000000".to_owned()),
    }
}

/// Reads a duration above nothing of at most a day.
fn run_duration(text: &str) -> Result<Duration, String> {
    match warm_up(text)? {
        Duration::ZERO => Err("must be more than 0s".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads a duration of at most a day.
fn warm_up(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        long if long > LONGEST => Err("must be at most 24h".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_durations_have_bounds() {
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "fast", "1e9"] {
            assert!(rate(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(run_duration("24h"), Ok(LONGEST));
        assert!(run_duration("25h").is_err());
        assert!(run_duration("0s").is_err());
        assert_eq!(warm_up("0s"), Ok(Duration::ZERO));
    }
}
