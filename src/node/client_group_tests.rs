//! Members of the client's library on three nodes in one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::{
    Client, ClientOptions, GroupEvent, GroupOptions, ProducerOptions, StartPosition, ToSend,
};
use quorate_config::NodeSettings;
use quorate_types::PartitionId;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::tests::{create, eventually, plan, start_with, stop};

fn short(settings: &mut NodeSettings) {
    settings.group_heartbeat_interval = Duration::from_millis(500);
    settings.group_session_timeout_min = Duration::from_millis(500);
    settings.group_session_timeout = Duration::from_secs(6);
}

#[derive(Default)]
struct Seen {
    records: BTreeMap<(u32, u64), u32>,
    has: BTreeMap<&'static str, Vec<u32>>,
    events: Vec<String>,
    last: Option<Instant>,
    longest: Duration,
}

fn member(
    client: &Client,
    name: &'static str,
    seen: &Arc<Mutex<Seen>>,
) -> (CancellationToken, JoinHandle<()>) {
    let cancel = CancellationToken::new();
    let mut member = client
        .group(GroupOptions {
            start: StartPosition::Earliest,
            auto_commit: Some(Duration::from_millis(200)),
            client_id: name.into(),
            ..GroupOptions::new("g", ["t"])
        })
        .unwrap();
    let (seen, ended) = (Arc::clone(seen), cancel.clone());
    let task = tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = member.poll() => event.unwrap(),
                () = ended.cancelled() => break,
            };
            let mut seen = seen.lock();
            match event {
                GroupEvent::Records(read) => {
                    for record in read.records {
                        let at = (read.partition.get(), record.offset.get());
                        *seen.records.entry(at).or_default() += 1;
                        let now = Instant::now();
                        if let Some(last) = seen.last.replace(now) {
                            seen.longest = seen.longest.max(now - last);
                        }
                    }
                }
                GroupEvent::Lost(lost) => seen.events.push(format!("{name} lost {}", lost.len())),
                GroupEvent::Assigned(assigned) => {
                    let new = assigned.iter().map(|of| of.partition.get());
                    seen.has.entry(name).or_default().extend(new);
                }
                GroupEvent::Revoked(revoked) => {
                    let gone: Vec<u32> = revoked.iter().map(|of| of.partition.get()).collect();
                    seen.has
                        .entry(name)
                        .or_default()
                        .retain(|of| !gone.contains(of));
                }
                _ => {}
            }
        }
        member.close().await.unwrap();
        seen.lock().has.remove(name);
    });
    (cancel, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_and_go_on_over_a_stopped_coordinator() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let mut running = start_with(&plan, root.path(), short).await;
    let at: Vec<_> = plan.iter().map(|(_, client, _)| client.clone()).collect();
    eventually("a topic is created", || create(&at[0])).await;
    let client = Client::new(at.clone(), ClientOptions::default()).unwrap();
    let producer = client.producer(ProducerOptions::default());
    let done = CancellationToken::new();
    let (writer, ending) = (producer.clone(), done.clone());
    let writing = tokio::spawn(async move {
        let mut number = 0u64;
        while !ending.is_cancelled() {
            let partition = Some(PartitionId::new((number % 6) as u32));
            let value = number.to_string();
            let record = ToSend {
                value: Some(value.as_bytes()),
                partition,
                ..ToSend::default()
            };
            writer.send("t", record).await.unwrap();
            number += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        number
    });
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let shares = |wanted: &'static [usize]| {
        let seen = Arc::clone(&seen);
        let begun = Instant::now();
        async move {
            eventually("partitions are shared", async || {
                let seen = seen.lock();
                let mut counts: Vec<usize> = seen.has.values().map(Vec::len).collect();
                counts.sort();
                (counts == wanted)
                    .then_some(())
                    .ok_or(format!("{:?}", seen.has))
            })
            .await;
            let mut seen = seen.lock();
            eprintln!(
                "{wanted:?} after {:?}, longest gap {:?}, {:?}",
                begun.elapsed(),
                seen.longest,
                seen.events
            );
            seen.longest = Duration::ZERO;
        }
    };
    let a = member(&client, "a", &seen);
    shares(&[6]).await;
    let b = member(&client, "b", &seen);
    shares(&[3, 3]).await;
    let c = member(&client, "c", &seen);
    shares(&[2, 2, 2]).await;
    let coordinator = client
        .describe_group("g")
        .await
        .unwrap()
        .group
        .unwrap()
        .coordinator;
    eprintln!("stopping {coordinator:?}");
    let index = running
        .iter()
        .position(|node| Some(node.id.get()) == coordinator)
        .unwrap();
    stop(vec![running.remove(index)]).await;
    c.0.cancel();
    c.1.await.unwrap();
    shares(&[3, 3]).await;
    done.cancel();
    let written = writing.await.unwrap();
    producer.flush().await;
    eventually("all is read", async || {
        let read = seen.lock().records.len() as u64;
        (read == written)
            .then_some(())
            .ok_or(format!("{read} of {written}"))
    })
    .await;
    for member in [a, b] {
        member.0.cancel();
        member.1.await.unwrap();
    }
    let twice = seen
        .lock()
        .records
        .values()
        .filter(|times| **times > 1)
        .count();
    let described = client.describe_group("g").await.unwrap();
    let lags: Vec<_> = described.offsets.iter().map(|of| of.lag).collect();
    eprintln!(
        "{written} written, {twice} read twice, lags {lags:?}, groups {:?}",
        client.list_groups().await.unwrap()
    );
    assert_eq!(twice, 0);
    assert!(described.members.is_empty());
    assert!(lags.iter().all(|lag| *lag == Some(0)));
    client.delete_group("g").await.unwrap();
    assert!(client.list_groups().await.unwrap().is_empty());
    stop(running).await;
}
