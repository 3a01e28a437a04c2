//! `quorate bench failover`: the load with the nodes of a running `quorate dev` in its hands.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Client;
use quorate_types::NodeId;
use quorate_workload::{FailoverOptions, KillPlan, Monitor, Nodes, failover, watch_failovers};
use serde_json::json;

use crate::bench::{Measured, described, in_ms, not_run};
use crate::bench_args::FailoverBench;
use crate::dev_control;
use crate::failure::Failure;
use crate::told;

/// How long is watched; and with kills, for each of them.
const WATCH: Duration = Duration::from_secs(30);
const A_KILL: Duration = Duration::from_secs(60);
/// The history of a run is kept in memory: so many records of it.
const RECORDS: f64 = 20e6;

/// The nodes of a `quorate dev`.
struct DevNodes(PathBuf);

impl DevNodes {
    async fn act(&self, action: String) -> io::Result<()> {
        match dev_control::send(Some(self.0.clone()), &action).await? {
            answer if answer.is_empty() => Ok(()),
            why => Err(io::Error::other(why)),
        }
    }
}

impl Nodes for DevNodes {
    async fn kill(&mut self, node: NodeId) -> io::Result<()> {
        self.act(format!("kill {node}")).await
    }

    async fn start(&mut self, node: NodeId) -> io::Result<()> {
        self.act(format!("start {node}")).await
    }
}

pub(crate) async fn run(
    client: &Client,
    topic: &str,
    args: &FailoverBench,
    monitor: &Arc<Monitor>,
) -> Measured {
    let default = if args.kill {
        A_KILL * args.kills
    } else {
        WATCH
    };
    let options = FailoverOptions {
        topic: topic.to_owned(),
        rate: args.rate,
        warm_up: args.warm_up,
        duration: args.duration.unwrap_or(default),
    };
    let seconds = (options.warm_up + options.duration).as_secs_f64();
    if options.rate * seconds > RECORDS {
        let why = "--rate times --duration is more than the history can hold, 20 million records";
        return Err(Failure::new("the load could not be run", why));
    }
    let mut settings = described(client, topic).await?;
    let add = [
        ("acks", json!("all")),
        ("rate", json!(options.rate)),
        ("loop", json!("open")),
        ("duration_ms", json!(in_ms(options.duration))),
        ("warm_up_ms", json!(in_ms(options.warm_up))),
        ("kills", json!(if args.kill { args.kills } else { 0 })),
        ("controller", json!(args.controller)),
    ];
    for (name, value) in add {
        settings[name] = value;
    }
    let report = if args.kill {
        let plan = KillPlan {
            kills: args.kills,
            controller: args.controller,
        };
        let mut nodes = nodes(client, args.data_dir.clone()).await?;
        failover(client, &options, plan, &mut nodes, monitor).await
    } else {
        watch_failovers(client, &options, monitor).await
    };
    Ok((report.map_err(not_run)?, settings))
}

/// The running `quorate dev`, if it is the cluster that the load goes to: no other is killed.
async fn nodes(client: &Client, directory: Option<PathBuf>) -> Result<DevNodes, Failure> {
    let what = "no node can be killed";
    let directory = dev_control::directory(directory).map_err(|error| {
        Failure::new(what, error).hint("start one with `quorate dev`, or name its --data-dir")
    })?;
    let cluster = client.describe_cluster().await;
    let cluster = cluster.map_err(|error| told(what, &error))?;
    for broker in &cluster.brokers {
        if cluster_id(&directory, broker.node_id).as_ref() != Some(&cluster.cluster_id) {
            let why = format!(
                "the `quorate dev` in {} is not the cluster at --bootstrap",
                directory.display()
            );
            let hint = "name the addresses of its `ready` line as --bootstrap, or its --data-dir";
            return Err(Failure::new(what, why).hint(hint));
        }
    }
    Ok(DevNodes(directory))
}

fn cluster_id(directory: &Path, node: u32) -> Option<String> {
    let path = directory.join(format!("node-{node}/meta.properties"));
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix("cluster.id=")?.trim().to_owned()))
}
