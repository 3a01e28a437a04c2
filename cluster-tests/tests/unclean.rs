//! Records that an unclean election loses: readers are told which, the cluster keeps it on record,
//! and whoever had them tells before they are cut (R7).
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster_tests::hostile::Refusal;
use cluster_tests::{Cluster, describe_raw, eventually, produce_raw};
use quorate::NodeState;
use quorate_proto::v1;
use quorate_proto::v1::consume_request::Start;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_types::{Endpoint, NodeId};
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

const SOON: Duration = Duration::from_secs(30);

struct Test {
    cluster: Cluster,
    topic: &'static str,
    number: u64,
}

impl Test {
    async fn start(topic: &'static str, factor: u32, config: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
        let config = config
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let config: BTreeMap<String, String> = config.collect();
        let created = cluster.client.create_topic(topic, 1, factor, config).await;
        created.unwrap();
        cluster.all_in_sync(topic).await;
        Self {
            cluster,
            topic,
            number: 0,
        }
    }

    fn address(&self, node: NodeId) -> Endpoint {
        self.cluster.processes.addresses()[node.get() as usize - 1].clone()
    }

    /// Numbered records, acknowledged by every in-sync replica; gives the offset after the last.
    async fn produce(&mut self, to: NodeId, count: u64) -> i64 {
        let (to, mut end) = (self.address(to), 0);
        for _ in 0..count {
            self.number += 1;
            let place = (self.topic, 0);
            let offset = produce_raw(&to, place, self.number, v1::Acks::All, SOON).await;
            end = offset.unwrap().unwrap() + 1;
        }
        end
    }

    async fn consume(&self, through: NodeId, from: i64) -> Streaming<v1::ConsumeResponse> {
        let node = self.address(through);
        let mut client = ConsumerClient::connect(format!("http://{node}"))
            .await
            .unwrap();
        let request = v1::ConsumeRequest {
            topic: self.topic.to_owned(),
            partitions: vec![v1::PartitionStart {
                partition: 0,
                start: Some(v1::partition_start::Start::Offset(from)),
                ..v1::PartitionStart::default()
            }],
            start: None::<Start>,
            ..v1::ConsumeRequest::default()
        };
        client.consume(request).await.unwrap().into_inner()
    }

    /// Waits until `node` itself sees another state of the partition.
    async fn sees(
        &self,
        node: NodeId,
        what: &str,
        holds: impl Fn(&v1::PartitionDescription) -> bool,
    ) {
        let at = self.address(node);
        eventually(what, || async {
            let described = describe_raw(&at, self.topic)
                .await
                .map_err(|e| e.to_string())?;
            let partition = &described.partitions[0];
            holds(partition)
                .then_some(())
                .ok_or(format!("{partition:?}"))
        })
        .await;
    }

    /// The range that the cluster has on record, once it has.
    async fn loss(&self, node: NodeId) -> (i64, i64) {
        let at = [self.address(node)].to_vec();
        let client = quorate_client::Client::new(at, quorate_client::ClientOptions::default());
        let client = client.unwrap();
        eventually("the loss on record", || async {
            let mut events = client.watch_events(true).await.map_err(|e| e.to_string())?;
            loop {
                let next = timeout(Duration::from_secs(1), events.message()).await;
                match next.map_err(|_| "not yet".to_owned())? {
                    Ok(Some(event)) if event.kind == "data-lost" => {
                        return Ok((event.lost_from.unwrap(), event.lost_to.unwrap()));
                    }
                    Ok(Some(_)) => {}
                    ended => return Err(format!("{ended:?}")),
                }
            }
        })
        .await
    }
}

