//! The `quorate` command: nodes, a whole local cluster, and everything that people ask of one.
//! Also the one runner of local processes, [`LocalCluster`], for `quorate dev` and the tests.

mod cli;
mod cluster;
mod consume;
mod dev;
mod dev_control;
mod failure;
mod format;
mod local_cluster;
mod local_node;
mod node_plan;
mod output;
mod parse;
mod produce;
mod server;
mod topic;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use quorate_client::{Client, ClientError, ClientOptions};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, Global};
use crate::failure::{Failure, Outcome};

pub use crate::local_cluster::{LocalCluster, LocalClusterOptions};
pub use crate::local_node::{NodeLogs, NodeState};
pub use crate::node_plan::{NodePlan, controllers};

/// Runs the command line: 0 when all that was asked is done, 2 for wrong usage, 1 otherwise.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match &cli.command {
        Command::Server(_) => "info,openraft=warn,sled=warn",
        _ => "error",
    };
    let filter = EnvFilter::try_from_env("QUORATE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}", Failure::new("could not start", error));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(cli));
    // Whatever still blocks (a read of stdin) must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(told) => {
            eprintln!("{told}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Outcome {
    match cli.command {
        Command::Dev(args) => dev::run(args).await,
        Command::Server(args) => server::run(*args).await,
        Command::Topic(command) => topic::run(&cli.global, command).await,
        Command::Produce(args) => produce::run(&cli.global, args).await,
        Command::Consume(args) => consume::run(&cli.global, args).await,
        Command::Cluster(command) => cluster::run(&cli.global, command).await,
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
        ClientError::Connection(_) => failure.hint(
            "check --bootstrap (or QUORATE_BOOTSTRAP), or start a local cluster with `quorate dev`",
        ),
        _ => failure,
    }
}
