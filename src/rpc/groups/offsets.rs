//! What groups commit, and what they have committed.
//!
//! Bounds: offsets of a commit, and the metadata beside each; bytes of a page of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use quorate_broker::CommitCall;
use quorate_metadata::{CommittedOffset, Committer, Member, MetadataImage, OffsetToCommit};
use quorate_proto::v1;
use quorate_types::{
    CommitSeq, ErrorCode, GroupEpoch, GroupId, LeaderEpoch, MemberId, Offset, PartitionId, TopicId,
    TopicPartition,
};
use quorate_wire::ErrorInfo;
use tonic::Status;

use super::pages::{Page, place};
use super::{Coordinated, FORWARD_GRACE, Repeat};
use crate::edge::{Edge, forward};
use crate::status::{invalid, to_status};

/// Offsets of one commit at most.
const OFFSETS: usize = 10_000;
/// What may be kept beside an offset, in bytes.
const METADATA: usize = 4_096;

/// A commit as it is understood.
struct Read {
    offsets: Vec<OffsetToCommit>,
    /// The place of each in the request.
    places: Vec<usize>,
    /// Those whose partitions there are not.
    refused: Vec<v1::RefusedOffset>,
}

/// One that was refused, as the protocol has it.
pub(crate) fn refused_offset(of: &v1::OffsetToCommit, code: ErrorCode) -> v1::RefusedOffset {
    v1::RefusedOffset {
        topic: of.topic.clone(),
        partition: of.partition,
        reason: code.name().to_owned(),
        retriable: code.is_retriable(),
    }
}

/// Checks what does not depend on what there is: where this is wrong nothing is committed.
fn check(offset: &v1::OffsetToCommit) -> Result<(), ErrorInfo> {
    let at = format!("{}-{}", offset.topic, offset.partition);
    if offset.metadata.len() > METADATA {
        let length = offset.metadata.len();
        let message = format!("{at}: metadata has at most {METADATA} bytes, this has {length}");
        return Err(ErrorInfo::new(ErrorCode::OffsetMetadataTooLarge, message));
    }
    if let Some(number) = offset.offset
        && number < 0
    {
        let message = format!("{at}: offset {number} must not be negative");
        return Err(ErrorInfo::new(ErrorCode::OffsetOutOfRange, message));
    }
    Ok(())
}

impl Edge {
    /// Takes a commit to the group's coordinator, here or there.
    pub(crate) async fn group_commit(
        &self,
        request: v1::CommitOffsetsRequest,
        forwarded: bool,
    ) -> Result<v1::CommitOffsetsResponse, Status> {
        let told = |error: ErrorInfo| to_status(&error);
        let id = quorate_wire::group_id(&request.group).map_err(told)?;
        let timeout = self.timeout(request.timeout_ms);
        let by = committer(&request).map_err(told)?;
        if by.is_some() && request.offsets.iter().any(|of| of.offset.is_none()) {
            let message = "a member commits offsets: they are taken back once it has none any more";
            return Err(told(ErrorInfo::new(ErrorCode::InvalidRequest, message)));
        }
        let Read {
            offsets,
            places,
            mut refused,
        } = self.read_commit(&request.offsets).map_err(told)?;
        match self.coordinated(&id, forwarded)? {
            Coordinated::There(mut client, at) => {
                let repeat = if request.commit_seq.is_some() {
                    Repeat::Harmless
                } else {
                    Repeat::Unsure
                };
                let call = client.commit_offsets(forward(request, timeout + FORWARD_GRACE));
                self.there(&id, at, repeat, call).await
            }
            Coordinated::Here => {
                let (mut offsets, mut places) = (offsets, places);
                if let Some(member) = by.as_ref().and_then(|by| self.member(&id, &by.member)) {
                    // Whoever has a partition was told so by an image that is not newer than this one.
                    let owned =
                        |offset: &OffsetToCommit| member.owned.contains_key(&offset.partition);
                    let (own, other): (Vec<_>, Vec<_>) = offsets
                        .into_iter()
                        .zip(places)
                        .partition(|(offset, _)| owned(offset));
                    let other = other
                        .iter()
                        .filter_map(|(_, place)| request.offsets.get(*place));
                    refused
                        .extend(other.map(|of| refused_offset(of, ErrorCode::PartitionNotOwned)));
                    (offsets, places) = own.into_iter().unzip();
                }
                if !offsets.is_empty() {
                    let call = CommitCall {
                        group: id.clone(),
                        by,
                        offsets,
                        timeout,
                    };
                    let judged = self.broker().groups().commit(call).await;
                    let judged =
                        judged.map_err(|error| to_status(&self.group_error(&id, &error)))?;
                    refused.extend(judged.into_iter().filter_map(|(item, code)| {
                        let of = request.offsets.get(*places.get(item)?)?;
                        Some(refused_offset(of, code))
                    }));
                }
                Ok(v1::CommitOffsetsResponse { refused })
            }
        }
    }

