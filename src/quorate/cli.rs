//! What can be typed: the commands, their flags, their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use quorate_types::{Acks, Endpoint, NodeId};

use crate::bench_args::BenchCommand;
use crate::group_args::GroupCommand;
use crate::log_args::LogCommand;
use crate::parse::{Start, config_pair, delivery_timeout, header_pair, no_topic_flag, start};
use crate::server_args::ServerArgs;

/// A replicated log in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Example: a whole cluster on this machine, and a record through it\n  \
    quorate dev\n  \
    echo hello | quorate produce demo\n  \
    quorate consume demo --from beginning --exit-at-end\n\n\
    Exits with 0 when all that was asked is done, with 2 for wrong usage, with 1 otherwise."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub global: Global,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Nodes to ask first, host:port,…; the others are learned from them
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "QUORATE_BOOTSTRAP",
        value_delimiter = ',',
        default_value = "127.0.0.1:7070",
        value_name = "HOST:PORT,…"
    )]
    pub bootstrap: Vec<Endpoint>,

    /// How results are printed
    #[arg(
        long,
        global = true,
        help_heading = "Output",
        value_enum,
        env = "QUORATE_OUTPUT",
        default_value_t = OutputFormat::Text
    )]
    pub output: OutputFormat,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables and sentences.
    Text,
    /// JSON with the protocol's field names.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine, or act on the one that runs
    Dev(DevArgs),
    /// Run one node
    #[command(after_help = "Example: the first of three nodes\n  \
        quorate server --node-id 1 --data-dir /var/lib/quorate \\\n    \
        --controllers 1@a:7071,2@b:7071,3@c:7071 \\\n    \
        --advertise a:7070 --internal-advertise a:7071\n\n\
        Every setting may stand in a TOML file under the flag's name, in the environment, or be given\n\
        as a flag; the last wins. Defaults of new topics stand in the file only, in quotes:\n\
        \"min.insync.replicas\", \"max.message.bytes\", \"segment.bytes\", \"segment.ms\",\n\
        \"message.timestamp.type\", \"compression.type\", \"durability\".")]
    Server(ServerArgs),
    /// Create, list, describe, alter and delete topics
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            quorate topic create orders --partitions 6\n  \
            quorate topic list\n  \
            quorate topic describe orders"
    )]
    Topic(TopicCommand),
    /// Look at partitions: who leads, who is in sync, and why
    #[command(
        subcommand,
        after_help = "Example:\n  quorate partition describe orders --why"
    )]
    Partition(PartitionCommand),
    /// Write records: one a line, from stdin or a file
    Produce(ProduceArgs),
    /// Read records
    Consume(ConsumeArgs),
    /// Look at consumer groups: who reads what, how far they are; move and delete them
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            quorate group describe billing\n  \
            quorate group reset-offsets billing --topic orders --to-earliest"
    )]
    Group(GroupCommand),
    /// Measure a cluster: throughput, latencies, gaps at a failover
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            quorate bench produce --duration 30s\n  \
            quorate bench failover --kill          with a running `quorate dev`"
    )]
    Bench(Box<BenchCommand>),
    /// Look at the cluster
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            quorate cluster status && echo all is well\n  \
            quorate cluster events --follow"
    )]
    Cluster(ClusterCommand),
    /// Print a script that completes commands and flags in a shell
    #[command(after_help = "Example, for bash in this session:\n  \
        source <(quorate completions bash)")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Ask one node whether it takes part in the cluster; exits with 1 when it does not
    Healthcheck(HealthcheckArgs),
    /// Look at the data of a node that is stopped
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            quorate log verify /var/lib/quorate\n  \
            quorate log dump /var/lib/quorate --partition orders-0 --records --max 10"
    )]
    Log(LogCommand),
}

/// `quorate dev`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate dev                      three nodes, data in a temporary directory\n  \
    quorate dev --data-dir ./data    data kept\n  \
    quorate dev kill 2               kill -9 node 2 of the running cluster\n  \
    quorate dev start 2              and start it again")]
pub struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub nodes: u32,

    /// Where the data is kept; by default in a temporary directory, removed at the end.
    /// With an action: which running cluster is meant (by default the last started)
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Node i listens at this port + 10·(i−1) for clients, and at the next port for nodes
    #[arg(long, default_value_t = 7070, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub base_port: u16,

    /// An action on the running cluster.
    #[command(subcommand)]
    pub action: Option<DevAction>,
}

