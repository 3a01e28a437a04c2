//! Who is elected when nobody in sync is left, and what becomes of the ELR (R7, R8).

use quorate_types::{ErrorCode, LeaderEpoch, NodeId, Offset};

use crate::tests::{Cluster, P0, code, node, register, settings};
use crate::{Command, DamagedReplica, DataLoss, EventKind, Outcome, ReportDataLoss};

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(node).collect()
}

impl Cluster {
    fn isr_and_elr(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let now = self.p0();
        (now.isr, now.elr)
    }

    fn restart(&mut self, id: u32) {
        self.run(Command::RegisterBroker(register(id, 2, id as u8, 1)));
        self.unfence(id);
    }

    fn report(&mut self, id: u32, epoch: LeaderEpoch, from: u64, to: Option<u64>) -> Outcome {
        let broker_epoch = self.epoch(id);
        self.run(Command::ReportDataLoss(ReportDataLoss {
            partition: P0,
            node: node(id),
            broker_epoch,
            unclean_epoch: epoch,
            from: Offset::new(from),
            to: to.map(Offset::new),
        }))
    }
}

#[test]
fn who_leaves_an_isr_below_the_minimum_may_still_be_elected() {
    let mut cluster = Cluster::of_three();
    cluster.fence(1);
    // Two are enough: what they acknowledge the first one does not have.
    assert_eq!(cluster.isr_and_elr(), (nodes(&[2, 3]), vec![]));
    cluster.fence(2);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[3]), nodes(&[2])));
    cluster.fence(3);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[3]), nodes(&[2])));
    assert_eq!(cluster.p0().leader, None);
    cluster.unfence(1);
    assert_eq!(cluster.p0().leader, None, "it may miss something");
    cluster.unfence(2);
    let now = cluster.p0();
    assert_eq!(now.leader, Some(node(2)));
    assert_eq!((now.isr, now.elr), (nodes(&[2]), nodes(&[3])));
    assert_eq!(now.unclean_epoch, None);
    // Once the ISR is large enough again, who is outside may miss something.
    cluster.alter(&[1, 2]);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1, 2]), vec![]));
}

#[test]
fn a_shrink_by_the_leader_fills_the_elr_too_and_the_minimum_empties_it() {
    let mut cluster = Cluster::of_three();
    cluster.alter(&[1]);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), nodes(&[2, 3])));
    cluster.run(settings(&[("min.insync.replicas", "1")], &[]));
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), vec![]));
}

#[test]
fn a_damaged_member_of_the_elr_is_no_member_any_more() {
    let mut cluster = Cluster::of_three();
    cluster.alter(&[1]);
    let broker_epoch = cluster.epoch(2);
    cluster.run(Command::ReportReplicaDamaged {
        partition: P0,
        node: node(2),
        broker_epoch,
        found: String::new(),
    });
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), nodes(&[3])));
    // The leader itself: its successor comes from the ELR, and it is nowhere.
    let broker_epoch = cluster.epoch(1);
    cluster.run(Command::ReportReplicaDamaged {
        partition: P0,
        node: node(1),
        broker_epoch,
        found: String::new(),
    });
    assert_eq!(cluster.isr_and_elr(), (nodes(&[3]), vec![]));
    assert_eq!(cluster.p0().leader, Some(node(3)));
    assert_eq!(cluster.p0().unclean_epoch, None);
}

#[test]
fn acks_of_before_a_follower_was_damaged_count_no_more() {
    let mut cluster = Cluster::of_three();
    let broker_epoch = cluster.epoch(2);
    // In the ISR, and when it is to join.
    for _ in 0..2 {
        let epoch = cluster.p0().leader_epoch;
        cluster.run(Command::ReportReplicaDamaged {
            partition: P0,
            node: node(2),
            broker_epoch,
            found: String::new(),
        });
        assert_eq!(cluster.isr_and_elr(), (nodes(&[1, 3]), vec![]));
        assert_eq!(cluster.p0().leader, Some(node(1)));
        // Its subscription and all others are made anew.
        assert!(cluster.p0().leader_epoch > epoch);
    }
}

