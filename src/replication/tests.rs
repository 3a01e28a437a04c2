//! Three replicas in one thread, every message delivered in order: the protocol's ordinary paths
//! and the rules that keep records. What a hostile schedule does to it is the simulator's part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quorate_log::{LogOptions, OsDir, PartitionLog, RecoveryContext};
use quorate_metadata::{
    Command, CreateTopic, Envelope, LogId, MetadataImage, Origin, Outcome, RegisterBroker,
};
use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag};
use quorate_types::{
    Acks, BootId, BrokerEpoch, DirectoryId, Endpoint, Incarnation, NodeId, Offset, PartitionId,
    ProducerEpoch, ProducerId, RaftIndex, Sequence, Term, Timestamp, TopicId, TopicName,
    TopicPartition,
};
use tempfile::TempDir;

use crate::{
    Action, Context, Event, FollowerMessage, PartitionView, Produce, ProduceError, Produced,
    ProposalResult, Replica, RequestId, Status, StreamId, StreamRoom, Timing,
};

const TOPIC: TopicId = TopicId::from_bytes([3; 16]);
pub(crate) const ID: TopicPartition = TopicPartition::new(TOPIC, PartitionId::new(0));

pub(crate) struct Open;

impl StreamRoom for Open {
    fn room(&self, _: StreamId) -> usize {
        usize::MAX
    }
}

pub(crate) struct Node {
    pub(crate) replica: Option<Replica<OsDir>>,
    epoch: BrokerEpoch,
    /// Nothing reaches it, and it gets no time.
    pub(crate) paused: bool,
    pub(crate) flushes: bool,
}

pub(crate) struct Cluster {
    _root: TempDir,
    dirs: BTreeMap<NodeId, Arc<OsDir>>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) image: MetadataImage,
    index: u64,
    now: Duration,
    contact: Duration,
    pub(crate) events: VecDeque<(NodeId, Event)>,
    pub(crate) answers: BTreeMap<u64, Result<Produced, ProduceError>>,
    requests: u64,
    /// Acks that a test has kept back instead of delivering them.
    kept_acks: Option<Vec<(NodeId, Event)>>,
    /// The quorum does not take any.
    pub(crate) refuse_proposals: bool,
    timing: Timing,
}

pub(crate) fn node(id: u32) -> NodeId {
    NodeId::new(id)
}

/// One stream for each pair.
fn stream(from: NodeId, to: NodeId) -> StreamId {
    StreamId(u64::from(from.get()) * 100 + u64::from(to.get()))
}

fn batch(mark: u64, producer: Option<(u64, u32)>) -> Batch {
    batch_of(mark, producer.map(|(id, sequence)| (id, 0, sequence)))
}

