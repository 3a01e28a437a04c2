//! Three nodes lose power at the same instant, again and again, while clients write: nothing that was
//! acknowledged at `durability=fsync` is lost, moved or doubled, no ISR is ever empty, no election is
//! unclean, and everything comes back in sync by itself (R9, R13). `ROUNDS` sets how often (default
//! 3), `SEED` what is drawn.
//!
//! The nodes' disks are those of [`cluster_tests::power`]: what was not synced is lost, kept or torn by
//! chance, names too, and each start is in another boot of the machine. What that can and cannot show
//! is said there. The file system is tested here as well, through the kernel; and a topic that is not
//! synced does lose what it acknowledged, or these tests could not fail.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use cluster_tests::power::{PowerCluster, PowerDisk};
use cluster_tests::{acknowledged_after, eventually};
use quorate_client::Client;
use quorate_workload::{History, Violation, Writer, WriterOptions, check, read_all, read_from};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

const TOPIC: &str = "power-loss";
const PARTITIONS: u32 = 6;
/// Each round writes at least so long.
const LOAD: std::ops::Range<u64> = 300..1_500;
/// A second power loss comes so many milliseconds after a start.
const AGAIN: std::ops::Range<u64> = 0..3_000;
/// In each round a sync takes one of these, in milliseconds: the longer, the more waits for one.
const SYNCS: [u64; 4] = [0, 2, 10, 40];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))
}

async fn make_topic(client: &Client, durability: &str) {
    // Small segments: names come and go.
    let settings = [("durability", durability), ("segment.bytes", "32768")];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let settings = BTreeMap::from(settings);
    let made = client.create_topic(TOPIC, PARTITIONS, 3, settings).await;
    made.unwrap();
}

fn write_after(client: &Client, last: u64) -> Writer {
    let options = WriterOptions {
        topic: TOPIC.to_owned(),
        partitions: PARTITIONS,
        keys: 60,
        records: 8,
        every: Duration::from_millis(2),
    };
    Writer::start_after(client, options, last)
}

/// Returns never: looks at what the nodes tell of the topic, and fails where an ISR is empty.
async fn no_isr_is_empty(client: &Client) {
    let mut again = tokio::time::interval(Duration::from_millis(20));
    loop {
        again.tick().await;
        // While no node answers there is nothing to see.
        let Ok(described) = client.describe_topic(TOPIC).await else {
            continue;
        };
        let empty = described.partitions.iter().find(|p| p.isr.is_empty());
        assert!(empty.is_none(), "an ISR is empty: {empty:?}");
    }
}

/// Waits until all is as it was. No ISR may be empty on the way.
async fn whole_and_never_without_isr(cluster: &PowerCluster) {
    tokio::select! {
        () = no_isr_is_empty(&cluster.client) => {}
        () = async {
            cluster.all_active().await;
            cluster.all_in_sync(TOPIC).await;
        } => {}
    }
}

/// No event tells of an unclean election, of records that one lost, or of a replica that lost what it
/// had; none of an empty ISR either.
async fn no_unclean_election(client: &Client) {
    let mut events = client.watch_events(false).await.unwrap();
    let mut seen = 0;
    while let Some(event) = events.message().await.unwrap() {
        seen += 1;
        let bad = ["unclean-leader-elected", "data-lost", "replica-damaged"];
        assert!(!bad.contains(&event.kind.as_str()), "{}", event.text);
        let told_isr = ["leader-elected", "partition-offline", "isr-changed"];
        let empty = told_isr.contains(&event.kind.as_str()) && event.isr.is_empty();
        assert!(!empty, "{}", event.text);
    }
    assert!(seen > 0, "a start makes events");
}

