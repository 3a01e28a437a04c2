//! Consumer groups on three nodes in one process: heartbeats, commits and what can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_config::NodeSettings;
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::subscribe_request::Message as Ask;
use quorate_types::{Endpoint, ErrorCode, NodeId};
use tonic::Status;
use tonic::transport::Channel;

use crate::subscribe_tests::{Subscribed, join};
use crate::tests::{create, eventually, plan, start_with, stop, url};

pub(crate) fn short(settings: &mut NodeSettings) {
    settings.group_heartbeat_interval = Duration::from_millis(500);
    settings.group_session_timeout_min = Duration::from_millis(500);
    settings.group_session_timeout = Duration::from_secs(6);
}

pub(crate) async fn groups(at: &Endpoint) -> Result<GroupsClient<Channel>, String> {
    GroupsClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())
}

pub(crate) fn profile() -> v1::MemberProfile {
    v1::MemberProfile {
        topics: vec!["t".to_owned()],
        client_id: "test".to_owned(),
        ..Default::default()
    }
}

/// A member that fetches by itself.
struct Member {
    id: String,
    epoch: u32,
    has: BTreeSet<i32>,
    topic_id: Vec<u8>,
}

impl Member {
    fn new(id: &str, topic: &v1::TopicDescription) -> Self {
        Self {
            id: id.to_owned(),
            epoch: 0,
            has: BTreeSet::new(),
            topic_id: topic.topic_id.to_vec(),
        }
    }