/// What can be done to a running `quorate dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum DevAction {
    /// Kill a node with SIGKILL: it gets no chance to say goodbye
    #[command(after_help = "Example:\n  quorate dev kill 2")]
    Kill {
        /// The node's number
        node: u32,
    },
    /// Start a node that is down
    #[command(after_help = "Example:\n  quorate dev start 2")]
    Start {
        /// The node's number
        node: u32,
    },
    /// Freeze a node with SIGSTOP: its connections stay open, nothing answers
    #[command(after_help = "Example:\n  quorate dev pause 2")]
    Pause {
        /// The node's number
        node: u32,
    },
    /// Let a frozen node go on
    #[command(after_help = "Example:\n  quorate dev resume 2")]
    Resume {
        /// The node's number
        node: u32,
    },
    /// Stop the whole cluster cleanly
    #[command(after_help = "Example:\n  quorate dev stop --data-dir ./data")]
    Stop,
}

/// Kafka's tools take the topic's name as a flag; whoever gives it so is told.
#[derive(Debug, Args)]
pub struct NoTopicFlag {
    /// Never has a value.
    #[arg(long, hide = true, value_parser = no_topic_flag)]
    pub topic: Option<String>,
}

/// `quorate topic`.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic
    #[command(after_help = "Example:\n  \
        quorate topic create orders --partitions 6 --config min.insync.replicas=2")]
    Create {
        /// The topic's name: a-z, A-Z, 0-9, '.', '_', '-'
        name: String,
        #[command(flatten)]
        no_flag: NoTopicFlag,
        /// How many partitions
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// How many replicas of each; by default 3, or the number of brokers where it is smaller
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        replication_factor: Option<u32>,
        /// A topic setting by Kafka's name; may be repeated
        #[arg(long = "config", value_parser = config_pair, value_name = "KEY=VALUE")]
        config: Vec<(String, String)>,
    },
    /// List the topics
    #[command(after_help = "Example:\n  quorate topic list --output json")]
    List,
    /// Show a topic's partitions: leaders, replicas, who is in sync, how much is committed
    #[command(after_help = "Example:\n  quorate topic describe demo")]
    Describe {
        /// The topic's name
        name: String,
        #[command(flatten)]
        no_flag: NoTopicFlag,
    },
    /// Change settings of a topic while it is in use
    #[command(after_help = "Example:\n  \
        quorate topic alter orders --config min.insync.replicas=1 --unset segment.ms")]
    Alter {
        /// The topic's name
        name: String,
        #[command(flatten)]
        no_flag: NoTopicFlag,
        /// A setting by Kafka's name; may be repeated
        #[arg(long = "config", value_parser = config_pair, value_name = "KEY=VALUE")]
        config: Vec<(String, String)>,
        /// A setting that goes back to its default; may be repeated
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Delete a topic with all its records
    #[command(after_help = "Example:\n  quorate topic delete orders")]
    Delete {
        /// The topic's name
        name: String,
        #[command(flatten)]
        no_flag: NoTopicFlag,
    },
}

/// `quorate partition`.
#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// Show all that is known of a topic's partitions, and with --why what led there
    #[command(after_help = "Examples:\n  \
        quorate partition describe orders\n  \
        quorate partition describe orders --partition 3 --why")]
    Describe {
        /// The topic's name
        topic: String,
        /// Only this partition
        #[arg(long, value_name = "N")]
        partition: Option<u32>,
        /// Tell what led to the present state, oldest first, and what would change it
        #[arg(long)]
        why: bool,
    },
}

/// When a produce counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AcksArg {
    /// When every in-sync replica has it.
    // Kafka's number for it, which its users type.
    #[value(alias = "-1")]
    All,
    /// When the leader has appended it.
    #[value(name = "1")]
    One,
    /// Once it is sent.
    #[value(name = "0")]
    Zero,
}

impl From<AcksArg> for Acks {
    fn from(arg: AcksArg) -> Self {
        match arg {
            AcksArg::All => Self::All,
            AcksArg::One => Self::Leader,
            AcksArg::Zero => Self::None,
        }
    }
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum CompressionArg {
    None,
    Lz4,
    Zstd,
    Snappy,
    Gzip,
}

/// `quorate produce`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    echo hello | quorate produce demo\n  \
    quorate produce orders --file orders.csv --key-separator , --compression lz4")]
pub struct ProduceArgs {
    /// The topic
    pub topic: String,

