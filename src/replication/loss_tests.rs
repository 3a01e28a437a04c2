//! What an unclean election loses is on record before it is cut (R7); followers behind what their
//! leader has given up (R15).

use std::time::Duration;

use quorate_log::FlushDone;
use quorate_metadata::{AlterTopic, Command, DataLoss};
use quorate_types::{Acks, LeaderEpoch, Offset};

use crate::tests::{Cluster, ID, node};
use crate::{Event, Status};

impl Cluster {
    fn allow_unclean_elections(&mut self) {
        self.apply(Command::AlterTopic(AlterTopic {
            topic_id: ID.topic_id,
            set: [(
                "unclean.leader.election.enable".to_owned(),
                "true".to_owned(),
            )]
            .into(),
            unset: Vec::new(),
        }));
        self.run();
    }

    fn losses(&self) -> Vec<(u32, u64, Option<u64>)> {
        let losses = &self.image.partition(&ID).unwrap().losses;
        let of = |loss: &DataLoss| (loss.epoch.get(), loss.from.get(), loss.to.map(Offset::get));
        losses.iter().map(of).collect()
    }

    fn elr(&self) -> Vec<u32> {
        let elr = &self.image.partition(&ID).unwrap().elr;
        elr.iter().map(|node| node.get()).collect()
    }

    /// A flush of that node ends, and the disk has not taken it.
    pub(crate) fn fail_flush(&mut self, id: u32) {
        let done = FlushDone {
            end: self.replica(id).log().log_end(),
            generation: self.replica(id).log().generation(),
            error: Some(std::io::Error::other("no space")),
        };
        self.step(node(id), Event::Flushed(done));
        self.run();
    }

    fn unclean_epoch(&self) -> Option<LeaderEpoch> {
        self.image.partition(&ID).unwrap().unclean_epoch
    }
}

#[test]
fn what_an_unclean_election_loses_is_on_record_before_it_is_cut() {
    let mut cluster = Cluster::new();
    cluster.allow_unclean_elections();
    cluster.produce(1, 0, Acks::All, None);
    cluster.kill(3);
    cluster.fence(3);
    for mark in 1..4 {
        cluster.produce(1, mark, Acks::All, None);
    }
    for id in [2, 1] {
        cluster.kill(id);
        cluster.fence(id);
    }
    cluster.start(3, 2);
    cluster.run();
    assert_eq!(cluster.leader(), 3);
    let unclean = cluster.unclean_epoch().unwrap();
    assert_eq!(cluster.losses(), [(unclean.get(), 1, None)]);
    let request = cluster.produce(3, 100, Acks::Leader, None);
    assert_eq!(cluster.offset(request), 1);
    // One comes back that has what is lost: it tells, and only then cuts.
    cluster.start(2, 2);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.losses(), [(unclean.get(), 1, Some(4))]);
    assert_eq!(cluster.values(2), ["0", "100"]);
    cluster.start(1, 2);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.values(1), ["0", "100"]);
    assert_eq!(cluster.losses(), [(unclean.get(), 1, Some(4))]);
    assert_eq!(cluster.isr(), [1, 2, 3]);
}

#[test]
fn nothing_is_cut_of_what_is_lost_while_the_quorum_does_not_know() {
    let mut cluster = Cluster::new();
    cluster.allow_unclean_elections();
    cluster.kill(3);
    cluster.fence(3);
    cluster.produce(1, 1, Acks::All, None);
    for id in [2, 1] {
        cluster.kill(id);
        cluster.fence(id);
    }
    cluster.start(3, 2);
    cluster.run();
    cluster.start(2, 2);
    cluster.refuse_proposals = true;
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.values(2), ["1"]);
    cluster.refuse_proposals = false;
    cluster.pass(Duration::from_secs(2));
    assert!(cluster.values(2).is_empty());
    assert_eq!(cluster.losses().len(), 1);
    assert_eq!(cluster.losses()[0].2, Some(1));
}

#[test]
fn followers_begin_where_their_leader_begins_and_one_that_is_behind_begins_anew() {
    let mut cluster = Cluster::new();
    for mark in 0..4 {
        cluster.produce(1, mark, Acks::All, None);
    }
    cluster.kill(3);
    cluster.fence(3);
    for mark in 4..8 {
        cluster.produce(1, mark, Acks::All, None);
    }
    let offset = Offset::new(6);
    cluster.step(node(2), Event::DeleteBefore { offset });
    assert_eq!(
        cluster.replica(2).log().log_start(),
        Offset::ZERO,
        "it does not lead"
    );
    cluster.step(node(1), Event::DeleteBefore { offset });
    cluster.pass(Duration::from_secs(1));
    for id in [1, 2] {
        assert_eq!(cluster.replica(id).log().log_start(), offset);
    }
    cluster.start(3, 2);
    cluster.pass(Duration::from_secs(1));
    let log = cluster.replica(3).log();
    assert_eq!((log.log_start(), log.log_end()), (offset, Offset::new(8)));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    let request = cluster.produce(1, 8, Acks::All, None);
    assert_eq!(cluster.offset(request), 8);
    assert!(matches!(
        cluster.replica(3).status(),
        Status::Follower { .. }
    ));
}

#[test]
fn a_log_whose_sync_failed_is_not_cut_while_its_replica_may_be_elected() {
    let mut cluster = Cluster::new();
    cluster.apply(Command::AlterTopic(AlterTopic {
        topic_id: ID.topic_id,
        set: [("durability".to_owned(), "page-cache".to_owned())].into(),
        unset: Vec::new(),
    }));
    cluster.run();
    cluster.kill(3);
    cluster.fence(3);
    cluster.nodes.get_mut(&node(2)).unwrap().flushes = false;
    let request = cluster.produce(1, 7, Acks::All, None);
    assert_eq!(
        cluster.offset(request),
        0,
        "acknowledged from the page cache"
    );
    cluster.refuse_proposals = true;
    cluster.fail_flush(2);
    assert_eq!(cluster.replica(2).status(), Status::Idle);
    // Fenced before its report is taken: out of the ISR, and in the ELR.
    cluster.fence(2);
    assert_eq!(cluster.elr(), [2]);
    let epoch = cluster.image.broker(node(2)).unwrap().epoch;
    cluster.apply(Command::UnfenceBroker {
        node: node(2),
        epoch,
    });
    cluster.run();
    assert_eq!(
        cluster.replica(2).status(),
        Status::Idle,
        "nobody knows yet"
    );
    assert_eq!(cluster.values(2), ["7"], "a restart may lead with it");
    cluster.refuse_proposals = false;
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.elr(), [0_u32; 0]);
    assert_eq!(cluster.values(2), ["7"], "from its leader");
}
