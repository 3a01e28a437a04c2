//! How a node gets into the quorum: the first members make it together, everyone else is added
//! by the leader; and what the leader does about members that lost their disk.
//!
//! Invariant: a new quorum is made only when every listed controller has answered that it is
//! empty and belongs to no cluster. The lowest of them does it, so there is one first entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::errors::{InitializeError, RaftError};
use quorate_metadata::Command;
use quorate_proto::internal as proto;
use quorate_types::{ClusterId, Endpoint, NodeId};

use crate::config::QuorumConfig;
use crate::core::Core;
use crate::ids::{Membership, Peer, RaftId, RaftLogId};
use crate::peers::{Identity, Peers, to_proto, within};

const AGAIN: Duration = Duration::from_millis(100);
const JOIN: Duration = Duration::from_secs(5);
const BOOTSTRAP: Duration = Duration::from_secs(5);
const CARE: Duration = Duration::from_secs(1);
/// A new disk takes the old one's vote when it lacks so few entries.
const CAUGHT_UP: u64 = 100;

/// What the other listed controllers say of themselves.
type Answers = Vec<(NodeId, Endpoint, Option<Identity>)>;

pub(crate) async fn ask_controllers(config: &QuorumConfig, peers: &Peers) -> Answers {
    let others = config
        .controllers
        .iter()
        .filter(|(node, _)| *node != config.node);
    join_all(others.map(|(node, endpoint)| async {
        let identity = peers.identify(&endpoint.to_string()).await;
        (*node, endpoint.clone(), identity.ok())
    }))
    .await
}

/// A controller that belongs to another cluster than `ours`.
pub(crate) fn foreigner(ours: ClusterId, answers: &Answers) -> Option<(ClusterId, String)> {
    answers.iter().find_map(|(node, endpoint, identity)| {
        let theirs = identity
            .as_ref()?
            .cluster
            .filter(|theirs| *theirs != ours)?;
        Some((theirs, format!("controller {node} at {endpoint}")))
    })
}

/// How far a node is on its way into the quorum.
enum Way {
    In,
    /// Said once, when it changes.
    Waiting(String),
}

