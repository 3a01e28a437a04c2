//! The start of `quorate dev`: that its own nodes can listen, that none of them ends at once, that
//! its own cluster takes records.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::{Client, ClientError, ClientOptions};
use quorate_types::{Endpoint, ErrorCode, NodeId, PartitionId};
use tokio::time::{Instant, interval, timeout};

use crate::dev_control;
use crate::failure::{Failure, Outcome};
use crate::local_cluster::LocalCluster;
use crate::local_node::NodeState;
use crate::node_plan::NodePlan;

/// The topic that is there from the start.
const TOPIC: &str = "demo";
const PARTITIONS: u32 = 6;
/// How long the cluster may take until it takes records.
const READY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);

const WHAT: &str = "the cluster could not start";

/// The nodes that were started for the first time and that nobody has killed since: as long as the
/// cluster is not ready, none of them may end.
pub(crate) struct Starting {
    plans: Vec<NodePlan>,
    nodes: BTreeSet<NodeId>,
}

fn in_use(at: &Endpoint) -> Failure {
    let why = format!("port {} is in use: another `quorate dev`?", at.port);
    Failure::new(WHAT, why).hint("stop that one, or take other ports with --base-port")
}

impl Starting {
    /// Before any of them is started.
    ///
    /// # Errors
    /// When a port is in use.
    pub(crate) fn new(plans: &[NodePlan]) -> Result<Self, Failure> {
        match plans.iter().find_map(NodePlan::taken) {
            Some(at) => Err(in_use(at)),
            None => Ok(Self {
                plans: plans.to_vec(),
                nodes: plans.iter().map(|plan| plan.node).collect(),
            }),
        }
    }

    /// A node is about to be killed because somebody wants it.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// # Errors
    /// When a node has ended by itself, with the reason where it is known.
    pub(crate) fn check(&self, cluster: &mut LocalCluster) -> Outcome {
        for plan in &self.plans {
            let state = cluster.state(plan.node);
            if !self.nodes.contains(&plan.node) || state.is_ok_and(|now| now != NodeState::Down) {
                continue;
            }
            if let Some(at) = plan.taken() {
                return Err(in_use(at));
            }
            let why = match cluster.last_exit(plan.node) {
                Ok(Some(status)) => format!("node {} has ended: {status}", plan.node),
                _ => format!("node {} has ended", plan.node),
            };
            return Err(Failure::new(WHAT, why).hint("see what it logged, above"));
        }
        Ok(())
    }
}

/// Waits until the topic is there and every partition takes a record.
/// The cluster that answers must be that of `directory`.
pub(crate) async fn make_ready(
    addresses: Vec<Endpoint>,
    directory: PathBuf,
    nodes: u32,
) -> Outcome {
    let what = "the cluster takes no records";
    let client = Client::new(addresses, ClientOptions::default())
        .map_err(|error| Failure::new(what, error))?;
    let ready = async {
        let mut again = interval(AGAIN);
        let deadline = Instant::now() + READY;
        while !ours(&client, &directory, nodes).await {
            again.tick().await;
        }
        loop {
            again.tick().await;
            let made = client
                .create_topic(TOPIC, PARTITIONS, nodes.min(3), Default::default())
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

/// Whether the cluster that answers is the one whose data the nodes have.
async fn ours(client: &Client, directory: &Path, nodes: u32) -> bool {
    let Ok(cluster) = client.describe_cluster().await else {
        return false;
    };
    (1..=nodes)
        .any(|node| dev_control::cluster_id(directory, node).as_ref() == Some(&cluster.cluster_id))
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
