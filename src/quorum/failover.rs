//! What beats the election timer when the leader's process is gone.
//!
//! Every voter keeps a call open to the leader that is never answered. When it ends, and two
//! connections 10 ms apart are refused, the leader's committed vote loses its lease and the
//! voters are asked in turn, the longest log first, to stand. That only drops the lease: votes
//! and log checks stay Raft's. Silence proves nothing, so nothing here acts on a time-out.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use quorate_proto::internal as proto;
use tokio::time::Instant;

use crate::core::{Core, Gone, Leader};
use crate::ids::{Peer, RaftId, RaftLogId, Vote};
use crate::network::Network;
use crate::peers::{is_gone, to_proto};

const ROUND: Duration = Duration::from_millis(50);
/// After so many the leader is probed anew.
const ROUNDS: usize = 40;
const AGAIN: Duration = Duration::from_millis(100);

/// Runs until the member is stopped.
pub(crate) async fn watch_leader(core: Arc<Core>) {
    let mut leaders = core.leader.subscribe();
    loop {
        let leader = leaders.borrow_and_update().clone();
        let other = leader.filter(|leader| leader.id != core.me());
        tokio::select! {
            () = core.cancel.cancelled() => return,
            _ = leaders.changed() => continue,
            () = hold(&core, other.as_ref()) => {}
        }
        if let Some(leader) = other {
            tokio::select! {
                () = core.cancel.cancelled() => return,
                () = judge(&core, &leader) => {}
            }
            tokio::select! {
                () = core.cancel.cancelled() => return,
                _ = leaders.changed() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

/// Returns when the call to the leader ends, however it does.
async fn hold(core: &Core, leader: Option<&Leader>) {
    let Some(leader) = leader else {
        return std::future::pending().await;
    };
    let request = proto::HoldRequest {
        sender: Some(to_proto(core.me())),
    };
    let Ok(mut client) = core.peers.client(&leader.address) else {
        return std::future::pending().await;
    };
    if let Ok(stream) = client.hold(request).await {
        let mut stream = stream.into_inner();
        while let Ok(Some(_)) = stream.message().await {}
    }
}

async fn judge(core: &Core, leader: &Leader) {
    if !core.is_voter() || !is_gone(&leader.address).await {
        return;
    }
    let Some((_, vote)) = core.leader_vote().filter(|(id, _)| *id == leader.id) else {
        return;
    };
    tracing::info!(leader = %leader.id, "the metadata leader's process is gone");
    let node = leader.id.node;
    let broker = core.view.image().broker(node).map(|broker| broker.epoch);
    *core.gone.lock() = broker.map(|broker_epoch| Gone {
        node,
        broker_epoch,
        at: Instant::now(),
    });
    let candidates = candidates(core, leader.id, vote).await;
    for target in candidates.iter().cycle().take(ROUNDS) {
        if core.leader_vote() != Some((leader.id, vote)) {
            return;
        }
        let request = TransferLeaderRequest::new(vote, *target, None);
        if let Err(error) = core.raft.handle_transfer_leader(request).await {
            tracing::debug!(%error, "Raft has stopped");
            return;
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// The surviving voters, the longest log first.
async fn candidates(core: &Core, gone: RaftId, vote: Vote) -> Vec<RaftId> {
    let membership = core.metrics().membership_config;
    let question = VoteRequest::new(Vote::new(vote.leader_id.term + 1, core.me()), None);
    let logs = membership.voter_ids().filter(|id| *id != gone).map(|id| {
        let node = membership.get_node(&id).cloned().unwrap_or_default();
        let question = question.clone();
        async move { (Reverse(last_log(core, id, node, question).await), id) }
    });
    let mut found: Vec<(Reverse<Option<RaftLogId>>, RaftId)> = join_all(logs).await;
    found.sort();
    found.into_iter().map(|(_, id)| id).collect()
}

/// Where a voter's log ends: a pre-vote is answered with it and changes nothing.
async fn last_log(
    core: &Core,
    id: RaftId,
    node: Peer,
    question: VoteRequest<crate::ids::TypeConfig>,
) -> Option<RaftLogId> {
    if id == core.me() {
        return core.raft.pre_vote(question).await.ok()?.last_log_id;
    }
    let mut link = Network(core.peers.clone()).new_client(id, &node).await;
    link.pre_vote(question, RPCOption::new(ROUND))
        .await
        .ok()?
        .last_log_id
}
