//! Commands against the image: what brokers' coming and going does to partitions, and that equal
//! commands give equal images.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_types::{
    BootId, BrokerEpoch, DirectoryId, Endpoint, ErrorCode, Incarnation, NodeId, Offset,
    PartitionId, RaftIndex, Term, Timestamp, TopicId, TopicName, TopicPartition,
};

use crate::{
    AlterPartition, AlterTopic, BrokerState, Command, CreateTopic, DamagedReplica, Delta, Envelope,
    EventKind, LogId, MetadataImage, Origin, Outcome, RegisterBroker, Registration, ReportDataLoss,
};

pub(crate) const TOPIC: TopicId = TopicId::from_bytes([9; 16]);
pub(crate) const P0: TopicPartition = TopicPartition::new(TOPIC, PartitionId::new(0));

#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) image: MetadataImage,
    index: u64,
    sequence: u64,
}

pub(crate) fn node(id: u32) -> NodeId {
    NodeId::new(id)
}

pub(crate) fn register(id: u32, life: u64, disk: u8, boot: u8) -> RegisterBroker {
    let endpoint = Endpoint {
        host: "h".into(),
        port: 1,
    };
    RegisterBroker {
        node: node(id),
        directory: DirectoryId::from_bytes([disk; 16]),
        incarnation: Incarnation {
            start: life,
            random: life,
        },
        boot: BootId::from_bytes([boot; 16]),
        clean_epoch: None,
        damaged: Vec::new(),
        client: endpoint.clone(),
        internal: endpoint,
        rack: None,
        min_level: 1,
        max_level: 1,
    }
}

impl Cluster {
    pub(crate) fn envelope(&mut self, commands: Vec<Command>) -> Envelope {
        self.sequence += 1;
        Envelope {
            origin: Origin {
                node: node(99),
                directory: DirectoryId::from_bytes([9; 16]),
                incarnation: Incarnation {
                    start: 1,
                    random: 1,
                },
            },
            sequence: self.sequence,
            required_term: None,
            time: Timestamp::from_millis(5),
            commands,
        }
    }

    pub(crate) fn at(&mut self) -> LogId {
        self.index += 1;
        LogId {
            term: Term::new(1),
            index: RaftIndex::new(self.index),
        }
    }

    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        let envelope = self.envelope(vec![command]);
        let at = self.at();
        self.image.apply(&envelope, at).outcomes.remove(0)
    }

    pub(crate) fn events(&mut self, command: Command) -> Vec<EventKind> {
        let envelope = self.envelope(vec![command]);
        let at = self.at();
        let events = self.image.apply(&envelope, at).events;
        events.into_iter().map(|event| event.kind).collect()
    }

    pub(crate) fn epoch(&self, id: u32) -> BrokerEpoch {
        self.image
            .broker(node(id))
            .map(|broker| broker.epoch)
            .unwrap_or_default()
    }

    pub(crate) fn unfence(&mut self, id: u32) -> Outcome {
        let epoch = self.epoch(id);
        self.run(Command::UnfenceBroker {
            node: node(id),
            epoch,
        })
    }

    pub(crate) fn fence(&mut self, id: u32) -> Outcome {
        let epoch = self.epoch(id);
        self.run(Command::FenceBroker {
            node: node(id),
            epoch,
            cause: "test".into(),
        })
    }

    /// Three active brokers and a topic of 3 partitions with 3 replicas.
    pub(crate) fn of_three() -> Self {
        let mut cluster = Self::default();
        for id in 1..=3 {
            cluster.run(Command::RegisterBroker(register(id, 1, id as u8, 1)));
            cluster.unfence(id);
        }
        let created = cluster.run(create("t", TOPIC, 3, 3));
        assert_eq!(created, Outcome::Created { topic_id: TOPIC });
        cluster
    }

    pub(crate) fn p0(&self) -> Registration {
        (**self.image.partition(&P0).unwrap()).clone()
    }

    pub(crate) fn alter(&mut self, isr: &[u32]) -> Outcome {
        let now = self.p0();
        let leader = now.leader.unwrap();
        let alter = AlterPartition {
            partition: P0,
            leader,
            leader_broker_epoch: self.epoch(leader.get()),
            leader_epoch: now.leader_epoch,
            partition_epoch: now.partition_epoch,
            isr: isr.iter().map(|id| (node(*id), self.epoch(*id))).collect(),
            fsync_established: false,
        };
        self.run(Command::AlterPartition(alter))
    }
}

