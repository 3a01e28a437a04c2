//! A member of a group against a coordinator of the test.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod fake;

use std::time::Duration;

use fake::groups::{Fate, Group, Told};
use fake::log::Log;
use fake::{DEADLINE, EPOCH, Known, LEADER, client_of};
use quorate_client::{
    Client, ClientError, ClientOptions, Consumed, GroupConsumer, GroupEvent, GroupOptions,
    OffsetToCommit, StartPosition,
};
use quorate_proto::v1;
use quorate_types::{Endpoint, ErrorCode, Offset, PartitionId};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::TcpListenerStream;

const PARTITIONS: usize = 3;
/// A heartbeat that waits for it makes a test fail.
const LONG: Duration = Duration::from_secs(60);

struct Cluster {
    log: Log,
    group: Group,
    ports: Vec<u16>,
}

/// Some nodes, the first of which leads all partitions and coordinates the group.
async fn cluster(nodes: usize, interval: Duration, session: Duration) -> Cluster {
    let (log, group) = (Log::new(), Group::new(interval, session));
    let mut ports = Vec::new();
    for _ in 0..nodes {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        ports.push(port);
        let known = Known {
            node: LEADER,
            leader_port: ports[0],
            partitions: PARTITIONS,
        };
        let server = tonic::transport::Server::builder()
            .add_service(known.service())
            .add_service(log.service())
            .add_service(group.service(port))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
    }
    group.change(|state| state.coordinator = ports[0]);
    Cluster { log, group, ports }
}

impl Cluster {
    fn options(&self) -> GroupOptions {
        GroupOptions {
            start: StartPosition::Earliest,
            auto_commit: None,
            ..GroupOptions::new("g", ["t"])
        }
    }

    fn join(&self, options: GroupOptions) -> GroupConsumer {
        client_of(self.ports[0]).group(options).unwrap()
    }
}

async fn next(consumer: &mut GroupConsumer) -> GroupEvent {
    let polled = timeout(DEADLINE, consumer.poll()).await;
    polled.expect("something happens").unwrap()
}

async fn records(consumer: &mut GroupConsumer) -> Consumed {
    loop {
        match next(consumer).await {
            GroupEvent::Records(read) if read.records.is_empty() => {}
            GroupEvent::Records(read) => return read,
            other => panic!("{other:?}"),
        }
    }
}

/// The partitions and offsets of the next assignment.
async fn assigned(consumer: &mut GroupConsumer) -> Vec<(u32, u64)> {
    match next(consumer).await {
        GroupEvent::Assigned(assigned) => {
            let each = assigned.iter();
            each.map(|of| (of.partition.get(), of.offset.get()))
                .collect()
        }
        other => panic!("{other:?}"),
    }
}

fn beats_without(told: &Told, partition: i32) -> bool {
    matches!(told, Told::Beat { epoch, owned, .. } if *epoch > 0 && !owned.contains(&partition))
}