#[test]
fn the_last_leader_leads_uncleanly_where_all_that_were_sure_are_lost() {
    let mut cluster = Cluster::of_three();
    cluster.fence(3);
    cluster.fence(2);
    cluster.restart(1);
    assert_eq!(cluster.p0().leader, Some(node(1)), "its disk is whole");
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), nodes(&[2])));
    // Now it comes back damaged, and so has the only one of the ELR.
    cluster.run(Command::RegisterBroker({
        let mut again = register(2, 2, 2, 1);
        again.damaged = vec![DamagedReplica {
            partition: P0,
            had: None,
            gone: false,
            found: String::new(),
        }];
        again
    }));
    let mut again = register(1, 3, 1, 1);
    again.damaged = vec![DamagedReplica {
        partition: P0,
        had: Some(Offset::new(70)),
        gone: false,
        found: String::new(),
    }];
    cluster.run(Command::RegisterBroker(again));
    assert_eq!(cluster.isr_and_elr(), (vec![], vec![]));
    cluster.unfence(2);
    assert_eq!(cluster.p0().leader, None, "it was not the last to lead");
    cluster.unfence(1);
    let now = cluster.p0();
    assert_eq!((now.leader, &now.isr), (Some(node(1)), &nodes(&[1])));
    assert_eq!(now.unclean_epoch, Some(now.leader_epoch));
    // What it had is known: the loss has an end as soon as its beginning is told.
    let epoch = now.leader_epoch;
    assert_eq!(cluster.report(1, epoch, 40, None), Outcome::Done);
    let loss = |from, to: Option<u64>| DataLoss {
        epoch,
        from: Offset::new(from),
        to: to.map(Offset::new),
    };
    assert_eq!(cluster.p0().losses, [loss(40, Some(70))]);
    assert_eq!(cluster.report(2, epoch, 35, Some(66)), Outcome::Done);
    assert_eq!(cluster.p0().losses, [loss(35, Some(70))]);
    assert!(
        cluster
            .p0()
            .tells_of(epoch, Offset::new(36), Offset::new(70))
    );
    assert!(
        !cluster
            .p0()
            .tells_of(epoch, Offset::new(36), Offset::new(71))
    );
}

#[test]
fn without_its_own_directory_the_last_leader_has_nothing_to_lead_with() {
    let mut cluster = Cluster::of_three();
    for id in [2, 3, 1] {
        cluster.fence(id);
    }
    let with_another_disk = |id: u32| {
        let mut other = register(id, 1, 7 + id as u8, 1);
        other.incarnation.random = 77;
        Command::RegisterBroker(other)
    };
    cluster.run(with_another_disk(1));
    cluster.unfence(1);
    assert_eq!(cluster.isr_and_elr(), (vec![], nodes(&[3])));
    assert_eq!(cluster.p0().leader, None, "the ELR has all of it");
    cluster.run(with_another_disk(3));
    cluster.unfence(3);
    assert_eq!(cluster.isr_and_elr(), (vec![], vec![]));
    assert_eq!(cluster.p0().leader, None);
}

#[test]
fn any_replica_leads_where_the_topic_allows_it_and_nobody_better_lives() {
    let allow = || settings(&[("unclean.leader.election.enable", "true")], &[]);
    let mut cluster = Cluster::of_three();
    cluster.run(allow());
    cluster.fence(3);
    cluster.fence(2);
    let before = cluster.p0();
    assert_eq!((before.leader, before.unclean_epoch), (Some(node(1)), None));
    cluster.unfence(3);
    cluster.fence(1);
    let now = cluster.p0();
    assert_eq!(now.leader, Some(node(3)));
    assert_eq!(now.unclean_epoch, Some(now.leader_epoch));
    assert_eq!((now.isr, now.elr), (nodes(&[3]), vec![]));

    // Allowed while it is offline: at once. By a shutdown: never.
    let mut cluster = Cluster::of_three();
    cluster.fence(3);
    cluster.fence(2);
    cluster.fence(1);
    cluster.unfence(3);
    assert_eq!(cluster.p0().leader, None);
    cluster.run(allow());
    assert_eq!(cluster.p0().leader, Some(node(3)));

    let mut cluster = Cluster::of_three();
    cluster.run(allow());
    cluster.fence(3);
    cluster.fence(2);
    cluster.unfence(3);
    let epoch = cluster.epoch(1);
    cluster.run(Command::BeginControlledShutdown {
        node: node(1),
        epoch,
    });
    assert_eq!(cluster.p0().leader, None, "it comes back");
    cluster.fence(1);
    assert_eq!(cluster.p0().leader, Some(node(3)), "it does not");
}

