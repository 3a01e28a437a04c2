//! The active controller, as far as one partition needs it: it fences who is silent or gone,
//! unfences who is ready, and sometimes does so wrongly. Whatever it does, the log must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_metadata::{BrokerState, Command};
use quorate_replication::Faults;
use quorate_types::NodeId;
use rand::Rng;

use super::world::{SESSION, Scheduled, World, ms};

#[derive(Default)]
pub(super) struct Controller {
    heard: BTreeMap<NodeId, Duration>,
    /// When something was last done about a node.
    acted: BTreeMap<NodeId, Duration>,
    /// Nodes that do not reach it, until then.
    pub(super) cut_off: BTreeMap<NodeId, Duration>,
}

impl<F: Faults> World<F> {
    pub(super) fn controller_turn(&mut self) {
        for node in self.node_ids() {
            self.look_after(node);
        }
        let wait = ms(self.rng.random_range(10..50));
        self.at(wait, Scheduled::ControllerTurn);
    }

    fn look_after(&mut self, node: NodeId) {
        let now = self.now;
        let cut_off = self.controller.cut_off.get(&node);
        let reaches = cut_off.is_none_or(|until| *until <= now);
        let Some(broker) = self.quorum.latest().broker(node) else {
            return;
        };
        let (state, epoch) = (broker.state, broker.epoch);
        let process = self.process_mut(node).filter(|process| !process.paused);
        let mut ready = false;
        let mut lives = false;
        if let Some(process) = process
            && reaches
            && process.epoch == Some(epoch)
        {
            process.contact = now;
            lives = true;
            ready = process.image as u64 >= epoch.get();
        }
        if lives {
            self.controller.heard.insert(node, now);
        }
        let acted = self.controller.acted.get(&node);
        if acted.is_some_and(|at| now.saturating_sub(*at) < ms(150)) {
            return;
        }
        let silent = now.saturating_sub(self.controller.heard.get(&node).copied().unwrap_or(now));
        let gone = self.process(node).is_none() && silent > ms(100) && self.rng.random_bool(0.3);
        let command = match state {
            BrokerState::Fenced if ready => Command::UnfenceBroker { node, epoch },
            BrokerState::Active | BrokerState::ShuttingDown if silent > SESSION || gone => {
                Command::FenceBroker {
                    node,
                    epoch,
                    cause: "silent".into(),
                }
            }
            _ => return,
        };
        self.controller.acted.insert(node, now);
        self.propose_as_controller(command);
    }

    /// A live broker is taken for dead.
    pub(super) fn fence_wrongly(&mut self, node: NodeId) {
        let Some(broker) = self.quorum.latest().broker(node) else {
            return;
        };
        let command = Command::FenceBroker {
            node,
            epoch: broker.epoch,
            cause: "by mistake".into(),
        };
        self.propose_as_controller(command);
    }
}