/// Runs until this node is in the quorum.
pub(crate) async fn get_in(core: Arc<Core>) {
    let mut said = String::new();
    loop {
        match step(&core).await {
            Way::In => {
                core.outage.lock().take();
                return;
            }
            Way::Waiting(why) if why != said => {
                tracing::info!(me = %core.me(), %why, "not yet in the metadata quorum");
                *core.outage.lock() = Some(format!("this node is not in it yet: {why}"));
                said = why;
            }
            Way::Waiting(_) => {}
        }
        tokio::select! {
            () = core.cancel.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn step(core: &Core) -> Way {
    let me = core.me();
    let Ok(initialized) = core.raft.is_initialized().await else {
        return Way::Waiting("Raft has stopped".to_owned());
    };
    let membership = core.metrics().membership_config;
    let address = core.config.advertise.to_string();
    let votes = membership.voter_ids().any(|id| id == me);
    if votes
        || membership
            .get_node(&me)
            .is_some_and(|node| node.address == address)
    {
        return Way::In;
    }
    let answers = ask_controllers(&core.config, &core.peers).await;
    if let Some(ours) = core.peers.cluster()
        && let Some((theirs, who)) = foreigner(ours, &answers)
    {
        let why = format!("this node belongs to cluster {ours}, but {who} to cluster {theirs}");
        core.fail(why.clone());
        return Way::Waiting(why);
    }
    let cluster_exists = initialized
        || core.peers.cluster().is_some()
        || answers
            .iter()
            .any(|(_, _, who)| who.as_ref().is_some_and(|who| who.cluster.is_some()));
    if core.config.is_controller() && !cluster_exists {
        let members = match first_members(core, &answers) {
            Ok(members) => members,
            Err(why) => return Way::Waiting(why),
        };
        if core
            .config
            .controllers
            .iter()
            .any(|(node, _)| *node < core.config.node)
        {
            return Way::Waiting("the lowest controller makes the quorum".to_owned());
        }
        initialize(core, members).await;
        return Way::Waiting("the new quorum elects its leader".to_owned());
    }
    if join(core, &address).await {
        Way::In
    } else {
        let silent = answers.iter().filter(|(_, _, who)| who.is_none());
        let silent = silent.map(|(node, endpoint, _)| {
            format!("; controller {node} at {endpoint} does not answer")
        });
        Way::Waiting(format!(
            "no controller that leads has added it{}",
            silent.collect::<String>()
        ))
    }
}

/// The members of a new quorum, or what stands against making one.
fn first_members(core: &Core, answers: &Answers) -> Result<BTreeMap<RaftId, Peer>, String> {
    let mut members = BTreeMap::new();
    for (node, endpoint, identity) in answers {
        let Some(identity) = identity else {
            return Err(format!("controller {node} at {endpoint} does not answer"));
        };
        if identity.id.node != *node {
            let other = identity.id.node;
            return Err(format!(
                "at {endpoint} answers node {other} instead of controller {node}"
            ));
        }
        if !identity.pristine {
            return Err(format!(
                "controller {node} at {endpoint} already has a log or a vote"
            ));
        }
        members.insert(identity.id, Peer::at(endpoint));
    }
    for (node, endpoint) in &core.config.controllers {
        if *node == core.config.node {
            members.insert(core.me(), Peer::at(endpoint));
        }
    }
    Ok(members)
}

async fn initialize(core: &Core, members: BTreeMap<RaftId, Peer>) {
    tracing::info!(?members, "makes a new metadata quorum");
    match core.raft.initialize(members).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => tracing::warn!(%error, "the metadata quorum could not be made"),
    }
}

/// Asks each controller to be added; the one that leads does it.
async fn join(core: &Core, address: &str) -> bool {
    let mut places: Vec<String> = Vec::new();
    if let Some(leader) = core.leader.borrow().as_ref() {
        places.push(leader.address.clone());
    }
    places.extend(
        core.config
            .controllers
            .iter()
            .map(|(_, endpoint)| endpoint.to_string()),
    );
    for place in places {
        let request = proto::JoinRequest {
            sender: Some(to_proto(core.me())),
            address: address.to_owned(),
            cluster_id: core.peers.cluster_bytes(),
        };
        let Ok(mut client) = core.peers.client(&place) else {
            continue;
        };
        match within(JOIN, client.join(request)).await {
            Ok(_) => return true,
            Err(status) => tracing::debug!(%place, %status, "not joined here"),
        }
    }
    false
}

/// What a leader does besides: gives a new cluster its id, lets a member that came back with
/// another disk take the place of its former self, and finishes what an earlier leader began of
/// that.
pub(crate) async fn lead(core: Arc<Core>) {
    let mut leadership = core.leadership.subscribe();
    loop {
        let now = *leadership.borrow_and_update();
        let mut pause = CARE;
        if now.is_self {
            if core.view.image().cluster_id().is_none() {
                let cluster_id = ClusterId::from(uuid::Uuid::new_v4());
                let command = Command::BootstrapCluster { cluster_id };
                if let Err(error) = core
                    .propose_in_term(now.term, vec![command], BOOTSTRAP)
                    .await
                {
                    tracing::debug!(%error, "the cluster has no id yet");
                }
                pause = AGAIN;
            } else {
                mend_voters(&core).await;
            }
        }
        tokio::select! {
            () = core.cancel.cancelled() => return,
            _ = leadership.changed() => {}
            () = tokio::time::sleep(pause), if now.is_self => {}
        }
    }
}

async fn mend_voters(core: &Core) {
    let metrics = core.metrics();
    let matched = metrics.replication.unwrap_or_default();
    let last = metrics.last_log_index.unwrap_or_default();
    let membership = metrics.membership_config.membership();
    let Some((members, why)) = better_voters(membership, &matched, last) else {
        return;
    };
    tracing::info!(?members, "{why}");
    match core.raft.change_membership(members, false).await {
        Ok(_) => tracing::info!("the voters of the metadata quorum have changed"),
        Err(error) => tracing::warn!(%error, "the voters did not change"),
    }
}

/// The voters that there should be instead, and why; none where all is well. One change at a time.
fn better_voters(
    membership: &Membership,
    matched: &BTreeMap<RaftId, Option<RaftLogId>>,
    last: u64,
) -> Option<(BTreeSet<RaftId>, String)> {
    // A change has two steps, and a leader may end between them. Its two majorities then both
    // stay in force, that of the lost disk too, until somebody takes the second step.
    if let [_, .., goal] = &membership.get_joint_config()[..] {
        let why = "a change of the voters that an earlier leader began is finished";
        return Some((goal.clone(), why.to_owned()));
    }
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    membership.learner_ids().find_map(|new| {
        let old = voters.iter().find(|old| old.node == new.node)?;
        let matched = matched.get(&new).copied().flatten()?;
        if matched.index + CAUGHT_UP < last {
            return None;
        }
        let mut members = voters.clone();
        members.remove(old);
        members.insert(new);
        let why = format!("a voter came back with another disk: the vote of {old} moves to {new}");
        Some((members, why))
    })
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;
    use quorate_types::DirectoryId;

    use super::*;
    use crate::ids::TypeConfig;

    fn member(node: u32, directory: u8) -> RaftId {
        RaftId {
            node: NodeId::new(node),
            directory: DirectoryId::from_bytes([directory; 16]),
        }
    }

    fn membership(configs: &[&[RaftId]], learners: &[RaftId]) -> Membership {
        let all = configs.iter().flat_map(|config| config.iter());
        let nodes: BTreeMap<RaftId, Peer> = all
            .chain(learners)
            .map(|id| (*id, Peer::default()))
            .collect();
        let configs = configs
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect();
        Membership::new(configs, nodes).unwrap()
    }

    fn at(index: u64) -> Option<RaftLogId> {
        Some(log_id::<TypeConfig>(1, member(1, 1), index))
    }

    #[test]
    fn a_new_disk_takes_the_old_ones_vote_once_it_has_caught_up() {
        let [one, two, three] = [member(1, 1), member(2, 2), member(3, 3)];
        let (new, observer) = (member(3, 9), member(7, 7));
        let seen = membership(&[&[one, two, three]], &[new, observer]);
        let far = BTreeMap::from([(new, at(99)), (observer, at(1_000))]);
        assert_eq!(better_voters(&seen, &far, 200), None);
        let near = BTreeMap::from([(new, at(100)), (observer, at(1_000))]);
        let (members, _) = better_voters(&seen, &near, 200).unwrap();
        assert_eq!(members, BTreeSet::from([one, two, new]));
        let healthy = membership(&[&[one, two, new]], &[observer]);
        assert_eq!(better_voters(&healthy, &near, 200), None);
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished_before_another() {
        let [one, two, three] = [member(1, 1), member(2, 2), member(3, 3)];
        let (new, newer) = (member(3, 8), member(3, 9));
        let seen = membership(&[&[one, two, three], &[one, two, new]], &[newer]);
        let matched = BTreeMap::from([(newer, at(200))]);
        let (members, _) = better_voters(&seen, &matched, 200).unwrap();
        assert_eq!(members, BTreeSet::from([one, two, new]));
    }
}
