//! What beats the election timer when the leader's process is gone.
//!
//! Every voter keeps a call open to the leader that is never answered. When it ends, or another voter
//! has begun an election, and two connections 10 ms apart are refused, the leader's committed vote
//! loses its lease and the voters that a majority can follow are asked in turn, the longest log first,
//! to stand. Where two stand in one term neither may win it: whoever waits for that stands again in
//! the next, the longest log first. All that only drops the lease and brings elections forward: votes
//! and log checks stay Raft's. Silence proves nothing, so nothing here takes a leader for gone by a
//! time-out.

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
use crate::ids::{Peer, RaftId, RaftLogId, TypeConfig, Vote};
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
        let followed = tokio::select! {
            () = core.cancel.cancelled() => return,
            // Another voter that was faster asks for a vote: that leader may be gone all the same,
            // and that election may fail.
            _ = leaders.changed() => leaders.borrow().is_some(),
            () = hold(&core, other.as_ref()) => false,
        };
        if let Some(leader) = other.filter(|_| !followed) {
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
    tracing::info!(leader = %leader.id, "the metadata leader's process is gone");
    let node = leader.id.node;
    let broker = core.view.image().broker(node).map(|broker| broker.epoch);
    *core.gone.lock() = broker.map(|broker_epoch| Gone {
        node,
        broker_epoch,
        at: Instant::now(),
    });
    let dead = core.leader_vote().filter(|(id, _)| *id == leader.id);
    let dead = dead.map(|(_, vote)| vote);
    let mut stalled = Stalled::new(core.metrics().vote);
    for round in 0..ROUNDS {
        let vote = core.metrics().vote;
        if vote.is_committed() && Some(vote) != dead {
            return;
        }
        let ranking = ranking(core, leader.id, vote).await;
        let done = if vote.is_committed() {
            // Whom nobody can follow stands in nobody's way: then only the lease is dropped.
            let target = ranking.nominee(round).unwrap_or(leader.id);
            let request = TransferLeaderRequest::new(vote, target, None);
            core.raft.handle_transfer_leader(request).await.map(|_| ())
        } else if stalled.is_over(vote, Instant::now(), ranking.rank(core.me())) {
            tracing::info!(%vote, "no election is won: standing again");
            core.raft.trigger().elect(true).await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            tracing::debug!(%error, "Raft has stopped");
            return;
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// An election that may not come to an end by itself.
struct Stalled {
    vote: Vote,
    since: Instant,
    again: u32,
}

impl Stalled {
    fn new(vote: Vote) -> Self {
        Self {
            vote,
            since: Instant::now(),
            again: 0,
        }
    }

    /// Whether the election of this vote has had its time, and the one who asks is to stand: the
    /// first in rank soonest, so that two do not stand at once again, and each time later, since the
    /// disks may be slow.
    fn is_over(&mut self, vote: Vote, now: Instant, rank: Option<usize>) -> bool {
        if self.vote != vote {
            (self.vote, self.since) = (vote, now);
        }
        let Some(rank) = rank else { return false };
        let turns = u32::try_from(rank + 1).unwrap_or(u32::MAX);
        let patience = ROUND.saturating_mul(turns << self.again.min(4));
        let over = now.saturating_duration_since(self.since) >= patience;
        if over {
            self.again += 1;
            self.since = now;
        }
        over
    }
}

/// Where a voter's log ends; none where it did not tell.
type LogEnd = Option<Option<RaftLogId>>;

/// The voters that a majority can follow, the longest log first.
struct Ranking(Vec<RaftId>);

impl Ranking {
    /// Who did not tell may vote for anyone: a candidate whom it then refuses has lost some time.
    fn new(majority: usize, voters: Vec<(LogEnd, RaftId)>) -> Self {
        let can_follow =
            |end: &LogEnd, last: &Option<RaftLogId>| end.is_none_or(|end| end <= *last);
        let wins = |last: &Option<RaftLogId>| {
            let all = voters.iter().filter(|(end, _)| can_follow(end, last));
            all.count() >= majority
        };
        let told = voters.iter();
        let told = told.filter_map(|(end, id)| end.filter(&wins).map(|last| (Reverse(last), *id)));
        let mut found: Vec<_> = told.collect();
        found.sort();
        Self(found.into_iter().map(|(_, id)| id).collect())
    }

    fn nominee(&self, round: usize) -> Option<RaftId> {
        self.0.get(round % self.0.len().max(1)).copied()
    }

    fn rank(&self, voter: RaftId) -> Option<usize> {
        self.0.iter().position(|id| *id == voter)
    }
}

async fn ranking(core: &Core, gone: RaftId, vote: Vote) -> Ranking {
    let membership = core.metrics().membership_config;
    let question = VoteRequest::new(Vote::new(vote.leader_id.term + 1, core.me()), None);
    let all = membership.voter_ids().count();
    let logs = membership.voter_ids().filter(|id| *id != gone).map(|id| {
        let node = membership.get_node(&id).cloned().unwrap_or_default();
        let question = question.clone();
        async move { (last_log(core, id, node, question).await, id) }
    });
    Ranking::new(all / 2 + 1, join_all(logs).await)
}

/// Where a voter's log ends: a pre-vote is answered with it and changes nothing.
async fn last_log(
    core: &Core,
    id: RaftId,
    node: Peer,
    question: VoteRequest<TypeConfig>,
) -> LogEnd {
    let answer = if id == core.me() {
        core.raft.pre_vote(question).await.ok()?
    } else {
        let mut link = Network(core.peers.clone()).new_client(id, &node).await;
        let asked = link.pre_vote(question, RPCOption::new(ROUND)).await;
        asked.ok()?
    };
    Some(answer.last_log_id)
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;

    fn voter(node: u64) -> RaftId {
        RaftId::from(node)
    }

    fn end(index: u64) -> LogEnd {
        Some(Some(log_id::<TypeConfig>(6, voter(3), index)))
    }

    #[test]
    fn nobody_stands_whom_a_majority_cannot_follow() {
        let ranked = |voters: [LogEnd; 2]| {
            let voters = voters.into_iter().zip([voter(1), voter(2)]);
            Ranking::new(2, voters.collect()).0
        };
        assert_eq!(ranked([end(74), end(72)]), [voter(1)]);
        assert_eq!(ranked([end(72), end(74)]), [voter(2)]);
        assert_eq!(ranked([end(74), end(74)]), [voter(1), voter(2)]);
        assert_eq!(ranked([Some(None), end(1)]), [voter(2)]);
        // Who does not tell is not asked to stand, and may vote.
        assert_eq!(ranked([None, end(72)]), [voter(2)]);
        // Of five, with one gone, the second best can win.
        let four = [end(9), end(8), end(7), end(7)];
        let four = four.into_iter().zip([1, 2, 3, 4].map(voter)).collect();
        let ranking = Ranking::new(3, four);
        assert_eq!(ranking.0, [voter(1), voter(2)]);
        let turns = (0..3).map(|round| ranking.nominee(round));
        assert_eq!(
            turns.collect::<Vec<_>>(),
            [1, 2, 1].map(|node| Some(voter(node)))
        );
        assert_eq!(Ranking::new(2, vec![]).nominee(7), None);
    }

    #[test]
    fn of_two_that_stood_in_one_term_the_first_in_rank_stands_again_before_the_other() {
        let begun = Instant::now();
        let first_again = |rank: Option<usize>| {
            let mut stalled = Stalled::new(Vote::new(6, voter(3)));
            let rounds = (0..100).map(|round| begun + ROUND * round);
            let vote = Vote::new(7, voter(1));
            let over = rounds.filter(|now| stalled.is_over(vote, *now, rank));
            over.take(3).map(|now| now - begun).collect::<Vec<_>>()
        };
        assert_eq!(first_again(Some(0)), [ROUND, ROUND * 3, ROUND * 7]);
        assert_eq!(first_again(Some(1)), [ROUND * 2, ROUND * 6, ROUND * 14]);
        assert_eq!(first_again(None), []);
    }
}
