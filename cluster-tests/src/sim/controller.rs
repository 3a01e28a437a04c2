//! Controllers: on some of the nodes, each running the shipped `Liveness` as long as it takes itself
//! for the active one. An old one goes on under its old term until it hears of the new.

use std::sync::Arc;
use std::time::Duration;

use quorate_liveness::{Action, ConnectionId, Heartbeat, Liveness, Probe, ProbeResult};
use quorate_metadata::MetadataImage;
use quorate_types::{NodeId, Term};
use rand::Rng;

use super::network::Traffic;
use super::node::Asked;
use super::quorum::Announced;
use super::schedule::{Scheduled, ms};
use super::trace::note;
use super::world::World;

/// How often a controller looks at deadlines.
const TICK: Duration = ms(12);
/// How long a probe waits for an answer.
const PROBE: Duration = ms(15);

/// A node that takes itself for the active controller.
pub(super) struct Active {
    term: Term,
    liveness: Liveness,
}

impl World {
    /// A process hears who leads the quorum.
    pub(super) fn term_learned(&mut self, node: NodeId, announced: Announced) {
        let timing = self.plan.liveness;
        let clock = self.clock_of(node);
        let Some(process) = self.process_mut(node) else {
            return;
        };
        if announced.term <= process.believes.term {
            return;
        }
        let before = std::mem::replace(&mut process.believes, announced);
        process.controller = None;
        if announced.leader != Some(node) {
            return self.beat(node);
        }
        let (life, image) = (process.life, process.image);
        let image = Arc::clone(&self.quorum.images[image]);
        let mut liveness = Liveness::new(timing, Arc::clone(&image), clock);
        let mut actions = Vec::new();
        let term = announced.term;
        note!(
            self,
            None,
            "node {node} is the active controller of term {term}"
        );
        // What made it lead: the leader before was found gone.
        if let Some(gone) = before.leader.filter(|gone| *gone != node)
            && self.process(gone).is_none()
            && !self.node(gone).dark
            && let Some(broker) = image.broker(gone)
        {
            liveness.gone(gone, broker.epoch, clock, &mut actions);
        }
        if let Some(process) = self.process_mut(node) {
            process.controller = Some(Active { term, liveness });
        }
        self.carry_out_all(node, term, actions);
        self.at(TICK, Scheduled::ControllerTick { node, life, term });
        self.beat(node);
    }

    pub(super) fn image_for_controller(&mut self, node: NodeId, image: &Arc<MetadataImage>) {
        let clock = self.clock_of(node);
        if let Some(active) = self.process_mut(node).and_then(|p| p.controller.as_mut()) {
            active.liveness.take_image(Arc::clone(image), clock);
        }
    }

    fn active(&mut self, node: NodeId, term: Term) -> Option<&mut Active> {
        let active = self.process_mut(node)?.controller.as_mut();
        active.filter(|active| active.term == term)
    }

    /// Says whether anything was to be done.
    pub(super) fn controller_tick(&mut self, node: NodeId, life: u64, term: Term) -> bool {
        let clock = self.clock_of(node);
        let Some(active) = self.active(node, term) else {
            return false;
        };
        let mut actions = Vec::new();
        active.liveness.tick(clock, &mut actions);
        let busy = !actions.is_empty();
        self.carry_out_all(node, term, actions);
        self.at(TICK, Scheduled::ControllerTick { node, life, term });
        busy
    }

    pub(super) fn heartbeat_arrives(
        &mut self,
        controller: NodeId,
        connection: ConnectionId,
        sent: Duration,
        sender_life: u64,
        beat: &Heartbeat,
    ) {
        let clock = self.clock_of(controller);
        let process = self.process_mut(controller);
        let Some(active) = process.and_then(|process| process.controller.as_mut()) else {
            return;
        };
        let mut actions = Vec::new();
        let answer = active
            .liveness
            .heartbeat(connection, beat, clock, &mut actions);
        let term = active.term;
        let applied = self.process(controller).map_or(0, |of| of.image);
        self.carry_out_all(controller, term, actions);
        // The answer counts only if the quorum confirms that this controller still leads.
        let wait = self.quorum_wait() + self.delay();
        let confirmed = Scheduled::LeadershipConfirmed {
            controller,
            term,
            to: beat.node,
            life: sender_life,
            sent,
            may_stop: answer.may_stop,
            applied,
        };
        self.at(wait, confirmed);
    }