/// Of a producer by its id, epoch and sequence.
fn batch_of(mark: u64, producer: Option<(u64, u16, u32)>) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some((id, epoch, sequence)) = producer {
        builder = builder.producer(ProducerTag {
            id: ProducerId::new(id),
            epoch: ProducerEpoch::new(epoch),
            base_sequence: Sequence::new(sequence),
        });
    }
    builder.push(
        Timestamp::from_millis(1),
        None,
        Some(mark.to_string().as_bytes()),
        &[],
    );
    builder.build()
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::with(Timing::default())
    }

    pub(crate) fn with(timing: Timing) -> Self {
        let root = TempDir::new().unwrap();
        let mut cluster = Self {
            dirs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            image: MetadataImage::new(),
            index: 0,
            now: Duration::from_secs(100),
            contact: Duration::from_secs(100),
            events: VecDeque::new(),
            answers: BTreeMap::new(),
            requests: 0,
            kept_acks: None,
            refuse_proposals: false,
            timing,
            _root: root,
        };
        for id in 1..=3 {
            let path = cluster._root.path().join(id.to_string());
            std::fs::create_dir(&path).unwrap();
            cluster.dirs.insert(node(id), Arc::new(OsDir::new(path)));
            cluster.start(id, 1);
        }
        cluster.apply(Command::CreateTopic(CreateTopic {
            name: TopicName::new("t").unwrap(),
            topic_id: TOPIC,
            partitions: 1,
            replication_factor: 3,
            seed: 0,
            config: BTreeMap::new(),
        }));
        cluster.run();
        cluster
    }

    pub(crate) fn root(&self) -> &std::path::Path {
        self._root.path()
    }

    pub(crate) fn start(&mut self, id: u32, life: u64) {
        let dir = Arc::clone(&self.dirs[&node(id)]);
        let cx = RecoveryContext { same_boot: true };
        let (log, report) = PartitionLog::open(dir, "p", LogOptions::default(), cx).unwrap();
        assert_eq!(report.damaged, None);
        let subscriptions = Arc::new(AtomicU64::new(life * 1_000_000));
        let replica = Replica::new(node(id), ID, log, self.timing, subscriptions);
        let epoch = BrokerEpoch::ZERO;
        let started = Node {
            replica: Some(replica),
            epoch,
            paused: false,
            flushes: true,
        };
        self.nodes.insert(node(id), started);
        let endpoint = Endpoint {
            host: "h".into(),
            port: 1,
        };
        let registered = self.apply(Command::RegisterBroker(RegisterBroker {
            node: node(id),
            directory: DirectoryId::from_bytes([id as u8; 16]),
            incarnation: Incarnation {
                start: life,
                random: life,
            },
            boot: BootId::from_bytes([1; 16]),
            clean_epoch: None,
            damaged: Vec::new(),
            client: endpoint.clone(),
            internal: endpoint,
            rack: None,
            min_level: 1,
            max_level: 1,
        }));
        let Outcome::Registered { epoch } = registered else {
            panic!("{registered:?}")
        };
        self.nodes.get_mut(&node(id)).unwrap().epoch = epoch;
        self.apply(Command::UnfenceBroker {
            node: node(id),
            epoch,
        });
    }

    /// Ends a node's process; its files stay.
    pub(crate) fn kill(&mut self, id: u32) {
        self.nodes.remove(&node(id));
        self.events.retain(|(to, _)| *to != node(id));
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            let stream = stream(node(id), other);
            self.events
                .push_back((other, Event::FollowerStreamClosed { stream }));
            self.events
                .push_back((other, Event::LeaderStreamClosed { leader: node(id) }));
        }
    }

    pub(crate) fn fence(&mut self, id: u32) {
        let epoch = self.image.broker(node(id)).unwrap().epoch;
        self.apply(Command::FenceBroker {
            node: node(id),
            epoch,
            cause: "test".into(),
        });
        self.run();
    }

    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let envelope = Envelope {
            origin: Origin {
                node: node(9),
                directory: DirectoryId::from_bytes([9; 16]),
                incarnation: Incarnation {
                    start: 1,
                    random: 1,
                },
            },
            sequence: self.index,
            required_term: None,
            time: Timestamp::from_millis(1),
            commands: vec![command],
        };
        let at = LogId {
            term: Term::new(1),
            index: RaftIndex::new(self.index),
        };
        let outcome = self.image.apply(&envelope, at).outcomes.remove(0);
        for (id, state) in &self.nodes {
            if let Some(view) = PartitionView::of(&self.image, &ID, *id, Some(state.epoch)) {
                self.events.push_back((*id, Event::View(view)));
            }
        }
        outcome
    }

    pub(crate) fn step(&mut self, id: NodeId, event: Event) {
        let cx = Context {
            now: self.now,
            wall: Timestamp::from_millis(7),
            controller_contact: self.contact,
            streams: &Open,
        };
        let Some(state) = self.nodes.get_mut(&id) else {
            return;
        };
        let mut out = Vec::new();
        let replica = state.replica.as_mut().unwrap();
        replica.step(&cx, event, &mut out);
        assert!(replica.log().flushed_end() <= replica.log().log_end());
        let flushes = state.flushes;
        for action in out {
            match action {
                Action::ToFollower { stream, message } => {
                    let to = node((stream.0 / 100) as u32);
                    self.events
                        .push_back((to, Event::FromLeader { from: id, message }));
                }
                Action::ToLeader { leader, message } => {
                    let is_ack = matches!(message, FollowerMessage::Ack(_));
                    let stream = stream(id, leader);
                    let event = Event::FromFollower {
                        stream,
                        from: id,
                        message,
                    };
                    match &mut self.kept_acks {
                        Some(kept) if is_ack => kept.push((leader, event)),
                        _ => self.events.push_back((leader, event)),
                    }
                }
                Action::Propose {
                    id: proposal,
                    command,
                } => {
                    let result = if self.refuse_proposals {
                        ProposalResult::Unknown
                    } else {
                        match self.apply(command) {
                            Outcome::Refused(refusal) => ProposalResult::Refused(refusal.code),
                            _ => ProposalResult::Applied,
                        }
                    };
                    self.events.push_back((
                        id,
                        Event::Proposed {
                            id: proposal,
                            result,
                        },
                    ));
                }
                Action::Answer { id, result } => {
                    assert!(
                        self.answers.insert(id.0, result).is_none(),
                        "answered twice"
                    );
                }
                Action::Flush(ticket) if flushes => {
                    self.events.push_back((id, Event::Flushed(ticket.run())));
                }
                Action::Flush(_) | Action::Status => {}
            }
        }
    }

    /// Delivers until nothing is under way.
    pub(crate) fn run(&mut self) {
        let mut kept = VecDeque::new();
        for _ in 0..100_000 {
            let Some((to, event)) = self.events.pop_front() else {
                self.events = kept;
                return;
            };
            match self.nodes.get(&to) {
                Some(state) if state.paused => kept.push_back((to, event)),
                Some(_) => self.step(to, event),
                None => {}
            }
        }
        panic!("the replicas never come to rest");
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(50);
            self.contact = self.contact.max(self.now);
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                if !self.nodes[&id].paused {
                    self.events.push_back((id, Event::Tick));
                }
            }
            self.run();
        }
    }

    pub(crate) fn produce(
        &mut self,
        to: u32,
        mark: u64,
        acks: Acks,
        tag: Option<(u64, u32)>,
    ) -> u64 {
        self.produce_batch(to, batch(mark, tag), acks)
    }

    /// Of a producer by its id, epoch and sequence.
    pub(crate) fn produce_as(&mut self, to: u32, mark: u64, tag: (u64, u16, u32)) -> u64 {
        self.produce_batch(to, batch_of(mark, Some(tag)), Acks::All)
    }

    pub(crate) fn produce_batch(&mut self, to: u32, batch: Batch, acks: Acks) -> u64 {
        self.requests += 1;
        let produce = Produce {
            id: RequestId(self.requests),
            batch,
            acks,
            deadline: self.now + Duration::from_secs(1),
            current_epoch: None,
        };
        self.step(node(to), Event::Produce(produce));
        self.run();
        self.requests
    }

    pub(crate) fn offset(&self, request: u64) -> u64 {
        self.answers[&request]
            .as_ref()
            .unwrap()
            .base_offset
            .unwrap()
            .get()
    }

    pub(crate) fn leader(&self) -> u32 {
        self.image.partition(&ID).unwrap().leader.unwrap().get()
    }

    pub(crate) fn isr(&self) -> Vec<u32> {
        self.image
            .partition(&ID)
            .unwrap()
            .isr
            .iter()
            .map(|node| node.get())
            .collect()
    }

    pub(crate) fn replica(&self, id: u32) -> &Replica<OsDir> {
        self.nodes[&node(id)].replica.as_ref().unwrap()
    }

    pub(crate) fn values(&self, id: u32) -> Vec<String> {
        let log = self.replica(id).log();
        let bytes = log
            .reader()
            .read(Offset::ZERO, log.log_end(), usize::MAX)
            .unwrap();
        let batches = Batch::split(bytes).unwrap();
        let records = batches.iter().flat_map(|batch| batch.records().unwrap());
        records
            .map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap())
            .collect()
    }
}

