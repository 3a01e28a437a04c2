//! Commits of a member, its own and those that the client asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_proto::v1;
use quorate_types::{LeaderEpoch, TopicPartition};
use quorate_wire::ErrorInfo;
use tokio::time::{Instant, timeout};

use super::asking::asked;
use super::beat::Member;
use super::credit::Place;
use super::join::Join;
use crate::edge::Edge;
use crate::groups::refused_offset;

/// How long a commit that the client asks for is tried.
const TRIED: Duration = Duration::from_secs(30);
/// How long one try may take: then another coordinator may have taken over.
const TRY_MS: u32 = 10_000;

/// A commit that is decided.
pub(super) enum Done {
    /// The node's own.
    Own { committed: bool },
    /// One that the client asked for.
    Asked(v1::subscribe_response::Committed),
}

/// Commits for a member; the sequence makes a repeat do nothing twice.
fn commit(
    edge: &Edge,
    join: &Join,
    member: &mut Member,
    offsets: Vec<v1::OffsetToCommit>,
    within: Duration,
) -> impl Future<Output = Result<v1::CommitOffsetsResponse, ErrorInfo>> + Send + 'static {
    member.seq += 1;
    let request = v1::CommitOffsetsRequest {
        group: join.group.clone(),
        member_id: Some(member.id.clone()),
        member_epoch: member.epoch,
        commit_seq: Some(member.seq),
        offsets,
        timeout_ms: TRY_MS,
    };
    let edge = edge.clone();
    let until = Instant::now() + within;
    async move { asked(Some(until), || edge.group_commit(request.clone(), false)).await }
}

/// What the client asks for; what fails as a whole is refused item by item.
pub(super) fn for_client(
    edge: &Edge,
    join: &Join,
    member: &mut Member,
    wanted: v1::subscribe_request::Commit,
) -> BoxFuture<'static, Done> {
    let v1::subscribe_request::Commit {
        request_id,
        offsets,
    } = wanted;
    let committed = commit(edge, join, member, offsets.clone(), TRIED);
    Box::pin(async move {
        let refused = match committed.await {
            Ok(answer) => answer.refused,
            Err(error) => {
                let all = offsets.iter().map(|of| refused_offset(of, error.code));
                all.collect()
            }
        };
        Done::Asked(v1::subscribe_response::Committed {
            request_id,
            refused,
        })
    })
}

/// What the client is done with.
pub(super) fn own(
    edge: &Edge,
    join: &Join,
    member: &mut Member,
    places: &BTreeMap<TopicPartition, Place>,
    within: Duration,
) -> BoxFuture<'static, Done> {
    let image = edge.image();
    let of = |(at, (next, epoch)): (&TopicPartition, &Place)| {
        let topic = image.topic(at.topic_id)?;
        Some(v1::OffsetToCommit {
            topic: topic.name.to_string(),
            topic_id: Some(at.topic_id.as_bytes().to_vec().into()),
            partition: at.partition.to_signed(),
            offset: Some(next.to_signed()),
            leader_epoch: epoch.map(LeaderEpoch::to_signed),
            metadata: String::new(),
        })
    };
    let offsets: Vec<_> = places.iter().filter_map(of).collect();
    if offsets.is_empty() {
        return Box::pin(std::future::ready(Done::Own { committed: true }));
    }
    let committed = commit(edge, join, member, offsets, within);
    Box::pin(async move {
        let committed = match timeout(within, committed).await {
            // Those that were refused are not the member's any more.
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !error.code.is_retriable(),
            Err(_elapsed) => false,
        };
        Done::Own { committed }
    })
}
