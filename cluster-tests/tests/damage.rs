//! Files of a stopped node are flipped in one bit or cut to their first half, one kind after the
//! other, while the two other nodes go on. The node comes back repaired, or does not start, names
//! the file, and comes back as a new member with an empty directory; then it is made the leader.
//! Nothing acknowledged is lost, and whatever was read is what was written.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster_tests::{Cluster, acknowledged_after, describe_raw, eventually, ready};
use quorate::NodeState;
use quorate_types::NodeId;
use quorate_workload::{Stored, Violation, Writer, WriterOptions, check, read_all};
use tokio::time::Instant;

const TOPIC: &str = "damaged";
const PARTITIONS: u32 = 3;
const STOP: Duration = Duration::from_secs(30);
/// What a node logs when it finds a replica of its own damaged while it runs.
const STOPS: &str = "replica is damaged and stops";
const VICTIM: NodeId = NodeId::new(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Flip,
    Half,
    Gone,
}

#[derive(Debug, PartialEq, Eq)]
enum Came {
    Repaired,
    Refused,
}

/// The kinds of files of a data directory, and where one of each is; partitions are looked at in
/// `partition` only.
fn kinds(data: &Path, partition: &Path) -> BTreeMap<String, PathBuf> {
    let mut kinds = BTreeMap::new();
    let mut note = |kind: &str, path: PathBuf| {
        if fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
            kinds.insert(kind.to_owned(), path);
        }
    };
    for name in [
        "meta.properties",
        "start-count",
        "hosted",
        "boot-id",
        "clean-shutdown",
    ] {
        note(name, data.join(name));
    }
    for name in ["db", "conf", "promised"] {
        note(
            &format!("sled {name}"),
            data.join("metadata/log").join(name),
        );
    }
    let listed = |folder: &Path| {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
    };
    for path in listed(&data.join("metadata/log")) {
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("snap.")
        {
            note("sled snap", path);
        }
    }
    for path in listed(&data.join("metadata/snapshots")) {
        note("metadata snapshot", path);
    }
    for name in ["checkpoint", "leader-epoch-checkpoint"] {
        note(name, partition.join(name));
    }
    let mut segments = Vec::new();
    for path in listed(partition) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => segments.push(path),
            Some(kind @ ("index" | "timeindex" | "snapshot")) => {
                let kind = kind.to_owned();
                note(&kind, path);
            }
            _ => {}
        }
    }
    assert!(segments.len() > 2, "{segments:?}");
    note("active segment", segments.pop().unwrap());
    note("closed segment", segments.swap_remove(segments.len() / 2));
    kinds
}

fn damage(file: &Path, harm: Harm) {
    let mut content = fs::read(file).unwrap();
    let used = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    match harm {
        Harm::Flip => content[used * 2 / 3] ^= 4,
        Harm::Half => content.truncate(content.len() / 2),
        Harm::Gone => unreachable!("a directory"),
    }
    fs::write(file, content).unwrap();
}

struct Test {
    cluster: Cluster,
    writer: Writer,
    /// What was read after each case.
    reads: Vec<(String, Vec<Stored>)>,
    /// The partition whose preferred leader is the victim.
    partition: usize,
}

impl Test {
    async fn start() -> Self {
        let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
        let config = BTreeMap::from([("segment.bytes".to_owned(), "4096".to_owned())]);
        let created = cluster
            .client
            .create_topic(TOPIC, PARTITIONS, 3, config)
            .await;
        created.unwrap();
        let options = WriterOptions {
            topic: TOPIC.to_owned(),
            partitions: PARTITIONS,
            keys: 12,
            records: 6,
            every: Duration::from_millis(20),
        };
        let writer = Writer::start(&cluster.client, options);
        eventually("several segments", || async {
            let so_far = writer.acknowledged();
            (so_far > 1_500)
                .then_some(())
                .ok_or(format!("{so_far} acknowledged"))
        })
        .await;
        let topic = cluster.client.describe_topic(TOPIC).await.unwrap();
        let preferred = topic
            .partitions
            .iter()
            .position(|of| of.replicas[0] == VICTIM.get());
        Self {
            cluster,
            writer,
            reads: Vec::new(),
            partition: preferred.unwrap(),
        }
    }