pub(crate) fn create(name: &str, topic_id: TopicId, partitions: u32, factor: u32) -> Command {
    Command::CreateTopic(CreateTopic {
        name: TopicName::new(name).unwrap(),
        topic_id,
        partitions,
        replication_factor: factor,
        seed: 0,
        config: BTreeMap::new(),
    })
}

pub(crate) fn settings(set: &[(&str, &str)], unset: &[&str]) -> Command {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Command::AlterTopic(AlterTopic {
        topic_id: TOPIC,
        set: set.iter().map(owned).collect(),
        unset: unset.iter().map(|key| (*key).to_owned()).collect(),
    })
}

pub(crate) fn code(outcome: Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

#[test]
fn settings_are_all_taken_or_none() {
    let mut cluster = Cluster::of_three();
    let set = [("segment.ms", "5000"), ("min.insync.replicas", "1")];
    assert_eq!(cluster.run(settings(&set, &[])), Outcome::Done);
    let before = cluster.image.clone();
    for wrong in [
        settings(&[("segment.ms", "6000"), ("min.insync.replicas", "0")], &[]),
        settings(&[("retention.days", "1")], &[]),
        settings(&[("segment.ms", "6000")], &["min.insync"]),
        settings(&[("segment.ms", "6000")], &["segment.ms"]),
    ] {
        let refused = cluster.run(wrong.clone());
        assert_eq!(code(refused), Some(ErrorCode::InvalidConfig), "{wrong:?}");
        assert_eq!(cluster.image.topics(), before.topics());
    }
    cluster.run(settings(&[], &["segment.ms"]));
    let topic = cluster.image.topic(TOPIC).unwrap();
    assert_eq!(topic.config.len(), 1);
    assert_eq!(topic.settings.min_insync_replicas, 1);
    assert_eq!(topic.settings.segment_ms, 7 * 24 * 3_600_000);
    let delta = Delta::between(&before, &cluster.image);
    assert_eq!(delta.partitions.len(), 3, "every partition is concerned");
    assert_eq!(
        cluster.p0().partition_epoch,
        before.partition(&P0).unwrap().partition_epoch,
        "no registration has changed"
    );
}

#[test]
fn what_was_proposed_under_another_durability_is_not_taken() {
    let mut cluster = Cluster::of_three();
    assert!(cluster.p0().fsync_established);
    cluster.run(settings(&[("durability", "page-cache")], &[]));
    assert!(!cluster.p0().fsync_established);
    cluster.run(settings(&[("durability", "fsync")], &[]));
    let mut proposed = AlterPartition {
        partition: P0,
        leader: node(1),
        leader_broker_epoch: cluster.epoch(1),
        leader_epoch: cluster.p0().leader_epoch,
        partition_epoch: cluster.p0().partition_epoch,
        isr: (1..=3).map(|id| (node(id), cluster.epoch(id))).collect(),
        fsync_established: true,
    };
    // While it is on its way, the topic acknowledges from page caches for a while.
    cluster.run(settings(&[("durability", "page-cache")], &[]));
    cluster.run(settings(&[("durability", "fsync")], &[]));
    let late = cluster.run(Command::AlterPartition(proposed.clone()));
    assert_eq!(code(late), Some(ErrorCode::InvalidUpdateVersion));
    assert!(!cluster.p0().fsync_established);
    proposed.partition_epoch = cluster.p0().partition_epoch;
    assert_eq!(
        cluster.run(Command::AlterPartition(proposed)),
        Outcome::Done
    );
    assert!(cluster.p0().fsync_established);
}

#[test]
fn fencing_moves_leaderships_and_leaves_every_isr_but_its_last_member() {
    let mut cluster = Cluster::of_three();
    let before = cluster.p0();
    assert_eq!(before.leader, Some(node(1)));
    cluster.fence(1);
    let after = cluster.p0();
    assert_eq!(after.isr, [node(2), node(3)]);
    assert_eq!(after.leader, Some(node(2)));
    assert_eq!(after.leader_epoch, before.leader_epoch.next());
    cluster.fence(2);
    cluster.fence(3);
    let last = cluster.p0();
    assert_eq!((last.isr.clone(), last.leader), (vec![node(3)], None));
    assert_eq!(last.leader_epoch, after.leader_epoch.next().next());
    // Only the last member may lead again, however many others come back.
    cluster.unfence(1);
    assert_eq!(cluster.p0().leader, None);
    cluster.unfence(3);
    assert_eq!(cluster.p0().leader, Some(node(3)));
}

#[test]
fn a_restart_ends_the_epoch_that_its_last_life_led_at() {
    let mut cluster = Cluster::of_three();
    for id in [2, 3] {
        cluster.fence(id);
    }
    let before = cluster.p0();
    assert_eq!(before.isr, [node(1)]);
    let again = cluster.run(Command::RegisterBroker(register(1, 2, 1, 1)));
    assert!(matches!(again, Outcome::Registered { .. }));
    cluster.unfence(1);
    let after = cluster.p0();
    assert_eq!(after.leader, Some(node(1)));
    assert!(after.leader_epoch > before.leader_epoch);
    // The same life again is the same registration.
    let epoch = cluster.epoch(1);
    let same = cluster.run(Command::RegisterBroker(register(1, 2, 1, 1)));
    assert_eq!(same, Outcome::Registered { epoch });
}

#[test]
fn what_a_restart_may_have_lost_leaves_the_isr() {
    let isr_after = |change: fn(&mut RegisterBroker)| {
        let mut cluster = Cluster::of_three();
        for id in [2, 3] {
            cluster.fence(id);
        }
        let mut again = register(1, 2, 1, 1);
        change(&mut again);
        cluster.fence(1);
        cluster.run(Command::RegisterBroker(again));
        cluster.p0().isr
    };
    assert_eq!(isr_after(|_| {}), [node(1)]);
    // Durability is fsync: another boot loses nothing.
    assert_eq!(
        isr_after(|again| again.boot = BootId::from_bytes([7; 16])),
        [node(1)]
    );
    assert_eq!(
        isr_after(|again| again.damaged = vec![DamagedReplica {
            partition: P0,
            had: None,
            gone: false,
            found: String::new(),
        }]),
        []
    );
    assert_eq!(
        isr_after(|again| again.directory = DirectoryId::from_bytes([7; 16])),
        []
    );
}

#[test]
fn another_directory_waits_until_the_old_session_has_ended() {
    let mut cluster = Cluster::of_three();
    let other = Command::RegisterBroker(register(1, 1, 77, 1));
    let Command::RegisterBroker(mut wiped) = other else {
        unreachable!()
    };
    wiped.incarnation.random = 5;
    let refused = cluster.run(Command::RegisterBroker(wiped.clone()));
    assert_eq!(code(refused), Some(ErrorCode::DuplicateBrokerRegistration));
    cluster.fence(1);
    let taken = cluster.run(Command::RegisterBroker(wiped.clone()));
    assert!(matches!(taken, Outcome::Registered { .. }));
    assert!(cluster.p0().replicas.contains(&crate::ReplicaAssignment {
        node: node(1),
        directory: wiped.directory
    }));
}

#[test]
fn an_isr_is_altered_only_from_what_the_leader_saw() {
    let mut cluster = Cluster::of_three();
    assert_eq!(cluster.alter(&[1, 2]), Outcome::Done);
    assert_eq!(cluster.p0().isr, [node(1), node(2)]);
    assert_eq!(
        code(cluster.alter(&[2, 3])),
        Some(ErrorCode::InvalidRequest)
    );
    assert_eq!(
        code(cluster.alter(&[1, 1])),
        Some(ErrorCode::InvalidRequest)
    );
    cluster.fence(3);
    assert_eq!(
        code(cluster.alter(&[1, 2, 3])),
        Some(ErrorCode::IneligibleReplica)
    );
    let now = cluster.p0();
    let stale = AlterPartition {
        partition: P0,
        leader: node(1),
        leader_broker_epoch: cluster.epoch(1),
        leader_epoch: now.leader_epoch,
        partition_epoch: quorate_types::PartitionEpoch::ZERO,
        isr: vec![(node(1), cluster.epoch(1))],
        fsync_established: false,
    };
    let refused = cluster.run(Command::AlterPartition(stale.clone()));
    assert_eq!(code(refused), Some(ErrorCode::InvalidUpdateVersion));
    let old_member = AlterPartition {
        partition_epoch: now.partition_epoch,
        isr: vec![(node(1), cluster.epoch(1)), (node(2), BrokerEpoch::new(1))],
        ..stale
    };
    let refused = cluster.run(Command::AlterPartition(old_member));
    assert_eq!(code(refused), Some(ErrorCode::IneligibleReplica));
}

#[test]
fn a_controlled_shutdown_leaves_nothing_behind_that_leads() {
    let mut cluster = Cluster::of_three();
    for id in 1..=3 {
        let epoch = cluster.epoch(id);
        cluster.run(Command::BeginControlledShutdown {
            node: node(id),
            epoch,
        });
    }
    let last = cluster.p0();
    assert_eq!((last.isr, last.leader), (vec![node(3)], None));
    assert!(
        cluster
            .image
            .brokers()
            .values()
            .all(|b| b.state == BrokerState::ShuttingDown)
    );
}

#[test]
fn bad_topics_are_refused_and_change_nothing() {
    let mut cluster = Cluster::of_three();
    let other = TopicId::from_bytes([1; 16]);
    let before = cluster.image.topics().clone();
    for (command, expected) in [
        (create("t", other, 1, 1), ErrorCode::TopicAlreadyExists),
        (create("u", other, 0, 1), ErrorCode::InvalidPartitions),
        (create("u", other, 10_001, 1), ErrorCode::InvalidPartitions),
        (
            create("u", other, 1, 4),
            ErrorCode::InvalidReplicationFactor,
        ),
        (
            create("u", other, 1, 0),
            ErrorCode::InvalidReplicationFactor,
        ),
    ] {
        assert_eq!(code(cluster.run(command)), Some(expected));
    }
    assert_eq!(cluster.image.topics(), &before);
    assert_eq!(
        cluster.run(Command::DeleteTopic { topic_id: TOPIC }),
        Outcome::Done
    );
    assert!(cluster.image.partitions().is_empty());
}

#[test]
fn a_repeated_proposal_is_answered_and_not_applied_again() {
    let mut cluster = Cluster::default();
    let envelope = cluster.envelope(vec![Command::AllocateProducerIds { count: 10 }]);
    let at = cluster.at();
    let first = cluster.image.apply(&envelope, at).outcomes;
    let at = cluster.at();
    assert_eq!(cluster.image.apply(&envelope, at).outcomes, first);
    let mut older = envelope.clone();
    older.origin.incarnation.start = 0;
    older.sequence = 50;
    let at = cluster.at();
    let refused = cluster.image.apply(&older, at).outcomes.remove(0);
    assert_eq!(code(refused), Some(ErrorCode::StaleProposal));
    for _ in 0..1_100 {
        cluster.run(Command::AllocateProducerIds { count: 1 });
    }
    let at = cluster.at();
    let refused = cluster.image.apply(&envelope, at).outcomes.remove(0);
    assert_eq!(code(refused), Some(ErrorCode::StaleProposal));
}

#[test]
fn a_command_for_another_term_and_one_of_several_that_fails_change_nothing() {
    let mut cluster = Cluster::of_three();
    let epoch = cluster.epoch(1);
    let fence = Command::FenceBroker {
        node: node(1),
        epoch,
        cause: "late".into(),
    };
    let mut envelope = cluster.envelope(vec![fence.clone()]);
    envelope.required_term = Some(Term::new(7));
    let at = cluster.at();
    let refused = cluster.image.apply(&envelope, at).outcomes.remove(0);
    assert_eq!(code(refused), Some(ErrorCode::NotController));
    let both = cluster.envelope(vec![fence, create("t", TOPIC, 1, 1)]);
    let at = cluster.at();
    let outcomes = cluster.image.apply(&both, at).outcomes;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Refused(_)))
    );
    assert_eq!(
        cluster.image.broker(node(1)).unwrap().state,
        BrokerState::Active
    );
}

