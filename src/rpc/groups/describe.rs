//! Groups as the image has them, and how far their members have come.
//!
//! Bounds: groups of a page; bytes of a page of members or partitions; topics whose leaders are asked
//! at a time.

use std::collections::BTreeMap;
use std::ops::Bound;

use futures::StreamExt;
use futures::stream;
use quorate_metadata::{Group, Member, MetadataImage};
use quorate_proto::v1;
use quorate_types::{ErrorCode, GroupId, MemberId, TopicId, TopicPartition};
use quorate_wire::ErrorInfo;
use tonic::Status;

use super::pages::{Page, place};
use super::{Coordinated, FORWARD_GRACE, Repeat, by_topic};
use crate::edge::{Edge, forward};
use crate::status::to_status;

/// Groups of one answer: some 300 bytes each at most.
const PAGE: usize = 1_000;
/// What a partition takes beside names and metadata: numbers, the topic's id, its reader's.
const ROW: usize = 128;
/// Topics whose leaders are asked at a time.
const ASKED: usize = 8;

fn summary(image: &MetadataImage, id: &GroupId, group: &Group) -> v1::GroupSummary {
    let revoking = |member: &Member| member.revoking().next().is_some();
    let state = if group.members.is_empty() {
        v1::GroupState::Empty
    } else if group.members.values().any(|member| revoking(member)) {
        v1::GroupState::Reconciling
    } else {
        v1::GroupState::Stable
    };
    v1::GroupSummary {
        group: id.to_string(),
        state: state.into(),
        members: u32::try_from(group.members.len()).unwrap_or(u32::MAX),
        coordinator: image.coordinator(id).coordinator.map(|node| node.get()),
        group_epoch: group.epoch.get(),
    }
}

fn described(image: &MetadataImage, id: &MemberId, member: &Member) -> v1::MemberDescription {
    let profile = &member.profile;
    v1::MemberDescription {
        member_id: id.to_string(),
        member_epoch: member.epoch.get(),
        instance_id: profile.instance.as_ref().map(ToString::to_string),
        client_id: profile.client_id.clone(),
        client_host: profile.client_host.clone(),
        topics: profile.topics.iter().map(ToString::to_string).collect(),
        assignor: quorate_wire::assignor_to_proto(profile.assignor).into(),
        session_timeout_ms: profile.session_timeout_ms,
        rebalance_timeout_ms: profile.rebalance_timeout_ms,
        partitions: by_topic(image, member.assigned()),
        revoking: by_topic(image, member.revoking()),
    }
}

impl Edge {
    /// A page of groups, by name; the first with all that was decided before.
    pub(crate) async fn list_groups(
        &self,
        request: &v1::ListGroupsRequest,
    ) -> Result<v1::ListGroupsResponse, ErrorInfo> {
        let after = request.after.as_deref().map(quorate_wire::group_id);
        let from = match after.transpose()? {
            Some(after) => Bound::Excluded(after),
            None => Bound::Unbounded,
        };
        let image = match from {
            Bound::Unbounded => self.caught_up().await,
            _ => self.image(),
        };
        let mut groups = image.groups().range((from, Bound::Unbounded));
        let page = groups.by_ref().take(PAGE);
        let page = page.map(|(id, group)| summary(&image, id, group)).collect();
        Ok(v1::ListGroupsResponse {
            groups: page,
            more: groups.next().is_some(),
        })
    }

    pub(crate) async fn describe_group(
        &self,
        request: v1::DescribeGroupRequest,
        forwarded: bool,
    ) -> Result<v1::DescribeGroupResponse, Status> {
        let id = quorate_wire::group_id(&request.group).map_err(|error| to_status(&error))?;
        if let Coordinated::There(mut client, at) = self.coordinated(&id, forwarded)? {
            let call = client.describe(forward(request, FORWARD_GRACE * 2));
            return self.there(&id, at, Repeat::Harmless, call).await;
        }
        let first = request.after_partition.is_none() && request.after_member.is_none();
        let image = match first {
            true => self.caught_up().await,
            false => self.image(),
        };
        let Some(group) = image.group(&id) else {
            let message = format!("there is no group {id}");
            return Err(to_status(&ErrorInfo::new(
                ErrorCode::GroupIdNotFound,
                message,
            )));
        };
        let told = |error: ErrorInfo| to_status(&error);
        let after = request.after_partition.as_ref().map(place).transpose();
        let after = after.map_err(told)?;
        let last = request.after_member.as_deref();
        let last = last
            .map(quorate_wire::member_id)
            .transpose()
            .map_err(told)?;
        let mut page = Page::default();
        let mut members = Vec::new();
        if after.is_none() {
            let from = last.map_or(Bound::Unbounded, Bound::Excluded);
            let others = group.members.range((from, Bound::Unbounded));
            let others = others.map(|(id, member)| described(&image, id, member));
            members.extend(page.take(others, prost::Message::encoded_len));
        }
        let offsets = if page.is_full() {
            Vec::new()
        } else {
            self.group_lag(&image, &id, group, after, &mut page).await
        };
        Ok(v1::DescribeGroupResponse {
            group: Some(summary(&image, &id, group)),
            members,
            offsets,
            more: page.is_full(),
        })
    }

    /// Partitions that are committed or owned, with their high watermarks as far as their leaders
    /// answer.
    async fn group_lag(
        &self,
        image: &MetadataImage,
        id: &GroupId,
        group: &Group,
        after: Option<TopicPartition>,
        page: &mut Page,
    ) -> Vec<v1::GroupOffset> {
        let committed = image.offsets(id);
        let mut topics: BTreeMap<TopicId, Vec<TopicPartition>> = BTreeMap::new();
        let mut all: Vec<TopicPartition> = committed.keys().copied().collect();
        all.extend(group.owners.keys().copied());
        all.retain(|at| after.is_none_or(|after| *at > after));
        all.sort();
        all.dedup();
        let all = page.take(all.into_iter(), |at| {
            let metadata = committed.get(at).map_or(0, |of| of.metadata.len());
            let name = image.topic(at.topic_id).map(|topic| topic.name.as_str());
            ROW + metadata + name.map_or(0, str::len)
        });
        for at in all {
            topics.entry(at.topic_id).or_default().push(at);
        }
        let of_topic = |(topic, partitions): (TopicId, Vec<TopicPartition>)| {
            let (committed, topic) = (&committed, image.topic(topic));
            async move {
                let Some(topic) = topic else {
                    return Vec::new();
                };
                let numbers = partitions.iter().map(|at| at.partition.to_signed());
                let known = self.high_watermarks(topic, numbers).await;
                let rows = partitions.iter().zip(known).map(|(at, high_watermark)| {
                    let committed = committed.get(at);
                    let next = committed.map(|committed| committed.offset.to_signed());
                    let lag = high_watermark.zip(next);
                    v1::GroupOffset {
                        topic: topic.name.to_string(),
                        topic_id: at.topic_id.as_bytes().to_vec().into(),
                        partition: at.partition.to_signed(),
                        committed: next,
                        high_watermark,
                        lag: lag.map(|(high, next)| high.saturating_sub(next).max(0)),
                        member_id: group.owners.get(at).map(ToString::to_string),
                        metadata: committed.map_or_else(String::new, |of| of.metadata.clone()),
                    }
                });
                rows.collect::<Vec<_>>()
            }
        };
        let rows = stream::iter(topics).map(of_topic).buffered(ASKED);
        rows.concat().await
    }
}
