//! Commits: tried until they are answered, each of which a member numbers, so that one that comes late
//! or twice changes nothing.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_types::{ErrorCode, LeaderEpoch, Offset, PartitionId, TopicId};
use quorate_wire::ErrorInfo;
use tokio::time::{Instant, sleep};

use super::coordinator::{Backoff, Coordinator, in_time};
use super::options::millis;
use super::session::{Shared, is_lost};
use crate::error::ClientError;

/// One node is waited for so long.
pub(super) const ONE_TRY: Duration = Duration::from_secs(5);

/// Offsets of one commit at most.
pub(super) const AT_ONCE: usize = 10_000;

/// An offset that is to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// The next to be read; none takes back what is committed.
    pub offset: Option<Offset>,
    /// The epoch of the record before it, where it is known (KIP-320).
    pub leader_epoch: Option<LeaderEpoch>,
    /// What is kept beside it: up to 4096 bytes.
    pub metadata: String,
}

impl OffsetToCommit {
    /// Commits that all before `offset` is done.
    pub fn new(topic: impl Into<String>, partition: PartitionId, offset: Offset) -> Self {
        Self {
            topic: topic.into(),
            partition,
            offset: Some(offset),
            leader_epoch: None,
            metadata: String::new(),
        }
    }

    pub(super) fn to_proto(&self, topic_id: Option<TopicId>) -> v1::OffsetToCommit {
        v1::OffsetToCommit {
            topic: self.topic.clone(),
            topic_id: topic_id.map(|id| Bytes::copy_from_slice(id.as_bytes())),
            partition: self.partition.to_signed(),
            offset: self.offset.map(Offset::to_signed),
            leader_epoch: self.leader_epoch.map(LeaderEpoch::to_signed),
            metadata: self.metadata.clone(),
        }
    }
}

/// Whether a commit was refused because the topic is gone, and nothing else of it.
pub(super) fn is_gone(error: &ClientError) -> bool {
    error.code().is_some_and(is_deleted)
}

fn is_deleted(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(
        code,
        E::UnknownTopicOrPartition | E::UnknownTopicId | E::InconsistentTopicId
    )
}

/// Commits as the member whose life it is now.
///
/// # Errors
/// [`ClientError::Refused`] with what was refused first, also where the membership was lost;
/// [`ClientError::TimedOut`] where it is not known.
pub(super) async fn commit(
    shared: &Shared,
    offsets: Vec<v1::OffsetToCommit>,
    patience: Duration,
) -> Result<(), ClientError> {
    let life = shared.member.lock().life();
    let identify = |request: &mut v1::CommitOffsetsRequest| {
        shared.expire();
        let member = shared.member.lock();
        if member.life() != life || member.epoch() == 0 {
            let why = "the membership was lost, and with it the partitions";
            let info = ErrorInfo::new(ErrorCode::UnknownMemberId, why);
            return Err(ClientError::Refused(info));
        }
        request.member_id = Some(member.id().to_owned());
        request.member_epoch = member.epoch();
        Ok(())
    };
    for offsets in offsets.chunks(AT_ONCE) {
        let mut request = v1::CommitOffsetsRequest {
            group: shared.options.group.clone(),
            commit_seq: Some(shared.next_commit()),
            offsets: offsets.to_vec(),
            ..v1::CommitOffsetsRequest::default()
        };
        until_taken(&shared.coordinator, &mut request, patience, identify).await?;
    }
    Ok(())
}

/// Sends a commit again and again, what was taken of it or refused for good no more; `prepare` before
/// each try.
pub(super) async fn until_taken(
    coordinator: &Coordinator,
    request: &mut v1::CommitOffsetsRequest,
    patience: Duration,
    prepare: impl Fn(&mut v1::CommitOffsetsRequest) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::new();
    let mut refused_for_good = Vec::new();
    loop {
        prepare(request)?;
        let one_try = ONE_TRY.min(deadline.saturating_duration_since(Instant::now()));
        request.timeout_ms = millis(one_try);
        let answer = coordinator.once(request, one_try, |mut groups, request| async move {
            groups.commit_offsets(request).await
        });
        let error = match answer.await {
            Ok(answer) => {
                let (again, for_good): (Vec<_>, Vec<_>) =
                    answer.refused.into_iter().partition(|refused| {
                        let code = ErrorCode::from_name(&refused.reason);
                        refused.retriable && !code.is_some_and(is_deleted)
                    });
                refused_for_good.extend(for_good);
                if again.is_empty() {
                    return match refused_for_good.is_empty() {
                        true => Ok(()),
                        false => Err(ClientError::Refused(told(&refused_for_good))),
                    };
                }
                request.offsets.retain(|offset| {
                    let mut again = again.iter();
                    again.any(|of| of.topic == offset.topic && of.partition == offset.partition)
                });
                ClientError::Refused(told(&again))
            }
            Err(error) if is_lost(&error) || !error.is_retriable() => return Err(error),
            Err(error) => error,
        };
        let pause = backoff.next();
        if Instant::now() + pause >= deadline {
            return Err(in_time(error));
        }
        sleep(pause).await;
    }
}

/// What was refused, as one error with the code of the first whose topic there is, else of the first.
fn told(refused: &[v1::RefusedOffset]) -> ErrorInfo {
    let codes = refused.iter();
    let mut codes = codes.filter_map(|refused| ErrorCode::from_name(&refused.reason));
    let first = codes.clone().find(|code| !is_deleted(*code));
    let code = first.or(codes.next());
    let each = refused.iter().map(|refused| {
        format!(
            "{}-{}: {}",
            refused.topic, refused.partition, refused.reason
        )
    });
    let each: Vec<String> = each.collect();
    ErrorInfo::new(
        code.unwrap_or(ErrorCode::UnknownServerError),
        format!("not committed: {}", each.join(", ")),
    )
}
