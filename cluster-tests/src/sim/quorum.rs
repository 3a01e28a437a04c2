//! The metadata quorum as a log that everybody agrees on: proposals reach it late, twice or never,
//! its answers get lost, and each node's image lags behind by its own time. The image and its
//! commands are the shipped ones.

use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{Command, Envelope, LogId, MetadataImage, Origin, Outcome, Registration};
use quorate_replication::{Faults, ProposalResult};
use quorate_types::{ErrorCode, Incarnation, NodeId, RaftIndex, Term, Timestamp};
use rand::Rng;

use super::process::Asked;
use super::world::{PARTITION, Scheduled, World, ms};

/// How long a node waits for the outcome of a proposal.
const PROPOSAL_TIMEOUT: Duration = ms(800);

/// The origin of the active controller's own commands and of the test's.
pub(super) const CONTROLLER: Origin = Origin {
    node: NodeId::new(100),
    incarnation: Incarnation {
        start: 1,
        random: 1,
    },
};

pub(super) struct Quorum {
    /// The image after each entry; the first one is empty.
    pub(super) images: Vec<Arc<MetadataImage>>,
    pub(super) term: u64,
    /// Nothing is applied before.
    pub(super) available_at: Duration,
    next_sequence: u64,
}

impl Quorum {
    pub(super) fn new() -> Self {
        Self {
            images: vec![Arc::new(MetadataImage::new())],
            term: 1,
            available_at: Duration::ZERO,
            next_sequence: 0,
        }
    }

    /// The image as committed.
    pub(super) fn latest(&self) -> &Arc<MetadataImage> {
        self.images.last().expect("there is always an image")
    }

    /// How many entries are applied.
    pub(super) fn index(&self) -> usize {
        self.images.len() - 1
    }

    pub(super) fn registration(&self) -> Option<&Registration> {
        self.latest().partition(&PARTITION).map(|arc| &**arc)
    }
}

