//! Three nodes in one process: records go in at one, come out at another, and survive all of them.

use std::path::Path;
use std::time::Duration;

use quorate_broker::Broker;
use quorate_config::NodeSettings;
use quorate_log::DataDirectory;
use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::Batch;
use quorate_types::{Endpoint, NodeId};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::{Node, NodeError, NodeTools};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of produces that may wait at a node: little, so that a test fills it.
pub(crate) const ROOM: usize = 256 << 10;

pub(crate) struct Running {
    pub(crate) id: NodeId,
    stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), NodeError>>,
    pub(crate) broker: Broker,
}

/// Ports that the kernel has just given, each node on an address of its own.
pub(crate) fn plan(count: u32) -> Vec<(NodeId, Endpoint, Endpoint)> {
    let free = |host: &str| {
        let listener = std::net::TcpListener::bind((host, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (
            listener,
            Endpoint {
                host: host.to_owned(),
                port,
            },
        )
    };
    (1..=count)
        .map(|id| {
            let host = format!("127.0.0.{}", 20 + id);
            let (_held, client) = free(&host);
            let (_too, internal) = free(&host);
            (NodeId::new(id), client, internal)
        })
        .collect()
}

async fn start(plan: &[(NodeId, Endpoint, Endpoint)], root: &Path) -> Vec<Running> {
    start_with(plan, root, |_| {}).await
}

pub(crate) async fn start_with(
    plan: &[(NodeId, Endpoint, Endpoint)],
    root: &Path,
    change: impl Fn(&mut NodeSettings),
) -> Vec<Running> {
    start_some(plan, plan, root, change).await
}

/// Starts some of the nodes of a plan.
pub(crate) async fn start_some(
    plan: &[(NodeId, Endpoint, Endpoint)],
    some: &[(NodeId, Endpoint, Endpoint)],
    root: &Path,
    change: impl Fn(&mut NodeSettings),
) -> Vec<Running> {
    let controllers: Vec<_> = plan
        .iter()
        .map(|(id, _, internal)| (*id, internal.clone()))
        .collect();
    let mut running = Vec::new();
    for (id, client, internal) in some {
        let mut settings = NodeSettings {
            snapshot_every_entries: 100,
            snapshot_keep_entries: 10,
            produce_bytes: ROOM,
            ..NodeSettings::new(
                *id,
                root.join(id.to_string()),
                controllers.clone(),
                client.clone(),
                internal.clone(),
            )
        };
        change(&mut settings);
        let node = Node::start(settings, NodeTools::default()).await.unwrap();
        let (stop, broker) = (CancellationToken::new(), node.broker.clone());
        let task = tokio::spawn(node.run(stop.clone()));
        let id = *id;
        running.push(Running {
            id,
            stop,
            task,
            broker,
        });
    }
    running
}

pub(crate) async fn stop(running: Vec<Running>) {
    for node in &running {
        node.stop.cancel();
    }
    for node in running {
        node.task.await.unwrap().unwrap();
    }
}

/// Tries until it succeeds; the last error is told when time is up.
pub(crate) async fn eventually<T>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    let mut pause = interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
    }
}

pub(crate) fn url(endpoint: &Endpoint) -> String {
    format!("http://{endpoint}")
}

pub(crate) async fn create(at: &Endpoint) -> Result<v1::TopicDescription, String> {
    create_of(at, 6, 3).await
}

pub(crate) async fn create_of(
    at: &Endpoint,
    partitions: u32,
    replicas: u32,
) -> Result<v1::TopicDescription, String> {
    let mut admin = AdminClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())?;
    let request = v1::CreateTopicRequest {
        name: "t".into(),
        partitions,
        replication_factor: replicas,
        ..Default::default()
    };
    match admin.create_topic(request).await {
        Ok(created) => created
            .into_inner()
            .topic
            .ok_or_else(|| "no topic".to_owned()),
        Err(status) => Err(status.to_string()),
    }
}

pub(crate) async fn produce(
    at: &Endpoint,
    partition: i32,
    value: &str,
) -> Result<v1::ProduceResponse, String> {
    produce_with(at, partition, value, v1::Acks::All).await
}

async fn produce_with(
    at: &Endpoint,
    partition: i32,
    value: &str,
    acks: v1::Acks,
) -> Result<v1::ProduceResponse, String> {
    let mut producer = ProducerClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())?;
    let record = v1::Record {
        value: Some(value.to_owned().into()),
        ..Default::default()
    };
    let list = v1::RecordList {
        records: vec![record],
    };
    let request = v1::ProduceRequest {
        topic: "t".into(),
        partition: Some(partition),
        payload: Some(v1::produce_request::Payload::Records(list)),
        timeout_ms: 5_000,
        acks: acks.into(),
        ..Default::default()
    };
    let answer = producer.produce(request).await;
    answer
        .map(|answer| answer.into_inner())
        .map_err(|status| status.to_string())
}

