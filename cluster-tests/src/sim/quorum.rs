//! The metadata quorum as a log that everybody agrees on: proposals reach it late, twice or never,
//! its answers get lost, each node's image lags behind by its own time, and its leader changes. The
//! image and its commands are the shipped ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{Command, Delta, Envelope, LogId, MetadataImage, Origin, Outcome};
use quorate_replication::ProposalResult;
use quorate_types::{DirectoryId, Incarnation, NodeId, RaftIndex, Term, Timestamp};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::invariants::Entry;
use super::network::Traffic;
use super::node::Asked;
use super::schedule::{Scheduled, ms, us};
use super::trace::note;
use super::world::World;

/// How long a node waits for the outcome of a proposal.
const PROPOSAL_TIMEOUT: Duration = ms(40);
/// Nodes that have a controller: the first ones.
const CONTROLLERS: u32 = 3;

/// The origin of what comes from outside of the cluster.
const OUTSIDE: Origin = Origin {
    node: NodeId::new(100),
    directory: DirectoryId::from_bytes([9; 16]),
    incarnation: Incarnation {
        start: 1,
        random: 1,
    },
};

/// Who leads, as a term's election made known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Announced {
    pub(super) term: Term,
    pub(super) leader: Option<NodeId>,
}

pub(super) struct Quorum {
    /// The image after each entry; the first one is empty.
    pub(super) images: Vec<Arc<MetadataImage>>,
    /// As it is in truth.
    pub(super) announced: Announced,
    /// Nothing is applied before.
    pub(super) available_at: Duration,
    /// Proposals that were applied: origin and sequence.
    applied: BTreeSet<(NodeId, DirectoryId, u64, u64, u64)>,
    next_sequence: u64,
}

impl Quorum {
    pub(super) fn new() -> Self {
        Self {
            images: vec![Arc::new(MetadataImage::new())],
            announced: Announced::default(),
            available_at: Duration::ZERO,
            applied: BTreeSet::new(),
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

    /// Whether an entry concerns groups alone.
    pub(super) fn is_of_groups(&self, index: usize) -> bool {
        let (before, after) = (&self.images[index - 1], &self.images[index]);
        let groups = !before.groups().ptr_eq(after.groups());
        let rest = before.partitions().ptr_eq(after.partitions())
            && before.topics().ptr_eq(after.topics())
            && before.brokers().ptr_eq(after.brokers());
        rest && (groups || before.applied().term == after.applied().term)
    }

    fn next_place(&self) -> LogId {
        LogId {
            term: self.announced.term,
            index: RaftIndex::new(self.images.len() as u64),
        }
    }
}

impl World {
    /// Elects a leader of the quorum: any controller that lives.
    pub(super) fn elect(&mut self) {
        let up = |node: &NodeId| {
            let process = self.process(*node).filter(|process| !process.paused);
            process.is_some() && !self.is_cut_off(*node)
        };
        let controllers = (1..=CONTROLLERS).map(NodeId::new);
        let candidates: Vec<NodeId> = controllers.filter(up).collect();
        let Some(leader) = candidates.choose(&mut self.rng).copied() else {
            return self.leader_is_missed();
        };
        self.quorum.announced = Announced {
            term: self.quorum.announced.term.next(),
            leader: Some(leader),
        };
        let announced = self.quorum.announced;
        note!(
            self,
            None,
            "the quorum's term {}: node {leader} leads",
            announced.term
        );
        let mut image = MetadataImage::clone(self.quorum.latest());
        image.apply_blank(self.quorum.next_place());
        self.publish(image);
        for node in self.node_ids() {
            let life = self.life(node);
            if life == 0 {
                continue;
            }
            // An old leader may go on believing for a while.
            let late = !self.settling && self.rng.random_bool(0.25);
            let wait = if late {
                ms(self.rng.random_range(1..120))
            } else {
                self.delay()
            };
            self.at(
                wait,
                Scheduled::TermLearned {
                    node,
                    life,
                    announced,
                },
            );
        }
    }

    /// Another leader will be elected, unless one is by then.
    pub(super) fn leader_is_missed(&mut self) {
        let term = self.quorum.announced.term;
        let wait = ms(self.rng.random_range(2..40));
        self.at(wait, Scheduled::Elect { term });
    }

    /// How long until the quorum can decide.
    pub(super) fn quorum_wait(&self) -> Duration {
        self.quorum.available_at.saturating_sub(self.now)
    }

    /// Sends a proposal of a node's process on its way; `required` is the term it is bound to.
    pub(super) fn propose(
        &mut self,
        node: NodeId,
        asked: Asked,
        required: Option<Term>,
        command: Command,
    ) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.next_sequence += 1;
        let (life, sequence) = (process.life, process.next_sequence);
        process.waiting.insert(sequence, asked);
        let origin = Origin {
            node,
            directory: process.directory,
            incarnation: process.incarnation,
        };
        let envelope = self.envelope(origin, sequence, required, command);
        self.at(
            PROPOSAL_TIMEOUT,
            Scheduled::ProposalTimeout {
                node,
                life,
                sequence,
            },
        );
        let leader = self.quorum.announced.leader;
        let reached = leader.is_some_and(|leader| {
            self.network
                .blocked(node, leader, Traffic::Control, self.now)
                .is_none()
        });
        if reached {
            self.send_proposal(envelope);
        }
    }

    /// A proposal of an operator; `late` ones come when they like.
    pub(super) fn propose_from_outside(&mut self, command: Command, late: bool) {
        self.quorum.next_sequence += 1;
        let sequence = self.quorum.next_sequence;
        let envelope = self.envelope(OUTSIDE, sequence, None, command);
        let late = if late {
            ms(self.rng.random_range(0..40))
        } else {
            Duration::ZERO
        };
        let wait = late + self.delay();
        self.at(wait, Scheduled::ProposalArrives(Box::new(envelope)));
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
            note!(self, None, "proposal lost: {}", short(&envelope));
            return;
        }
        if lossy && self.rng.random_bool(0.1) {
            let later = self.delay() + us(self.rng.random_range(0..150_000));
            let again = Scheduled::ProposalArrives(Box::new(envelope.clone()));
            self.at(later, again);
        }
        let slow = lossy && self.rng.random_bool(0.08);
        let late = us(if slow {
            self.rng.random_range(0..80_000)
        } else {
            0
        });
        let delay = late + self.delay();
        self.at(delay, Scheduled::ProposalArrives(Box::new(envelope)));
    }