#[test]
fn an_acknowledged_record_is_on_the_disk_of_every_replica() {
    let mut cluster = Cluster::new();
    for mark in 0..5 {
        let request = cluster.produce(1, mark, Acks::All, None);
        assert_eq!(cluster.offset(request), mark);
        let produced = cluster.answers[&request].clone().unwrap();
        assert_eq!((produced.replicas, produced.fsynced), (3, 3));
    }
    cluster.pass(Duration::from_millis(200));
    for id in 1..=3 {
        assert_eq!(cluster.values(id), ["0", "1", "2", "3", "4"]);
        assert_eq!(cluster.replica(id).log().high_watermark(), Offset::new(5));
        assert_eq!(cluster.replica(id).log().flushed_end(), Offset::new(5));
    }
}

#[test]
fn nothing_is_acknowledged_before_every_in_sync_replica_has_flushed() {
    let mut cluster = Cluster::new();
    cluster.nodes.get_mut(&node(3)).unwrap().flushes = false;
    let request = cluster.produce(1, 0, Acks::All, None);
    assert!(!cluster.answers.contains_key(&request));
    assert_eq!(cluster.replica(3).log().log_end(), Offset::new(1));
    cluster.pass(Duration::from_millis(1_100));
    assert_eq!(cluster.answers[&request], Err(ProduceError::TimedOut));
    // It hangs for longer than the lag allows: it leaves the ISR, and the rest goes on.
    cluster.pass(Duration::from_secs(10));
    assert_eq!(cluster.isr(), [1, 2]);
    let request = cluster.produce(1, 1, Acks::All, None);
    assert_eq!(cluster.offset(request), 1);
}

