//! An idempotent producer whose answers get lost, and whose leaders are killed and come back: each record
//! is there once, in order per key. Clients reach the nodes through proxies that cut a connection after
//! requests have gone through and before their answers come, by a seed that is printed.
//!
//! `RECORDS` sets how many (default 20,000), `SEED` the cuts.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cluster_tests::{Cluster, Proxy, acknowledged_after, eventually, metric};
use parking_lot::Mutex;
use quorate::NodePlan;
use quorate_types::Endpoint;
use quorate_workload::{check, read_all};
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const TOPIC: &str = "once";
/// At least so many leaders are killed.
const KILLS: u64 = 2;

/// Counts what the client's producer says of tries that came to nothing, by what it says.
#[derive(Clone, Default)]
struct Retries(Arc<Mutex<BTreeMap<String, u64>>>);

impl Subscriber for Retries {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "quorate_client::worker"
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Said(self));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Said<'a>(&'a Retries);

impl Visit for Said<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0.0.lock().entry(format!("{value:?}")).or_default() += 1;
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|given| given.parse().unwrap())
}

/// How many records a node has answered for since its start, those that it had already too.
async fn answered(node: &Endpoint) -> u64 {
    eventually("the node's figures", || {
        metric(node, "quorate_produced_records_total")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_there_once_whatever_is_lost_on_the_way() {
    let records = variable("RECORDS").unwrap_or(20_000);
    let seed = variable("SEED").unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let retries = Retries::default();
    tracing::subscriber::set_global_default(retries.clone()).unwrap();
    let mut nodes = NodePlan::on_free_ports(3).unwrap();
    let mut proxies = Vec::new();
    for plan in &mut nodes {
        let seed = seed.wrapping_add(plan.node.get().into());
        let proxy = Proxy::start(plan.client.clone(), seed).await.unwrap();
        plan.advertised = proxy.at().clone();
        proxies.push(proxy);
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let mut cluster = Cluster::start_at(binary, &[], nodes).await;
    let writer = cluster.write_to(TOPIC).await;
    acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
    proxies.iter().for_each(|proxy| proxy.lose(true));

    let (mut kills, mut answers) = (0, 0);
    while kills < KILLS || writer.acknowledged() < records {
        let leader = cluster.leader(TOPIC, (kills % 6) as usize).await;
        let at = cluster.processes.addresses()[leader.get() as usize - 1].clone();
        answers += answered(&at).await;
        cluster.processes.kill(leader).unwrap();
        kills += 1;
        acknowledged_after(&writer, Instant::now(), "every partition to go on").await;
        cluster.processes.start_node(leader).unwrap();
        cluster.all_active().await;
        cluster.all_in_sync(TOPIC).await;
    }
    // What is written last is answered through the cuts, too.
    let history = writer.finish().await.unwrap();
    proxies.iter().for_each(|proxy| proxy.lose(false));
    for node in cluster.processes.addresses() {
        answers += answered(&node).await;
    }
    let client = &cluster.client;
    let stored = eventually("everything can be read", || read_all(client, TOPIC)).await;

    let cut: u64 = proxies.iter().map(Proxy::cut).sum();
    let lost: u64 = proxies.iter().map(Proxy::lost).sum();
    let sent = history.len() as u64;
    println!(
        "{sent} records, {} stored; {kills} leaders killed; {cut} connections cut, {lost} bytes of \
         answers lost; retries: {:?}; at least {} records answered for again",
        stored.len(),
        retries.0.lock(),
        answers.saturating_sub(sent)
    );
    assert_eq!(check(&history, &stored)[..], []);
    let unknown = history.iter().find(|sent| sent.acknowledged.is_none());
    assert_eq!(unknown, None, "every record is acknowledged in the end");
    assert_eq!(stored.len(), history.len());
    assert!(cut > 0 && lost > 0, "nothing was lost on the way");
}
