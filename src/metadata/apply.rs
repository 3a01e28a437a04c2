//! Applying an envelope: who may, whether it is a repeat, then its commands, all or none.

use quorate_types::{ErrorCode, Faults, NoFaults, Timestamp};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cause::Cause;
use crate::codec;
use crate::command::{Command, Envelope, LogId, Outcome};
use crate::event::{ClusterEvent, EventKind};
use crate::image::MetadataImage;
use crate::origins::{Known, OriginWindow, keep};

/// What applying an envelope gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// One outcome a command; where one is refused, all are.
    pub outcomes: Vec<Outcome>,
    /// What happened, in order.
    pub events: Vec<ClusterEvent>,
}

/// A change in the making.
pub(crate) struct Change<'a> {
    pub(crate) image: &'a mut MetadataImage,
    pub(crate) at: LogId,
    pub(crate) time: Timestamp,
    events: Vec<ClusterEvent>,
    pub(crate) planted: Planted,
}

/// The planted faults that concern commands, as values: one copy of the code applies them all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planted {
    pub(crate) any_term: bool,
    pub(crate) any_broker_epoch: bool,
    pub(crate) drop_last_member: bool,
    pub(crate) keep_established: bool,
    pub(crate) any_coordinator_epoch: bool,
    pub(crate) any_member_epoch: bool,
    pub(crate) any_commit_order: bool,
    pub(crate) any_group_version: bool,
    pub(crate) assign_before_release: bool,
}

impl Planted {
    const fn of<F: Faults>() -> Self {
        Self {
            any_term: F::ANY_TERM,
            any_broker_epoch: F::ANY_BROKER_EPOCH,
            drop_last_member: F::DROP_LAST_MEMBER,
            keep_established: F::KEEP_ESTABLISHED,
            any_coordinator_epoch: F::ANY_COORDINATOR_EPOCH,
            any_member_epoch: F::ANY_MEMBER_EPOCH,
            any_commit_order: F::ANY_COMMIT_ORDER,
            any_group_version: F::ANY_GROUP_VERSION,
            assign_before_release: F::ASSIGN_BEFORE_RELEASE,
        }
    }
}

impl Change<'_> {
    /// Something happened: for whoever watches, and kept with what it happened to.
    pub(crate) fn tell(&mut self, kind: EventKind, cause: impl Into<Cause>) {
        let (index, cause) = (self.at.index, cause.into());
        self.image.remember(index, self.time, &kind, &cause);
        self.events.push(ClusterEvent {
            index,
            time: self.time,
            kind,
            cause: cause.to_string(),
        });
    }

    fn run(&mut self, command: &Command) -> Outcome {
        match command {
            Command::BootstrapCluster { cluster_id } => match self.image.cluster_id {
                Some(known) if known != *cluster_id => Outcome::refused(
                    ErrorCode::InconsistentClusterId,
                    format!("the cluster is {known}"),
                ),
                _ => {
                    self.image.cluster_id = Some(*cluster_id);
                    Outcome::Done
                }
            },
            Command::RegisterBroker(register) => self.register(register),
            Command::UnfenceBroker { node, epoch } => self.unfence(*node, *epoch),
            Command::FenceBroker { node, epoch, cause } => self.fence(*node, *epoch, cause),
            Command::BeginControlledShutdown { node, epoch } => self.begin_shutdown(*node, *epoch),
            Command::CreateTopic(create) => self.create_topic(create),
            Command::AlterTopic(alter) => self.alter_topic(alter),
            Command::DeleteTopic { topic_id } => self.delete_topic(*topic_id),
            Command::AlterPartition(alter) => self.alter_partition(alter),
            Command::ReportReplicaDamaged {
                partition,
                node,
                broker_epoch,
                found,
            } => self.report_damaged(*partition, *node, *broker_epoch, found),
            Command::ReportDataLoss(report) => self.report_data_loss(report),
            Command::ResignLeadership {
                partition,
                leader,
                leader_epoch,
            } => self.resign(*partition, *leader, *leader_epoch),
            Command::ElectPreferredLeaders { partitions } => self.elect_preferred(partitions),
            Command::SetFeature { level } => self.set_feature(*level),
            Command::AlterGroups { changes } => self.alter_groups(changes),
            Command::CommitOffsets { commits } => self.commit_offsets(commits),
            Command::AllocateProducerIds { count } => self.allocate_producer_ids(*count),
            Command::BumpProducerEpoch { id, epoch } => self.bump_producer_epoch(*id, *epoch),
        }
    }
}

