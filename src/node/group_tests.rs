//! Consumer groups on three nodes in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_config::NodeSettings;
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::subscribe_request::Message as Ask;
use quorate_proto::v1::subscribe_response::Message as Told;
use quorate_types::{Endpoint, ErrorCode, NodeId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::tests::{
    DEADLINE, create, eventually, plan, produce, start_some, start_with, stop, url,
};

fn short(settings: &mut NodeSettings) {
    settings.group_heartbeat_interval = Duration::from_millis(500);
    settings.group_session_timeout_min = Duration::from_millis(500);
    settings.group_session_timeout = Duration::from_secs(6);
}

async fn groups(at: &Endpoint) -> Result<GroupsClient<Channel>, String> {
    GroupsClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())
}

fn profile() -> v1::MemberProfile {
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

fn commit_of(partition: i32, offset: i64) -> v1::OffsetToCommit {
    v1::OffsetToCommit {
        topic: "t".to_owned(),
        partition,
        offset: Some(offset),
        ..Default::default()
    }
}

async fn committed(at: &Endpoint) -> Result<BTreeMap<i32, i64>, String> {
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

async fn describe(at: &Endpoint) -> Result<v1::DescribeGroupResponse, String> {
    let request = v1::DescribeGroupRequest {
        group: "g".to_owned(),
    };
    let answer = groups(at).await?.describe(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status.to_string())
}

fn code(status: &Status) -> ErrorCode {
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
    let described = describe(at[1]).await.unwrap();
    assert_eq!(described.members.len(), 2);
    let row = described
        .offsets
        .iter()
        .find(|of| of.partition == own)
        .unwrap();
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

/// A client of `Subscribe`.
struct Subscribed {
    asks: mpsc::Sender<v1::SubscribeRequest>,
    told: Streaming<v1::SubscribeResponse>,
    has: BTreeSet<i32>,
    /// What came, with its partition and offset.
    records: BTreeMap<(i32, i64), String>,
    committed: Vec<v1::subscribe_response::Committed>,
    /// How often it was told that it has joined, and that something is lost.
    joined: usize,
    lost: usize,
}

impl Subscribed {
    async fn join(at: &Endpoint, join: v1::subscribe_request::Join) -> Self {
        let (asks, stream) = mpsc::channel(16);
        let message = Some(Ask::Join(join));
        asks.send(v1::SubscribeRequest { message }).await.unwrap();
        let mut client = groups(at).await.unwrap();
        let told = client.subscribe(ReceiverStream::new(stream)).await.unwrap();
        Self {
            asks,
            told: told.into_inner(),
            has: BTreeSet::new(),
            records: BTreeMap::new(),
            committed: Vec::new(),
            joined: 0,
            lost: 0,
        }
    }

    async fn ask(&self, message: Ask) {
        let message = Some(message);
        self.asks
            .send(v1::SubscribeRequest { message })
            .await
            .unwrap();
    }

    /// Takes the next message; gives back what it takes, and gives up what is revoked.
    async fn next(&mut self, auto_commit: bool) -> Result<(), Status> {
        let next = timeout(DEADLINE, self.told.message()).await;
        let next = next.expect("a message comes in time")?;
        let numbers = |topics: &[v1::TopicPartitions]| -> BTreeSet<i32> {
            topics.iter().flat_map(|of| of.partitions.clone()).collect()
        };
        match next.expect("the call goes on").message.unwrap() {
            Told::Joined(_) => self.joined += 1,
            Told::Assigned(assigned) => {
                let numbers = assigned.partitions.iter().map(|of| of.partition);
                self.has.extend(numbers);
            }
            Told::Revoked(revoked) => {
                let gone = numbers(&revoked.partitions);
                self.has.retain(|number| !gone.contains(number));
                if !auto_commit {
                    let partitions = revoked.partitions;
                    let give_up = v1::subscribe_request::GiveUp { partitions };
                    self.ask(Ask::GiveUp(give_up)).await;
                }
            }
            Told::Lost(lost) => {
                self.lost += 1;
                let gone = numbers(&lost.partitions);
                self.has.retain(|number| !gone.contains(number));
            }
            Told::Records(records) => {
                let of = records.records.unwrap();
                assert!(
                    self.has.contains(&of.partition),
                    "{} is not ours",
                    of.partition
                );
                for record in of.records {
                    let value = record.value.unwrap_or_default();
                    let value = String::from_utf8_lossy(&value).into_owned();
                    let twice = self.records.insert((of.partition, record.offset), value);
                    assert_eq!(twice, None, "a record comes once");
                }
                let bytes = records.bytes;
                self.ask(Ask::Credit(v1::subscribe_request::Credit { bytes }))
                    .await;
            }
            Told::Committed(committed) => self.committed.push(committed),
        }
        Ok(())
    }
}

fn join(auto_commit: bool) -> v1::subscribe_request::Join {
    v1::subscribe_request::Join {
        group: "g".to_owned(),
        profile: Some(profile()),
        start: v1::Position::Earliest.into(),
        auto_commit,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_delivers_commits_and_shares_with_the_next() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), short).await;
    let at: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    eventually("a topic is created", || create(at[0])).await;
    for partition in 0..6 {
        for turn in 0..2 {
            let value = format!("{partition}/{turn}");
            eventually("a record is taken", || produce(at[0], partition, &value)).await;
        }
    }
    let mut first = Subscribed::join(at[0], join(true)).await;
    while first.records.len() < 12 {
        first.next(true).await.unwrap();
    }
    // The second commits by itself, at another node.
    let mut second = Subscribed::join(at[1], join(false)).await;
    while second.has.len() < 3 {
        tokio::select! {
            told = first.next(true) => told.unwrap(),
            told = second.next(false) => told.unwrap(),
        }
    }
    assert_eq!(first.has.len(), 3);
    assert_eq!(
        second.records.len(),
        0,
        "what the first was done with is committed"
    );
    let theirs: Vec<i32> = second.has.iter().copied().collect();
    for partition in &theirs {
        eventually("a record is taken", || produce(at[2], *partition, "third")).await;
    }
    while second.records.len() < 3 {
        second.next(false).await.unwrap();
    }
    let offsets = theirs
        .iter()
        .map(|partition| commit_of(*partition, 3))
        .collect();
    let commit = v1::subscribe_request::Commit {
        request_id: 7,
        offsets,
    };
    second.ask(Ask::Commit(commit)).await;
    while second.committed.is_empty() {
        second.next(false).await.unwrap();
    }
    let answer = v1::subscribe_response::Committed {
        request_id: 7,
        refused: vec![],
    };
    assert_eq!(second.committed, [answer]);
    let offsets = committed(at[0]).await.unwrap();
    let expected =
        (0..6).map(|partition| (partition, if theirs.contains(&partition) { 3 } else { 2 }));
    assert_eq!(offsets, expected.collect());
    // Its call ends: the first has all again.
    drop(second);
    while first.has.len() < 6 {
        first.next(true).await.unwrap();
    }
    first
        .ask(Ask::Leave(v1::subscribe_request::Leaving {}))
        .await;
    assert!(
        timeout(DEADLINE, first.told.message())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
    let described = describe(at[2]).await.unwrap();
    assert_eq!(described.members, []);
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

/// Takes messages until it has been told enough.
async fn until_told(
    subscribed: &mut Subscribed,
    auto_commit: bool,
    mut enough: impl FnMut(&Subscribed) -> bool,
) {
    while !enough(subscribed) {
        subscribed.next(auto_commit).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_goes_on_without_its_coordinator_and_joins_anew_after_its_session() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let brief = |settings: &mut NodeSettings| {
        short(settings);
        settings.shutdown_timeout = Duration::from_secs(1);
    };
    let mut running = start_with(&plan, root.path(), brief).await;
    let at: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    eventually("a topic is created", || create(at[0])).await;
    // Somebody outside commits: there is a group, and it has a coordinator.
    let outside = || v1::CommitOffsetsRequest {
        group: "g".to_owned(),
        offsets: vec![commit_of(0, 0)],
        ..Default::default()
    };
    eventually("an offset is committed", async || {
        let answer = groups(at[0]).await?.commit_offsets(outside()).await;
        answer.map(|_| ()).map_err(|status| status.to_string())
    })
    .await;
    let described = describe(at[0]).await.unwrap();
    let coordinator = NodeId::new(described.group.unwrap().coordinator.unwrap());
    let place = plan.iter().position(|(id, ..)| *id == coordinator).unwrap();
    let here = at[(place + 1) % 3];
    let mut static_join = join(true);
    let profile = static_join.profile.as_mut().unwrap();
    profile.instance_id = Some("one".to_owned());
    profile.session_timeout_ms = 4_000;
    let mut first = Subscribed::join(here, static_join.clone()).await;
    until_told(&mut first, true, |first| first.has.len() == 6).await;
    stop(vec![running.remove(place)]).await;
    for partition in 0..6 {
        eventually("a record is taken", || produce(here, partition, "first")).await;
    }
    until_told(&mut first, true, |first| first.records.len() == 6).await;
    eventually("all is committed", async || {
        let offsets = committed(here).await?;
        let all = (0..6)
            .map(|partition| (partition, 1))
            .collect::<BTreeMap<_, _>>();
        (offsets == all).then_some(()).ok_or(format!("{offsets:?}"))
    })
    .await;
    assert_eq!((first.joined, first.lost), (1, 0), "it has not noticed");
    // Its client comes back under its instance id, at the other node, before the session is over.
    drop(first);
    let there = at[(place + 2) % 3];
    let mut second = Subscribed::join(there, static_join).await;
    until_told(&mut second, true, |second| second.has.len() == 6).await;
    assert_eq!(second.records.len(), 0);
    // Without a quorum nobody says that it is a member still.
    let other = running
        .iter()
        .position(|node| node.id != node_at(&plan, there))
        .unwrap();
    let gone = node_at(&plan, here);
    stop(vec![running.remove(other)]).await;
    until_told(&mut second, true, |second| second.lost > 0).await;
    assert_eq!(second.has.len(), 0);
    let again: Vec<_> = plan
        .iter()
        .filter(|(id, ..)| *id == gone)
        .cloned()
        .collect();
    running.extend(start_some(&plan, &again, root.path(), brief).await);
    until_told(&mut second, true, |second| {
        second.joined == 2 && second.has.len() == 6
    })
    .await;
    stop(running).await;
}

fn node_at(plan: &[(NodeId, Endpoint, Endpoint)], at: &Endpoint) -> NodeId {
    plan.iter().find(|(_, client, _)| client == at).unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_whose_client_reads_nothing_is_ended_and_its_member_leaves() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let impatient = |settings: &mut NodeSettings| {
        short(settings);
        settings.receive_timeout = Duration::from_secs(1);
    };
    let running = start_with(&plan, root.path(), impatient).await;
    let at = &plan[0].1;
    eventually("a topic is created", || crate::tests::create_of(at, 1, 1)).await;
    let large = "x".repeat(128 << 10);
    for _ in 0..40 {
        eventually("a record is taken", || produce(at, 0, &large)).await;
    }
    let channel = Channel::from_shared(url(at)).unwrap();
    let channel = channel
        .initial_stream_window_size(64 << 10)
        .connect()
        .await
        .unwrap();
    let (asks, stream) = mpsc::channel(16);
    let greedy = v1::subscribe_request::Join {
        credit_bytes: 32 << 20,
        ..join(false)
    };
    let message = Some(Ask::Join(greedy));
    asks.send(v1::SubscribeRequest { message }).await.unwrap();
    let told = GroupsClient::new(channel)
        .subscribe(ReceiverStream::new(stream))
        .await;
    let mut told = told.unwrap().into_inner();
    eventually("it is a member", async || {
        let members = describe(at).await?.members.len();
        (members == 1)
            .then_some(())
            .ok_or(format!("{members} members"))
    })
    .await;
    eventually("its member is gone", async || {
        let members = describe(at).await?.members.len();
        (members == 0)
            .then_some(())
            .ok_or(format!("{members} members"))
    })
    .await;
    let ended = loop {
        match timeout(DEADLINE, told.message()).await.unwrap() {
            Ok(message) => assert!(message.is_some(), "it says why it ends"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::DeadlineExceeded, "{ended}");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_partition_begins_is_committed_and_members_of_a_node_that_stops_leave() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let mut running = start_with(&plan, root.path(), |_| {}).await;
    let at: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    eventually("a topic is created", || create(at[0])).await;
    for partition in 0..6 {
        eventually("a record is taken", || produce(at[0], partition, "before")).await;
    }
    let latest = v1::subscribe_request::Join {
        start: v1::Position::Latest.into(),
        ..join(true)
    };
    let mut first = Subscribed::join(at[2], latest.clone()).await;
    until_told(&mut first, true, |first| first.has.len() == 6).await;
    let begun = async || {
        let offsets = committed(at[0]).await?;
        let all = (0..6)
            .map(|partition| (partition, 1))
            .collect::<BTreeMap<_, _>>();
        (offsets == all).then_some(()).ok_or(format!("{offsets:?}"))
    };
    eventually("the places are committed", begun).await;
    // Sessions last longer than this test waits.
    stop(vec![running.pop().unwrap()]).await;
    let ended = loop {
        if let Err(status) = first.next(true).await {
            break status;
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended}");
    for partition in 0..6 {
        eventually("a record is taken", || produce(at[0], partition, "between")).await;
    }
    let mut second = Subscribed::join(at[1], latest).await;
    until_told(&mut second, true, |second| second.records.len() == 6).await;
    let values: BTreeSet<&str> = second.records.values().map(String::as_str).collect();
    assert_eq!(values, ["between"].into());
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