impl<F: Faults> World<F> {
    /// Sends a proposal of a node's process on its way.
    pub(super) fn propose(&mut self, node: NodeId, asked: Asked, command: Command) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.next_sequence += 1;
        let (life, sequence) = (process.life, process.next_sequence);
        process.waiting.insert(sequence, asked);
        let origin = Origin {
            node,
            incarnation: process.incarnation,
        };
        let envelope = self.envelope(origin, sequence, None, command);
        self.at(
            PROPOSAL_TIMEOUT,
            Scheduled::ProposalTimeout {
                node,
                life,
                sequence,
            },
        );
        self.send_proposal(envelope);
    }

    /// Sends a command of the controller's own, for its present term.
    pub(super) fn propose_as_controller(&mut self, command: Command) {
        self.quorum.next_sequence += 1;
        let sequence = self.quorum.next_sequence;
        let term = Some(Term::new(self.quorum.term));
        let envelope = self.envelope(CONTROLLER, sequence, term, command);
        self.send_proposal(envelope);
    }

    fn envelope(
        &self,
        origin: Origin,
        sequence: u64,
        required_term: Option<Term>,
        command: Command,
    ) -> Envelope {
        Envelope {
            origin,
            sequence,
            required_term,
            time: Timestamp::from_millis(self.now.as_millis() as i64),
            commands: vec![command],
        }
    }

    fn send_proposal(&mut self, envelope: Envelope) {
        let lossy = !self.settling;
        if lossy && self.rng.random_bool(0.05) {
            self.note(&format!("proposal lost: {}", short(&envelope)));
            return;
        }
        if lossy && self.rng.random_bool(0.08) {
            let later = self.delay() + ms(self.rng.random_range(0..3_000));
            self.at(later, Scheduled::ProposalArrives(envelope.clone()));
        }
        let delay = self.delay();
        self.at(delay, Scheduled::ProposalArrives(envelope));
    }

    /// A proposal reaches the leader of the quorum.
    pub(super) fn proposal_arrives(&mut self, envelope: Envelope) {
        if self.now < self.quorum.available_at {
            let wait = self.quorum.available_at - self.now + self.delay();
            self.at(wait, Scheduled::ProposalArrives(envelope));
            return;
        }
        let mut image = MetadataImage::clone(self.quorum.latest());
        let at = LogId {
            term: Term::new(self.quorum.term),
            index: RaftIndex::new(self.quorum.images.len() as u64),
        };
        let applied = image.apply(&envelope, at);
        self.quorum.images.push(Arc::new(image));
        let outcome = applied.outcomes.into_iter().next();
        self.note(&format!(
            "quorum applies {}: {} -> {}",
            at.index,
            short(&envelope),
            outcome.as_ref().map_or("nothing".to_owned(), |o| match o {
                Outcome::Refused(refusal) => refusal.code.to_string(),
                other => format!("{other:?}"),
            })
        ));
        if let Some(registration) = self.quorum.registration() {
            let state = format!(
                "  registration: leader {:?} epoch {} isr {:?} partition epoch {}, on disks {}",
                registration.leader,
                registration.leader_epoch,
                registration.isr,
                registration.partition_epoch,
                registration.fsync_established
            );
            self.page_cache = !registration.fsync_established;
            self.note(&state);
        }
        for node in self.node_ids() {
            let lag = self.image_lag(node);
            let index = self.quorum.index();
            self.at(lag, Scheduled::ImageArrives { node, index });
        }
        if let Some(outcome) = outcome
            && (self.settling || !self.rng.random_bool(0.05))
        {
            let delay = self.delay();
            let (node, incarnation) = (envelope.origin.node, envelope.origin.incarnation);
            self.at(
                delay,
                Scheduled::ProposalAnswered {
                    node,
                    incarnation,
                    sequence: envelope.sequence,
                    outcome,
                },
            );
        }
        self.look(None, None);
    }

    /// An outcome comes back to the process that proposed, if that is still the same.
    pub(super) fn proposal_answered(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        outcome: Outcome,
    ) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if process.incarnation != incarnation {
            return;
        }
        match process.waiting.remove(&sequence) {
            None => {}
            Some(Asked::Registration) => match outcome {
                Outcome::Registered { epoch } => self.registered(node, epoch),
                refused => {
                    self.note(&format!("node {node}: not registered: {refused:?}"));
                    let life = self.life(node);
                    self.at(ms(100), Scheduled::Register { node, life });
                }
            },
            Some(Asked::Replica(id)) => {
                let result = match outcome {
                    Outcome::Refused(refusal) => ProposalResult::Refused(refusal.code),
                    _ => ProposalResult::Applied,
                };
                self.proposed(node, id, result);
            }
            Some(Asked::Shutdown) => {
                if let Outcome::Refused(refusal) = outcome
                    && refusal.code != ErrorCode::StaleProposal
                {
                    self.note(&format!("node {node}: no shutdown: {}", refusal.message));
                }
            }
        }
    }

    /// Nobody has answered in time.
    pub(super) fn proposal_timed_out(&mut self, node: NodeId, sequence: u64) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        let life = process.life;
        match process.waiting.remove(&sequence) {
            None | Some(Asked::Shutdown) => {}
            Some(Asked::Registration) => self.at(ms(20), Scheduled::Register { node, life }),
            Some(Asked::Replica(id)) => self.proposed(node, id, ProposalResult::Unknown),
        }
    }

    /// Applies a command at once: how a run begins.
    pub(super) fn apply_now(&mut self, command: Command) {
        self.quorum.next_sequence += 1;
        let envelope = self.envelope(CONTROLLER, self.quorum.next_sequence, None, command);
        self.proposal_arrives(envelope);
    }
}

fn short(envelope: &Envelope) -> String {
    let command = match &envelope.commands[0] {
        Command::RegisterBroker(register) => format!(
            "register node {} ({}) damaged {:?}",
            register.node,
            register.incarnation,
            register.damaged.len()
        ),
        Command::AlterPartition(alter) => format!(
            "alter partition by node {} at {}/{} to {:?}",
            alter.leader,
            alter.leader_epoch,
            alter.partition_epoch,
            alter
                .isr
                .iter()
                .map(|(node, _)| node.get())
                .collect::<Vec<_>>()
        ),
        other => format!("{other:?}"),
    };
    format!("{command} [{}#{}]", envelope.origin.node, envelope.sequence)
}