async fn read_up_to(stream: &mut Streaming<v1::ConsumeResponse>, end: i64) -> Vec<String> {
    let mut values = Vec::new();
    let mut at = 0;
    while at < end {
        let response = timeout(SOON, stream.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        at = response.next_offset;
        let of = |record: v1::ConsumedRecord| String::from_utf8(record.value.unwrap().to_vec());
        values.extend(
            response
                .records
                .into_iter()
                .map(|record| of(record).unwrap()),
        );
    }
    values
}

async fn refusal(stream: &mut Streaming<v1::ConsumeResponse>) -> Refusal {
    loop {
        match timeout(SOON, stream.message()).await.unwrap() {
            Ok(Some(response)) => assert!(response.records.is_empty(), "{response:?}"),
            Ok(None) => panic!("the stream ended well"),
            Err(status) => return Refusal::from(status),
        }
    }
}

fn number(refusal: &Refusal, key: &str) -> i64 {
    refusal.metadata[key].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_told_what_a_replica_that_was_left_behind_lacks() {
    let config = [
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
    ];
    let mut test = Test::start("left-behind", 2, &config).await;
    let ahead = test.cluster.leader(test.topic, 0).await;
    let topic = test
        .cluster
        .client
        .describe_topic(test.topic)
        .await
        .unwrap();
    let replicas = &topic.partitions[0].replicas;
    let behind = replicas
        .iter()
        .copied()
        .map(NodeId::new)
        .find(|id| *id != ahead);
    let behind = behind.unwrap();
    let mut nodes = test.cluster.processes.node_ids().into_iter();
    let witness = nodes.find(|id| *id != ahead && *id != behind).unwrap();
    assert_eq!(test.produce(ahead, 20).await, 20);
    test.cluster.processes.kill(behind).unwrap();
    test.sees(ahead, "an ISR of one", |p| p.isr == [ahead.get()])
        .await;
    assert_eq!(test.produce(ahead, 30).await, 50);
    let mut live = test.consume(witness, 0).await;
    assert_eq!(read_up_to(&mut live, 50).await.len(), 50);

    test.cluster.processes.kill(ahead).unwrap();
    test.cluster.processes.start_node(behind).unwrap();
    test.sees(witness, "the other replica leading", |p| {
        p.leader == Some(behind.get())
    })
    .await;
    let told = refusal(&mut live).await;
    assert_eq!(
        (told.code, told.reason.as_str()),
        (Code::DataLoss, "DATA_LOSS"),
        "{told:?}"
    );
    assert_eq!(
        (number(&told, "lost_from"), number(&told, "lost_to")),
        (20, 50)
    );
    assert!(told.message.contains("read on from offset 20"), "{told:?}");
    assert_eq!(test.produce(behind, 5).await, 25);

    // Whoever has what is lost tells, and follows the new history.
    test.cluster.processes.start_node(ahead).unwrap();
    assert_eq!(test.loss(witness).await, (20, 50));
    test.cluster.all_in_sync(test.topic).await;
    let mut again = test.consume(witness, 0).await;
    let values = read_up_to(&mut again, 25).await;
    let expected = (1..=20).chain(51..=55).map(|number| number.to_string());
    assert_eq!(values, expected.collect::<Vec<_>>());
}

/// The partition's directory on a node.
fn partition_directory(node: &Path, topic: &str) -> PathBuf {
    let entries = fs::read_dir(node.join("logs")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(&format!("{topic}-0."))
    };
    paths.find(named).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_replica_that_is_damaged_leads_again_and_says_what_is_missing() {
    let mut test = Test::start("damaged", 1, &[]).await;
    let leader = test.cluster.leader(test.topic, 0).await;
    let mut nodes = test.cluster.processes.node_ids().into_iter();
    let witness = nodes.find(|id| *id != leader).unwrap();
    assert_eq!(test.produce(leader, 40).await, 40);
    let mut live = test.consume(witness, 0).await;
    assert_eq!(read_up_to(&mut live, 40).await.len(), 40);
    test.cluster.processes.terminate(leader).unwrap();
    let deadline = Instant::now() + SOON;
    while test.cluster.processes.state(leader).unwrap() != NodeState::Down {
        assert!(
            Instant::now() < deadline,
            "waited for node {leader} to stop"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let node = test
        .cluster
        .processes
        .directory()
        .join(format!("node-{leader}"));
    let folder = partition_directory(&node, test.topic);
    let segment = folder.join("00000000000000000000.log");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();

    test.cluster.processes.start_node(leader).unwrap();
    let (from, to) = test.loss(witness).await;
    assert!((1..40).contains(&from), "{from}");
    assert_eq!(to, 40);
    let told = refusal(&mut live).await;
    assert_eq!(told.reason, "DATA_LOSS", "{told:?}");
    assert_eq!(
        (number(&told, "lost_from"), number(&told, "lost_to")),
        (from, 40)
    );
    // It takes records again, and what was cut is kept beside it.
    assert_eq!(test.produce(leader, 1).await, from + 1);
    let names = fs::read_dir(&folder).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.any(|name| name.ends_with(".set-aside")));
}
