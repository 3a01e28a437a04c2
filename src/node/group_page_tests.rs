//! Answers about a group that are longer than a message come in pages, and the client's library puts
//! them together.

use quorate_client::{Client, ClientOptions, OffsetToCommit};
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::{Offset, PartitionId};

use crate::tests::{create_of, eventually, plan, start_with, stop, url};

/// With the most that may be kept beside each, more than a page of 1 MiB.
const PARTITIONS: u32 = 300;
const METADATA: usize = 4_096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_group_has_committed_comes_in_pages() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let at = &plan[0].1;
    eventually("a topic is created", || create_of(at, PARTITIONS, 1)).await;
    let client = Client::new(vec![at.clone()], ClientOptions::default()).unwrap();
    let commit = |number| OffsetToCommit {
        metadata: "m".repeat(METADATA),
        ..OffsetToCommit::new("t", PartitionId::new(number), Offset::new(number.into()))
    };
    let commits: Vec<OffsetToCommit> = (0..PARTITIONS).map(commit).collect();
    client.alter_offsets("g", &commits).await.unwrap();

    let mut groups = GroupsClient::connect(url(at)).await.unwrap();
    let request = v1::FetchOffsetsRequest {
        group: "g".to_owned(),
        ..Default::default()
    };
    let page = groups.fetch_offsets(request).await.unwrap().into_inner();
    assert!(page.more && page.offsets.len() < PARTITIONS as usize);
    let request = v1::DescribeGroupRequest {
        group: "g".to_owned(),
        ..Default::default()
    };
    let page = groups.describe(request).await.unwrap().into_inner();
    assert!(page.more && page.offsets.len() < PARTITIONS as usize);

    let offsets = client.committed_offsets("g").await.unwrap();
    let numbers: Vec<i64> = offsets.iter().map(|of| of.offset).collect();
    assert_eq!(numbers, (0..i64::from(PARTITIONS)).collect::<Vec<_>>());
    let described = client.describe_group("g").await.unwrap().offsets;
    let numbers = described.iter().map(|of| of.committed.unwrap());
    assert!(numbers.eq(0..i64::from(PARTITIONS)));
    stop(running).await;
}
