//! One node's disk fills up while clients write (R13): it acknowledges nothing that it cannot store,
//! the others go on without it, and with room again it heals. The disk is a small tmpfs.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cluster_tests::hostile::batch;
use cluster_tests::{Cluster, acknowledged_after, eventually};
use quorate::NodeState;
use quorate_proto::v1;
use quorate_proto::v1::produce_request::Payload;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_record::Compression;
use quorate_types::NodeId;
use quorate_workload::{check, read_all};
use tokio::time::{Instant, timeout};

const TOPIC: &str = "on-a-full-disk";
const BALLAST: &str = "ballast";
const FULL: NodeId = NodeId::new(1);
const SIZE: &str = "48m";
/// What the disk has left when the load begins.
const LEFT: u64 = 6 << 20;
const STOP: Duration = Duration::from_secs(30);

/// A tmpfs that is unmounted with the test.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        let options = format!("size={SIZE},mode=0755");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        assert!(mounted.status().unwrap().success(), "a tmpfs takes root");
        Self(at.to_owned())
    }

    fn available(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After the nodes: what is left of the cluster's directory goes too.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        let _removed = self.0.parent().map(fs::remove_dir_all);
    }
}

/// Sends large batches, whatever becomes of them, until the node's log tells of the full disk.
async fn fill(cluster: &Cluster) {
    let value = vec![7; 200 << 10];
    let large = batch(Compression::None, 1_000, &[&value[..]]);
    let log = cluster.processes.log_path(FULL).unwrap();
    let nodes = cluster.processes.addresses();
    eventually("the node to say that its disk is full", || async {
        for partition in 0..3 {
            let request = v1::ProduceRequest {
                topic: BALLAST.to_owned(),
                partition: Some(partition),
                payload: Some(Payload::Batch(large.bytes().clone())),
                timeout_ms: 1_000,
                ..v1::ProduceRequest::default()
            };
            let to = nodes.last().unwrap();
            let Ok(mut client) = ProducerClient::connect(format!("http://{to}")).await else {
                continue;
            };
            let _whatever = timeout(Duration::from_secs(2), client.produce(request)).await;
        }
        let said = fs::read_to_string(&log).unwrap();
        said.contains("No space left")
            .then_some(())
            .ok_or("not yet")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_whose_disk_is_full_does_no_harm_and_heals() {
    let mut mount = None;
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    let mut cluster = Cluster::start_in(binary, |directory| {
        mount = Some(Mount::tmpfs(&directory.join(format!("node-{FULL}"))));
    })
    .await;
    let mount = mount.unwrap();
    let writer = cluster.write_to(TOPIC).await;
    let made = cluster
        .client
        .create_topic(BALLAST, 3, 3, BTreeMap::new())
        .await;
    made.unwrap();
    acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
    let filler = mount.0.join("filler");
    let take = mount.available().saturating_sub(LEFT);
    assert!(take > 0, "{} bytes are left", mount.available());
    fs::write(&filler, vec![0; usize::try_from(take).unwrap()]).unwrap();

    let begun = Instant::now();
    fill(&cluster).await;
    let full = Instant::now();
    println!("full after {} ms", (full - begun).as_millis());
    acknowledged_after(&writer, full, "every partition to go on").await;
    // Whatever still fitted is over: once it is out, it stays out, and the others go on.
    eventually("every partition without the full node", || async {
        let topic = cluster.client.describe_topic(BALLAST).await;
        let topic = topic.map_err(|error| error.to_string())?;
        let with = topic
            .partitions
            .iter()
            .filter(|p| p.isr.contains(&FULL.get()))
            .count();
        (with < 3).then_some(()).ok_or(format!("in {with} ISRs"))
    })
    .await;
    let later = Instant::now();
    acknowledged_after(
        &writer,
        later,
        "every partition to go on without the full node",
    )
    .await;
    println!(
        "longest gap {:?}",
        writer.gaps(begun).into_values().max().unwrap()
    );
    let state = cluster.processes.state(FULL).unwrap();
    let log = fs::read_to_string(cluster.processes.log_path(FULL).unwrap()).unwrap();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("No space left"))
        .collect();
    println!(
        "the node is {state:?}; {} lines tell, first: {}",
        told.len(),
        told[0]
    );
    assert!(!log.contains("panicked"), "{log}");
    let last = log.lines().rev().take(3).collect::<Vec<_>>();
    println!("its last words, the last first: {last:#?}");
    let read = read_all(&cluster.client, TOPIC).await.unwrap();
    assert!(!read.is_empty(), "reads go on");

    // Room again, and a start.
    fs::remove_file(&filler).unwrap();
    if state != NodeState::Down {
        cluster.processes.terminate(FULL).unwrap();
        if cluster.processes.wait_down(FULL, STOP).await.is_err() {
            cluster.processes.kill(FULL).unwrap();
        }
    }
    cluster.processes.start_node(FULL).unwrap();
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
    cluster.all_in_sync(BALLAST).await;
    acknowledged_after(
        &writer,
        Instant::now(),
        "every partition to be written again",
    )
    .await;
    let history = writer.finish().await.unwrap();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    println!("{} sent, {} stored", history.len(), stored.len());
    let violations = check(&history, &stored);
    assert!(
        violations.is_empty(),
        "{:?}",
        &violations[..violations.len().min(10)]
    );
    drop(cluster);
    drop(mount);
}
