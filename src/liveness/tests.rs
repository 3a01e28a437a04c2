//! Who is fenced, when, and who is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{
    Command, CreateTopic, Envelope, LogId, MetadataImage, Origin, RegisterBroker,
};
use quorate_types::{
    BootId, BrokerEpoch, DirectoryId, Endpoint, Incarnation, NodeId, PartitionId, RaftIndex, Term,
    Timestamp, TopicId, TopicName, TopicPartition,
};

use crate::{Action, ConnectionId, Heartbeat, Liveness, LivenessTiming, Probe, ProbeResult};

const LIFE: Incarnation = Incarnation {
    start: 1,
    random: 1,
};
const NODE: NodeId = NodeId::new(1);
const LINK: ConnectionId = ConnectionId(5);

fn apply(image: &mut MetadataImage, command: Command) {
    let index = image.applied().index.next();
    let envelope = Envelope {
        origin: Origin {
            node: NodeId::new(9),
            directory: DirectoryId::from_bytes([9; 16]),
            incarnation: LIFE,
        },
        sequence: index.get(),
        required_term: None,
        time: Timestamp::from_millis(0),
        commands: vec![command],
    };
    image.apply(
        &envelope,
        LogId {
            term: Term::new(1),
            index,
        },
    );
}

struct Controller {
    liveness: Liveness,
    image: MetadataImage,
    now: Duration,
}

impl Controller {
    fn new() -> Self {
        let mut image = MetadataImage::new();
        let endpoint = Endpoint {
            host: "h".into(),
            port: 1,
        };
        apply(
            &mut image,
            Command::RegisterBroker(RegisterBroker {
                node: NODE,
                directory: DirectoryId::from_bytes([1; 16]),
                incarnation: LIFE,
                boot: BootId::from_bytes([1; 16]),
                clean_epoch: None,
                damaged: Vec::new(),
                client: endpoint.clone(),
                internal: endpoint,
                rack: None,
                min_level: 1,
                max_level: 1,
            }),
        );
        let now = Duration::from_secs(50);
        let timing = LivenessTiming::new(Duration::from_secs(3));
        let liveness = Liveness::new(timing, Arc::new(image.clone()), now);
        Self {
            liveness,
            image,
            now,
        }
    }

    fn active() -> Self {
        let mut controller = Self::new();
        let actions = controller.beat(false);
        let [Action::Probe(probe)] = &actions[..] else {
            panic!("{actions:?}")
        };
        let alive = ProbeResult::Alive {
            node: NODE,
            incarnation: LIFE,
        };
        let actions = controller.probed(probe, alive);
        controller.carry_out(&actions);
        controller
    }

    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Propose { node, command } = action {
                apply(&mut self.image, command.clone());
                self.liveness
                    .take_image(Arc::new(self.image.clone()), self.now);
                self.liveness.proposed(*node);
            }
        }
    }

    fn beat(&mut self, wants_shutdown: bool) -> Vec<Action> {
        let mut out = Vec::new();
        let broker_epoch = self.image.broker(NODE).map(|broker| broker.epoch);
        let applied = self.image.applied().index;
        let beat = Heartbeat {
            node: NODE,
            incarnation: LIFE,
            broker_epoch,
            applied,
            wants_shutdown,
            ready: true,
        };
        self.liveness.heartbeat(LINK, &beat, self.now, &mut out);
        out
    }

    fn probed(&mut self, probe: &Probe, result: ProbeResult) -> Vec<Action> {
        let mut out = Vec::new();
        self.liveness.probed(probe, result, self.now, &mut out);
        out
    }

    /// Time passes in small steps; gives what it led to.
    fn pass(&mut self, millis: u64) -> Vec<Action> {
        let mut out = Vec::new();
        for _ in 0..millis / 10 {
            self.now += Duration::from_millis(10);
            self.liveness.tick(self.now, &mut out);
        }
        out
    }
}

fn is_fence(action: &Action) -> bool {
    matches!(
        action,
        Action::Propose {
            command: Command::FenceBroker { .. },
            ..
        }
    )
}

