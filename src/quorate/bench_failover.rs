//! `quorate bench failover`: the load with the nodes of a running `quorate dev` in its hands.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
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

/// The node that was killed and not started again, with its cluster's directory: it outlives a load
/// that is given up.
#[derive(Clone, Default)]
pub(crate) struct Killed(Arc<Mutex<Option<(PathBuf, NodeId)>>>);

impl Killed {
    /// Starts it again, if there is one; tells where it cannot.
    pub(crate) async fn start(&self) {
        let Some((directory, node)) = self.0.lock().take() else {
            return;
        };
        if let Err(error) = act(&directory, format!("start {node}")).await {
            eprintln!("node {node} was killed and not started again: {error}");
        }
    }
}

/// The nodes of a `quorate dev`.
struct DevNodes {
    directory: PathBuf,
    killed: Killed,
}

async fn act(directory: &Path, action: String) -> io::Result<()> {
    match dev_control::send(Some(directory.to_owned()), &action).await? {
        answer if answer.is_empty() => Ok(()),
        why => Err(io::Error::other(why)),
    }
}

impl Nodes for DevNodes {
    async fn kill(&mut self, node: NodeId) -> io::Result<()> {
        // Noted before: who gives up while this waits for its answer has a dead node all the same.
        *self.killed.0.lock() = Some((self.directory.clone(), node));
        act(&self.directory, format!("kill {node}")).await
    }

    async fn start(&mut self, node: NodeId) -> io::Result<()> {
        act(&self.directory, format!("start {node}")).await?;
        self.killed.0.lock().take();
        Ok(())
    }
}

pub(crate) async fn run(
    client: &Client,
    topic: &str,
    args: &FailoverBench,
    killed: &Killed,
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
        let mut nodes = DevNodes {
            directory: directory(client, args.data_dir.clone()).await?,
            killed: killed.clone(),
        };
        failover(client, &options, plan, &mut nodes, monitor).await
    } else {
        watch_failovers(client, &options, monitor).await
    };
    Ok((report.map_err(not_run)?, settings))
}

/// The directory of the running `quorate dev`, if it is the cluster that the load goes to: no other is killed.
async fn directory(client: &Client, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let what = "no node can be killed";
    let directory = dev_control::directory(named).map_err(|error| {
        Failure::new(what, error).hint("start one with `quorate dev`, or name its --data-dir")
    })?;
    let cluster = client.describe_cluster().await;
    let cluster = cluster.map_err(|error| told(what, &error))?;
    for broker in &cluster.brokers {
        if dev_control::cluster_id(&directory, broker.node_id).as_ref() != Some(&cluster.cluster_id)
        {
            let why = format!(
                "the `quorate dev` in {} is not the cluster at --bootstrap",
                directory.display()
            );
            let hint = "name the addresses of its `ready` line as --bootstrap, or its --data-dir";
            return Err(Failure::new(what, why).hint(hint));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_whose_load_is_given_up_before_it_is_started_again_is_started() {
        let directory = tempfile::tempdir().unwrap();
        let listener = dev_control::listen(directory.path()).unwrap();
        let killed = Killed::default();
        let mut nodes = DevNodes {
            directory: directory.path().to_owned(),
            killed: killed.clone(),
        };
        let dev = async {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let (action, stream) = dev_control::receive(stream).await.unwrap();
                dev_control::answer(stream, "").await.unwrap();
                asked.push(action);
            }
            asked
        };
        let load = async {
            nodes.kill(NodeId::new(2)).await.unwrap();
            drop(nodes);
            killed.start().await;
            // Once is enough.
            killed.start().await;
        };
        let (asked, ()) = tokio::join!(dev, load);
        assert_eq!(asked, ["kill 2", "start 2"]);
    }
}