impl MetadataImage {
    /// Applies an entry. Deterministic: what it does depends on the image and its arguments only.
    pub fn apply(&mut self, envelope: &Envelope, at: LogId) -> Applied {
        self.apply_with::<NoFaults>(envelope, at)
    }

    /// The same under planted faults: for the simulator.
    pub fn apply_with<F: Faults>(&mut self, envelope: &Envelope, at: LogId) -> Applied {
        let applied = self.decide(envelope, at, Planted::of::<F>());
        self.advance(at);
        // A refusal's words are this program's; its code is what everybody must agree on.
        let wordless = |outcome: &Outcome| match outcome {
            Outcome::Refused(refusal) => Outcome::refused(refusal.code, ""),
            outcome => outcome.clone(),
        };
        let outcomes: Vec<Outcome> = applied.outcomes.iter().map(wordless).collect();
        let record = codec::encode(&(at, &envelope.commands, &outcomes));
        self.hash = xxh3_64_with_seed(&record, self.hash);
        applied
    }

    /// Takes note of an entry without commands (Raft's own).
    pub fn apply_blank(&mut self, at: LogId) {
        self.advance(at);
        self.hash = xxh3_64_with_seed(&codec::encode(&at), self.hash);
    }

    fn advance(&mut self, at: LogId) {
        assert!(
            at.index > self.applied.index,
            "entries are applied once, in order"
        );
        self.applied = at;
    }

    fn decide(&mut self, envelope: &Envelope, at: LogId, planted: Planted) -> Applied {
        let refuse = |code, message: String| Applied {
            outcomes: vec![Outcome::refused(code, message); envelope.commands.len()],
            events: Vec::new(),
        };
        if let Some(required) = envelope.required_term
            && required != at.term
            && !planted.any_term
        {
            let message = format!("was meant for term {required}, this is {}", at.term);
            return refuse(ErrorCode::NotController, message);
        }
        let mut window = match self.window(envelope) {
            Ok(window) => window,
            Err(message) => return refuse(ErrorCode::StaleProposal, message),
        };
        match window.look_up(envelope.sequence) {
            Known::New => {}
            Known::Repeat(outcomes) => {
                return Applied {
                    outcomes,
                    events: Vec::new(),
                };
            }
            Known::Forgotten => {
                return refuse(
                    ErrorCode::StaleProposal,
                    "older than what is kept".to_owned(),
                );
            }
        }
        let applied = self.run_all(envelope, at, planted);
        window.note(at.index, envelope.sequence, applied.outcomes.clone());
        keep(&mut self.origins, &envelope.origin, window);
        applied
    }

    /// The window of the envelope's origin. A newer life of a directory replaces an older one's.
    fn window(&self, envelope: &Envelope) -> Result<OriginWindow, String> {
        let origin = envelope.origin;
        let life = origin.incarnation;
        match self.origins.get(&(origin.node, origin.directory)) {
            Some(known) if known.incarnation == life => Ok(known.clone()),
            Some(known) if known.incarnation.start >= life.start => Err(format!(
                "node {} lives as {} now",
                origin.node, known.incarnation
            )),
            _ => Ok(OriginWindow::new(life)),
        }
    }

    fn run_all(&mut self, envelope: &Envelope, at: LogId, planted: Planted) -> Applied {
        let mut image = self.clone();
        let mut change = Change {
            image: &mut image,
            at,
            time: envelope.time,
            events: Vec::new(),
            planted,
        };
        let mut outcomes = Vec::with_capacity(envelope.commands.len());
        for command in &envelope.commands {
            outcomes.push(change.run(command));
        }
        let events = change.events;
        let refused = outcomes
            .iter()
            .find(|outcome| matches!(outcome, Outcome::Refused(_)));
        if let Some(refused) = refused {
            let outcomes = vec![refused.clone(); envelope.commands.len()];
            return Applied {
                outcomes,
                events: Vec::new(),
            };
        }
        *self = image;
        Applied { outcomes, events }
    }
}