    fn data(&self) -> PathBuf {
        self.cluster
            .processes
            .directory()
            .join(format!("node-{VICTIM}"))
    }

    fn folder(&self) -> PathBuf {
        let prefix = format!("{TOPIC}-{}.", self.partition);
        let mut entries = fs::read_dir(self.data().join("logs")).unwrap();
        let found = entries.find_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name.starts_with(&prefix) && !name.contains("deleted")).then_some(path)
        });
        found.unwrap()
    }

    fn said(&self) -> String {
        let path = self.cluster.processes.log_path(VICTIM).unwrap();
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    }

    async fn stop(&mut self, node: NodeId) {
        self.cluster.processes.terminate(node).unwrap();
        let down = self.cluster.processes.wait_down(node, STOP).await;
        down.unwrap();
    }

    async fn whole(&self) {
        self.cluster.all_active().await;
        self.cluster.all_in_sync(TOPIC).await;
    }

    /// Waits until the node takes part again or has ended.
    async fn outcome(&mut self, what: &str) -> Came {
        let deadline = Instant::now() + STOP;
        let mut again = tokio::time::interval(Duration::from_millis(50));
        loop {
            again.tick().await;
            let state = self.cluster.processes.state(VICTIM).unwrap();
            if !matches!(state, NodeState::Running) {
                return Came::Refused;
            }
            // Others may still see it as it was before it stopped.
            let address = &self.cluster.processes.addresses()[VICTIM.get() as usize - 1];
            if ready(address).await.is_ok_and(|ready| ready)
                && let Ok(topic) = describe_raw(address, TOPIC).await
                && topic.partitions.iter().all(|of| of.isr.len() == 3)
            {
                return Came::Repaired;
            }
            assert!(Instant::now() < deadline, "{what}: neither back nor ended");
        }
    }

    /// One kind of damage, from the stop to a cluster that is whole again.
    async fn case(&mut self, kind: &str, harm: Harm) {
        let begun = Instant::now();
        self.stop(VICTIM).await;
        let (data, folder) = (self.data(), self.folder());
        let file = match harm {
            Harm::Gone => {
                fs::remove_dir_all(&folder).unwrap();
                folder.clone()
            }
            _ => {
                let kinds = kinds(&data, &folder);
                let Some(file) = kinds.get(kind).cloned() else {
                    panic!("no {kind} among {kinds:?}");
                };
                damage(&file, harm);
                file
            }
        };
        let before = self.said().len();
        self.cluster.processes.start_node(VICTIM).unwrap();
        let what = format!("{kind}, {harm:?}");
        let came = self.outcome(&what).await;
        if came == Came::Refused {
            let said = self.said();
            let said = said.get(before..).unwrap_or(&said);
            let name = file.file_name().unwrap().to_string_lossy();
            let told: Vec<&str> = said.lines().filter(|line| line.contains(&*name)).collect();
            assert!(!told.is_empty(), "{what}: not named in {said}");
            println!("{what}: refused: {}", told[told.len() - 1]);
            fs::remove_dir_all(&data).unwrap();
            self.cluster.processes.start_node(VICTIM).unwrap();
        }
        self.repaired(&what, before).await;
        self.cluster.all_active().await;
        self.let_it_lead(&what, before).await;
        println!("{what}: {came:?}, {:?}", begun.elapsed());
    }

    /// The node that was damaged leads, and everything is read.
    async fn let_it_lead(&mut self, what: &str, before: usize) {
        let leader = self.cluster.leader(TOPIC, self.partition).await;
        if leader != VICTIM {
            self.cluster.processes.kill(leader).unwrap();
            eventually(
                "the node that was damaged leads, or has given way",
                || async {
                    let leads = self.cluster.leader(TOPIC, self.partition).await;
                    (leads != leader).then_some(()).ok_or("not yet")
                },
            )
            .await;
            self.cluster.processes.start_node(leader).unwrap();
        }
        self.cluster.all_active().await;
        let client = &self.cluster.client;
        let read = eventually("everything can be read", || read_all(client, TOPIC)).await;
        self.reads.push((what.to_owned(), read));
        self.repaired(what, before).await;
        self.cluster.all_active().await;
        acknowledged_after(&self.writer, Instant::now(), "acknowledged records").await;
    }

    /// Waits until every replica is in sync; or the node has found a replica of its own damaged
    /// since its log was so long, and out of the ISR it stays until it is started again.
    async fn stopped_by_damage(&self, from: usize) -> bool {
        let client = &self.cluster.client;
        eventually("every replica in sync, or one found damaged", || async {
            let topic = client.describe_topic(TOPIC).await;
            let topic = topic.map_err(|error| error.to_string())?;
            let Some(of) = topic.partitions.iter().find(|of| of.isr.len() < 3) else {
                return Ok(false);
            };
            let found = self.said()[from..].contains(STOPS);
            if found && !of.isr.contains(&VICTIM.get()) {
                return Ok(true);
            }
            Err(format!("{of:?}"))
        })
        .await
    }

    /// Waits until every replica is in sync. Whoever reads next may be the first to find the damage;
    /// a replica that was found damaged while it runs comes back at the next start.
    async fn repaired(&mut self, what: &str, before: usize) {
        let mut from = before;
        while self.stopped_by_damage(from).await {
            let said = self.said();
            let found = said[from..].lines().find(|line| line.contains(STOPS));
            println!("{what}: found while it ran: {}", found.unwrap_or_default());
            from = said.len();
            self.stop(VICTIM).await;
            self.cluster.processes.start_node(VICTIM).unwrap();
        }
    }

    async fn finish(self) {
        let history = self.writer.finish().await.unwrap();
        let stored = read_all(&self.cluster.client, TOPIC).await.unwrap();
        let violations = check(&history, &stored);
        let some = &violations[..violations.len().min(10)];
        assert!(violations.is_empty(), "{some:?}");
        for (what, read) in self.reads {
            assert!(!read.is_empty(), "{what}");
            let mut wrong = check(&history, &read);
            // What was written later.
            wrong.retain(|violation| !matches!(violation, Violation::Lost(_)));
            let some = &wrong[..wrong.len().min(10)];
            assert!(wrong.is_empty(), "{what}: {some:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_damaged_file_comes_back_repaired_or_says_why_it_does_not_start() {
    let mut test = Test::start().await;
    test.case("a partition's directory", Harm::Gone).await;
    test.case("closed segment", Harm::Flip).await;
    test.case("leader-epoch-checkpoint", Harm::Flip).await;
    test.case("sled db", Harm::Flip).await;
    test.case("start-count", Harm::Half).await;
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: every kind of file, flipped and cut, some minutes"]
async fn every_kind_of_file_is_flipped_and_cut() {
    let mut test = Test::start().await;
    test.stop(VICTIM).await;
    let kinds = kinds(&test.data(), &test.folder());
    test.cluster.processes.start_node(VICTIM).unwrap();
    test.whole().await;
    assert!(kinds.len() >= 15, "{kinds:?}");
    for kind in kinds.keys() {
        for harm in [Harm::Flip, Harm::Half] {
            test.case(kind, harm).await;
        }
    }
    // There by now: after 100 entries, and after a start that found what was there.
    for kind in ["metadata snapshot", "sled snap"] {
        for harm in [Harm::Flip, Harm::Half] {
            test.case(kind, harm).await;
            // Where the directory was emptied, sled writes its page table at the next start.
            test.stop(VICTIM).await;
            test.cluster.processes.start_node(VICTIM).unwrap();
            test.whole().await;
        }
    }
    test.finish().await;
}
