//! `quorate dev`: a whole cluster on this machine, and what can be done to it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use quorate_types::NodeId;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use crate::cli::{DevAction, DevArgs, Global, OutputFormat};
use crate::dev_control;
use crate::dev_ready::{Starting, make_ready};
use crate::failure::{Failure, Outcome};
use crate::local_cluster::{LocalCluster, LocalClusterOptions};
use crate::local_node::NodeLogs;
use crate::node_plan::NodePlan;
use crate::output;

/// How long the nodes may take to stop, all at the same time.
const STOP: Duration = Duration::from_secs(15);
/// How often is looked whether a node has ended before all are ready.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn run(global: &Global, args: DevArgs) -> Outcome {
    match args.action {
        Some(action) => act(global, args.data_dir, action).await,
        None => cluster(global, args).await,
    }
}

async fn act(global: &Global, directory: Option<PathBuf>, action: DevAction) -> Outcome {
    let (text, done) = match action {
        DevAction::Kill { node } => (format!("kill {node}"), format!("killed node {node}")),
        DevAction::Start { node } => (format!("start {node}"), format!("started node {node}")),
        DevAction::Pause { node } => (format!("pause {node}"), format!("froze node {node}")),
        DevAction::Resume { node } => (format!("resume {node}"), format!("node {node} goes on")),
        DevAction::Stop => ("stop".to_owned(), "stopped".to_owned()),
    };
    let what = format!("`dev {text}` was not done");
    match dev_control::send(directory, &text).await {
        Ok(answer) if answer.is_empty() => match global.output {
            OutputFormat::Text => output::line(done),
            OutputFormat::Json => output::json_line(&json!({ "action": text, "done": true })),
        },
        Ok(why) => Err(Failure::new(what, why)),
        Err(error) => {
            Err(Failure::new(what, error)
                .hint("start one with `quorate dev`, or name its --data-dir"))
        }
    }
}

async fn cluster(global: &Global, args: DevArgs) -> Outcome {
    let what = "the cluster could not start";
    let failed = |error: io::Error| Failure::new(what, error);
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("quorate-")
                .tempdir()
                .map_err(failed)?,
        ),
    };
    let directory = match (&args.data_dir, &temporary) {
        (Some(directory), _) => std::path::absolute(directory).map_err(failed)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err(Failure::new(what, "no data directory")),
    };
    let nodes = NodePlan::at_base_port(args.nodes, args.base_port).map_err(failed)?;
    let _mine = dev_control::lock(&directory).map_err(|error| {
        failed(error)
            .hint("end it with `quorate dev stop --data-dir …`, or name another --data-dir")
    })?;
    let mut starting = Starting::new(&nodes)?;
    let control = dev_control::open(&directory).map_err(failed)?;
    let mut cluster = LocalCluster::start(LocalClusterOptions {
        binary: std::env::current_exe().map_err(failed)?,
        nodes,
        directory: directory.clone(),
        // As many as the usual limit of open files allows.
        server_arguments: ["--max-connections", "2000"].map(str::to_owned).into(),
        logs: NodeLogs::Prefixed,
    })
    .map_err(failed)?;
    let kept = if temporary.is_some() {
        "removed at the end"
    } else {
        "kept"
    };
    match global.output {
        OutputFormat::Text => output::line(format!("data: {} ({kept})", directory.display()))?,
        OutputFormat::Json => output::json_line(&json!({ "data": directory, "data_is": kept }))?,
    }
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let addresses = cluster.addresses();
    let mut becoming_ready = tokio::spawn(make_ready(addresses.clone(), directory, args.nodes));
    let mut look = interval(LOOK);
    let mut started = false;
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            _ = look.tick(), if !started => starting.check(&mut cluster)?,
            ready = &mut becoming_ready, if !started => {
                ready.map_err(|error| Failure::new(what, error))??;
                // What answered may be another's, where a node of this one could not start.
                starting.check(&mut cluster)?;
                started = true;
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                match global.output {
                    OutputFormat::Text => output::line(format!("ready: {}", list.join(",")))?,
                    OutputFormat::Json => output::json_line(&json!({ "ready": list }))?,
                }
            }
            accepted = control.accept() => {
                let (stream, _) = accepted.map_err(failed)?;
                if serve(&mut cluster, &mut starting, stream).await {
                    return Ok(());
                }
            }
        }
    }
    stop(&mut cluster)
        .await
        .map_err(|error| Failure::new("the cluster did not stop", error))
}

async fn stop(cluster: &mut LocalCluster) -> io::Result<()> {
    for node in cluster.stop(STOP).await? {
        eprintln!("node {node} did not stop in time and was killed");
    }
    Ok(())
}

/// Carries out one action; says whether it was the last.
async fn serve(cluster: &mut LocalCluster, starting: &mut Starting, stream: UnixStream) -> bool {
    let Ok((line, stream)) = dev_control::receive(stream).await else {
        return false;
    };
    let (verb, node) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let node = node.parse::<NodeId>();
    let result = match (verb, node) {
        ("stop", _) => stop(cluster).await,
        ("kill", Ok(node)) => {
            starting.forget(node);
            cluster.kill(node)
        }
        ("start", Ok(node)) => cluster.start_node(node),
        ("pause", Ok(node)) => cluster.pause(node),
        ("resume", Ok(node)) => cluster.resume(node),
        _ => Err(io::Error::other(format!("{line:?} is no action"))),
    };
    let text = result
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    // Whoever asked may be gone; it is done all the same.
    let _gone = dev_control::answer(stream, &text).await;
    verb == "stop"
}
