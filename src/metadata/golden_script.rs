//! What is recorded in the golden log (`golden_tests.rs`): a small cluster's life in which every
//! command is done and refused. What it proposes follows from the image, as a node's would.

use quorate_types::{
    BrokerEpoch, ClusterId, CoordinatorEpoch, LeaderEpoch, NodeId, Offset, PartitionId,
    ProducerEpoch, ProducerId, RaftIndex, Term, Timestamp, TopicId, TopicPartition,
};

use crate::group_tests::{alter, commit, joins, member};
use crate::tests::{P0, TOPIC, create, node, register, settings};
use crate::{
    AlterGroup, AlterPartition, Command, DamagedReplica, Envelope, LogId, MemberChange,
    MetadataImage, Origin, RegisterBroker, ReportDataLoss,
};

const OTHER: TopicId = TopicId::from_bytes([8; 16]);
const P1: TopicPartition = TopicPartition::new(TOPIC, PartitionId::new(1));

/// One entry of the log.
pub(crate) enum Step {
    /// Raft's own.
    Blank,
    Entry(Envelope),
}

/// Applies an entry and gives the image after it.
type Apply<'a> = Box<dyn FnMut(Step, LogId) -> MetadataImage + 'a>;

struct Life<'a> {
    apply: Apply<'a>,
    image: MetadataImage,
    term: u64,
    index: u64,
    sequence: u64,
}

impl Life<'_> {
    fn step(&mut self, step: Step) {
        self.index += 1;
        let at = LogId {
            term: Term::new(self.term),
            index: RaftIndex::new(self.index),
        };
        self.image = (self.apply)(step, at);
    }

    fn envelope(&mut self, commands: Vec<Command>) -> Envelope {
        self.sequence += 1;
        Envelope {
            origin: Origin {
                node: node(1),
                directory: register(1, 1, 1, 1).directory,
                incarnation: register(1, 1, 1, 1).incarnation,
            },
            sequence: self.sequence,
            required_term: None,
            time: Timestamp::from_millis(1_700_000_000_000 + self.index as i64),
            commands,
        }
    }

    fn all(&mut self, commands: Vec<Command>) {
        let envelope = self.envelope(commands);
        self.step(Step::Entry(envelope));
    }

    fn run(&mut self, command: Command) {
        self.all(vec![command]);
    }

    /// A leader's first entry.
    fn elect(&mut self) {
        self.term += 1;
        self.step(Step::Blank);
    }

    fn epoch(&self, id: u32) -> BrokerEpoch {
        let broker = self.image.broker(node(id));
        broker.map(|broker| broker.epoch).unwrap_or_default()
    }

    fn unfence(&mut self, id: u32) {
        let (node, epoch) = (node(id), self.epoch(id));
        self.run(Command::UnfenceBroker { node, epoch });
    }

    fn fence(&mut self, id: u32) {
        let (node, epoch) = (node(id), self.epoch(id));
        let cause = "no heartbeat for 9000 ms".to_owned();
        self.run(Command::FenceBroker { node, epoch, cause });
    }

    fn start(&mut self, register: RegisterBroker) {
        let id = register.node.get();
        self.run(Command::RegisterBroker(register));
        self.unfence(id);
    }

    fn isr(&self, partition: TopicPartition, isr: &[u32], established: bool) -> Command {
        let now = self.image.partition(&partition).expect("a partition");
        let leader = now.leader.unwrap_or(node(1));
        Command::AlterPartition(AlterPartition {
            partition,
            leader,
            leader_broker_epoch: self.epoch(leader.get()),
            leader_epoch: now.leader_epoch,
            partition_epoch: now.partition_epoch,
            isr: isr.iter().map(|id| (node(*id), self.epoch(*id))).collect(),
            fsync_established: established,
        })
    }

    fn leader(&self, partition: TopicPartition) -> (NodeId, LeaderEpoch) {
        let now = self.image.partition(&partition).expect("a partition");
        (now.leader.unwrap_or(node(1)), now.leader_epoch)
    }

    fn loss(&self, id: u32, from: u64, to: u64) -> Command {
        let now = self.image.partition(&P0).expect("a partition");
        Command::ReportDataLoss(ReportDataLoss {
            partition: P0,
            node: node(id),
            broker_epoch: self.epoch(id),
            unclean_epoch: now.unclean_epoch.unwrap_or(now.leader_epoch),
            from: Offset::new(from),
            to: Some(Offset::new(to)),
        })
    }
}