    fn member(&self, group: &GroupId, id: &MemberId) -> Option<Arc<Member>> {
        let image = self.image();
        image.group(group)?.members.get(id).cloned()
    }

    fn read_commit(&self, offsets: &[v1::OffsetToCommit]) -> Result<Read, ErrorInfo> {
        let bad = |message: String| ErrorInfo::new(ErrorCode::InvalidRequest, message);
        if offsets.is_empty() {
            return Err(bad("there are no offsets to commit".to_owned()));
        }
        if offsets.len() > OFFSETS {
            let count = offsets.len();
            return Err(bad(format!(
                "{count} offsets: a commit has {OFFSETS} at most"
            )));
        }
        let mut seen = BTreeSet::new();
        let mut read = Read {
            offsets: Vec::with_capacity(offsets.len()),
            places: Vec::with_capacity(offsets.len()),
            refused: Vec::new(),
        };
        for (place, offset) in offsets.iter().enumerate() {
            check(offset)?;
            let number = Self::partition(offset.partition)?;
            let epoch = offset.leader_epoch.map(LeaderEpoch::from_signed);
            let leader_epoch = epoch.transpose().map_err(|error| bad(error.to_string()))?;
            let id = offset.topic_id.as_deref().map(quorate_wire::topic_id);
            let id = id.transpose().map_err(|error| invalid(&error))?;
            let located = self
                .topic(&offset.topic, id)
                .and_then(|topic| self.locate(topic, number));
            let partition = match located {
                Ok(located) => located.id,
                Err(error) if error.code == ErrorCode::InvalidTopic => return Err(error),
                Err(error) => {
                    read.refused.push(refused_offset(offset, error.code));
                    continue;
                }
            };
            if !seen.insert(partition) {
                let at = format!("{}-{}", offset.topic, offset.partition);
                return Err(bad(format!("{at} is named twice")));
            }
            read.places.push(place);
            read.offsets.push(OffsetToCommit {
                partition,
                offset: offset
                    .offset
                    .map(|number| Offset::new(number.unsigned_abs())),
                leader_epoch,
                metadata: offset.metadata.clone(),
            });
        }
        Ok(read)
    }

    /// What a group has committed, as its coordinator knows.
    pub(crate) async fn group_offsets(
        &self,
        request: v1::FetchOffsetsRequest,
        forwarded: bool,
    ) -> Result<v1::FetchOffsetsResponse, Status> {
        let told = |error: ErrorInfo| to_status(&error);
        let id = quorate_wire::group_id(&request.group).map_err(told)?;
        match self.coordinated(&id, forwarded)? {
            Coordinated::There(mut client, at) => {
                let call = client.fetch_offsets(forward(request, FORWARD_GRACE * 2));
                self.there(&id, at, Repeat::Harmless, call).await
            }
            Coordinated::Here => {
                let image = self.broker().groups().fetch_offsets(&id).await;
                let image = image.map_err(|error| to_status(&self.group_error(&id, &error)))?;
                let wanted = self.wanted(&request.partitions).map_err(told)?;
                let after = request.after.as_ref().map(place).transpose();
                let after = after
                    .map_err(told)?
                    .map_or(Bound::Unbounded, Bound::Excluded);
                let offsets = image.offsets(&id);
                let is_wanted = |at: &TopicPartition| {
                    let of_topic = wanted.get(&at.topic_id);
                    let any = |partitions: &BTreeSet<_>| {
                        partitions.is_empty() || partitions.contains(&at.partition)
                    };
                    wanted.is_empty() || of_topic.is_some_and(any)
                };
                let offsets = offsets.range((after, Bound::Unbounded));
                let offsets = offsets.filter(|(at, _)| is_wanted(at));
                let offsets = offsets.filter_map(|(at, offset)| committed(&image, *at, offset));
                let mut page = Page::default();
                Ok(v1::FetchOffsetsResponse {
                    offsets: page.take(offsets, prost::Message::encoded_len),
                    more: page.is_full(),
                })
            }
        }
    }