#[test]
fn an_unclean_election_and_its_loss_are_told() {
    let mut cluster = Cluster::of_three();
    cluster.run(settings(&[("unclean.leader.election.enable", "true")], &[]));
    cluster.fence(3);
    cluster.fence(2);
    cluster.unfence(3);
    let epoch = cluster.epoch(1);
    let events = cluster.events(Command::FenceBroker {
        node: node(1),
        epoch,
        cause: "c".into(),
    });
    let unclean = |kind: &EventKind| matches!(kind, EventKind::UncleanLeaderElected { .. });
    assert!(events.iter().any(unclean), "{events:?}");
    let broker_epoch = cluster.epoch(3);
    let now = cluster.p0();
    let events = cluster.events(Command::ReportDataLoss(ReportDataLoss {
        partition: P0,
        node: node(3),
        broker_epoch,
        unclean_epoch: now.leader_epoch,
        from: Offset::new(3),
        to: Some(Offset::new(9)),
    }));
    let [lost] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        lost.to_string(),
        format!(
            "t-0: the unclean election at epoch {} lost records of the offsets 3 to 8",
            now.leader_epoch
        )
    );
}

#[test]
fn a_loss_is_taken_of_the_last_unclean_election_only() {
    let mut cluster = Cluster::of_three();
    let epoch = cluster.p0().leader_epoch;
    let refused = cluster.report(2, epoch, 1, Some(2));
    assert_eq!(code(refused), Some(ErrorCode::InvalidUpdateVersion));
    cluster.run(settings(&[("unclean.leader.election.enable", "true")], &[]));
    cluster.fence(3);
    cluster.fence(2);
    cluster.unfence(3);
    cluster.fence(1);
    let unclean = cluster.p0().leader_epoch;
    let refused = cluster.report(3, epoch, 1, Some(2));
    assert_eq!(code(refused), Some(ErrorCode::InvalidUpdateVersion));
    let refused = cluster.report(3, unclean, 2, Some(2));
    assert_eq!(code(refused), Some(ErrorCode::InvalidRequest));
    assert_eq!(cluster.report(3, unclean, 2, Some(4)), Outcome::Done);
}

#[test]
fn a_resigning_leader_gives_way_to_the_elr_but_never_uncleanly() {
    let mut cluster = Cluster::of_three();
    cluster.run(settings(&[("unclean.leader.election.enable", "true")], &[]));
    let resign = |cluster: &mut Cluster, id| {
        let leader_epoch = cluster.p0().leader_epoch;
        cluster.run(Command::ResignLeadership {
            partition: P0,
            leader: node(id),
            leader_epoch,
        })
    };
    cluster.fence(3);
    cluster.alter(&[1]);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), nodes(&[2])));
    assert_eq!(resign(&mut cluster, 1), Outcome::Done);
    assert_eq!(cluster.p0().leader, Some(node(2)));
    assert_eq!(cluster.isr_and_elr(), (nodes(&[2]), nodes(&[1])));
    cluster.fence(1);
    cluster.unfence(3);
    let refused = resign(&mut cluster, 2);
    assert_eq!(code(refused), Some(ErrorCode::NotEnoughReplicas));
    assert_eq!(cluster.p0().leader, Some(node(2)));
}