    /// A proposal reaches the leader of the quorum.
    pub(super) fn proposal_arrives(&mut self, envelope: Box<Envelope>) {
        let wait = self.quorum_wait();
        if wait > Duration::ZERO {
            let wait = wait + self.delay();
            return self.at(wait, Scheduled::ProposalArrives(envelope));
        }
        let outcome = self.apply(&envelope);
        if self.settling || !self.rng.random_bool(0.05) {
            let delay = self.delay();
            let Origin {
                node, incarnation, ..
            } = envelope.origin;
            let answered = Scheduled::ProposalAnswered {
                node,
                incarnation,
                sequence: envelope.sequence,
                outcome: Box::new(outcome),
            };
            self.at(delay, answered);
        }
    }

    fn apply(&mut self, envelope: &Envelope) -> Outcome {
        let before = Arc::clone(self.quorum.latest());
        let mut image = MetadataImage::clone(&before);
        let at = self.quorum.next_place();
        let Incarnation { start, random } = envelope.origin.incarnation;
        let Origin {
            node, directory, ..
        } = envelope.origin;
        let proposed = (node, directory, start, random, envelope.sequence);
        let repeat = !self.quorum.applied.insert(proposed);
        let mut applied = (self.cores.apply)(&mut image, envelope, at);
        let outcome = applied.outcomes.pop().unwrap_or(Outcome::Done);
        note!(
            self,
            None,
            "quorum applies {}/{}: {} -> {}",
            at.index,
            at.term,
            short(envelope),
            match &outcome {
                Outcome::Refused(refusal) => refusal.code.to_string(),
                other => format!("{other:?}"),
            }
        );
        let entry = Entry {
            before: &before,
            after: &image,
            envelope,
            at,
            outcome: &outcome,
            repeat,
        };
        for checker in &mut self.entry_checkers {
            if let Err((partition, why)) = checker.check(&entry) {
                let what = format!("{}: {why}", checker.name());
                self.violation.get_or_insert((partition, what));
            }
        }
        if let Some(groups) = &mut self.groups {
            let deleted = groups.deletions.follow(&entry);
            let offsets = groups.offsets.follow(&entry);
            match deleted.and_then(|deleted| offsets.map(|()| deleted)) {
                Ok(deleted) => self.counts.groups_deleted += deleted,
                Err(found) => {
                    self.violation.get_or_insert(found);
                }
            }
        }
        self.publish(image);
        outcome
    }