#[tokio::test]
async fn a_revoked_partition_is_told_then_committed_then_given_up_at_once() {
    // Auto commit has no turn by time: it commits before the partition is given up.
    for auto_commit in [None, Some(LONG)] {
        let cluster = cluster(1, LONG, LONG * 10).await;
        cluster.group.assign([0, 1]);
        cluster.log.append(1, 5);
        let mut consumer = cluster.join(GroupOptions {
            auto_commit,
            ..cluster.options()
        });
        assert_eq!(assigned(&mut consumer).await, [(0, 0), (1, 0)]);
        let read = records(&mut consumer).await;
        assert_eq!((read.partition.get(), read.next.get()), (1, 5));
        let has_both = |told: &Told| matches!(told, Told::Beat { owned, .. } if owned.len() == 2);
        cluster.group.assign([0]);
        cluster.log.append(1, 5);
        loop {
            match next(&mut consumer).await {
                GroupEvent::Revoked(revoked) => {
                    assert_eq!(revoked.len(), 1);
                    assert_eq!(revoked[0].partition, PartitionId::new(1));
                    break;
                }
                // What came before the news.
                GroupEvent::Records(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let position = consumer.assigned();
        assert_eq!(position.len(), 1, "{position:?}");
        // It is kept for as long as the user takes.
        let heard = |state: &fake::groups::State| state.told.iter().any(has_both);
        cluster.group.until("a heartbeat with both", heard).await;
        let first = cluster.group.told().iter().position(has_both).unwrap();
        let gone = |told: &[Told]| told[first..].iter().position(|one| beats_without(one, 1));
        assert_eq!(gone(&cluster.group.told()), None);
        if auto_commit.is_none() {
            consumer.commit().await.unwrap();
        }
        cluster.log.append(0, 5);
        let read = records(&mut consumer).await;
        assert_eq!(read.partition.get(), 0);
        let heard = |state: &fake::groups::State| gone(&state.told).is_some();
        cluster.group.until("a heartbeat without it", heard).await;
        let told = cluster.group.told();
        let commit = told.iter().position(|told| {
            matches!(told, Told::Commit { offsets, .. } if offsets.iter().any(|of| of.0 == 1))
        });
        assert!(commit.unwrap() < first + gone(&told).unwrap(), "{told:?}");
    }
}

#[tokio::test]
async fn members_go_on_where_the_group_left_off() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1, 2]);
    cluster.group.change(|state| {
        state.offsets.insert(1, (4, 0));
    });
    cluster.log.append(1, 9);
    let options = GroupOptions {
        start: StartPosition::Latest,
        ..cluster.options()
    };
    let mut consumer = cluster.join(options);
    assert_eq!(assigned(&mut consumer).await, [(0, 0), (1, 4), (2, 0)]);
    let read = records(&mut consumer).await;
    assert_eq!((read.partition.get(), read.next.get()), (1, 9));
    consumer.commit().await.unwrap();
    let told = cluster.group.told();
    let Some(Told::Commit { offsets, .. }) = told.last() else {
        panic!("{told:?}");
    };
    // Where it began, too: it is not to begin later than that the next time.
    assert_eq!(
        offsets[..],
        [(0, 0, None), (1, 9, Some(EPOCH)), (2, 0, None)]
    );
}

#[tokio::test]
async fn who_closes_commits_nothing_of_what_it_has_lost() {
    let cluster = cluster(1, Duration::from_millis(20), LONG * 10).await;
    cluster.group.assign([0]);
    cluster.log.append(0, 3);
    let mut consumer = cluster.join(GroupOptions {
        auto_commit: Some(LONG),
        ..cluster.options()
    });
    assigned(&mut consumer).await;
    records(&mut consumer).await;
    // It has another life before anything is asked of it again.
    let first = consumer.member_id();
    cluster.group.change(|state| state.member = None);
    let another = async {
        while consumer.member_id() == first || !consumer.is_member() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, another).await.unwrap();
    consumer.close().await.unwrap();
    let told = cluster.group.told();
    let commits = told
        .iter()
        .filter(|told| matches!(told, Told::Commit { .. }));
    assert_eq!(commits.count(), 0, "{told:?}");
}

#[tokio::test]
async fn who_begins_outside_of_the_log_begins_at_its_nearer_end() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1]);
    cluster.log.append(0, 2);
    cluster.log.append(1, 30);
    let mut consumer = cluster.join(GroupOptions {
        start: StartPosition::Offset(Offset::new(9)),
        ..cluster.options()
    });
    assert_eq!(assigned(&mut consumer).await, [(0, 2), (1, 9)]);
}

#[tokio::test]
async fn a_partition_whose_leader_is_silent_holds_no_other_up() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1]);
    cluster.log.append(0, 2);
    cluster.log.append(1, 3);
    cluster.log.silence(Some(1));
    let mut consumer = cluster.join(cluster.options());
    assert_eq!(assigned(&mut consumer).await, [(0, 0)]);
    assert_eq!(records(&mut consumer).await.next.get(), 2);
    cluster.log.silence(None);
    assert_eq!(assigned(&mut consumer).await, [(1, 0)]);
    let read = records(&mut consumer).await;
    assert_eq!((read.partition.get(), read.next.get()), (1, 3));
}

#[tokio::test]
async fn committed_offsets_come_in_pages() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1, 2]);
    cluster.group.change(|state| {
        state.offsets = [(0, (1, 0)), (1, (4, 0)), (2, (7, 0))].into();
    });
    let mut consumer = cluster.join(cluster.options());
    assert_eq!(assigned(&mut consumer).await, [(0, 1), (1, 4), (2, 7)]);
    let all = client_of(cluster.ports[0]).committed_offsets("g").await;
    let all = all.unwrap().into_iter();
    assert_eq!(all.map(|of| of.offset).collect::<Vec<_>>(), [1, 4, 7]);
}

