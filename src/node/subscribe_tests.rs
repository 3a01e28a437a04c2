//! Members through `Groups.Subscribe`, on three nodes in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_config::NodeSettings;
use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::subscribe_request::Message as Ask;
use quorate_proto::v1::subscribe_response::Message as Told;
use quorate_types::{Endpoint, NodeId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::group_tests::{commit_of, committed, describe, groups, profile, short};
use crate::overload_tests::fetch_bytes;
use crate::tests::{
    DEADLINE, create, create_of, eventually, plan, produce, start_some, start_with, stop, url,
};

/// A client of `Subscribe`.
pub(crate) struct Subscribed {
    asks: mpsc::Sender<v1::SubscribeRequest>,
    told: Streaming<v1::SubscribeResponse>,
    has: BTreeSet<i32>,
    /// What came, with its partition and offset.
    records: BTreeMap<(i32, i64), String>,
    committed: Vec<v1::subscribe_response::Committed>,
    /// How often it was told that it has joined, and that something is lost.
    joined: usize,
    lost: usize,
    lost_topics: Vec<String>,
    /// Why reading was interrupted, and where it went on.
    interrupted: Vec<(String, Option<i64>)>,
}

impl Subscribed {
    pub(crate) async fn join(at: &Endpoint, join: v1::subscribe_request::Join) -> Self {
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
            lost_topics: Vec::new(),
            interrupted: Vec::new(),
        }
    }

    pub(crate) async fn ask(&self, message: Ask) {
        let message = Some(message);
        self.asks
            .send(v1::SubscribeRequest { message })
            .await
            .unwrap();
    }

    /// Takes the next message; gives back what it takes, and gives up what is revoked.
    pub(crate) async fn next(&mut self, auto_commit: bool) -> Result<(), Status> {
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
                let topics = lost.partitions.iter().map(|of| of.topic.clone());
                self.lost_topics.extend(topics);
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
            Told::Interrupted(why) => self.interrupted.push((why.reason, why.next)),
        }
        Ok(())
    }
}

pub(crate) fn join(auto_commit: bool) -> v1::subscribe_request::Join {
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
        settings.receive_timeout = Duration::from_secs(3);
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
        // A record a response.
        max_bytes: 64 << 10,
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
    // On the wire, on its way there, and next.
    eventually("all that it has not taken is counted", async || {
        let used = fetch_bytes(&running[0]).used;
        (used > 3 * large.len())
            .then_some(())
            .ok_or(format!("{used} bytes"))
    })
    .await;
    eventually("its member is gone", async || {
        let members = describe(at).await?.members.len();
        (members == 0)
            .then_some(())
            .ok_or(format!("{members} members"))
    })
    .await;
    eventually("what it has not taken takes no room", async || {
        let used = fetch_bytes(&running[0]).used;
        (used == 0).then_some(()).ok_or(format!("{used} bytes"))
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

/// Of each refusal the partition and the reason.
fn refusals(committed: &v1::subscribe_response::Committed) -> Vec<(i32, &str)> {
    let each = committed.refused.iter();
    each.map(|of| (of.partition, of.reason.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_of_what_was_sent_in_this_call_and_of_no_topic_of_before() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), short).await;
    let at = &plan[0].1;
    let first = eventually("a topic is created", || create_of(at, 1, 1)).await;
    for value in ["a", "b", "c"] {
        eventually("a record is taken", || produce(at, 0, value)).await;
    }
    let mut member = Subscribed::join(at, join(false)).await;
    while member.records.len() < 3 {
        member.next(false).await.unwrap();
    }
    let commit = |request_id, offset| {
        let offsets = vec![commit_of(0, offset)];
        Ask::Commit(v1::subscribe_request::Commit {
            request_id,
            offsets,
        })
    };
    member.ask(commit(1, 4)).await;
    member.ask(commit(2, 3)).await;
    while member.committed.len() < 2 {
        member.next(false).await.unwrap();
    }
    member.committed.sort_by_key(|of| of.request_id);
    assert_eq!(refusals(&member.committed[0]), [(0, "OFFSET_OUT_OF_RANGE")]);
    assert_eq!(refusals(&member.committed[1]), []);
    assert_eq!(committed(at).await.unwrap(), [(0, 3)].into());

    // Another topic of that name: what the client was sent of the first says nothing of it.
    let mut admin = AdminClient::connect(url(at)).await.unwrap();
    let delete = v1::DeleteTopicRequest {
        name: "t".to_owned(),
    };
    admin.delete_topic(delete).await.unwrap();
    let second = eventually("a topic is created anew", || create_of(at, 1, 1)).await;
    assert_ne!(first.topic_id, second.topic_id);
    while member.lost == 0 || member.has.is_empty() {
        member.next(false).await.unwrap();
    }
    assert_eq!(member.lost_topics, ["t"], "by its name, though it is gone");
    member.ask(commit(3, 3)).await;
    while member.committed.len() < 3 {
        member.next(false).await.unwrap();
    }
    assert_eq!(refusals(&member.committed[2]), [(0, "OFFSET_OUT_OF_RANGE")]);
    assert_eq!(committed(at).await.unwrap(), BTreeMap::new());
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_before_the_member_leaves_is_answered() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), short).await;
    let at = &plan[0].1;
    eventually("a topic is created", || create_of(at, 1, 1)).await;
    for turn in 1..=5 {
        eventually("a record is taken", || produce(at, 0, "a")).await;
        let mut member = Subscribed::join(at, join(false)).await;
        while member.records.is_empty() {
            member.next(false).await.unwrap();
        }
        let offsets = vec![commit_of(0, turn)];
        member
            .ask(Ask::Commit(v1::subscribe_request::Commit {
                request_id: 1,
                offsets,
            }))
            .await;
        member
            .ask(Ask::Leave(v1::subscribe_request::Leaving {}))
            .await;
        while member.committed.is_empty() {
            member.next(false).await.unwrap();
        }
        assert_eq!(committed(at).await.unwrap(), [(0, turn)].into());
        let ended = timeout(DEADLINE, member.told.message()).await.unwrap();
        assert_eq!(ended.unwrap(), None);
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_offset_that_is_not_there_interrupts_one_partition_and_no_other() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), short).await;
    let at = &plan[0].1;
    eventually("a topic is created", || create_of(at, 2, 1)).await;
    for partition in [0, 1] {
        eventually("a record is taken", || produce(at, partition, "a")).await;
    }
    // From outside, beyond the end.
    let request = v1::CommitOffsetsRequest {
        group: "g".to_owned(),
        offsets: vec![commit_of(0, 1_000)],
        ..Default::default()
    };
    let mut client = groups(at).await.unwrap();
    client.commit_offsets(request).await.unwrap();
    let mut member = Subscribed::join(at, join(true)).await;
    while member.records.len() < 2 {
        member.next(true).await.unwrap();
    }
    let expected = ("OFFSET_OUT_OF_RANGE".to_owned(), Some(0));
    assert_eq!(member.interrupted, [expected]);
    // The place that it went on from is what is committed in the end.
    let done = async || match committed(at).await? {
        offsets if offsets == [(0, 1), (1, 1)].into() => Ok(()),
        offsets => Err(format!("{offsets:?}")),
    };
    eventually("both are committed", done).await;
    stop(running).await;
}
