//! Members through `Groups.Subscribe` whose clients take nothing: every call has a connection and a
//! group of its own, the greatest credit and the largest responses that may be asked for. Nodes hold
//! what their settings allow and stay well, a member that reads gets everything meanwhile, and the
//! calls that nobody reads end with a reason and leave their groups.
//!
//! `CALLS=1000 cargo test --release --workspace --test unread_subscriptions -- --nocapture` runs it at
//! full size.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::{Cluster, memory_bound, ready, resident};
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_proto::v1::subscribe_request::{Credit, Join, Message as Ask};
use quorate_proto::v1::subscribe_response::Message as Told;
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{Endpoint, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Code, Status, Streaming};

const TOPIC: &str = "unread";
const PARTITIONS: u32 = 6;
const MIB: u64 = 1 << 20;
/// Bytes of a value, and records of a batch.
const VALUE: usize = 16 << 10;
const RECORDS: u64 = 32;
/// 96 MiB in all.
const BATCHES: u64 = 192;
/// How long the nodes wait for a client to take something.
const PATIENCE: Duration = Duration::from_secs(10);
/// What every wait of this test may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// Connections and streams beside those that the test opens by the hundred.
const SPARE: usize = 64;

/// Little memory for what is read, and room for hardly more calls than the test makes.
fn settings(calls: usize) -> Vec<String> {
    let pairs = [
        ("--fetch-bytes", "32MiB".to_owned()),
        ("--tail-cache-bytes", "32MiB".to_owned()),
        ("--produce-bytes", "32MiB".to_owned()),
        ("--request-bytes", "32MiB".to_owned()),
        ("--receive-timeout", format!("{}s", PATIENCE.as_secs())),
        ("--max-connections", (calls + SPARE).to_string()),
        ("--max-streams", (calls + SPARE).to_string()),
    ];
    let pairs = pairs.into_iter();
    pairs
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

async fn connect(node: &Endpoint) -> Channel {
    let address = Address::from_shared(format!("http://{node}")).unwrap();
    // What does not fit here waits at the node.
    let address = address.initial_stream_window_size(64 << 10);
    address.connect().await.unwrap()
}

async fn fill(node: &Endpoint) {
    let mut producer = ProducerClient::new(connect(node).await);
    for number in 0..BATCHES {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..RECORDS {
            builder.push(Timestamp::from_millis(1), None, Some(&[7; VALUE]), &[]);
        }
        let batch: Bytes = builder.build().bytes().clone();
        let request = v1::ProduceRequest {
            topic: TOPIC.to_owned(),
            partition: Some((number % u64::from(PARTITIONS)) as i32),
            payload: Some(v1::produce_request::Payload::Batch(batch)),
            ..v1::ProduceRequest::default()
        };
        producer.produce(request).await.unwrap();
    }
}

/// A call, which lasts as long as both of its ends.
struct Call {
    asks: mpsc::Sender<v1::SubscribeRequest>,
    told: Streaming<v1::SubscribeResponse>,
}

async fn subscribe(node: &Endpoint, group: &str, join: Join) -> Call {
    let (asks, stream) = mpsc::channel(16);
    let join = Join {
        group: group.to_owned(),
        profile: Some(v1::MemberProfile {
            topics: vec![TOPIC.to_owned()],
            ..v1::MemberProfile::default()
        }),
        start: v1::Position::Earliest.into(),
        ..join
    };
    let message = Some(Ask::Join(join));
    asks.send(v1::SubscribeRequest { message }).await.unwrap();
    let mut groups = GroupsClient::new(connect(node).await);
    let told = groups.subscribe(ReceiverStream::new(stream)).await;
    Call {
        asks,
        told: told.unwrap().into_inner(),
    }
}

/// As much as may be asked for.
fn greedy() -> Join {
    Join {
        credit_bytes: 64 << 20,
        max_bytes: 8 << 20,
        ..Join::default()
    }
}

/// A member that takes everything.
async fn read_all(node: Endpoint) {
    let mut call = subscribe(&node, "reads", Join::default()).await;
    let mut records = 0;
    while records < BATCHES * RECORDS {
        let next = call.told.message().await.unwrap().unwrap();
        if let Some(Told::Records(of)) = next.message {
            let came = of.records.unwrap().records.len();
            records += came as u64;
            let message = Some(Ask::Credit(Credit { bytes: of.bytes }));
            let request = v1::SubscribeRequest { message };
            call.asks.send(request).await.unwrap();
        }
    }
    assert_eq!(records, BATCHES * RECORDS);
}

/// Takes what has been sent of a call until its end.
async fn why_ended(mut call: Call) -> Status {
    loop {
        match call.told.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a call ends with a reason"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_that_nobody_reads_take_what_they_may_and_end() {
    let calls: usize = std::env::var("CALLS").map_or(150, |calls| calls.parse().unwrap());
    let settings = settings(calls);
    let given: Vec<&str> = settings.iter().map(String::as_str).collect();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let cluster = Cluster::start_with(binary, &given).await;
    let created = cluster
        .client
        .create_topic(TOPIC, PARTITIONS, 3, BTreeMap::new())
        .await;
    created.unwrap();
    cluster.all_in_sync(TOPIC).await;
    let nodes = cluster.processes.addresses();
    fill(&nodes[0]).await;
    let pids: Vec<u32> = cluster
        .processes
        .node_ids()
        .into_iter()
        .map(|node| cluster.processes.pid(node).unwrap().unwrap())
        .collect();
    let held = || -> Vec<u64> {
        let held = pids.iter().map(|pid| resident(*pid).unwrap() / MIB);
        held.collect()
    };
    let start = held();

    let begun = Instant::now();
    let mut opening = JoinSet::new();
    for number in 0..calls {
        let node = nodes[number % nodes.len()].clone();
        opening.spawn(async move { subscribe(&node, &format!("silent-{number}"), greedy()).await });
    }
    let silent = timeout(DEADLINE, opening.join_all()).await.unwrap();
    let mut reading = tokio::spawn(read_all(nodes[1].clone()));
    let (mut most, mut slowest) = (start.clone(), Duration::ZERO);
    let (mut read, mut gone) = (None, None);
    let mut tick = interval(Duration::from_millis(50));
    while read.is_none() || gone.is_none() {
        tokio::select! {
            done = &mut reading, if read.is_none() => {
                done.unwrap();
                read = Some(begun.elapsed());
            }
            _ = tick.tick() => {
                for node in &nodes {
                    let asked = Instant::now();
                    assert!(ready(node).await.unwrap(), "{node} takes no part");
                    slowest = slowest.max(asked.elapsed());
                }
                for (most, now) in most.iter_mut().zip(held()) {
                    *most = now.max(*most);
                }
                let groups = cluster.client.list_groups().await.unwrap();
                let silent = groups.iter().filter(|group| group.group.starts_with("silent-"));
                let (count, members) = silent.fold((0, 0), |(count, members), group| {
                    (count + 1, members + group.members)
                });
                if gone.is_none() && count == calls && members == 0 {
                    gone = Some(begun.elapsed());
                }
            }
        }
        assert!(begun.elapsed() < DEADLINE, "{read:?}, {gone:?}");
    }
    let (read, gone) = (read.unwrap(), gone.unwrap());
    let bound = memory_bound(&given) / MIB;
    println!(
        "{calls} calls that nobody reads, of {} MiB: MiB a node: {start:?} before, {most:?} at most, \
         {bound} allowed; health within {slowest:?}; a member that reads had all after {:?}, the \
         silent ones had left after {gone:?}",
        BATCHES * RECORDS * VALUE as u64 / MIB,
        read,
    );
    assert!(read < gone, "who reads waits for those who do not");
    assert!(
        most.iter().all(|most| *most < bound),
        "{most:?} of {bound} MiB"
    );
    // A wide bound on a machine that does everything at once; the figure is what is printed.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    for call in silent {
        let ended = timeout(DEADLINE, why_ended(call)).await.unwrap();
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
        assert!(ended.message().contains("nothing was taken"), "{ended}");
    }
    let read = read_all(nodes[2].clone());
    timeout(DEADLINE, read).await.unwrap();
}