async fn read(at: &Endpoint, partition: i32) -> Result<Vec<String>, String> {
    let mut consumer = ConsumerClient::connect(url(at))
        .await
        .map_err(|e| e.to_string())?;
    let request = v1::FetchRequest {
        topic: "t".into(),
        partition,
        max_wait_ms: 100,
        ..Default::default()
    };
    let fetched = consumer
        .fetch(request)
        .await
        .map_err(|status| status.to_string())?;
    let batches = Batch::split(fetched.into_inner().batches).map_err(|e| e.to_string())?;
    let mut values = Vec::new();
    for batch in batches {
        for record in batch.records().map_err(|e| e.to_string())? {
            let value = record.value.unwrap_or_default();
            values.push(String::from_utf8_lossy(&value).into_owned());
        }
    }
    Ok(values)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_in_at_any_node_come_out_at_any_node_and_survive_a_restart_of_all() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start(&plan, root.path()).await;
    let clients: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    let topic = eventually("a topic is created", || create(clients[0])).await;
    let mut led = std::collections::BTreeMap::new();
    for partition in &topic.partitions {
        *led.entry(partition.leader).or_insert(0) += 1;
    }
    assert_eq!(led.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    for partition in 0..6 {
        let epoch = topic.partitions[partition as usize].leader_epoch;
        // Through every node in turn: most of them do not lead.
        for (turn, at) in clients.iter().enumerate() {
            let value = format!("{partition}/{turn}");
            let answer = eventually("a record is taken", || produce(at, partition, &value)).await;
            assert_eq!(answer.base_offset, Some(turn as i64));
            assert_eq!((answer.replicas, answer.fsynced), (3, 3));
            assert_eq!(answer.leader_epoch, epoch);
        }
    }
    stop(running).await;
    let running = start(&plan, root.path()).await;
    for partition in 0..6 {
        let expected: Vec<String> = (0..3).map(|turn| format!("{partition}/{turn}")).collect();
        for at in &clients {
            let read = eventually("records are read", || async {
                let values = read(at, partition).await?;
                if values == expected {
                    Ok(values)
                } else {
                    Err(format!("{values:?}"))
                }
            });
            read.await;
        }
        let value = format!("{partition}/3");
        let answer = eventually("a record is taken", || {
            produce(clients[0], partition, &value)
        })
        .await;
        assert_eq!(answer.base_offset, Some(3));
        let before = topic.partitions[partition as usize].leader_epoch;
        assert!(answer.leader_epoch > before, "nodes have started again");
        let value = format!("{partition}/4");
        let leader = eventually("the leader takes a record", || {
            produce_with(clients[0], partition, &value, v1::Acks::Leader)
        })
        .await;
        assert_eq!(leader.base_offset, Some(4));
        assert!(leader.leader_epoch >= answer.leader_epoch);
        // No more is promised than is known when the leader has appended.
        assert!((1..=3).contains(&leader.replicas), "{}", leader.replicas);
        assert!(leader.fsynced <= leader.replicas);
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_to_one_node_reaches_every_leader_and_keeps_the_order_of_each() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start(&plan, root.path()).await;
    let at = &plan[0].1;
    eventually("a topic is created", || create(at)).await;
    // Every leader is up once a record has gone in.
    for partition in 0..6 {
        eventually("a record is taken", || produce(at, partition, "first")).await;
    }
    let request = |number: u64| v1::ProduceStreamRequest {
        request_id: number,
        request: Some(v1::ProduceRequest {
            topic: "t".into(),
            partition: Some((number % 6) as i32),
            payload: Some(v1::produce_request::Payload::Records(v1::RecordList {
                records: vec![v1::Record {
                    value: Some(number.to_string().into_bytes().into()),
                    ..Default::default()
                }],
            })),
            ..Default::default()
        }),
    };
    let requests: Vec<_> = (0..120).map(request).collect();
    let mut producer = ProducerClient::connect(url(at)).await.unwrap();
    let answers = producer.produce_stream(tokio_stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut offsets = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(v1::produce_stream_response::Result::Response(response)) = answer.result else {
            panic!("{answer:?}");
        };
        offsets.insert(answer.request_id, response.base_offset.unwrap());
    }
    // One behind the first, in the order in which they were sent.
    let expected = (0..120).map(|number| (number, 1 + number as i64 / 6));
    assert_eq!(offsets, expected.collect());
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feature_level_is_told_and_not_raised_to_what_no_broker_speaks() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start(&plan, root.path()).await;
    let connect = || async {
        let connected = ClusterClient::connect(url(&plan[0].1)).await;
        let mut client = connected.map_err(|e| e.to_string())?;
        let request = v1::DescribeClusterRequest::default();
        let described = client.describe(request).await.map_err(|e| e.to_string())?;
        let described = described.into_inner();
        match &described.brokers[..] {
            [broker] if broker.state() == v1::BrokerState::Active => {
                Ok((client, described.feature_level, broker.max_feature_level))
            }
            _ => Err(format!("{described:?}")),
        }
    };
    let (mut client, level, highest) = eventually("an active broker", connect).await;
    assert_eq!((level, highest), (1, quorate_metadata::MAX_LEVEL));
    let same = client.set_feature(v1::SetFeatureRequest { level }).await;
    assert_eq!(same.unwrap().into_inner().level, level);
    let level = highest + 1;
    let refused = client.set_feature(v1::SetFeatureRequest { level }).await;
    let why = refused.unwrap_err().message().to_owned();
    assert!(why.contains("not every broker speaks"), "{why}");
    stop(running).await;
}

#[tokio::test]
async fn a_directory_in_use_and_a_port_in_use_are_named() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let (id, client, internal) = plan[0].clone();
    let controllers = vec![(id, internal.clone())];
    let settings = NodeSettings::new(
        id,
        root.path().join("a"),
        controllers,
        client.clone(),
        internal,
    );
    let held = std::net::TcpListener::bind((client.host.as_str(), client.port)).unwrap();
    let error = Node::start(settings.clone(), NodeTools::default())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("--listen") && error.contains(&client.to_string()),
        "{error}"
    );
    // The ports are looked at first: a start that they refuse has not touched the directory.
    assert!(!settings.data_dir.exists());
    drop(held);
    DataDirectory::open(&settings.data_dir, settings.node_id, Duration::ZERO).unwrap();
    let other = NodeSettings {
        node_id: NodeId::new(7),
        ..settings
    };
    let error = Node::start(other, NodeTools::default())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("belongs to node 1"), "{error}");
}