#[test]
fn a_failover_keeps_what_was_acknowledged_and_cuts_what_was_not() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 0, Acks::All, None);
    // Only the leader gets this one.
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = true;
    }
    let lost = cluster.produce(1, 100, Acks::All, None);
    cluster.kill(1);
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = false;
    }
    cluster
        .events
        .retain(|(_, event)| !matches!(event, Event::FromLeader { .. }));
    cluster.fence(1);
    assert_eq!(cluster.leader(), 2);
    let kept = cluster.produce(2, 1, Acks::All, None);
    assert_eq!(cluster.offset(kept), 1);
    assert!(!cluster.answers.contains_key(&lost));
    cluster.start(1, 2);
    cluster.run();
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    for id in 1..=3 {
        assert_eq!(cluster.values(id), ["0", "1"]);
    }
}

#[test]
fn a_produce_that_waits_when_the_leadership_goes_is_never_a_success() {
    let mut cluster = Cluster::new();
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = true;
    }
    let request = cluster.produce(1, 0, Acks::All, None);
    cluster.fence(1);
    assert_eq!(cluster.answers[&request], Err(ProduceError::LeadershipLost));
    let late = cluster.produce(1, 1, Acks::All, None);
    assert_eq!(cluster.answers[&late], Err(ProduceError::NotLeader));
}

#[test]
fn a_silent_follower_leaves_the_isr_and_comes_back() {
    let mut cluster = Cluster::new();
    cluster.nodes.get_mut(&node(3)).unwrap().paused = true;
    let request = cluster.produce(1, 0, Acks::All, None);
    cluster.pass(Duration::from_secs(11));
    assert_eq!(cluster.isr(), [1, 2]);
    assert_eq!(cluster.answers[&request], Err(ProduceError::TimedOut));
    cluster.nodes.get_mut(&node(3)).unwrap().paused = false;
    cluster.run();
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    assert_eq!(cluster.values(3), ["0"]);
}

#[test]
fn too_few_in_sync_replicas_refuse_before_anything_is_appended() {
    let mut cluster = Cluster::new();
    for id in [2, 3] {
        cluster.kill(id);
        cluster.fence(id);
    }
    let request = cluster.produce(1, 0, Acks::All, None);
    let refused = ProduceError::NotEnoughReplicas {
        isr: 1,
        required: 2,
    };
    assert_eq!(cluster.answers[&request], Err(refused));
    assert_eq!(cluster.replica(1).log().log_end(), Offset::ZERO);
    // acks=1 is appended, but not visible: the high watermark waits for the minimum.
    let request = cluster.produce(1, 1, Acks::Leader, None);
    assert_eq!(cluster.offset(request), 0);
    assert_eq!(cluster.replica(1).log().high_watermark(), Offset::ZERO);
    cluster.start(2, 2);
    cluster.run();
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.isr(), [1, 2]);
    assert_eq!(cluster.replica(1).log().high_watermark(), Offset::new(1));
}

