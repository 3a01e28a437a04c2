//! A broker's life as the controller sees it: its registration, its heartbeats, its wish to stop.

use std::time::Duration;

use quorate_liveness::{ConnectionId, Heartbeat};
use quorate_metadata::{Command, RegisterBroker};
use quorate_types::{BrokerEpoch, Endpoint, NodeId, RaftIndex};
use rand::Rng;

use super::network::Traffic;
use super::node::{Asked, Process};
use super::schedule::{Scheduled, ms};
use super::trace::note;
use super::world::World;

/// A connection that carries heartbeats.
#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) controller: NodeId,
    controller_life: u64,
    connection: ConnectionId,
}

impl World {
    /// Proposes the node's registration; again until it is decided.
    pub(super) fn register(&mut self, node: NodeId) {
        if let Some(register) = self.registration_of(node) {
            let command = Command::RegisterBroker(register);
            self.propose(node, Asked::Registration, None, command);
        }
    }

    /// What a process that is not registered yet says of itself.
    pub(super) fn registration_of(&self, node: NodeId) -> Option<RegisterBroker> {
        let state = self.node(node);
        let process = self.process(node).filter(|p| p.epoch.is_none())?;
        let endpoint = Endpoint {
            host: "node".into(),
            port: node.get() as u16,
        };
        Some(RegisterBroker {
            node,
            directory: state.directory,
            incarnation: process.incarnation,
            boot: process.ledger.boot_id(),
            clean_epoch: process.ledger.clean_epoch(),
            damaged: process.damaged.clone(),
            client: endpoint.clone(),
            internal: endpoint,
            rack: None,
            min_level: 1,
            max_level: 1,
        })
    }

    pub(super) fn registered(&mut self, node: NodeId, epoch: BrokerEpoch) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.epoch = Some(epoch);
        let told = std::mem::take(&mut process.damaged);
        for id in told.into_iter().map(|of| of.partition) {
            let slot = self.process(node).and_then(|p| p.slots.get(&id));
            match slot.map_or(Ok(()), |slot| slot.core.damage_told()) {
                Ok(()) => {
                    self.marked.remove(&(node, id));
                }
                Err(error) => {
                    note!(
                        self,
                        Some(id),
                        "node {node}: the next start reports it again: {error}"
                    );
                    self.marked.insert((node, id));
                }
            }
        }
        let state = self.node_mut(node);
        state.wiped = false;
        state.may_be_marked = state.disk_failed;
        self.show_all(node);
    }

    pub(super) fn next_beat(&mut self, node: NodeId) {
        let life = self.life(node);
        let pause = self.plan.heartbeat.as_micros() as u64;
        let wait = Duration::from_micros(self.rng.random_range(pause / 2..pause));
        self.at(wait, Scheduled::Beat { node, life });
    }

    /// Sends a heartbeat to whom the process takes for the active controller.
    pub(super) fn beat(&mut self, node: NodeId) {
        let Some(process) = self.process(node) else {
            return;
        };
        let (Some(epoch), Some(controller)) = (process.epoch, process.believes.leader) else {
            return;
        };
        let controller_life = self.life(controller);
        let same = |session: &Session| {
            session.controller == controller && session.controller_life == controller_life
        };
        let session = process.session.filter(same);
        if controller_life == 0
            || session.is_none()
                && !self
                    .network
                    .connects(node, controller, Traffic::Control, self.now)
        {
            return;
        }
        let session = session.unwrap_or_else(|| {
            self.connections += 1;
            Session {
                controller,
                controller_life,
                connection: ConnectionId(self.connections),
            }
        });
        let (now, sent) = (self.now, self.clock_of(node));
        let blocked = self
            .network
            .blocked(node, controller, Traffic::Control, now);
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.session = Some(session);
        let applied = process.image as u64;
        let beat = Heartbeat {
            node,
            incarnation: process.incarnation,
            broker_epoch: Some(epoch),
            applied: RaftIndex::new(applied),
            wants_shutdown: process.wants_shutdown,
            ready: applied >= epoch.get(),
        };
        let sender_life = process.life;
        // A connection holds what it cannot bring: it comes late, unless the connection ends.
        let wait = blocked.map_or(Duration::ZERO, |until| until - now) + self.delay();
        let arrives = Scheduled::HeartbeatArrives {
            controller,
            life: controller_life,
            connection: session.connection,
            sent,
            sender_life,
            beat,
        };
        self.at(wait, arrives);
    }

    pub(super) fn heartbeat_answered(&mut self, node: NodeId, sent: Duration, may_stop: bool) {
        let Some(process) = self.process_mut(node) else {
            return;
        };
        process.contact = process.contact.max(sent);
        if may_stop && process.wants_shutdown {
            self.stop_cleanly(node);
        }
    }

    /// The controller is told at once that a registration is reached, and while a shutdown waits.
    pub(super) fn applied_is_told(&mut self, node: NodeId) {
        let Some(process) = self.process(node) else {
            return;
        };
        let reached = process.epoch.map(BrokerEpoch::get) == Some(process.image as u64);
        if reached || process.wants_shutdown {
            self.beat(node);
        }
    }

    /// A process has ended: whoever had its connection hears of it, unless the machine went dark.
    pub(super) fn end_session(&mut self, node: NodeId, process: &Process) {
        if let Some(session) = process.session
            && !self.node(node).dark
        {
            self.connection_breaks(node, session, true);
        }
    }

    fn connection_breaks(&mut self, node: NodeId, session: Session, reset: bool) {
        let controller = session.controller;
        let reaches = self
            .network
            .connects(node, controller, Traffic::Control, self.now);
        if reaches {
            let wait = self.delay();
            let ends = Scheduled::ConnectionEnds {
                controller,
                life: session.controller_life,
                connection: session.connection,
                reset,
            };
            self.at(wait, ends);
        }
    }

    /// A connection is reset although both ends live.
    pub(super) fn reset_session(&mut self, node: NodeId) {
        let session = self.process_mut(node).and_then(|p| p.session.take());
        if let Some(session) = session {
            note!(
                self,
                None,
                "node {node}: the connection to its controller is reset"
            );
            self.connection_breaks(node, session, true);
        }
    }

    pub(super) fn begin_shutdown(&mut self, node: NodeId) {
        let Some(process) = self.process_mut(node).filter(|p| p.epoch.is_some()) else {
            return;
        };
        process.wants_shutdown = true;
        let life = process.life;
        note!(self, None, "node {node} wishes to stop");
        self.at(ms(1), Scheduled::Beat { node, life });
    }
}