/// Plays it; `apply` gets each entry and gives the image after it.
pub(crate) fn script<'a>(apply: impl FnMut(Step, LogId) -> MetadataImage + 'a) {
    let mut life = Life {
        apply: Box::new(apply),
        image: MetadataImage::new(),
        term: 0,
        index: 0,
        sequence: 0,
    };
    brokers_and_topics(&mut life);
    retries(&mut life);
    partitions(&mut life);
    comings_and_goings(&mut life);
    losses(&mut life);
    groups(&mut life);
    the_end(&mut life);
    producers(&mut life);
}

fn brokers_and_topics(life: &mut Life) {
    life.elect();
    for id in [4, 5] {
        let cluster_id = ClusterId::from_bytes([id; 16]);
        life.run(Command::BootstrapCluster { cluster_id });
    }
    life.start(register(1, 1, 1, 1));
    life.start(register(2, 1, 2, 2));
    life.start(RegisterBroker {
        rack: Some("west".to_owned()),
        ..register(3, 1, 3, 3)
    });
    // A second process on another disk, one of another version, and a stranger.
    life.run(Command::RegisterBroker(register(3, 1, 9, 3)));
    life.run(Command::RegisterBroker(register(3, 2, 9, 3)));
    let newer = RegisterBroker {
        min_level: 7,
        max_level: 9,
        ..register(4, 1, 4, 4)
    };
    life.run(Command::RegisterBroker(newer));
    life.unfence(4);
    life.run(create("t", TOPIC, 3, 3));
    life.run(create("t", OTHER, 1, 1));
    life.run(settings(
        &[("min.insync.replicas", "2"), ("retention.ms", "60000")],
        &[],
    ));
    life.run(settings(&[("durability", "fsync")], &["retention.ms"]));
    life.run(settings(&[("retention.days", "1")], &[]));
    life.run(Command::AllocateProducerIds { count: 1_000 });
    life.run(Command::AllocateProducerIds { count: 0 });
    life.run(Command::SetFeature { level: 1 });
    life.run(Command::SetFeature { level: 2 });
}

fn retries(life: &mut Life) {
    life.elect();
    let once = life.envelope(vec![
        create("u", OTHER, 2, 2),
        Command::AllocateProducerIds { count: 5 },
    ]);
    life.step(Step::Entry(once.clone()));
    life.step(Step::Entry(once));
    // One of them is refused: none is done.
    life.all(vec![
        Command::AllocateProducerIds { count: 5 },
        create("u", TopicId::from_bytes([7; 16]), 1, 1),
    ]);
    for term in [life.term - 1, life.term] {
        let meant = life.envelope(vec![Command::AllocateProducerIds { count: 1 }]);
        let meant = Envelope {
            required_term: Some(Term::new(term)),
            ..meant
        };
        life.step(Step::Entry(meant));
    }
    // An earlier life of the proposer.
    let mut late = life.envelope(vec![Command::AllocateProducerIds { count: 1 }]);
    late.origin.incarnation.start = 0;
    life.step(Step::Entry(late));
}

fn partitions(life: &mut Life) {
    let (leader, _) = life.leader(P0);
    let grown = life.isr(P0, &[1, 2, 3], true);
    let without = [1, 2, 3]
        .into_iter()
        .filter(|id| *id % 2 == 1 || node(*id) == leader);
    let without: Vec<u32> = without.collect();
    let shrunk = life.isr(P0, &without, true);
    life.run(shrunk);
    life.run(grown);
    let grown = life.isr(P0, &[1, 2, 3], true);
    life.run(grown);
    let (leader, leader_epoch) = life.leader(P1);
    let resign = Command::ResignLeadership {
        partition: P1,
        leader,
        leader_epoch,
    };
    life.run(resign.clone());
    life.run(resign);
    life.run(Command::ElectPreferredLeaders {
        partitions: vec![P0, P1],
    });
    let (leader, _) = life.leader(P1);
    for broker_epoch in [life.epoch(leader.get()), BrokerEpoch::new(1)] {
        life.run(Command::ReportReplicaDamaged {
            partition: P1,
            node: leader,
            broker_epoch,
            found: "a sync failed".to_owned(),
        });
    }
}