#[test]
fn a_batch_that_says_its_time_is_the_leaders_is_refused() {
    let mut cluster = Cluster::new();
    let claimed = batch(0, None).with_log_append_time(Timestamp::from_millis(1));
    let request = cluster.produce_batch(1, claimed, Acks::All);
    let answer = &cluster.answers[&request];
    assert!(
        matches!(answer, Err(ProduceError::InvalidRecord(_))),
        "{answer:?}"
    );
    assert_eq!(cluster.replica(1).log().log_end(), Offset::ZERO);
}

#[test]
fn a_repeat_is_answered_with_its_first_offset_once_that_is_committed() {
    let mut cluster = Cluster::new();
    let first = cluster.produce(1, 0, Acks::All, Some((7, 0)));
    let second = cluster.produce(1, 1, Acks::All, Some((7, 1)));
    let again = cluster.produce(1, 0, Acks::All, Some((7, 0)));
    assert_eq!(cluster.offset(again), cluster.offset(first));
    assert_eq!(cluster.offset(second), 1);
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = true;
    }
    let third = cluster.produce(1, 2, Acks::All, Some((7, 2)));
    let repeat = cluster.produce(1, 2, Acks::All, Some((7, 2)));
    assert!(!cluster.answers.contains_key(&third) && !cluster.answers.contains_key(&repeat));
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = false;
    }
    cluster.run();
    assert_eq!((cluster.offset(third), cluster.offset(repeat)), (2, 2));
    let gap = cluster.produce(1, 9, Acks::All, Some((7, 9)));
    assert!(matches!(
        cluster.answers[&gap],
        Err(ProduceError::OutOfOrderSequence { .. })
    ));
    assert_eq!(cluster.values(1), ["0", "1", "2"]);
}

#[test]
fn a_repeat_is_recognised_by_the_next_leader() {
    let mut cluster = Cluster::new();
    let first = cluster.produce(1, 0, Acks::All, Some((7, 0)));
    cluster.kill(1);
    cluster.fence(1);
    let leader = cluster.leader();
    let again = cluster.produce(leader, 0, Acks::All, Some((7, 0)));
    assert_eq!(cluster.offset(again), cluster.offset(first));
    assert_eq!(cluster.values(leader), ["0"]);
}

#[test]
fn an_ack_of_an_older_subscription_counts_for_nothing() {
    let mut cluster = Cluster::new();
    cluster.kept_acks = Some(Vec::new());
    cluster.produce(1, 0, Acks::Leader, None);
    let old = cluster.kept_acks.take().unwrap();
    assert!(!old.is_empty());
    // Both followers begin anew; what they acked before must not move the high watermark.
    for id in [2, 3] {
        let stream = stream(node(id), node(1));
        cluster.step(node(1), Event::FollowerStreamClosed { stream });
    }
    for (to, event) in old {
        cluster.step(to, event);
    }
    assert_eq!(cluster.replica(1).log().high_watermark(), Offset::ZERO);
}

#[test]
fn without_a_word_from_the_controller_only_acks_all_is_taken() {
    let mut cluster = Cluster::new();
    cluster.now += Duration::from_secs(4);
    for acks in [Acks::Leader, Acks::None] {
        let request = cluster.produce(1, 0, acks, None);
        assert_eq!(
            cluster.answers[&request],
            Err(ProduceError::ControllerSilent)
        );
    }
    let request = cluster.produce(1, 1, Acks::All, None);
    assert_eq!(cluster.offset(request), 0);
}