/// Where each partition ends now.
async fn ends(client: &Client) -> BTreeMap<u32, i64> {
    eventually("every high watermark", || async {
        let described = client.describe_topic(TOPIC).await;
        let described = described.map_err(|error| error.to_string())?;
        let partitions = described.partitions.iter();
        let ends = partitions.map(|p| Some((p.partition.unsigned_abs(), p.high_watermark?)));
        let ends: Option<BTreeMap<u32, i64>> = ends.collect();
        ends.ok_or_else(|| "a leader tells none".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and FUSE"]
async fn acknowledged_records_survive_a_power_loss_of_all_nodes() {
    let (rounds, seed) = (number("ROUNDS", 3), number("SEED", 1));
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = PowerCluster::start(binary(), &mut random).await;
    make_topic(&cluster.client, "fsync").await;
    whole_and_never_without_isr(&cluster).await;
    let mut all = History::new();
    for round in 1..=rounds {
        let starts = ends(&cluster.client).await;
        let last = all.last().map_or(0, |sent| sent.number);
        let sync = Duration::from_millis(SYNCS[random.random_range(0..SYNCS.len())]);
        cluster.set_sync_time(sync);
        let writer = write_after(&cluster.client, last);
        acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
        tokio::time::sleep(Duration::from_millis(random.random_range(LOAD))).await;
        // One disk in four loses everything that it may.
        let some = random.random_ratio(3, 4);
        let before = writer.acknowledged();
        let mut dropped = cluster.lose_power(some, &mut random);
        // Now and then it goes again while the nodes start.
        let again = random.random_ratio(1, 3);
        if again {
            cluster.power_on(&mut random);
            tokio::time::sleep(Duration::from_millis(random.random_range(AGAIN))).await;
            for (node, lost) in cluster.lose_power(some, &mut random) {
                *dropped.entry(node).or_default() += lost;
            }
        }
        let started = Instant::now();
        cluster.power_on(&mut random);
        acknowledged_after(&writer, started, "every partition to be written again").await;
        let written = started.elapsed();
        // Every write waits for a sync that is under way (see `power`), and the load goes on: a replica
        // that is behind would catch up in its own time.
        cluster.set_sync_time(Duration::ZERO);
        whole_and_never_without_isr(&cluster).await;
        let in_sync = started.elapsed();
        no_unclean_election(&cluster.client).await;
        let history = writer.finish().await.unwrap();
        let stored = read_from(&cluster.client, TOPIC, &starts).await.unwrap();
        let dropped: Vec<String> = dropped
            .iter()
            .map(|(node, lost)| {
                format!(
                    "node {node}: {} bytes of {} files, {} names",
                    lost.bytes, lost.files, lost.names
                )
            })
            .collect();
        println!(
            "round {round} (seed {seed}, syncs of {sync:?}, twice {again}): {before} acknowledged before; {}; written \
             after {} ms, in sync after {} ms; {} sent, {} stored",
            dropped.join("; "),
            written.as_millis(),
            in_sync.as_millis(),
            history.len(),
            stored.len()
        );
        let violations = check(&history, &stored);
        assert!(
            violations.is_empty(),
            "{} violations: {:?}",
            violations.len(),
            &violations[..violations.len().min(10)]
        );
        all.extend(history);
    }
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    let violations = check(&all, &stored);
    println!("{} sent in all, {} stored", all.len(), stored.len());
    assert!(
        violations.is_empty(),
        "{} violations: {:?}",
        violations.len(),
        &violations[..violations.len().min(10)]
    );
}

/// Acknowledged records that a power loss takes from a topic, where nothing that is not synced stays.
/// `before` is called when there is load.
async fn lost_at(durability: &str, before: impl FnOnce(&mut PowerCluster)) -> usize {
    let mut random = StdRng::seed_from_u64(number("SEED", 1));
    let mut cluster = PowerCluster::start(binary(), &mut random).await;
    make_topic(&cluster.client, durability).await;
    whole_and_never_without_isr(&cluster).await;
    let writer = write_after(&cluster.client, 0);
    acknowledged_after(&writer, Instant::now(), "every partition to be written").await;
    before(&mut cluster);
    // What is acknowledged then was written after that.
    let later = Instant::now() + Duration::from_millis(200);
    acknowledged_after(&writer, later, "every partition to be written still").await;
    cluster.lose_power(false, &mut random);
    let started = Instant::now();
    cluster.power_on(&mut random);
    acknowledged_after(&writer, started, "every partition to be written again").await;
    let history = writer.finish().await.unwrap();
    let stored = read_all(&cluster.client, TOPIC).await.unwrap();
    let violations = check(&history, &stored);
    let lost = violations
        .iter()
        .filter(|violation| matches!(violation, Violation::Lost(_)));
    let lost = lost.count();
    println!("{lost} of {} sent at {durability} are lost", history.len());
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and FUSE"]
async fn what_is_acknowledged_from_the_page_cache_is_lost_and_the_checker_sees_it() {
    // As if the power went before anything of the page cache was written: a broker flushes it every
    // now and then, and that little is in danger is no proof.
    let unwritten = |cluster: &mut PowerCluster| cluster.lie();
    assert!(lost_at("page-cache", unwritten).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and FUSE"]
async fn what_a_lying_disk_has_synced_is_lost_and_the_checker_sees_it() {
    let lie = |cluster: &mut PowerCluster| cluster.lie();
    assert!(lost_at("fsync", lie).await > 0);
}

#[test]
#[ignore = "needs root and FUSE"]
fn the_disk_keeps_what_was_synced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut disk = PowerDisk::mount(at).unwrap();
    let synced = |path: &str| File::open(at.join(path)).unwrap().sync_all().unwrap();
    fs::create_dir(at.join("kept")).unwrap();
    fs::write(at.join("kept/content"), b"synced").unwrap();
    fs::write(
        at.join("kept/name"),
        b"of a file whose content was not synced",
    )
    .unwrap();
    fs::write(at.join("kept/renamed"), b"old").unwrap();
    synced("kept/content");
    synced("kept/renamed");
    synced("kept");
    synced("");
    // From here on nothing is made durable, but for one file whose name is not.
    let mut content = File::options()
        .write(true)
        .open(at.join("kept/content"))
        .unwrap();
    content.write_all(b"SYN").unwrap();
    content.seek(SeekFrom::End(0)).unwrap();
    content.write_all(&[1; 10_000]).unwrap();
    fs::write(at.join("kept/new"), b"new").unwrap();
    synced("kept/new");
    fs::rename(at.join("kept/new"), at.join("kept/renamed")).unwrap();
    fs::remove_file(at.join("kept/name")).unwrap();
    fs::create_dir(at.join("new")).unwrap();
    assert_eq!(fs::read(at.join("kept/renamed")).unwrap(), b"new");
    assert_eq!(fs::read(at.join("kept/content")).unwrap().len(), 10_006);
    drop(content);
    let lost = disk
        .lose_power(false, &mut StdRng::seed_from_u64(1))
        .unwrap();
    println!("{lost:?}");
    assert!(lost.bytes >= 10_003 && lost.names == 4, "{lost:?}");
    disk.power_on().unwrap();
    let names = |path: &str| {
        let entries = fs::read_dir(at.join(path)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["kept"]);
    assert_eq!(names("kept"), ["content", "name", "renamed"]);
    assert_eq!(fs::read(at.join("kept/content")).unwrap(), b"synced");
    assert_eq!(fs::read(at.join("kept/name")).unwrap(), b"");
    assert_eq!(fs::read(at.join("kept/renamed")).unwrap(), b"old");
}