#[tokio::test]
async fn who_hears_nothing_for_a_session_has_nothing_and_joins_anew() {
    let session = Duration::from_millis(600);
    let cluster = cluster(1, session / 3, session).await;
    cluster.group.assign([0]);
    cluster.log.append(0, 100);
    let mut consumer = cluster.join(cluster.options());
    assert_eq!(assigned(&mut consumer).await, [(0, 0)]);
    records(&mut consumer).await;
    let before = consumer.member_id();
    cluster.group.change(|state| state.is_silent = true);
    let joins_anew = |state: &fake::groups::State| {
        let mut told = state.told.iter();
        told.any(|told| matches!(told, Told::Beat { member, .. } if *member != before))
    };
    cluster.group.until("it joins anew", joins_anew).await;
    // Records wait in the buffer; nothing of them is returned.
    match next(&mut consumer).await {
        GroupEvent::Lost(lost) => assert_eq!(lost.len(), 1),
        other => panic!("{other:?}"),
    }
    let refused = consumer.commit().await;
    assert!(refused.is_ok(), "there is nothing to commit: {refused:?}");
    cluster.group.change(|state| state.is_silent = false);
    assert_eq!(assigned(&mut consumer).await, [(0, 0)]);
    assert_ne!(consumer.member_id(), before);
}

#[tokio::test]
async fn a_member_says_which_topics_it_reads_in_every_heartbeat() {
    // An answered change can be lost with its coordinator.
    let interval = Duration::from_millis(20);
    let cluster = cluster(1, interval, LONG).await;
    cluster.group.assign([0]);
    let mut consumer = cluster.join(cluster.options());
    assigned(&mut consumer).await;
    for wrong in [vec![], vec!["not/legal"]] {
        let refused = consumer.subscribe(wrong).unwrap_err();
        assert!(matches!(refused, ClientError::Invalid(_)), "{refused}");
    }
    consumer.subscribe(["t", "u"]).unwrap();
    let says = |told: &&Told| match told {
        Told::Beat { topics, .. } => topics.as_deref() == Some(&["t".to_owned(), "u".to_owned()]),
        _ => false,
    };
    let heard = |state: &fake::groups::State| state.told.iter().filter(says).count() >= 3;
    cluster
        .group
        .until("both topics, time and again", heard)
        .await;
    let told = cluster.group.told();
    let since = told.iter().skip_while(|told| !says(told));
    assert!(since.clone().all(|told| says(&told)), "{told:?}");
}

#[tokio::test]
async fn a_member_that_the_group_does_not_know_any_more_joins_anew() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0]);
    cluster.log.append(0, 3);
    let mut consumer = cluster.join(cluster.options());
    assigned(&mut consumer).await;
    records(&mut consumer).await;
    cluster.group.change(|state| state.member = None);
    loop {
        match next(&mut consumer).await {
            GroupEvent::Records(_) => {}
            GroupEvent::Lost(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(assigned(&mut consumer).await, [(0, 0)]);
}

#[tokio::test]
async fn a_member_follows_its_coordinator() {
    let cluster = cluster(2, LONG, LONG * 10).await;
    cluster.group.assign([0]);
    cluster.log.append(0, 3);
    let mut consumer = cluster.join(cluster.options());
    assigned(&mut consumer).await;
    records(&mut consumer).await;
    let member = consumer.member_id();
    let second = cluster.ports[1];
    cluster.group.change(|state| state.coordinator = second);
    let moved = |told: &Told| matches!(told, Told::Beat { port, .. } if *port == second);
    let heard = |state: &fake::groups::State| state.told.iter().any(moved);
    cluster
        .group
        .until("a heartbeat at the new one", heard)
        .await;
    consumer.commit().await.unwrap();
    assert_eq!(consumer.member_id(), member);
    let told = cluster.group.told();
    assert!(
        matches!(told.last(), Some(Told::Commit { port, .. }) if *port == second),
        "{told:?}"
    );
    // The user has seen nothing of it.
    cluster.log.append(0, 3);
    assert_eq!(records(&mut consumer).await.next.get(), 6);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_the_same_commit_again() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1]);
    cluster.log.append(0, 3);
    let mut consumer = cluster.join(cluster.options());
    assigned(&mut consumer).await;
    records(&mut consumer).await;
    let fates = [Fate::Unheard, Fate::Refuse(1)];
    cluster.group.change(|state| state.fates.extend(fates));
    consumer.commit().await.unwrap();
    cluster.log.append(0, 3);
    records(&mut consumer).await;
    consumer.commit().await.unwrap();
    // Nothing new: nothing is sent.
    consumer.commit().await.unwrap();
    let commits: Vec<_> = cluster
        .group
        .told()
        .into_iter()
        .filter_map(|told| match told {
            Told::Commit { seq, offsets, .. } => Some((seq, offsets)),
            _ => None,
        })
        .collect();
    let both = vec![(0, 3, Some(EPOCH)), (1, 0, None)];
    let expected = [
        (1, both.clone()),
        (1, both),
        // Only what was refused.
        (1, vec![(1, 0, None)]),
        (2, vec![(0, 6, Some(EPOCH))]),
    ];
    assert_eq!(commits, expected);
}

