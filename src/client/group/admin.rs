//! What can be asked about groups from outside, and changed where they have no members.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::ErrorCode;

use super::commit::{AT_ONCE, OffsetToCommit, until_taken};
use super::coordinator::Coordinator;
use super::start;
use crate::client::{Client, MESSAGE_BYTES, Patience};
use crate::error::ClientError;

/// One node is waited for so long: it may have to ask leaders.
const ONE_TRY: Duration = Duration::from_secs(12);

impl Client {
    fn coordinator(&self) -> (Coordinator, Patience) {
        let patience = Patience::new(self.options().call_timeout);
        (Coordinator::new(self.clone()), patience)
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// [`ClientError::Connection`] where no node answers.
    pub async fn list_groups(&self) -> Result<Vec<v1::GroupSummary>, ClientError> {
        let mut groups: Vec<v1::GroupSummary> = Vec::new();
        loop {
            let request = v1::ListGroupsRequest {
                after: groups.last().map(|group| group.group.clone()),
            };
            let page = self
                .call(true, |channel| {
                    let request = request.clone();
                    async move {
                        let mut client =
                            GroupsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                        client.list(request).await
                    }
                })
                .await?;
            // Whoever answers goes on behind, or the pages would never end.
            let further = page.groups.first().map(|group| &group.group) > request.after.as_ref();
            groups.extend(page.groups);
            if !page.more || !further {
                return Ok(groups);
            }
        }
    }

    /// A group's members, what they read, and how far the group is.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where there is none, [`ClientError::Unreachable`] where no node can be
    /// reached.
    pub async fn describe_group(
        &self,
        group: &str,
    ) -> Result<v1::DescribeGroupResponse, ClientError> {
        let (coordinator, mut patience) = self.coordinator();
        let mut request = v1::DescribeGroupRequest {
            group: group.to_owned(),
            ..v1::DescribeGroupRequest::default()
        };
        let call =
            |mut groups: GroupsClient<_>, request| async move { groups.describe(request).await };
        let mut told = coordinator
            .until(&request, ONE_TRY, &mut patience, call)
            .await?;
        while told.more {
            request.after_member = told.members.last().map(|last| last.member_id.clone());
            request.after_partition = told.offsets.last().map(|last| v1::PartitionPlace {
                topic_id: last.topic_id.clone(),
                partition: last.partition,
            });
            let page = coordinator
                .until(&request, ONE_TRY, &mut patience, call)
                .await?;
            // Whoever answers goes on behind, or the pages would never end.
            told.more = page.more && !(page.members.is_empty() && page.offsets.is_empty());
            told.members.extend(page.members);
            told.offsets.extend(page.offsets);
        }
        Ok(told)
    }

    /// Deletes a group without members, with its offsets.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let (coordinator, mut patience) = self.coordinator();
        let request = v1::DeleteGroupRequest {
            group: group.to_owned(),
        };
        let call =
            |mut groups: GroupsClient<_>, request| async move { groups.delete(request).await };
        match coordinator.once(&request, ONE_TRY, call).await {
            Ok(_) => Ok(()),
            Err(error) if !error.is_retriable() => Err(error),
            // It may be deleted: then there is none the next time.
            Err(_) => match coordinator
                .until(&request, ONE_TRY, &mut patience, call)
                .await
            {
                Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => Ok(()),
                decided => decided.map(|_| ()),
            },
        }
    }

    /// What a group has committed, as of all commits that were acknowledged before.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn committed_offsets(
        &self,
        group: &str,
    ) -> Result<Vec<v1::CommittedOffset>, ClientError> {
        let (coordinator, mut patience) = self.coordinator();
        start::committed(&coordinator, group, Vec::new(), &mut patience).await
    }

    /// Changes what a group has committed, from outside: only while it has no members. A group that
    /// does not exist comes to be.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason; where it is that of some partitions, the others are
    /// changed.
    pub async fn alter_offsets(
        &self,
        group: &str,
        offsets: &[OffsetToCommit],
    ) -> Result<(), ClientError> {
        let (coordinator, _) = self.coordinator();
        let mut ids = BTreeMap::new();
        for offset in offsets {
            if !ids.contains_key(&offset.topic) {
                let id = self.topic(&offset.topic).await?.id;
                ids.insert(offset.topic.clone(), id);
            }
        }
        let patience = self.options().call_timeout;
        for offsets in offsets.chunks(AT_ONCE) {
            let offsets = offsets
                .iter()
                .map(|offset| offset.to_proto(ids.get(&offset.topic).copied()));
            let mut request = v1::CommitOffsetsRequest {
                group: group.to_owned(),
                offsets: offsets.collect(),
                ..v1::CommitOffsetsRequest::default()
            };
            until_taken(&coordinator, &mut request, patience, |_| Ok(())).await?;
        }
        Ok(())
    }
}