/// One in-sync replica on broker 1, the others active, and any of them may lead.
fn one_in_sync_and_two_active() -> Cluster {
    let mut cluster = Cluster::of_three();
    let set = [
        ("unclean.leader.election.enable", "true"),
        ("min.insync.replicas", "1"),
    ];
    cluster.run(settings(&set, &[]));
    cluster.alter(&[1]);
    assert_eq!(cluster.isr_and_elr(), (nodes(&[1]), vec![]));
    cluster
}

#[test]
fn a_member_that_has_just_started_again_is_waited_for() {
    let mut cluster = one_in_sync_and_two_active();
    cluster.run(Command::RegisterBroker(register(1, 2, 1, 1)));
    assert_eq!(cluster.p0().leader, None);
    for id in [2, 3] {
        cluster.fence(id);
        cluster.unfence(id);
    }
    cluster.run(settings(&[("segment.ms", "5000")], &[]));
    assert_eq!(cluster.p0().leader, None, "it is on its way");
    cluster.unfence(1);
    let now = cluster.p0();
    assert_eq!((now.leader, now.unclean_epoch), (Some(node(1)), None));
}

#[test]
fn a_member_that_dies_while_it_starts_is_not_waited_for() {
    let mut cluster = one_in_sync_and_two_active();
    cluster.run(Command::RegisterBroker(register(1, 2, 1, 1)));
    cluster.fence(1);
    let now = cluster.p0();
    assert_eq!(now.leader, Some(node(2)));
    assert_eq!(now.unclean_epoch, Some(now.leader_epoch));
    assert!(cluster.image.broker(node(1)).unwrap().is_gone());
}

#[test]
fn a_member_that_is_still_shutting_down_is_waited_for() {
    let mut cluster = one_in_sync_and_two_active();
    let epoch = cluster.epoch(1);
    cluster.run(Command::BeginControlledShutdown {
        node: node(1),
        epoch,
    });
    cluster.fence(3);
    cluster.unfence(3);
    cluster.run(settings(&[("segment.ms", "5000")], &[]));
    assert_eq!(cluster.p0().leader, None);
    cluster.fence(1);
    assert_eq!(cluster.p0().leader, Some(node(2)), "it is gone");
}

#[test]
fn a_last_leader_whose_log_is_gone_has_nothing_to_lead_with() {
    let leader_after = |gone: bool| {
        let mut cluster = Cluster::of_three();
        for id in [2, 3] {
            cluster.fence(id);
        }
        cluster.run(settings(&[("min.insync.replicas", "1")], &[]));
        let mut again = register(1, 2, 1, 1);
        again.damaged = vec![DamagedReplica {
            partition: P0,
            had: None,
            gone,
            found: String::new(),
        }];
        cluster.run(Command::RegisterBroker(again));
        cluster.unfence(1);
        cluster.p0().leader
    };
    assert_eq!(leader_after(false), Some(node(1)), "with what it has");
    assert_eq!(leader_after(true), None);
}

#[test]
fn where_nobody_sure_is_left_the_last_leader_leads_at_once() {
    let mut cluster = Cluster::of_three();
    cluster.fence(3);
    cluster.alter(&[1]);
    // The leader comes back damaged while the one of the ELR is fenced, and that is damaged, too.
    cluster.fence(2);
    let mut again = register(1, 2, 1, 1);
    again.damaged = vec![DamagedReplica {
        partition: P0,
        had: None,
        gone: false,
        found: String::new(),
    }];
    cluster.run(Command::RegisterBroker(again));
    cluster.unfence(1);
    assert_eq!(cluster.isr_and_elr(), (vec![], nodes(&[2])));
    let broker_epoch = cluster.epoch(2);
    cluster.run(Command::ReportReplicaDamaged {
        partition: P0,
        node: node(2),
        broker_epoch,
        found: String::new(),
    });
    let now = cluster.p0();
    assert_eq!(now.leader, Some(node(1)));
    assert_eq!(now.unclean_epoch, Some(now.leader_epoch));
}
