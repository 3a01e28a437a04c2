//! What keeps the quorum from having a leader, told in the log and to whoever describes the quorum:
//! one voter down beside one that lost its disk is no quorum, and nothing gets it out of that but
//! the return of the one that is down.
//!
//! It only asks and tells; nothing is decided by it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::core::Core;
use crate::ids::RaftId;

/// An election takes less; before that nothing is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether anybody leads, and how long that may take.
const AGAIN: Duration = Duration::from_secs(1);
const CONFIRM: Duration = Duration::from_secs(1);

/// Who answers at a voter's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The voter.
    Itself,
    Nobody,
    /// Somebody else: the same node with another disk, or another node.
    Other(RaftId),
}

/// A voter, its address, and who answers there.
type Asked = (RaftId, String, Found);

/// Runs until the member is stopped.
pub(crate) async fn explain_outages(core: Arc<Core>) {
    let cancel = core.cancel.clone();
    cancel.run_until_cancelled(watch(&core)).await;
}

async fn watch(core: &Core) {
    let mut confirmed = Instant::now();
    let mut said: Option<String> = None;
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        // Whom Raft takes for the leader may be gone, or this node itself without followers.
        if timeout(CONFIRM, core.is_led()).await == Ok(true) {
            confirmed = Instant::now();
            if said.take().is_some() {
                core.outage.lock().take();
                tracing::info!("the metadata quorum has a leader again");
            }
            continue;
        }
        let asked = ask(core).await;
        // A node that has not got in yet knows no voters; what it waits for is told by that.
        if asked.is_empty() || confirmed.elapsed() < PATIENCE {
            continue;
        }
        let now = explanation(&asked);
        if said.as_ref() != Some(&now) {
            tracing::warn!(why = %now, "the metadata quorum has no leader");
            *core.outage.lock() = Some(now.clone());
            said = Some(now);
        }
    }
}

async fn ask(core: &Core) -> Vec<Asked> {
    let membership = core.metrics().membership_config;
    let voters = membership.voter_ids().map(|voter| {
        let address = membership.get_node(&voter).map(|node| node.address.clone());
        (voter, address.unwrap_or_default())
    });
    let voters: BTreeSet<(RaftId, String)> = voters.collect();
    join_all(voters.into_iter().map(|(voter, address)| async move {
        let found = if voter == core.me() {
            Found::Itself
        } else {
            match core.peers.identify(&address).await {
                Ok(identity) if identity.id == voter => Found::Itself,
                Ok(identity) => Found::Other(identity.id),
                Err(_) => Found::Nobody,
            }
        };
        (voter, address, found)
    }))
    .await
}

fn explanation(asked: &[Asked]) -> String {
    let here = asked.iter().filter(|(_, _, found)| *found == Found::Itself);
    let (here, all) = (here.count(), asked.len());
    let needed = all / 2 + 1;
    if here >= needed {
        return format!("{here} of {all} voters answer this node, and none of them leads yet");
    }
    let mut why = format!("of {all} voters {here} can vote, and {needed} must");
    let mut down = Vec::new();
    for (voter, address, found) in asked {
        let node = voter.node;
        match found {
            Found::Itself => {}
            Found::Nobody => {
                down.push(node.to_string());
                why.push_str(&format!("; node {node} at {address} does not answer"));
            }
            Found::Other(other) if other.node == node => why.push_str(&format!(
                "; node {node} came back with another disk and gets its vote anew only from a \
                 leader"
            )),
            Found::Other(other) => why.push_str(&format!(
                "; at {address} answers node {} instead of node {node}",
                other.node
            )),
        }
    }
    if !down.is_empty() {
        why.push_str(&format!(": start node {} again", down.join(" or ")));
    }
    why
}

#[cfg(test)]
mod tests {
    use quorate_types::{DirectoryId, NodeId};

    use super::*;

    fn asked(node: u32, found: Found) -> Asked {
        (id(node, 1), format!("host{node}:7071"), found)
    }

    fn id(node: u32, directory: u8) -> RaftId {
        RaftId {
            node: NodeId::new(node),
            directory: DirectoryId::from_bytes([directory; 16]),
        }
    }

    #[test]
    fn one_voter_wiped_and_one_down_is_said_with_the_way_out() {
        let wiped = Found::Other(id(3, 9));
        let why = explanation(&[
            asked(1, Found::Itself),
            asked(2, Found::Nobody),
            asked(3, wiped),
        ]);
        assert_eq!(
            why,
            "of 3 voters 1 can vote, and 2 must; node 2 at host2:7071 does not answer; node 3 came \
             back with another disk and gets its vote anew only from a leader: start node 2 again"
        );
    }

    #[test]
    fn an_election_under_way_is_no_call_for_help() {
        let why = explanation(&[
            asked(1, Found::Itself),
            asked(2, Found::Itself),
            asked(3, Found::Nobody),
        ]);
        assert!(why.starts_with("2 of 3 voters answer"), "{why}");
        assert!(!why.contains("start node"), "{why}");
    }
}