#[test]
fn a_restarted_leader_leads_only_at_a_new_epoch() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 0, Acks::All, None);
    for id in [2, 3] {
        cluster.kill(id);
        cluster.fence(id);
    }
    let before = cluster.image.partition(&ID).unwrap().leader_epoch;
    cluster.kill(1);
    cluster.start(1, 2);
    cluster.run();
    match cluster.replica(1).status() {
        Status::Leader { epoch, .. } => assert!(epoch > before),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_leader_whose_disk_fails_gives_way_and_comes_back() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 0, Acks::All, None);
    cluster.nodes.get_mut(&node(1)).unwrap().flushes = false;
    let request = cluster.produce(1, 1, Acks::Leader, None);
    assert_eq!(cluster.offset(request), 1);
    let failed = quorate_log::FlushDone {
        end: Offset::new(2),
        generation: cluster.replica(1).log().generation(),
        error: Some(std::io::Error::other("no space")),
    };
    cluster.nodes.get_mut(&node(1)).unwrap().flushes = true;
    cluster.step(node(1), Event::Flushed(failed));
    cluster.run();
    assert_ne!(cluster.leader(), 1);
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    let leader = cluster.leader();
    assert_eq!(cluster.values(1), cluster.values(leader));
    assert_eq!(cluster.values(1)[0], "0");
}

#[test]
fn what_waits_is_answered_when_the_replica_is_removed() {
    let mut cluster = Cluster::new();
    for id in [2, 3] {
        cluster.nodes.get_mut(&node(id)).unwrap().paused = true;
    }
    let request = cluster.produce(1, 0, Acks::All, None);
    let mut out = Vec::new();
    let replica = cluster.nodes.get_mut(&node(1)).unwrap().replica.as_mut();
    replica.unwrap().abandon(&mut out);
    assert!(out.iter().any(|action| matches!(
        action,
        Action::Answer { id, result: Err(ProduceError::LeadershipLost) } if id.0 == request
    )));
}

#[test]
fn a_leader_that_cannot_read_a_batch_gives_way_and_the_next_start_tells() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 0, Acks::All, None);
    cluster.run();
    let why = || Event::Unreadable {
        why: "p/0.log, position 0: CRC".to_owned(),
    };
    cluster.step(node(1), why());
    cluster.run();
    assert_ne!(cluster.leader(), 1);
    assert_eq!(cluster.isr(), [2, 3]);
    assert_eq!(cluster.replica(1).status(), crate::Status::Damaged);
    let leader = cluster.leader();
    cluster.produce(leader, 1, Acks::All, None);
    cluster.run();

    cluster.kill(1);
    let dir = Arc::clone(&cluster.dirs[&node(1)]);
    let cx = RecoveryContext { same_boot: true };
    let (log, report) = PartitionLog::open(dir, "p", LogOptions::default(), cx).unwrap();
    assert!(report.damaged.unwrap().contains("position 0"));
    // Until the cluster has been told.
    log.damage_told().unwrap();
    drop(log);
    cluster.start(1, 2);
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.isr(), [1, 2, 3]);
    assert_eq!(cluster.values(1), cluster.values(leader));
}

#[test]
fn a_flush_that_fails_brings_no_damaged_replica_back() {
    let mut cluster = Cluster::new();
    cluster.produce(1, 0, Acks::All, None);
    cluster.run();
    cluster.nodes.get_mut(&node(1)).unwrap().flushes = false;
    cluster.produce(1, 1, Acks::Leader, None);
    let failed = quorate_log::FlushDone {
        end: Offset::new(2),
        generation: cluster.replica(1).log().generation(),
        error: Some(std::io::Error::other("no space")),
    };
    let why = "p/0.log, position 0: CRC".to_owned();
    cluster.step(node(1), Event::Unreadable { why });
    cluster.step(node(1), Event::Flushed(failed));
    cluster.run();
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.replica(1).status(), crate::Status::Damaged);
    assert_eq!(cluster.isr(), [2, 3]);
}

#[test]
fn the_only_in_sync_replica_goes_on_with_what_it_can_read() {
    let mut cluster = Cluster::new();
    for id in [2, 3] {
        cluster.kill(id);
        cluster.fence(id);
    }
    assert_eq!(cluster.isr(), [1]);
    let why = "p/0.log, position 0: CRC".to_owned();
    cluster.step(node(1), Event::Unreadable { why });
    cluster.run();
    assert_eq!(cluster.leader(), 1);
}
