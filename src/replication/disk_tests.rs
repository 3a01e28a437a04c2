//! What becomes of a replica whose disk fails, or fails again and again (R13).

use std::time::Duration;

use quorate_metadata::{AlterTopic, Command};
use quorate_types::Acks;

use crate::tests::{Cluster, ID, node};
use crate::{Event, Status};

impl Cluster {
    fn unfence(&mut self, id: u32) {
        let epoch = self.image.broker(node(id)).unwrap().epoch;
        self.apply(Command::UnfenceBroker {
            node: node(id),
            epoch,
        });
        self.run();
    }

    fn leader_epoch(&self) -> u32 {
        self.image.partition(&ID).unwrap().leader_epoch.get()
    }

    /// The path of a file of that node's log.
    fn file(&self, id: u32, name: &str) -> std::path::PathBuf {
        let root = self.root().join(id.to_string());
        root.join("p").join(name)
    }
}

#[test]
fn the_last_in_sync_replica_leads_again_after_its_disk_failed() {
    let mut cluster = Cluster::new();
    for id in [2, 3] {
        cluster.kill(id);
        cluster.fence(id);
    }
    assert_eq!(cluster.isr(), [1]);
    cluster.produce(1, 1, Acks::Leader, None);
    cluster.fail_flush(1);
    assert_eq!(cluster.image.partition(&ID).unwrap().leader, None);
    cluster.pass(Duration::from_secs(1));
    // As the controller does from time to time.
    let partitions = vec![ID];
    cluster.apply(Command::ElectPreferredLeaders { partitions });
    cluster.run();
    assert_eq!(cluster.leader(), 1);
    assert!(matches!(cluster.replica(1).status(), Status::Leader { .. }));
}

#[test]
fn a_damaged_replica_that_is_elected_all_the_same_gives_way_to_one_that_is_whole() {
    let mut cluster = Cluster::new();
    cluster.kill(3);
    cluster.fence(3);
    cluster.produce(1, 1, Acks::All, None);
    cluster.refuse_proposals = true;
    let why = "p/0.log, position 0: CRC".to_owned();
    cluster.step(node(1), Event::Unreadable { why });
    cluster.run();
    // The other one is gone before the report is taken: the damaged one stays, as the last member.
    cluster.fence(2);
    cluster.refuse_proposals = false;
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.isr(), [1]);
    assert_eq!(cluster.image.partition(&ID).unwrap().leader, None);
    cluster.unfence(2);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.leader(), 2);
    assert_eq!(cluster.isr(), [2]);
    assert_eq!(cluster.replica(1).status(), Status::Damaged);
}

#[test]
fn a_replica_that_is_about_to_join_is_not_cut_before_the_quorum_has_its_report() {
    let mut cluster = Cluster::new();
    let set = |cluster: &mut Cluster, key: &str, value: &str| {
        cluster.apply(Command::AlterTopic(AlterTopic {
            topic_id: ID.topic_id,
            set: [(key.to_owned(), value.to_owned())].into(),
            unset: Vec::new(),
        }));
        cluster.run();
    };
    set(&mut cluster, "durability", "page-cache");
    cluster.kill(3);
    cluster.fence(3);
    cluster.refuse_proposals = true;
    cluster.start(3, 2);
    cluster.nodes.get_mut(&node(3)).unwrap().flushes = false;
    cluster.run();
    // Its leader has proposed it, and what it acks counts already.
    cluster.produce(1, 7, Acks::All, None);
    cluster.pass(Duration::from_millis(200));
    assert_eq!(cluster.values(3), ["7"]);
    cluster.fail_flush(3);
    set(&mut cluster, "max.message.bytes", "2000000");
    cluster.pass(Duration::from_millis(200));
    assert_eq!(cluster.isr(), [1, 2]);
    assert_eq!(cluster.replica(3).status(), Status::Idle);
    assert_eq!(cluster.values(3), ["7"], "the proposal may still count");
    cluster.refuse_proposals = false;
    cluster.nodes.get_mut(&node(3)).unwrap().flushes = true;
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    assert_eq!(cluster.values(3), ["7"], "from its leader");
}

#[test]
fn a_disk_that_fails_again_and_again_leaves_the_others_in_peace() {
    let mut cluster = Cluster::new();
    let begun = cluster.leader_epoch();
    let mut failures = 0;
    for _ in 0..200 {
        cluster.pass(Duration::from_millis(50));
        if matches!(cluster.replica(2).status(), Status::Follower { .. }) {
            cluster.fail_flush(2);
            failures += 1;
        }
    }
    assert!((3..=5).contains(&failures), "{failures} in ten seconds");
    assert!(cluster.leader_epoch() <= begun + failures);
    cluster.pass(Duration::from_secs(30));
    assert_eq!(cluster.isr(), [1, 2, 3]);
}

#[test]
fn a_log_that_cannot_be_cut_yet_is_cut_when_its_disk_has_room_again() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 1, Acks::All, None);
    // The checkpoint that a cut begins with cannot be written.
    let in_the_way = cluster.file(2, "checkpoint.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    cluster.fail_flush(2);
    cluster.pass(Duration::from_secs(3));
    assert_eq!(cluster.isr(), [1, 3]);
    assert_eq!(cluster.replica(2).status(), Status::Idle);
    std::fs::remove_dir(&in_the_way).unwrap();
    cluster.pass(Duration::from_secs(10));
    assert_eq!(cluster.isr(), [1, 2, 3]);
}