#[test]
fn what_is_unknown_is_refused_instead_of_dropped() {
    let mut cluster = Cluster::default();
    let envelope = cluster.envelope(vec![Command::AllocateProducerIds { count: 1 }]);
    let bytes = envelope.encode();
    assert_eq!(Envelope::decode(&bytes).unwrap(), envelope);
    let text = String::from_utf8(bytes[1..].to_vec()).unwrap();
    let newer = text.replace("\"count\":1", "\"count\":1,\"more\":2");
    let mut changed = vec![bytes[0]];
    changed.extend(newer.into_bytes());
    assert!(Envelope::decode(&changed).is_err());
    changed[0] = 2;
    assert!(
        Envelope::decode(&changed)
            .unwrap_err()
            .to_string()
            .contains("format 2")
    );
}

fn any_command() -> impl Strategy<Value = (u8, u32, u64, u8)> {
    (0_u8..12, 1_u32..5, 0_u64..4, 0_u8..8)
}

fn command(cluster: &Cluster, (what, id, life, pick): (u8, u32, u64, u8)) -> Command {
    let epoch = cluster.epoch(id);
    match what {
        0 | 1 => Command::RegisterBroker(register(id, life, id as u8 + pick / 7 * 10, pick % 2)),
        2 | 3 => Command::UnfenceBroker {
            node: node(id),
            epoch,
        },
        4 => Command::FenceBroker {
            node: node(id),
            epoch,
            cause: "c".into(),
        },
        5 => Command::BeginControlledShutdown {
            node: node(id),
            epoch,
        },
        6 if pick.is_multiple_of(3) => {
            let durability = if id == 1 { "fsync" } else { "page-cache" };
            settings(&[("durability", durability)], &[])
        }
        8 => settings(
            &[(
                "min.insync.replicas",
                ["1", "2", "3"][usize::from(pick % 3)],
            )],
            &[],
        ),
        9 => {
            let unclean = if pick % 2 == 0 { "true" } else { "false" };
            settings(&[("unclean.leader.election.enable", unclean)], &[])
        }
        10 => Command::ReportReplicaDamaged {
            partition: P0,
            node: node(id),
            broker_epoch: epoch,
            found: String::new(),
        },
        11 => {
            let registration = cluster.image.partition(&P0);
            let from = Offset::new(life);
            Command::ReportDataLoss(ReportDataLoss {
                partition: P0,
                node: node(id),
                broker_epoch: epoch,
                unclean_epoch: registration
                    .and_then(|registration| registration.unclean_epoch)
                    .unwrap_or_default(),
                from,
                to: (pick > 3).then(|| Offset::new(u64::from(pick))),
            })
        }
        6 if id == 3 => create("t", TOPIC, 2, id),
        6 => create(&format!("t{pick}"), TopicId::from_bytes([pick; 16]), 2, id),
        _ => {
            let ids: Vec<_> = cluster.image.partitions().keys().copied().collect();
            if ids.is_empty() {
                return Command::AllocateProducerIds { count: id };
            }
            let partition = ids[usize::from(pick) % ids.len()];
            let now = cluster.image.partition(&partition).unwrap();
            let leader = now.leader.unwrap_or(node(1));
            let mut isr = vec![(leader, cluster.epoch(leader.get()))];
            if leader != node(id) {
                isr.push((node(id), epoch));
            }
            Command::AlterPartition(AlterPartition {
                partition,
                leader,
                leader_broker_epoch: cluster.epoch(leader.get()),
                leader_epoch: now.leader_epoch,
                partition_epoch: now.partition_epoch,
                isr,
                fsync_established: id == 1,
            })
        }
    }
}