    /// The image with the next entry in it is on its way to everybody.
    fn publish(&mut self, image: MetadataImage) {
        let before = Arc::clone(self.quorum.latest());
        let image = Arc::new(image);
        self.quorum.images.push(Arc::clone(&image));
        let index = self.quorum.index();
        let leader = self.quorum.announced.leader;
        for node in self.node_ids() {
            let life = self.life(node);
            if life == 0 {
                continue;
            }
            let blocked = leader.and_then(|leader| {
                self.network
                    .blocked(leader, node, Traffic::Control, self.now)
            });
            let blocked = blocked.unwrap_or_default().saturating_sub(self.now);
            let lag = blocked + self.image_lag(node);
            self.at(lag, Scheduled::ImageArrives { node, life, index });
        }
        self.committed(&before, &image, &Delta::between(&before, &image));
    }

    /// An outcome comes back to the process that proposed, if that is still the same.
    pub(super) fn proposal_answered(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        outcome: Outcome,
    ) {
        let process = self.process_mut(node);
        let Some(process) = process.filter(|p| p.incarnation == incarnation) else {
            return;
        };
        match process.waiting.remove(&sequence) {
            None => {}
            Some(Asked::Registration) => match outcome {
                Outcome::Registered { epoch } => self.registered(node, epoch),
                refused => {
                    note!(self, None, "node {node}: not registered: {refused:?}");
                    let life = self.life(node);
                    self.at(ms(10), Scheduled::Register { node, life });
                }
            },
            Some(Asked::Replica(id, number)) => {
                let result = match outcome {
                    Outcome::Refused(refusal) => ProposalResult::Refused(refusal.code),
                    _ => ProposalResult::Applied,
                };
                self.proposed(node, id, number, result);
            }
            Some(Asked::Unmade(_)) => {}
            Some(Asked::Groups(proposed)) => self.groups_proposed(node, proposed, Some(&outcome)),
            Some(Asked::Controller(term, about)) => self.controller_proposed(node, term, about),
        }
    }

    /// Nobody has answered in time; says whether anybody waited.
    pub(super) fn proposal_timed_out(&mut self, node: NodeId, sequence: u64) -> bool {
        let Some(process) = self.process_mut(node) else {
            return false;
        };
        let life = process.life;
        match process.waiting.remove(&sequence) {
            None => return false,
            Some(Asked::Registration) => self.at(ms(2), Scheduled::Register { node, life }),
            Some(Asked::Replica(id, number)) => {
                self.proposed(node, id, number, ProposalResult::Unknown);
            }
            Some(Asked::Unmade(id)) => {
                process.unmade.tell(&id, false);
            }
            Some(Asked::Groups(proposed)) => self.groups_proposed(node, proposed, None),
            Some(Asked::Controller(term, about)) => self.controller_proposed(node, term, about),
        }
        true
    }

    /// Applies a command at once: how a run begins.
    pub(super) fn apply_now(&mut self, command: Command) -> Outcome {
        self.quorum.next_sequence += 1;
        let envelope = self.envelope(OUTSIDE, self.quorum.next_sequence, None, command);
        self.apply(&envelope)
    }
}

/// Whether a proposal concerns groups alone.
pub(super) fn is_of_groups(envelope: &Envelope) -> bool {
    let commands = &envelope.commands[..];
    matches!(
        commands,
        [Command::AlterGroups { .. } | Command::CommitOffsets { .. }]
    )
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
            "alter {} by node {} at {}/{} to {:?}{}",
            super::trace::named(alter.partition),
            alter.leader,
            alter.leader_epoch,
            alter.partition_epoch,
            alter
                .isr
                .iter()
                .map(|(node, _)| node.get())
                .collect::<Vec<_>>(),
            if alter.fsync_established {
                " on disks"
            } else {
                ""
            }
        ),
        Command::AlterGroups { changes } => super::groups::changes_in_words(changes),
        Command::CommitOffsets { commits } => super::groups::commits_in_words(commits),
        other => format!("{other:?}"),
    };
    let required = envelope
        .required_term
        .map(|term| format!(" for term {term}"));
    format!(
        "{command} [{}#{}]{}",
        envelope.origin.node,
        envelope.sequence,
        required.unwrap_or_default()
    )
}