#[tokio::test]
async fn what_is_committed_of_a_deleted_topic_holds_nothing_up() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0, 1]);
    let mut consumer = cluster.join(GroupOptions {
        commit_timeout: LONG,
        ..cluster.options()
    });
    assigned(&mut consumer).await;
    let fates = [Fate::Deleted(1)];
    cluster.group.change(|state| state.fates.extend(fates));
    let committed = timeout(DEADLINE, consumer.commit()).await;
    committed.expect("it is not tried again").unwrap();
    // Who names it is told.
    cluster.group.change(|state| state.fates.extend(fates));
    let named = OffsetToCommit::new("t", PartitionId::new(1), Offset::new(1));
    let refused = consumer.commit_offsets(&[named]).await;
    assert_eq!(refused.unwrap_err().code(), Some(ErrorCode::UnknownTopicId));
}

#[tokio::test]
async fn auto_commit_is_never_ahead_of_what_the_poll_before_returned() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0]);
    // Slower than it commits: it is time for a commit whenever records come.
    let log = cluster.log.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..30 {
            every.tick().await;
            log.append(0, 10);
        }
    });
    let client = client_of(cluster.ports[0]);
    let options = GroupOptions {
        auto_commit: Some(Duration::from_millis(1)),
        ..cluster.options()
    };
    let mut consumer = client.group(options).unwrap();
    assigned(&mut consumer).await;
    let (mut done, mut returned) = (0, 0);
    let committed = || {
        let told = cluster.group.told();
        let commits = told.into_iter().filter_map(|told| match told {
            Told::Commit { offsets, .. } => Some(offsets[0].1),
            _ => None,
        });
        commits.max().unwrap_or(0)
    };
    while returned < 300 {
        let read = records(&mut consumer).await;
        (done, returned) = (returned, read.next.to_signed());
        // A commit that was begun too early is on its way before this call.
        client.committed_offsets("g").await.unwrap();
        assert!(committed() <= done, "{} of {done}", committed());
    }
    assert!(committed() <= done);
    // It commits while it waits for records.
    let idle = timeout(DEADLINE, async {
        while committed() < 300 {
            let _only_the_end = timeout(Duration::from_millis(5), consumer.poll()).await;
        }
    });
    idle.await.expect("what was returned is committed");
    cluster.log.append(0, 7);
    assert_eq!(records(&mut consumer).await.next.get(), 307);
    consumer.close().await.unwrap();
    assert_eq!(committed(), 307);
    let told = cluster.group.told();
    assert_eq!(told.last(), Some(&Told::Left(v1::Leave::ForGood)));
}

#[tokio::test]
async fn a_static_member_leaves_for_now_and_a_refused_one_is_told() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.assign([0]);
    let mut consumer = cluster.join(GroupOptions {
        instance_id: Some("one".into()),
        ..cluster.options()
    });
    assigned(&mut consumer).await;
    consumer.close().await.unwrap();
    let told = cluster.group.told();
    assert_eq!(told.last(), Some(&Told::Left(v1::Leave::ForNow)));

    let full = ErrorCode::GroupMaxSizeReached;
    cluster.group.change(|state| state.refuses = Some(full));
    let mut consumer = cluster.join(cluster.options());
    for _ in 0..2 {
        let refused = timeout(DEADLINE, consumer.poll()).await.unwrap();
        assert_eq!(refused.unwrap_err().code(), Some(full));
    }
    let client = client_of(cluster.ports[0]);
    for wrong in [
        GroupOptions::new("", ["t"]),
        GroupOptions::new("g", [""; 0]),
        GroupOptions::new("g", ["a/b"]),
    ] {
        assert!(client.group(wrong).is_err());
    }
}