fn check(old: &MetadataImage, new: &MetadataImage, command: &Command) {
    // R13: it is not sure any more of what it had.
    let damaged = match command {
        Command::ReportReplicaDamaged { node, .. } => Some(*node),
        _ => None,
    };
    for (id, now) in new.partitions() {
        if let Some(leader) = now.leader {
            assert!(now.isr.contains(&leader), "the leader is in the ISR");
            assert!(new.is_active(leader), "the leader is active");
        }
        for member in &now.isr {
            assert!(now.has_replica(*member));
            let state = new.broker(*member).unwrap().state;
            assert!(
                state == BrokerState::Active || now.isr.len() == 1,
                "{member} is {state:?}"
            );
        }
        let settings = &new.topic(id.topic_id).unwrap().settings;
        assert!(now.elr.iter().all(|node| !now.isr.contains(node)), "R8");
        assert!(
            now.elr.is_empty() || now.isr.len() < now.effective_min_isr(settings),
            "R8: {now:?}"
        );
        assert!(now.unclean_epoch.is_none_or(|at| at <= now.leader_epoch));
        if let Some(before) = old.partition(id) {
            let elected = now.leader_epoch > before.leader_epoch;
            if elected && now.unclean_epoch == Some(now.leader_epoch) {
                assert_eq!(now.isr, [now.leader.unwrap()]);
                let mut sure = before.isr.iter().chain(&before.elr);
                let lives = |node: &&NodeId| {
                    let broker = |image: &MetadataImage| image.broker(**node).cloned();
                    broker(new).is_some_and(|broker| broker.state != BrokerState::Fenced)
                        && broker(old).is_some_and(|broker| broker.state != BrokerState::Fenced)
                };
                assert!(
                    sure.all(|node| {
                        !lives(&node) || now.leader == Some(*node) || damaged == Some(*node)
                    }),
                    "R7"
                );
            }
            assert!(now.leader_epoch >= before.leader_epoch);
            assert!(now == before || now.partition_epoch > before.partition_epoch);
            assert!(now.leader == before.leader || now.leader_epoch > before.leader_epoch);
        }
    }
}

