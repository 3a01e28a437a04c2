//! What was decided about a group is seen by whoever asks afterwards, at whichever node.

use futures::future::try_join_all;
use quorate_client::{Client, ClientOptions, OffsetToCommit};
use quorate_proto::v1;
use quorate_types::{Endpoint, Offset, PartitionId};

use crate::group_tests::groups;
use crate::tests::{create, eventually, plan, start_with, stop};

async fn listed(at: &Endpoint) -> Result<Vec<String>, String> {
    let mut client = groups(at).await?;
    let answer = client.list(v1::ListGroupsRequest::default()).await;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    Ok(answer.groups.into_iter().map(|group| group.group).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_lists_at_once_what_was_made_and_deleted_by_another() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let at: Vec<_> = plan.iter().map(|(_, client, _)| client.clone()).collect();
    eventually("a topic is created", || create(&at[0])).await;
    let client = Client::new(at.clone(), ClientOptions::default()).unwrap();
    let commit = OffsetToCommit::new("t", PartitionId::new(0), Offset::new(0));
    for round in 0..20 {
        client
            .alter_offsets("g", std::slice::from_ref(&commit))
            .await
            .unwrap();
        let seen = try_join_all(at.iter().map(listed)).await.unwrap();
        assert_eq!(seen, vec![vec!["g"]; 3], "round {round}");
        let described = client.describe_group("g").await.unwrap();
        assert_eq!(described.offsets[0].committed, Some(0), "round {round}");
        client.delete_group("g").await.unwrap();
        let seen = try_join_all(at.iter().map(listed)).await.unwrap();
        assert!(seen.iter().all(Vec::is_empty), "round {round}: {seen:?}");
    }
    stop(running).await;
}