    pub(super) fn leadership_confirmed(
        &mut self,
        (controller, term): (NodeId, Term),
        (to, life): (NodeId, u64),
        sent: Duration,
        may_stop: bool,
        applied: usize,
    ) {
        let leads = self.quorum.announced.leader == Some(controller)
            && self.quorum.announced.term == term
            && self.now >= self.quorum.available_at
            && self.active(controller, term).is_some();
        let arrives = self
            .network
            .blocked(controller, to, Traffic::Control, self.now)
            .is_none();
        if leads && arrives {
            let wait = self.delay();
            let answered = Scheduled::HeartbeatAnswered {
                node: to,
                life,
                sent,
                may_stop,
                applied,
            };
            self.at(wait, answered);
        }
    }

    pub(super) fn connection_ends(
        &mut self,
        controller: NodeId,
        connection: ConnectionId,
        reset: bool,
    ) {
        let clock = self.clock_of(controller);
        let process = self.process_mut(controller);
        if let Some(active) = process.and_then(|process| process.controller.as_mut()) {
            active.liveness.connection_ended(connection, reset, clock);
        }
    }

    fn carry_out_all(&mut self, node: NodeId, term: Term, actions: Vec<Action>) {
        let life = self.life(node);
        for action in actions {
            match action {
                Action::Probe(probe) => {
                    let wait = self.delay();
                    let arrives = Scheduled::ProbeArrives {
                        controller: node,
                        life,
                        term,
                        probe: Box::new(probe),
                    };
                    self.at(wait, arrives);
                }
                Action::Propose {
                    node: about,
                    command,
                } => {
                    self.propose(node, Asked::Controller(term, about), Some(term), command);
                }
            }
        }
    }

    /// A probe reaches its address, or does not.
    pub(super) fn probe_arrives(
        &mut self,
        controller: NodeId,
        life: u64,
        term: Term,
        probe: Box<Probe>,
    ) {
        let to = probe.node;
        let reaches = self
            .network
            .connects(controller, to, Traffic::Control, self.now);
        let result = match self.process(to) {
            _ if !reaches || self.node(to).dark => ProbeResult::Silent,
            None => ProbeResult::Refused,
            Some(process) if process.paused => ProbeResult::Silent,
            Some(process) => ProbeResult::Alive {
                node: to,
                incarnation: process.incarnation,
            },
        };
        let wait = match result {
            ProbeResult::Silent => PROBE,
            _ => self.delay(),
        };
        let probed = Scheduled::Probed {
            controller,
            life,
            term,
            probe,
            result,
        };
        self.at(wait, probed);
    }

    pub(super) fn probed(
        &mut self,
        controller: NodeId,
        term: Term,
        probe: &Probe,
        result: ProbeResult,
    ) {
        let clock = self.clock_of(controller);
        if let Some(active) = self.active(controller, term) {
            let mut actions = Vec::new();
            active.liveness.probed(probe, result, clock, &mut actions);
            self.carry_out_all(controller, term, actions);
        }
    }

    /// A proposal of a controller has ended.
    pub(super) fn controller_proposed(&mut self, node: NodeId, term: Term, about: Option<NodeId>) {
        if let Some(active) = self.active(node, term) {
            active.liveness.proposed(about);
        }
    }

    /// A live broker is taken for dead, by the controller that leads.
    pub(super) fn fence_wrongly(&mut self, node: NodeId) {
        let Some(epoch) = self.quorum.latest().broker(node).map(|broker| broker.epoch) else {
            return;
        };
        let cause = "by mistake".to_owned();
        let command = quorate_metadata::Command::FenceBroker { node, epoch, cause };
        let late = self.rng.random_bool(0.3);
        self.propose_from_outside(command, late);
    }
}