#[test]
fn where_the_last_sure_replica_is_damaged_a_topic_that_allows_it_goes_on_uncleanly() {
    let mut cluster = Cluster::of_three();
    cluster.run(create("t", TOPIC, 1, 3));
    cluster.run(settings(&[("unclean.leader.election.enable", "true")], &[]));
    let steps = [(4, 2), (10, 1), (10, 3)];
    for (what, id) in steps {
        let command = command(&cluster, (what, id, 0, 0));
        let before = cluster.image.clone();
        cluster.run(command.clone());
        check(&before, &cluster.image, &command);
    }
    let now = cluster.image.partition(&P0).unwrap();
    assert_eq!((now.leader, &now.isr[..]), (Some(node(1)), &[node(1)][..]));
    assert_eq!(now.unclean_epoch, Some(now.leader_epoch));
}

proptest! {
    #[test]
    fn equal_commands_give_equal_images_across_a_snapshot_anywhere(
        steps in proptest::collection::vec(any_command(), 1..80), cut in 0_usize..80,
    ) {
        let mut cluster = Cluster::default();
        let mut other = MetadataImage::new();
        let start = MetadataImage::new();
        for (n, step) in steps.into_iter().enumerate() {
            let command = command(&cluster, step);
            let envelope = cluster.envelope(vec![command.clone()]);
            let at = cluster.at();
            let before = cluster.image.clone();
            cluster.image.apply(&envelope, at);
            check(&before, &cluster.image, &command);
            if n == cut {
                other = MetadataImage::decode(&other.encode()).unwrap();
            }
            other.apply(&Envelope::decode(&envelope.encode()).unwrap(), at);
        }
        prop_assert_eq!(cluster.image.encode(), other.encode());
        prop_assert_eq!(cluster.image.rolling_hash(), other.rolling_hash());
        let all = Delta::between(&start, &cluster.image);
        prop_assert_eq!(all.partitions.len(), cluster.image.partitions().len());
        prop_assert_eq!(Delta::between(&cluster.image, &other), Delta::default());
    }
}