fn comings_and_goings(life: &mut Life) {
    // Gone, and back after a boot; gone in order; back with another disk, and with a damaged log.
    life.fence(2);
    life.run(Command::FenceBroker {
        node: node(2),
        epoch: BrokerEpoch::new(1),
        cause: "an older life".to_owned(),
    });
    life.start(register(2, 2, 2, 5));
    let (three, epoch) = (node(3), life.epoch(3));
    life.run(Command::BeginControlledShutdown { node: three, epoch });
    life.run(Command::BeginControlledShutdown {
        node: three,
        epoch: BrokerEpoch::new(1),
    });
    life.unfence(3);
    life.fence(3);
    life.start(RegisterBroker {
        clean_epoch: Some(epoch),
        ..register(3, 2, 3, 3)
    });
    life.fence(2);
    life.start(register(2, 3, 12, 5));
    let damaged = DamagedReplica {
        partition: P0,
        had: Some(Offset::new(40)),
        gone: false,
        found: "a batch is torn".to_owned(),
    };
    life.start(RegisterBroker {
        damaged: vec![damaged],
        ..register(3, 3, 3, 3)
    });
    let grown = life.isr(P0, &[1, 2, 3], false);
    life.run(grown);
}

fn losses(life: &mut Life) {
    life.elect();
    let early = life.loss(1, 3, 9);
    life.run(early);
    life.run(settings(&[("unclean.leader.election.enable", "true")], &[]));
    for id in [3, 2] {
        life.fence(id);
    }
    life.unfence(3);
    life.fence(1);
    let told = [(3, 3, 9), (1, 4, 12), (2, 5, 5)].map(|(id, from, to)| life.loss(id, from, to));
    for report in told {
        life.run(report);
    }
    life.unfence(1);
    life.unfence(2);
}

/// Members come and go, partitions move, offsets are committed; each also by who may not.
fn groups(life: &mut Life) {
    let alter = |life: &mut Life, members, gone: &[&str]| {
        let changes = vec![alter(&life.image, members, gone)];
        life.run(Command::AlterGroups { changes });
    };
    let commit = |life: &mut Life, by, offset| {
        let commits = vec![commit(&life.image, by, P1, offset)];
        life.run(Command::CommitOffsets { commits });
    };
    commit(life, None, 3);
    alter(life, vec![joins("a", &[P0, P1])], &[]);
    alter(life, vec![joins("b", &[P1])], &[]);
    let revoke = MemberChange {
        revoke: vec![P1],
        ..MemberChange::of(member("a"))
    };
    alter(life, vec![revoke, joins("b", &[])], &[]);
    for (by, offset) in [(Some(("a", 2, 2)), 7), (Some(("a", 2, 1)), 5), (None, 1)] {
        commit(life, by, offset);
    }
    let release = MemberChange {
        release: vec![P1],
        ..MemberChange::of(member("a"))
    };
    let assign = MemberChange {
        assign: vec![P1],
        ..MemberChange::of(member("b"))
    };
    alter(life, vec![release, assign], &[]);
    for by in [
        ("a", 3, 9),
        ("b", 1, 1),
        ("b", 3, 1),
        ("x", 3, 1),
        ("b", 9, 2),
    ] {
        commit(life, Some(by), 8);
    }
    // By a coordinator of before, in one entry with one that is done.
    let late = AlterGroup {
        coordinator_epoch: CoordinatorEpoch::ZERO,
        ..crate::group_tests::alter(&life.image, Vec::new(), &["a"])
    };
    let good = crate::group_tests::alter(&life.image, Vec::new(), &["a"]);
    let changes = vec![late, good];
    life.run(Command::AlterGroups { changes });
    let delete = |image: &MetadataImage, gone| AlterGroup {
        delete: true,
        ..crate::group_tests::alter(image, Vec::new(), gone)
    };
    let changes = vec![delete(&life.image, &[])];
    life.run(Command::AlterGroups { changes });
    alter(life, Vec::new(), &["b"]);
    commit(life, None, 4);
    let changes = vec![delete(&life.image, &[])];
    life.run(Command::AlterGroups { changes });
    // One that is there at the end.
    alter(life, vec![joins("c", &[P0])], &[]);
    commit(life, Some(("c", 1, 1)), 9);
}

fn the_end(life: &mut Life) {
    for _ in 0..2 {
        life.run(Command::DeleteTopic { topic_id: OTHER });
    }
    let restart = register(1, 2, 1, 1);
    life.start(restart);
    life.elect();
}

fn producers(life: &mut Life) {
    for (id, epoch) in [(3, 0), (3, 0), (3, 1), (4, 0), (4, 5), (1 << 40, 0)] {
        life.run(Command::BumpProducerEpoch {
            id: ProducerId::new(id),
            epoch: ProducerEpoch::new(epoch),
        });
    }
}