#[tokio::test]
async fn who_leaves_while_it_joins_has_left_in_the_end() {
    let cluster = cluster(1, LONG, LONG * 10).await;
    cluster.group.change(|state| state.is_silent = true);
    let consumer = cluster.join(cluster.options());
    let id = consumer.member_id();
    let heard = |state: &fake::groups::State| !state.told.is_empty();
    cluster.group.until("it joins", heard).await;
    let closing = tokio::spawn(consumer.close());
    let leaves = |state: &fake::groups::State| matches!(state.told.last(), Some(Told::Left(_)));
    cluster.group.until("it leaves", leaves).await;
    // Only now is it decided that it is a member.
    cluster.group.change(|state| state.member = Some((id, 1)));
    timeout(DEADLINE, closing).await.unwrap().unwrap().unwrap();
    cluster.group.change(|state| assert_eq!(state.member, None));
}

#[tokio::test]
async fn groups_are_listed_page_by_page_and_deleted_once() {
    let cluster = cluster(2, LONG, LONG * 10).await;
    let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
    let all = names.clone();
    cluster.group.change(|state| state.groups.extend(all));
    // A node that is not the coordinator names it.
    let client = client_of(cluster.ports[1]);
    let listed = async || -> Vec<String> {
        let groups = client.list_groups().await.unwrap().into_iter();
        groups.map(|group| group.group).collect()
    };
    assert_eq!(listed().await, names);
    let unheard = Fate::Unheard;
    cluster.group.change(|state| state.fates.push_back(unheard));
    client.delete_group("b").await.unwrap();
    assert_eq!(listed().await, ["a", "c", "d", "e"]);
    let none = client.delete_group("b").await;
    assert_eq!(none.unwrap_err().code(), Some(ErrorCode::GroupIdNotFound));
    let offsets = [OffsetToCommit::new(
        "t",
        PartitionId::new(1),
        Offset::new(7),
    )];
    cluster
        .group
        .change(|state| state.fates.push_back(Fate::Refuse(1)));
    client.alter_offsets("c", &offsets).await.unwrap();
    let told = cluster.group.told();
    assert!(
        matches!(&told[..], [Told::Commit { member, .. }, Told::Commit { offsets, .. }]
            if member.is_empty() && offsets[..] == [(1, 7, None)]),
        "{told:?}"
    );
}

/// A port at which nobody listens.
fn nobody() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn who_asks_about_a_group_hears_soon_that_no_node_can_be_reached() {
    let client = client_of(nobody());
    let asked = Instant::now();
    let described = client.describe_group("g").await.unwrap_err();
    assert!(matches!(described, ClientError::Unreachable(_)));
    let deleted = client.delete_group("g").await.unwrap_err();
    assert!(matches!(deleted, ClientError::Unreachable(_)));
    // Twice the two seconds that other calls take, where a call has fifteen.
    assert!(asked.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_coordinator_that_is_gone_is_not_the_whole_cluster() {
    let cluster = cluster(2, LONG, LONG * 10).await;
    // Nodes name it for longer than it takes to find that nobody is there at all.
    cluster.group.change(|state| state.coordinator = nobody());
    let bootstrap = [nobody(), cluster.ports[0], cluster.ports[1]];
    let bootstrap = bootstrap.map(|port| Endpoint {
        host: "127.0.0.1".to_owned(),
        port,
    });
    let client = Client::new(bootstrap.to_vec(), ClientOptions::default()).unwrap();
    let asked = tokio::spawn(async move { client.committed_offsets("g").await });
    tokio::time::sleep(Duration::from_secs(4)).await;
    let found = cluster.ports[1];
    cluster.group.change(|state| state.coordinator = found);
    let told = timeout(DEADLINE, asked).await.unwrap().unwrap();
    assert_eq!(told.unwrap(), []);
}
