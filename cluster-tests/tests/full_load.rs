//! All that the machine can produce, for `SECONDS` (default 8, which begin anew for each topic of some
//! seconds, so that the disk does not fill): no node that lives is fenced, however busy it is, and no
//! record fails. The figures are printed.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster_tests::{Cluster, eventually};
use quorate_client::{Client, ClientOptions, ProducerOptions};
use quorate_workload::{Monitor, Plan, ProduceOptions, produce};

/// A topic takes load for so long at most; then it is deleted, and the next one is made.
const A_TOPIC: u64 = 10;
const PRODUCERS: usize = 3;

async fn load(clients: &[Client], topic: &str, duration: Duration) {
    let options = ProduceOptions {
        topic: topic.to_owned(),
        plan: Plan {
            warm_up: Duration::ZERO,
            duration,
            records: None,
            rate: None,
        },
        record_bytes: 100,
        max_in_flight: 100_000,
        producer: ProducerOptions::default(),
        one_per_request: false,
    };
    let monitor = Arc::new(Monitor::default());
    let report = produce(clients, &options, &monitor).await.unwrap();
    println!(
        "{topic}: {} records, {:.0} a second, p99 {:?} ms",
        report.records, report.records_per_second, report.latency.p99_ms
    );
    assert_eq!((report.failed, report.first_error), (0, None));
    assert!(report.records > 0);
}

/// Makes room: a node removes what was deleted only when it starts, after a grace time.
fn remove_deleted(cluster: &Path) -> io::Result<()> {
    for node in 1..=3 {
        for entry in fs::read_dir(cluster.join(format!("node-{node}/logs")))? {
            let path = entry?.path();
            if !path.to_string_lossy().contains(".deleted-") {
                return Err(io::Error::other(format!("{} is there", path.display())));
            }
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_live_node_is_fenced_at_full_load() {
    let mut left: u64 = std::env::var("SECONDS").map_or(8, |seconds| seconds.parse().unwrap());
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let cluster = Cluster::start(binary).await;
    let addresses = cluster.processes.addresses();
    let clients: Vec<Client> = (0..PRODUCERS)
        .map(|_| Client::new(addresses.clone(), ClientOptions::default()).unwrap())
        .collect();
    let mut number = 0;
    while left > 0 {
        let seconds = left.min(A_TOPIC);
        left -= seconds;
        number += 1;
        let topic = format!("load-{number}");
        let made = cluster
            .client
            .create_topic(&topic, 6, 3, BTreeMap::new())
            .await;
        made.unwrap();
        cluster.all_in_sync(&topic).await;
        load(&clients, &topic, Duration::from_secs(seconds)).await;
        cluster.client.delete_topic(&topic).await.unwrap();
        eventually("the deleted logs to be set aside", || async {
            remove_deleted(cluster.processes.directory()).map_err(|error| error.to_string())
        })
        .await;
    }
    // At most 10,000 are remembered, many times what a quiet cluster makes of so few topics.
    let mut events = cluster.client.watch_events(false).await.unwrap();
    let mut kinds = BTreeMap::<String, u32>::new();
    while let Some(event) = events.message().await.unwrap() {
        assert_ne!(event.kind, "broker-fenced", "{}", event.text);
        *kinds.entry(event.kind).or_default() += 1;
    }
    println!("{kinds:?}");
    assert_eq!(
        kinds.get("broker-unfenced"),
        Some(&3),
        "from the beginning on"
    );
    assert_eq!(kinds.get("topic-created"), Some(&number));
}