#[test]
fn a_broker_is_unfenced_after_it_answered_a_call_back() {
    let mut controller = Controller::new();
    let actions = controller.beat(false);
    let [Action::Probe(probe)] = &actions[..] else {
        panic!("{actions:?}")
    };
    let other = Incarnation {
        start: 2,
        random: 2,
    };
    let wrong = ProbeResult::Alive {
        node: NODE,
        incarnation: other,
    };
    assert_eq!(controller.probed(probe, wrong), []);
    assert_eq!(controller.probed(probe, ProbeResult::Silent), []);
    controller.beat(false);
    let right = ProbeResult::Alive {
        node: NODE,
        incarnation: LIFE,
    };
    let actions = controller.probed(probe, right);
    let unfence = |action: &Action| {
        matches!(
            action,
            Action::Propose {
                command: Command::UnfenceBroker { .. },
                ..
            }
        )
    };
    assert!(unfence(&actions[0]));
}

#[test]
fn silence_fences_only_after_a_whole_session() {
    let mut controller = Controller::active();
    assert!(!controller.pass(2_990).iter().any(is_fence));
    assert!(controller.pass(30).iter().any(is_fence));
}

#[test]
fn fencings_that_no_quorum_decided_do_not_count_as_fencings() {
    let mut controller = Controller::active();
    controller.pass(3_000);
    let mut tries = 0;
    for _ in 0..100 {
        let fences = controller.pass(10).into_iter().filter(is_fence).count();
        tries += fences;
        if fences > 0 {
            controller.liveness.proposed(Some(NODE));
        }
    }
    assert!((10..=20).contains(&tries), "{tries} in a second");
    // Now it is decided, and the broker is back at once.
    let fence = controller.pass(50);
    assert_eq!(fence.len(), 1);
    controller.carry_out(&fence);
    let actions = controller.beat(false);
    assert!(matches!(actions[..], [Action::Probe(_)]), "{actions:?}");
}

