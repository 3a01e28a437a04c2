//! Proposals at whichever voter runs, and what must be in the last image because of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_metadata::{Command, CreateTopic, MetadataImage, Outcome, RegisterBroker};
use quorate_types::{
    BootId, BrokerEpoch, DirectoryId, Endpoint, Incarnation, NodeId, TopicId, TopicName,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::LONG;
use super::record::Record;
use crate::handle::QuorumHandle;
use crate::propose::ProposeError;

const PATIENCE: Duration = Duration::from_secs(2);
const BROKER: NodeId = NodeId::new(50);

/// Where the voters that run now can be asked.
pub(crate) type Running = Arc<Mutex<BTreeMap<NodeId, QuorumHandle>>>;

#[derive(Debug, Default)]
struct Answers {
    /// Acknowledged, by number.
    topics: BTreeSet<u64>,
    /// Told to be in no log.
    refused_topics: BTreeSet<u64>,
    ids: BTreeSet<u64>,
    ids_twice: Vec<u64>,
    /// Proposals of an id whose fate is not known.
    unknown_ids: u64,
}

/// What clients were told.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    answers: Mutex<Answers>,
}

fn topic_id(number: u64) -> TopicId {
    TopicId::from_bytes(u128::from(number + 1).to_be_bytes())
}

fn topic_name(number: u64) -> TopicName {
    TopicName::new(&format!("p-{number}")).unwrap()
}

fn create(number: u64) -> Command {
    Command::CreateTopic(CreateTopic {
        name: topic_name(number),
        topic_id: topic_id(number),
        partitions: 1,
        replication_factor: 1,
        seed: number,
        config: BTreeMap::new(),
    })
}

/// A broker that topics can be placed on; no process is behind it.
pub(crate) async fn register_a_broker(handle: &QuorumHandle) {
    let endpoint = Endpoint {
        host: "h".to_owned(),
        port: 1,
    };
    let register = Command::RegisterBroker(RegisterBroker {
        node: BROKER,
        directory: DirectoryId::from_bytes([5; 16]),
        incarnation: Incarnation {
            start: 1,
            random: 1,
        },
        boot: BootId::from_bytes([1; 16]),
        clean_epoch: None,
        damaged: Vec::new(),
        client: endpoint.clone(),
        internal: endpoint,
        rack: None,
        min_level: 1,
        max_level: 1,
    });
    let outcomes = handle.propose(vec![register], LONG).await.unwrap();
    let [Outcome::Registered { epoch }] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    unfence(handle, epoch).await;
}

async fn unfence(handle: &QuorumHandle, epoch: BrokerEpoch) {
    let node = BROKER;
    let unfence = vec![Command::UnfenceBroker { node, epoch }];
    assert_eq!(
        handle.propose(unfence, LONG).await.unwrap(),
        [Outcome::Done]
    );
}

/// Allocates an id; gives it.
pub(crate) async fn allocate(handle: &QuorumHandle, within: Duration) -> Result<u64, ProposeError> {
    let command = vec![Command::AllocateProducerIds { count: 1 }];
    let outcomes = handle.propose(command, within).await?;
    match outcomes[..] {
        [Outcome::ProducerIds { first, .. }] => Ok(first.get()),
        _ => panic!("{outcomes:?}"),
    }
}

impl Clients {
    /// Proposes one after the other until it is aborted or `running` is empty for good.
    pub(crate) async fn propose(self: Arc<Self>, running: Running, seed: u64, of: u64, step: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut number = of;
        loop {
            let handles: Vec<QuorumHandle> = running.lock().values().cloned().collect();
            if handles.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let handle = handles[rng.random_range(0..handles.len())].clone();
            if rng.random_bool(0.5) {
                self.topic(&handle, number).await;
                number += step;
            } else {
                self.id(&handle).await;
            }
            // Some hundred a second give the snapshots their entries.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn topic(&self, handle: &QuorumHandle, number: u64) {
        let told = handle.propose(vec![create(number)], PATIENCE).await;
        let mut answers = self.answers.lock();
        match told {
            Ok(outcomes) => {
                let topic_id = topic_id(number);
                assert_eq!(outcomes, [Outcome::Created { topic_id }], "{handle:?}");
                answers.topics.insert(number);
            }
            Err(ProposeError::NotCommitted(_)) => {
                answers.refused_topics.insert(number);
            }
            Err(ProposeError::Unknown(_)) => {}
        }
    }

    async fn id(&self, handle: &QuorumHandle) {
        let told = allocate(handle, PATIENCE).await;
        let mut answers = self.answers.lock();
        match told {
            Ok(id) => {
                if !answers.ids.insert(id) {
                    answers.ids_twice.push(id);
                }
            }
            Err(ProposeError::NotCommitted(_)) => {}
            Err(ProposeError::Unknown(_)) => answers.unknown_ids += 1,
        }
    }

    /// A proposal that is abandoned while it is under way may be committed; there is one a client.
    pub(crate) fn abandoned(&self) {
        self.answers.lock().unknown_ids += 1;
    }

    /// How many were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        let answers = self.answers.lock();
        answers.topics.len() + answers.ids.len()
    }

    /// What the last image must have, and how many ids were given in all.
    pub(crate) fn check(&self, image: &MetadataImage, given: u64, record: &Record) {
        let answers = self.answers.lock();
        for number in &answers.topics {
            if image.topic_by_name(&topic_name(*number)).map(|t| t.id) != Some(topic_id(*number)) {
                record.violated(format!("topic {number} was acknowledged and is not there"));
            }
        }
        for number in &answers.refused_topics {
            if image.topic_by_name(&topic_name(*number)).is_some() {
                record.violated(format!(
                    "topic {number} was told to be in no log and is there"
                ));
            }
        }
        if !answers.ids_twice.is_empty() {
            record.violated(format!("given twice: {:?}", answers.ids_twice));
        }
        let acknowledged = answers.ids.len() as u64;
        let most = acknowledged + answers.unknown_ids;
        if !(acknowledged..=most).contains(&given) {
            record.violated(format!(
                "{given} ids were given, {acknowledged} acknowledged, at most {most} proposed"
            ));
        }
        if answers.ids.last().is_some_and(|last| *last >= given) {
            record.violated(format!("an id above the {given} that were given"));
        }
    }
}