    /// Read lines from this file instead of stdin
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// What stands between a line's key and its value; a line without it stops the command
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), value_name = "TEXT")]
    pub key_separator: Option<String>,

    /// Write to this partition; by default by the key's hash, without a key by turns
    #[arg(long)]
    pub partition: Option<u32>,

    /// When a record counts as written
    #[arg(long, value_enum, default_value_t = AcksArg::All, allow_negative_numbers = true)]
    pub acks: AcksArg,

    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,

    /// A header for every record; may be repeated
    #[arg(long = "header", value_parser = header_pair, value_name = "KEY=VALUE")]
    pub headers: Vec<(String, String)>,

    /// Give a record up that could not be written for so long (1s to 24h)
    #[arg(long, value_parser = delivery_timeout, default_value = "120s", value_name = "TIME")]
    pub timeout: Duration,
}

/// `quorate consume`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate consume demo --from beginning --exit-at-end\n  \
    quorate consume demo --from 2026-01-31T12:00:00Z --format '{partition}/{offset} {key}: {value}'\n  \
    quorate consume demo --group readers\n\n\
    A template may use {topic} {partition} {offset} {timestamp} (RFC 3339) {timestamp_ms} {key}\n\
    {value} {headers}, and \\t \\n \\\\ {{ }}; a new line follows each record.\n\
    `json` prints one object a line, `raw` the bytes of the values and nothing else.")]
pub struct ConsumeArgs {
    /// The topics
    #[arg(required = true)]
    pub topics: Vec<String>,

    /// Where to begin: beginning, end, an offset, or a time as 2026-01-31T12:00:00Z, 2026-01-31 (in
    /// UTC) or @1795614975844 (ms)
    #[arg(long, value_parser = start, default_value = "end")]
    pub from: Start,

    /// Read this partition only; may be repeated
    #[arg(long)]
    pub partition: Vec<u32>,

    /// Stop after so many records
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,

    /// Stop at what was the end when the command began
    #[arg(long)]
    pub exit_at_end: bool,

    /// Tell of records that cannot be decoded, on stderr, and go on behind them, rather than stop
    #[arg(long)]
    pub skip_corrupt: bool,

    /// Read as a member of this group: share the partitions with its other members, go on where the
    /// group left off, and commit what was printed. --from is for partitions of which nothing is
    /// committed; --exit-at-end stops at what was the end when a partition fell to this member
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// A template, json or raw [default: {value}, with --output json: json]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `quorate cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Health at a glance; exits with 1 when something is offline
    #[command(after_help = "Example:\n  quorate cluster status")]
    Status,
    /// The brokers: state, addresses, how much each leads and holds
    #[command(after_help = "Example:\n  quorate cluster brokers --output json")]
    Brokers,
    /// The metadata quorum: leader, voters, observers, how far each is
    #[command(after_help = "Example:\n  quorate cluster quorum")]
    Quorum,
    /// Elections, ISR changes, fencings, as the asked node remembers them
    #[command(after_help = "Example: watch a failover\n  quorate cluster events --follow")]
    Events {
        /// Go on with what happens from now on
        #[arg(long)]
        follow: bool,
    },
    /// Raise the feature level, once every broker runs a version that speaks it; it never falls
    #[command(
        after_help = "Example: the level in force, and the highest that all brokers speak\n  \
        quorate cluster status\n\n\
        Once it is raised, older versions cannot take part any more."
    )]
    SetFeature {
        /// The new level
        level: u32,
    },
    /// Tell what a node logs, or change it until its next start
    #[command(after_help = "Examples:\n  \
        quorate cluster log-level --node 2\n  \
        quorate cluster log-level --node 2 info,quorate_replication=debug\n  \
        quorate cluster log-level --node 2 default")]
    LogLevel {
        /// Which node; by default the first that answers, and only that one
        #[arg(long)]
        node: Option<NodeId>,
        /// The new levels: error, warn, info, debug or trace, also by part (openraft stays at
        /// error and sled at warn where they are not named), or default: those of the node's start
        level: Option<String>,
    },
}

/// `quorate healthcheck`.
#[derive(Debug, Args)]
#[command(
    after_help = "The first address of --bootstrap is asked. Example, in a compose file:\n  \
    healthcheck: { test: [\"CMD\", \"quorate\", \"healthcheck\"] }"
)]
pub struct HealthcheckArgs {
    /// Ask only whether the process serves, not whether it takes part: what a restart could mend
    #[arg(long)]
    pub live: bool,

    /// How long to wait for the answer, like 500ms [default: 3s]
    #[arg(long, value_parser = quorate_config::parse_duration)]
    pub timeout: Option<Duration>,
}