    fn beat(&self) -> v1::HeartbeatRequest {
        v1::HeartbeatRequest {
            group: "g".to_owned(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            profile: (self.epoch == 0).then(profile),
            owned: vec![v1::TopicPartitions {
                topic: "t".to_owned(),
                topic_id: self.topic_id.clone().into(),
                partitions: self.has.iter().copied().collect(),
            }],
            ..Default::default()
        }
    }

    /// Sends a heartbeat, and has at once what it is to have.
    async fn heartbeat(&mut self, at: &Endpoint) -> Result<(), String> {
        let answer = groups(at).await?.heartbeat(self.beat()).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        self.epoch = answer.member_epoch;
        let assigned = answer.assigned.iter().flat_map(|of| &of.partitions);
        self.has = assigned.copied().collect();
        Ok(())
    }
}

pub(crate) fn commit_of(partition: i32, offset: i64) -> v1::OffsetToCommit {
    v1::OffsetToCommit {
        topic: "t".to_owned(),
        partition,
        offset: Some(offset),
        ..Default::default()
    }
}

pub(crate) async fn committed(at: &Endpoint) -> Result<BTreeMap<i32, i64>, String> {
    let request = v1::FetchOffsetsRequest {
        group: "g".to_owned(),
        ..Default::default()
    };
    let answer = groups(at).await?.fetch_offsets(request).await;
    let offsets = answer
        .map_err(|status| status.to_string())?
        .into_inner()
        .offsets;
    Ok(offsets
        .into_iter()
        .map(|of| (of.partition, of.offset))
        .collect())
}

pub(crate) async fn describe(at: &Endpoint) -> Result<v1::DescribeGroupResponse, String> {
    let request = v1::DescribeGroupRequest {
        group: "g".to_owned(),
        ..Default::default()
    };
    let answer = groups(at).await?.describe(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status.to_string())
}

pub(crate) fn code(status: &Status) -> ErrorCode {
    quorate_rpc::from_status(status).unwrap().code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_partitions_and_commits_survive_the_stop_of_the_coordinator() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let mut running = start_with(&plan, root.path(), short).await;
    let at: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    let topic = eventually("a topic is created", || create(at[0])).await;
    let (mut first, mut second) = (Member::new("a", &topic), Member::new("b", &topic));
    eventually("the first member has all", async || {
        first.heartbeat(at[0]).await?;
        (first.has.len() == 6)
            .then_some(())
            .ok_or("not yet".to_owned())
    })
    .await;
    eventually("two members share the partitions", async || {
        first.heartbeat(at[0]).await?;
        second.heartbeat(at[1]).await?;
        let both = first.has.union(&second.has).count();
        let shared = first.has.len() == 3 && second.has.len() == 3 && both == 6;
        shared
            .then_some(())
            .ok_or(format!("{:?} {:?}", first.has, second.has))
    })
    .await;
    let own = *first.has.first().unwrap();
    let other = *second.has.first().unwrap();
    let request = v1::CommitOffsetsRequest {
        group: "g".to_owned(),
        member_id: Some("a".to_owned()),
        member_epoch: first.epoch,
        commit_seq: Some(1),
        offsets: vec![commit_of(own, 7), commit_of(other, 8), commit_of(99, 9)],
        ..Default::default()
    };
    let answer = groups(at[2]).await.unwrap().commit_offsets(request).await;
    let refused = answer.unwrap().into_inner().refused;
    let refused: BTreeMap<i32, String> = refused
        .into_iter()
        .map(|of| (of.partition, of.reason))
        .collect();
    let expected = [
        (other, "PARTITION_NOT_OWNED".to_owned()),
        (99, "UNKNOWN_TOPIC_OR_PARTITION".to_owned()),
    ];
    assert_eq!(refused, expected.into());
    for node in &at {
        assert_eq!(committed(node).await.unwrap(), [(own, 7)].into());
    }
    let (described, row) = eventually("the leader says how far it is", async || {
        let described = describe(at[1]).await?;
        let mut rows = described.offsets.iter();
        let row = rows.find(|of| of.partition == own).cloned();
        let row = row.filter(|row| row.high_watermark.is_some());
        Ok((described, row.ok_or("no high watermark")?))
    })
    .await;
    assert_eq!(described.members.len(), 2);
    assert_eq!((row.committed, row.high_watermark), (Some(7), Some(0)));
    assert_eq!(row.member_id.as_deref(), Some("a"));
    let coordinator = NodeId::new(described.group.unwrap().coordinator.unwrap());
    let place = plan.iter().position(|(id, ..)| *id == coordinator).unwrap();
    stop(vec![running.remove(place)]).await;
    let left: Vec<&Endpoint> = at
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != place)
        .map(|(_, at)| *at)
        .collect();
    let epoch = first.epoch;
    eventually("another node coordinates", async || {
        first.heartbeat(left[0]).await?;
        let offsets = committed(left[1]).await?;
        (offsets == [(own, 7)].into())
            .then_some(())
            .ok_or(format!("{offsets:?}"))
    })
    .await;
    assert!(
        first.epoch >= epoch && first.has.len() == 3,
        "it is a member all the time"
    );
    // An older commit that comes late changes nothing.
    for (seq, offset) in [(3, 30), (2, 20)] {
        let request = v1::CommitOffsetsRequest {
            group: "g".to_owned(),
            member_id: Some("a".to_owned()),
            member_epoch: first.epoch,
            commit_seq: Some(seq),
            offsets: vec![commit_of(own, offset)],
            ..Default::default()
        };
        let answer = groups(left[1]).await.unwrap().commit_offsets(request).await;
        assert_eq!(answer.unwrap().into_inner().refused, []);
    }
    assert_eq!(committed(left[0]).await.unwrap(), [(own, 30)].into());
    let delete = || v1::DeleteGroupRequest {
        group: "g".to_owned(),
    };
    let refused = groups(left[0])
        .await
        .unwrap()
        .delete(delete())
        .await
        .unwrap_err();
    assert_eq!(code(&refused), ErrorCode::NonEmptyGroup);
    for member in [&first, &second] {
        let leave = v1::HeartbeatRequest {
            leave: v1::Leave::ForGood.into(),
            ..member.beat()
        };
        groups(left[0])
            .await
            .unwrap()
            .heartbeat(leave)
            .await
            .unwrap();
    }
    groups(left[1])
        .await
        .unwrap()
        .delete(delete())
        .await
        .unwrap();
    eventually("the group is gone", async || {
        let offsets = committed(left[0]).await?;
        let listed = groups(left[1])
            .await?
            .list(v1::ListGroupsRequest::default())
            .await;
        let listed = listed
            .map_err(|status| status.to_string())?
            .into_inner()
            .groups;
        let gone = offsets.is_empty() && listed.is_empty();
        gone.then_some(()).ok_or(format!("{offsets:?} {listed:?}"))
    })
    .await;
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_about_groups_that_are_wrong_are_told_so_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), short).await;
    let at = &plan[0].1;
    let topic = eventually("a topic is created", || crate::tests::create_of(at, 6, 1)).await;
    let mut member = Member::new("a", &topic);
    let mut client = groups(at).await.unwrap();
    let joins = |change: fn(&mut v1::HeartbeatRequest)| {
        let mut beat = Member::new("x", &topic).beat();
        change(&mut beat);
        beat
    };
    type Change = fn(&mut v1::HeartbeatRequest);
    let wrong: [(Change, ErrorCode); 10] = [
        (|beat| beat.group.clear(), ErrorCode::InvalidGroupId),
        (
            |beat| beat.member_id = "a\n".to_owned(),
            ErrorCode::InvalidRequest,
        ),
        (|beat| beat.profile = None, ErrorCode::InvalidRequest),
        (|beat| beat.leave = 9, ErrorCode::InvalidRequest),
        (|beat| beat.member_epoch = 3, ErrorCode::UnknownMemberId),
        (
            |beat| beat.owned[0].topic_id = vec![1].into(),
            ErrorCode::InvalidRequest,
        ),
        (
            |beat| beat.profile.as_mut().unwrap().topics.clear(),
            ErrorCode::InvalidRequest,
        ),
        (
            |beat| beat.profile.as_mut().unwrap().topics[0] = "/".to_owned(),
            ErrorCode::InvalidTopic,
        ),
        (
            |beat| beat.profile.as_mut().unwrap().session_timeout_ms = 1,
            ErrorCode::InvalidRequest,
        ),
        (
            |beat| beat.profile.as_mut().unwrap().assignor = 7,
            ErrorCode::UnsupportedAssignor,
        ),
    ];
    eventually("the node coordinates", || async {
        let refused = groups(at)
            .await?
            .heartbeat(joins(|beat| beat.profile = None))
            .await;
        let refused = refused.unwrap_err();
        (code(&refused) == ErrorCode::InvalidRequest)
            .then_some(())
            .ok_or(refused.to_string())
    })
    .await;
    for (change, expected) in wrong {
        let beat = joins(change);
        let refused = client.heartbeat(beat.clone()).await.unwrap_err();
        assert_eq!(code(&refused), expected, "{beat:?}");
    }
    let unknown = describe(at).await.unwrap_err();
    assert!(unknown.contains("there is no group g"), "{unknown}");
    eventually("a member joins", async || member.heartbeat(at).await).await;
    let commit = |offsets: Vec<v1::OffsetToCommit>| v1::CommitOffsetsRequest {
        group: "g".to_owned(),
        member_id: Some("a".to_owned()),
        member_epoch: member.epoch,
        offsets,
        ..Default::default()
    };
    let long = v1::OffsetToCommit {
        metadata: "x".repeat(4_097),
        ..commit_of(1, 1)
    };
    let other = v1::OffsetToCommit {
        topic_id: Some(vec![9; 16].into()),
        ..commit_of(1, 1)
    };
    for (offsets, expected) in [
        (vec![], ErrorCode::InvalidRequest),
        (
            vec![commit_of(0, 1), commit_of(0, 2)],
            ErrorCode::InvalidRequest,
        ),
        (
            vec![commit_of(0, 1), commit_of(-1, 2)],
            ErrorCode::InvalidRequest,
        ),
        (
            vec![commit_of(0, 1), commit_of(1, -1)],
            ErrorCode::OffsetOutOfRange,
        ),
        (
            vec![commit_of(0, 1), long],
            ErrorCode::OffsetMetadataTooLarge,
        ),
        (vec![commit_of(0, 1); 10_001], ErrorCode::InvalidRequest),
    ] {
        let refused = client.commit_offsets(commit(offsets)).await.unwrap_err();
        assert_eq!(code(&refused), expected);
    }
    let answer = client
        .commit_offsets(commit(vec![other]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.refused[0].reason, "INCONSISTENT_TOPIC_ID");
    let outside = v1::CommitOffsetsRequest {
        member_id: None,
        ..commit(vec![commit_of(0, 1)])
    };
    let refused = client.commit_offsets(outside).await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::NonEmptyGroup);
    let stranger = v1::CommitOffsetsRequest {
        member_id: Some("b".to_owned()),
        ..commit(vec![commit_of(0, 1)])
    };
    let refused = client.commit_offsets(stranger).await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::UnknownMemberId);
    assert_eq!(committed(at).await.unwrap(), BTreeMap::new());
    // A subscription that begins with something else, and one that gives back what it never got.
    let credit = Ask::Credit(v1::subscribe_request::Credit { bytes: 1 });
    let message = Some(credit.clone());
    let stream = tokio_stream::iter([v1::SubscribeRequest { message }]);
    let told = client.subscribe(stream).await.unwrap();
    let refused = told.into_inner().message().await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::InvalidRequest);
    let mut subscribed = Subscribed::join(at, join(false)).await;
    subscribed.ask(credit).await;
    let refused = loop {
        if let Err(refused) = subscribed.next(false).await {
            break refused;
        }
    };
    assert_eq!(code(&refused), ErrorCode::InvalidRequest);
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commits_at_a_time_are_few_entries_of_the_metadata_log() {
    const GROUPS: i64 = 300;
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), short).await;
    let at = &plan[0].1;
    eventually("a topic is created", || crate::tests::create_of(at, 6, 1)).await;
    let applied = async || {
        let mut client = ClusterClient::connect(url(at)).await.unwrap();
        let request = v1::DescribePartitionsRequest {
            topic: "t".to_owned(),
            ..Default::default()
        };
        let answer = client.describe_partitions(request).await.unwrap();
        answer.into_inner().applied_index
    };
    let client = groups(at).await.unwrap();
    let commit = |number: i64| {
        let mut client = client.clone();
        let request = v1::CommitOffsetsRequest {
            group: format!("g{number}"),
            offsets: (0..6).map(|at| commit_of(at, number)).collect(),
            ..Default::default()
        };
        async move { client.commit_offsets(request).await }
    };
    eventually("the node coordinates", async || {
        let answer = commit(0).await;
        answer.map(|_| ()).map_err(|status| status.to_string())
    })
    .await;
    let before = applied().await;
    for answer in futures::future::join_all((0..GROUPS).map(commit)).await {
        assert_eq!(answer.unwrap().into_inner().refused, []);
    }
    let entries = applied().await - before;
    println!("{GROUPS} commits of 6 offsets are {entries} entries");
    assert!(entries < GROUPS / 2, "{entries} entries");
    for number in [0, GROUPS - 1] {
        let request = v1::FetchOffsetsRequest {
            group: format!("g{number}"),
            ..Default::default()
        };
        let answer = client.clone().fetch_offsets(request).await.unwrap();
        let offsets = answer.into_inner().offsets;
        let offsets: Vec<i64> = offsets.iter().map(|of| of.offset).collect();
        assert_eq!(offsets, [number; 6]);
    }
    stop(running).await;
}