    /// The partitions that are asked for; of a topic without numbers all.
    fn wanted(
        &self,
        asked: &[v1::TopicPartitions],
    ) -> Result<BTreeMap<TopicId, BTreeSet<PartitionId>>, ErrorInfo> {
        let of = |asked: &v1::TopicPartitions| {
            let id = Some(&asked.topic_id[..]).filter(|id| !id.is_empty());
            let id = id.map(quorate_wire::topic_id).transpose();
            let topic = self.topic(&asked.topic, id.map_err(|error| invalid(&error))?)?;
            let numbers = asked.partitions.iter().map(|number| {
                let number = Self::partition(*number)?;
                Ok(self.locate(topic.clone(), number)?.id.partition)
            });
            Ok((
                topic.id,
                numbers.collect::<Result<BTreeSet<_>, ErrorInfo>>()?,
            ))
        };
        if asked.len() > quorate_wire::SUBSCRIPTION_TOPICS {
            let message = format!(
                "{} topics: ask for {} at most",
                asked.len(),
                quorate_wire::SUBSCRIPTION_TOPICS
            );
            return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
        }
        let mut wanted = BTreeMap::<_, BTreeSet<_>>::new();
        for asked in asked.iter().map(of) {
            let (topic, numbers) = asked?;
            match wanted.entry(topic) {
                Entry::Vacant(new) => {
                    new.insert(numbers);
                }
                // All that are named of it, or simply all.
                Entry::Occupied(mut known) => {
                    if numbers.is_empty() || known.get().is_empty() {
                        known.get_mut().clear();
                    } else {
                        known.get_mut().extend(numbers);
                    }
                }
            }
        }
        Ok(wanted)
    }
}

/// Who commits.
fn committer(request: &v1::CommitOffsetsRequest) -> Result<Option<Committer>, ErrorInfo> {
    let Some(id) = request.member_id.as_deref() else {
        return Ok(None);
    };
    Ok(Some(Committer {
        member: quorate_wire::member_id(id)?,
        epoch: GroupEpoch::new(request.member_epoch),
        seq: request.commit_seq.map(CommitSeq::new),
    }))
}

fn committed(
    image: &MetadataImage,
    at: TopicPartition,
    offset: &CommittedOffset,
) -> Option<v1::CommittedOffset> {
    let topic = image.topic(at.topic_id)?;
    Some(v1::CommittedOffset {
        topic: topic.name.to_string(),
        topic_id: at.topic_id.as_bytes().to_vec().into(),
        partition: at.partition.to_signed(),
        offset: offset.offset.to_signed(),
        leader_epoch: offset.leader_epoch.map(LeaderEpoch::to_signed),
        metadata: offset.metadata.clone(),
        time_ms: offset.time.millis(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_metadata_have_bounds() {
        let with = |offset, metadata: usize| {
            let commit = v1::OffsetToCommit {
                offset,
                metadata: "x".repeat(metadata),
                ..v1::OffsetToCommit::default()
            };
            check(&commit).map_err(|error| error.code)
        };
        assert_eq!(with(Some(0), METADATA), Ok(()));
        assert_eq!(with(None, 0), Ok(()));
        assert_eq!(with(Some(-1), 0), Err(ErrorCode::OffsetOutOfRange));
        let long = with(Some(0), METADATA + 1);
        assert_eq!(long, Err(ErrorCode::OffsetMetadataTooLarge));
    }
}