#[test]
fn two_refused_probes_fence_and_a_silent_one_does_not() {
    let mut controller = Controller::active();
    controller
        .liveness
        .connection_ended(LINK, true, controller.now);
    let actions = controller.pass(10);
    let [Action::Probe(probe)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(controller.probed(probe, ProbeResult::Refused), []);
    let again = controller.pass(10);
    assert_eq!(again.len(), 1);
    assert!(is_fence(&controller.probed(probe, ProbeResult::Refused)[0]));

    let mut slow = Controller::active();
    slow.liveness.connection_ended(LINK, true, slow.now);
    slow.pass(10);
    assert_eq!(slow.probed(probe, ProbeResult::Silent), []);
    assert!(!slow.pass(2_900).iter().any(is_fence));
}

#[test]
fn who_breaks_its_stream_before_it_closes_its_door_is_fenced_all_the_same() {
    let mut controller = Controller::active();
    controller
        .liveness
        .connection_ended(LINK, true, controller.now);
    let results = [
        ProbeResult::Silent,
        ProbeResult::Refused,
        ProbeResult::Silent,
        ProbeResult::Refused,
        ProbeResult::Refused,
    ];
    let mut ended = Vec::new();
    for result in results {
        assert_eq!(ended, []);
        let actions = controller.pass(10);
        let [Action::Probe(probe)] = &actions[..] else {
            panic!("{actions:?}")
        };
        ended = controller.probed(probe, result);
    }
    assert!(is_fence(&ended[0]));

    let mut slow = Controller::active();
    slow.liveness.connection_ended(LINK, true, slow.now);
    let mut probes = 0;
    while let [Action::Probe(probe)] = &slow.pass(10)[..] {
        probes += 1;
        assert_eq!(slow.probed(probe, ProbeResult::Silent), []);
    }
    assert_eq!(probes, 10);
}

#[test]
fn who_was_found_gone_before_this_controller_is_fenced_unless_it_is_back() {
    let next = |mut controller: Controller| {
        // Another node becomes the controller.
        let timing = LivenessTiming::new(Duration::from_secs(3));
        let image = Arc::new(controller.image.clone());
        controller.liveness = Liveness::new(timing, image, controller.now);
        controller
    };
    let told = |controller: &mut Controller, epoch| {
        let mut out = Vec::new();
        controller
            .liveness
            .gone(NODE, epoch, controller.now, &mut out);
        out
    };
    let mut controller = next(Controller::active());
    let epoch = controller.image.broker(NODE).unwrap().epoch;
    assert_eq!(told(&mut controller, BrokerEpoch::new(epoch.get() + 1)), []);
    assert!(is_fence(&told(&mut controller, epoch)[0]));

    let mut back = next(Controller::active());
    back.beat(false);
    assert_eq!(told(&mut back, epoch), []);
}

#[test]
fn a_stream_that_is_back_ends_the_suspicion() {
    let mut controller = Controller::active();
    controller
        .liveness
        .connection_ended(LINK, true, controller.now);
    let actions = controller.pass(10);
    let [Action::Probe(probe)] = &actions[..] else {
        panic!("{actions:?}")
    };
    controller.probed(probe, ProbeResult::Refused);
    controller.beat(false);
    assert_eq!(controller.pass(100), []);
    assert_eq!(controller.probed(probe, ProbeResult::Refused), []);
}

#[test]
fn an_orderly_end_of_the_stream_is_not_a_suspicion() {
    let mut controller = Controller::active();
    controller
        .liveness
        .connection_ended(LINK, false, controller.now);
    assert_eq!(controller.pass(500), []);
}

#[test]
fn a_controller_that_stood_still_fences_nobody_for_it() {
    let mut controller = Controller::active();
    controller.now += Duration::from_secs(60);
    let mut out = Vec::new();
    controller.liveness.tick(controller.now, &mut out);
    assert!(!out.iter().any(is_fence));
    assert!(controller.pass(3_100).iter().any(is_fence));
}

#[test]
fn a_shutdown_is_let_go_when_it_is_applied() {
    let mut controller = Controller::active();
    let actions = controller.beat(true);
    let begins = |action: &Action| {
        matches!(
            action,
            Action::Propose {
                command: Command::BeginControlledShutdown { .. },
                ..
            }
        )
    };
    assert!(begins(&actions[0]));
    controller.carry_out(&actions);
    let mut out = Vec::new();
    let beat = Heartbeat {
        node: NODE,
        incarnation: LIFE,
        broker_epoch: controller.image.broker(NODE).map(|broker| broker.epoch),
        applied: RaftIndex::new(99),
        wants_shutdown: true,
        ready: true,
    };
    let answer = controller
        .liveness
        .heartbeat(LINK, &beat, controller.now, &mut out);
    assert!(answer.may_stop);
}

#[test]
fn a_partition_without_a_leader_goes_to_an_in_sync_replica_that_lives() {
    let mut controller = Controller::active();
    let topic_id = TopicId::from_bytes([7; 16]);
    let create = Command::CreateTopic(CreateTopic {
        name: TopicName::new("t").unwrap(),
        topic_id,
        partitions: 1,
        replication_factor: 1,
        seed: 0,
        config: BTreeMap::new(),
    });
    apply(&mut controller.image, create);
    let partition = TopicPartition::new(topic_id, PartitionId::new(0));
    let broker_epoch = controller.image.broker(NODE).unwrap().epoch;
    // Its only replica's disk failed, and the broker lives on.
    let report = Command::ReportReplicaDamaged {
        partition,
        node: NODE,
        broker_epoch,
        found: "a sync failed".to_owned(),
    };
    apply(&mut controller.image, report);
    assert_eq!(controller.image.partition(&partition).unwrap().leader, None);
    let image = Arc::new(controller.image.clone());
    controller.liveness.take_image(image, controller.now);
    let mut led = None;
    for _ in 0..20 {
        controller.beat(false);
        let actions = controller.pass(500);
        controller.carry_out(&actions);
        led = controller.image.partition(&partition).unwrap().leader;
    }
    assert_eq!(led, Some(NODE));
}

#[test]
fn who_does_not_keep_a_leadership_gets_it_back_less_and_less_often() {
    let mut controller = Controller::active();
    let topic_id = TopicId::from_bytes([7; 16]);
    let create = Command::CreateTopic(CreateTopic {
        name: TopicName::new("t").unwrap(),
        topic_id,
        partitions: 1,
        replication_factor: 1,
        seed: 0,
        config: BTreeMap::new(),
    });
    apply(&mut controller.image, create);
    let partition = TopicPartition::new(topic_id, PartitionId::new(0));
    let broker_epoch = controller.image.broker(NODE).unwrap().epoch;
    let mut times = 0;
    for _ in 0..240 {
        if controller
            .image
            .partition(&partition)
            .unwrap()
            .leader
            .is_some()
        {
            times += 1;
            let report = Command::ReportReplicaDamaged {
                partition,
                node: NODE,
                broker_epoch,
                found: "a sync failed".to_owned(),
            };
            apply(&mut controller.image, report);
            let image = Arc::new(controller.image.clone());
            controller.liveness.take_image(image, controller.now);
        }
        controller.beat(false);
        let actions = controller.pass(500);
        controller.carry_out(&actions);
    }
    // Once as it was made, then after 5, 5, 10, 20 and 40 s.
    assert!((5..=7).contains(&times), "{times} in two minutes");
}
