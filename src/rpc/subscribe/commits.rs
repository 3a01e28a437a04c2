//! Commits of a member, its own and those that the client asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use prost::Message;
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

/// A commit of the client that is decided.
pub(super) struct Done {
    pub(super) answer: v1::subscribe_response::Committed,
    /// What it took while it waited.
    pub(super) bytes: usize,
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

/// What the client asks for, of which some is refused already; what fails as a whole is refused item
/// by item.
pub(super) fn for_client(
    edge: &Edge,
    join: &Join,
    member: &mut Member,
    wanted: v1::subscribe_request::Commit,
    mut refused: Vec<v1::RefusedOffset>,
) -> BoxFuture<'static, Done> {
    let bytes = wanted.encoded_len();
    let v1::subscribe_request::Commit {
        request_id,
        offsets,
    } = wanted;
    let committed = (!offsets.is_empty() || refused.is_empty())
        .then(|| commit(edge, join, member, offsets.clone(), TRIED));
    Box::pin(async move {
        if let Some(committed) = committed {
            match committed.await {
                Ok(answer) => refused.extend(answer.refused),
                Err(error) => {
                    refused.extend(offsets.iter().map(|of| refused_offset(of, error.code)));
                }
            }
        }
        let answer = v1::subscribe_response::Committed {
            request_id,
            refused,
        };
        Done { answer, bytes }
    })
}

/// What the client is done with; says whether that is decided.
pub(super) fn own(
    edge: &Edge,
    join: &Join,
    member: &mut Member,
    places: &BTreeMap<TopicPartition, Place>,
    within: Duration,
) -> BoxFuture<'static, bool> {
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
        return Box::pin(std::future::ready(true));
    }
    let committed = commit(edge, join, member, offsets, within);
    Box::pin(async move {
        match timeout(within, committed).await {
            // Those that were refused are not the member's any more.
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !error.code.is_retriable(),
            Err(_elapsed) => false,
        }
    })
}
