//! Ten thousand who want to be members of one group, and say nothing more once they are: as many as may be
//! are taken, the others are told so, and nodes need little for any. Whoever was taken and sends no
//! heartbeat is no member after its session, and the group is there for who does.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster_tests::hostile::Expected;
use cluster_tests::{Cluster, eventually, resident};
use futures::StreamExt;
use futures::stream;
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Code, Status};

const TOPIC: &str = "wanted";
const GROUP: &str = "crowd";
const WHO: usize = 10_000;
const MOST: usize = 1_000;
const PARTITIONS: u32 = 3;
const SESSION: Duration = Duration::from_secs(10);
/// Requests at a time.
const AT_ONCE: usize = 500;
/// What a node may hold more than before, when all have asked.
const GROWTH: u64 = 64 << 20;

fn join(number: usize, session: Duration) -> v1::HeartbeatRequest {
    v1::HeartbeatRequest {
        group: GROUP.to_owned(),
        member_id: format!("{number:0>36}"),
        profile: Some(v1::MemberProfile {
            topics: vec![TOPIC.to_owned()],
            client_id: "x".repeat(249),
            session_timeout_ms: u32::try_from(session.as_millis()).unwrap(),
            ..v1::MemberProfile::default()
        }),
        ..v1::HeartbeatRequest::default()
    }
}

fn undecided(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// Whether who asks is taken; asks again where nothing is decided.
async fn taken(channel: Channel, number: usize) -> bool {
    let full = Expected {
        code: Code::FailedPrecondition,
        reason: "GROUP_MAX_SIZE_REACHED",
        says: "1000",
    };
    let deadline = Instant::now() + SESSION;
    loop {
        let mut groups = GroupsClient::new(channel.clone());
        match groups.heartbeat(join(number, SESSION)).await {
            Ok(_) => return true,
            Err(status) if undecided(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => {
                full.check("one too many", Err::<(), _>(status));
                return false;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_takes_as_many_as_may_be_and_keeps_none_that_is_silent() {
    let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.node_ids();
    let pids: Vec<u32> = nodes
        .iter()
        .map(|node| cluster.processes.pid(*node).unwrap().unwrap())
        .collect();
    let before: Vec<u64> = pids.iter().map(|pid| resident(*pid).unwrap()).collect();
    let mut channels = Vec::new();
    for at in cluster.processes.addresses() {
        let address = Address::from_shared(format!("http://{at}")).unwrap();
        channels.push(address.connect().await.unwrap());
    }
    let begun = Instant::now();
    let asked = stream::iter(0..WHO)
        .map(|number| taken(channels[number % channels.len()].clone(), number))
        .buffer_unordered(AT_ONCE);
    let members = asked
        .filter(|taken| std::future::ready(*taken))
        .count()
        .await;
    let took = begun.elapsed();
    let after: Vec<u64> = pids.iter().map(|pid| resident(*pid).unwrap()).collect();
    let grown: Vec<u64> = before
        .iter()
        .zip(&after)
        .map(|(b, a)| a.saturating_sub(*b))
        .collect();
    println!(
        "{members} of {WHO} became members within {:.1} s; nodes grew by {:?} KiB",
        took.as_secs_f64(),
        grown.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>()
    );
    assert!(took < SESSION, "sessions ended meanwhile");
    assert_eq!(members, MOST);
    assert!(grown.iter().all(|bytes| *bytes < GROWTH), "{grown:?}");
    let described = cluster.client.describe_group(GROUP).await.unwrap();
    assert_eq!(described.members.len(), MOST);
    let owners = described.offsets.iter().filter(|of| of.member_id.is_some());
    assert_eq!(owners.count(), PARTITIONS as usize);

    // Nobody was heard again.
    eventually("nobody is a member", || async {
        let listed = cluster
            .client
            .list_groups()
            .await
            .map_err(|e| e.to_string())?;
        let members = listed.first().map_or(0, |group| group.members);
        (members == 0)
            .then_some(())
            .ok_or(format!("{members} members"))
    })
    .await;
    println!(
        "nobody is a member {:.1} s after the first asked",
        begun.elapsed().as_secs_f64()
    );
    eventually("who comes afterwards has all partitions", || async {
        let mut groups = GroupsClient::new(channels[0].clone());
        let answer = groups.heartbeat(join(WHO, SESSION)).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let has: usize = answer.assigned.iter().map(|of| of.partitions.len()).sum();
        (has == PARTITIONS as usize)
            .then_some(())
            .ok_or(format!("{has} partitions"))
    })
    .await;
}
