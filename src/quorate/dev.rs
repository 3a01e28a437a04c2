//! `quorate dev`: a whole cluster on this machine, and what can be done to it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use quorate_client::{Client, ClientError, ClientOptions};
use quorate_types::{ErrorCode, NodeId, PartitionId};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, timeout};

use crate::cli::{DevAction, DevArgs, Global, OutputFormat};
use crate::dev_control;
use crate::failure::{Failure, Outcome};
use crate::local_cluster::{LocalCluster, LocalClusterOptions};
use crate::local_node::NodeLogs;
use crate::node_plan::NodePlan;
use crate::output;

/// The topic that is there from the start.
const TOPIC: &str = "demo";
const PARTITIONS: u32 = 6;
/// How long the cluster may take until it takes records.
const READY: Duration = Duration::from_secs(60);
/// How long one node may take to stop.
const STOP: Duration = Duration::from_secs(15);

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
    let mut cluster = LocalCluster::start(LocalClusterOptions {
        binary: std::env::current_exe().map_err(failed)?,
        nodes,
        directory: directory.clone(),
        server_arguments: Vec::new(),
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
    let control = dev_control::open(&directory).map_err(failed)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let addresses = cluster.addresses();
    let replicas = args.nodes.min(3);
    let mut starting = tokio::spawn(make_ready(addresses.clone(), replicas));
    let mut started = false;
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            ready = &mut starting, if !started => {
                started = true;
                ready.map_err(|error| Failure::new(what, error))??;
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                match global.output {
                    OutputFormat::Text => output::line(format!("ready: {}", list.join(",")))?,
                    OutputFormat::Json => output::json_line(&json!({ "ready": list }))?,
                }
            }
            accepted = control.accept() => {
                let (stream, _) = accepted.map_err(failed)?;
                if serve(&mut cluster, stream).await {
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
async fn serve(cluster: &mut LocalCluster, stream: UnixStream) -> bool {
    let Ok((line, stream)) = dev_control::receive(stream).await else {
        return false;
    };
    let (verb, node) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let node = node.parse::<NodeId>();
    let result = match (verb, node) {
        ("stop", _) => stop(cluster).await,
        ("kill", Ok(node)) => cluster.kill(node),
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

/// Waits until the topic is there and every partition takes a record.
async fn make_ready(addresses: Vec<quorate_types::Endpoint>, replicas: u32) -> Outcome {
    let what = "the cluster takes no records";
    let client = Client::new(addresses, ClientOptions::default())
        .map_err(|error| Failure::new(what, error))?;
    let ready = async {
        let mut again = interval(Duration::from_millis(20));
        let deadline = Instant::now() + READY;
        loop {
            again.tick().await;
            let made = client
                .create_topic(TOPIC, PARTITIONS, replicas, Default::default())
                .await;
            match made {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_not_yet) => {}
            }
        }
    };
    timeout(READY, ready)
        .await
        .map_err(|_| Failure::new(what, "no answer in time"))?
        .map_err(|error| Failure::new(what, error))?;
    probe(&client)
        .await
        .map_err(|error| Failure::new(what, error))
}

/// Every partition's leader answers for its high watermark: it leads and its epoch has begun.
async fn probe(client: &Client) -> Result<(), ClientError> {
    use quorate_proto::v1::list_offsets_request::{Latest, Position};
    for partition in (0..PARTITIONS).map(PartitionId::new) {
        client
            .list_offset(TOPIC, partition, Position::Latest(Latest {}))
            .await?;
    }
    Ok(())
}
