//! The `quorate` command: nodes, a whole local cluster, and everything that people ask of one.
//! Also the one runner of local processes, [`LocalCluster`], for `quorate dev` and the tests.

mod bench;
mod bench_args;
mod bench_failover;
mod bench_report;
mod cli;
mod cli_read;
mod cluster;
mod cluster_events;
mod consume;
mod consume_group;
mod dev;
mod dev_control;
mod dev_ready;
mod failure;
mod format;
mod group;
mod group_args;
mod group_reset;
mod healthcheck;
mod local_cluster;
mod local_node;
mod log_args;
mod log_dump;
mod log_metadata;
mod log_tool;
mod log_verify;
mod logging;
mod node_plan;
mod output;
mod parse;
mod partition;
mod partition_why;
mod produce;
mod server;
mod server_args;
mod topic;

use std::process::ExitCode;

use clap_complete::Shell;
use quorate_client::{Client, ClientError, ClientOptions};
use quorate_types::ErrorCode;

use crate::cli::{Cli, Command, Global};
use crate::failure::{Failure, Outcome};
use crate::logging::Logging;

pub use crate::local_cluster::{LocalCluster, LocalClusterOptions};
pub use crate::local_node::{NodeLogs, NodeState};
pub use crate::node_plan::{NodePlan, controllers};

/// Runs the command line: 0 when all that was asked is done, 2 for wrong usage, 1 otherwise.
pub fn main() -> ExitCode {
    match begin(cli_read::read()) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(told) => {
            eprintln!("{told}");
            ExitCode::from(told.exit_code())
        }
    }
}

/// Reads a node's settings and begins to log before the rest of the process.
fn begin(cli: Cli) -> Outcome {
    let settings = match &cli.command {
        Command::Completions { shell } => return complete(*shell),
        Command::Server(args) => match server::prepare(&cli.global, args)? {
            Some(settings) => Some(settings),
            None => return Ok(()),
        },
        _ => None,
    };
    let (levels, json) = match &settings {
        Some(settings) => (settings.log_level.as_str(), settings.log_json),
        None => ("error", false),
    };
    let could_not = |why: &dyn std::fmt::Display| Failure::new("could not start", why);
    let logging = Logging::start(levels, json)
        .map_err(|why| Failure::usage("log-level cannot be used", why))?;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return Err(could_not(&error)),
    };
    let outcome = match (cli.command, settings) {
        (Command::Server(args), Some(settings)) => {
            runtime.block_on(server::run(settings, args.exit_with_parent, logging))
        }
        (command, _) => runtime.block_on(run(cli.global, command)),
    };
    // Whatever still blocks (a read of stdin) must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Prints a shell's completions.
fn complete(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    let mut command = cli_read::command();
    clap_complete::generate(shell, &mut command, "quorate", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

async fn run(global: Global, command: Command) -> Outcome {
    match command {
        Command::Dev(args) => dev::run(&global, args).await,
        Command::Topic(command) => topic::run(&global, command).await,
        Command::Partition(command) => partition::run(&global, command).await,
        Command::Produce(args) => produce::run(&global, args).await,
        Command::Consume(args) => consume::run(&global, args).await,
        Command::Group(command) => group::run(&global, command).await,
        Command::Cluster(command) => cluster::run(&global, command).await,
        Command::Server(_) | Command::Completions { .. } => Ok(()),
        Command::Healthcheck(args) => healthcheck::run(&global, args).await,
        Command::Bench(command) => bench::run(&global, *command).await,
        Command::Log(command) => log_tool::run(&global, command),
    }
}

/// A client of the cluster that was named.
fn client(global: &Global) -> Result<Client, Failure> {
    Client::new(global.bootstrap.clone(), ClientOptions::default())
        .map_err(|error| Failure::new("cannot reach a cluster", error))
}

/// Tells a client's error, with what may help.
fn told(what: impl Into<String>, error: &ClientError) -> Failure {
    let failure = Failure::new(what, error);
    match error {
        ClientError::Refused(info) if info.code == ErrorCode::UnknownTopicOrPartition => failure
            .hint(
                "`quorate topic list` shows the topics there are, `quorate topic create` makes one",
            ),
        ClientError::Refused(info) if info.code == ErrorCode::GroupIdNotFound => {
            failure.hint("`quorate group list` shows the groups there are")
        }
        ClientError::Refused(info) if info.code == ErrorCode::NonEmptyGroup => {
            failure.hint("stop its members first; `quorate group describe` shows them")
        }
        ClientError::Connection(_) | ClientError::Unreachable(_) => failure.hint(
            "check --bootstrap (or QUORATE_BOOTSTRAP), or start a local cluster with `quorate dev`",
        ),
        _ => failure,
    }
}
