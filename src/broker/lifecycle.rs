//! A broker's life as the controller sees it: registration, the session with its heartbeats, and
//! the controlled shutdown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::{
    Broker as Registered, BrokerState, Command, DamagedReplica, Outcome, RegisterBroker,
};
use quorate_quorum::QuorumHandle;
use quorate_types::{BrokerEpoch, Endpoint, ErrorCode, Incarnation, NodeId, RaftIndex};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{Clock, ControllerContact};
use crate::hosted::Registry;
use crate::transport::{ControllerLink, ControllerSession, Heartbeat, ImageDifference};

/// How long one registration is tried before it is begun again.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between tries of anything here: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// Heartbeats whose answers are awaited at most; older ones no longer count as contact.
const UNANSWERED: usize = 64;

/// Timings and identity of a broker's life.
#[derive(Debug, Clone)]
pub struct LifecycleConfig {
    /// Pause between heartbeats.
    pub heartbeat_interval: Duration,
    /// A broker that heard nothing from the controller for so long is on its own (R6).
    pub session_timeout: Duration,
    /// Where the controllers listen, by the static configuration; used until the image knows.
    pub controllers: Vec<(NodeId, Endpoint)>,
}

/// How a controlled shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// The controller said that this broker leads nothing and the others know.
    Released,
    /// No such word within the time given.
    TimedOut,
}

pub(crate) struct Lifecycle {
    pub(crate) config: LifecycleConfig,
    pub(crate) registration: RegisterBroker,
    pub(crate) quorum: QuorumHandle,
    pub(crate) link: Arc<dyn ControllerLink>,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) contact: ControllerContact,
    pub(crate) cancel: CancellationToken,
    /// Set once the registration is applied.
    pub(crate) epoch: watch::Sender<Option<BrokerEpoch>>,
    pub(crate) wants_shutdown: watch::Receiver<bool>,
    pub(crate) may_stop: watch::Sender<bool>,
}

/// A wait that grows with each try.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(RETRY.0)
    }

    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY.1);
    }
}

impl Lifecycle {
    /// Registers, then keeps a session with whoever is the active controller until cancelled.
    pub(crate) async fn run(mut self, damaged: Vec<DamagedReplica>) {
        self.registration.damaged = damaged;
        let cancel = self.cancel.clone();
        let life = async {
            let epoch = self.register().await;
            self.epoch.send_replace(Some(epoch));
            self.keep_session(epoch).await;
        };
        cancel.run_until_cancelled(life).await;
    }

    async fn register(&self) -> BrokerEpoch {
        let mut backoff = Backoff::new();
        loop {
            let command = Command::RegisterBroker(self.registration.clone());
            match self.quorum.propose(vec![command], REGISTER_TIMEOUT).await {
                Ok(outcomes) => match outcomes.into_iter().next() {
                    Some(Outcome::Registered { epoch }) => {
                        info!(broker_epoch = %epoch, "registered");
                        return epoch;
                    }
                    Some(Outcome::Refused(refusal))
                        if refusal.code == ErrorCode::DuplicateBrokerRegistration =>
                    {
                        debug!(%refusal.message, "registration waits for the old session's end");
                    }
                    other => warn!(?other, "registration refused"),
                },
                Err(error) => debug!(%error, "registration not decided yet"),
            }
            backoff.wait().await;
        }
    }

    async fn keep_session(&self, epoch: BrokerEpoch) {
        let mut leadership = self.quorum.leadership();
        let mut backoff = Backoff::new();
        let mut hint = None;
        loop {
            if let Some(why) = self.replaced(epoch) {
                self.quorum.fail(why);
                return;
            }
            let leader = hint
                .take()
                .or_else(|| leadership.borrow_and_update().leader);
            let endpoint = leader.and_then(|leader| Some((leader, self.endpoint(leader)?)));
            if let Some((leader, endpoint)) = endpoint {
                match self.link.open(leader, &endpoint).await {
                    Ok(session) => {
                        let began = self.clock.now();
                        let heard = self.contact.last();
                        hint = self.beat(session, epoch, leader).await;
                        if self.contact.last() > heard && self.clock.now() > began + RETRY.1 {
                            backoff = Backoff::new();
                        }
                    }
                    Err(error) => debug!(%error, "no session with the controller"),
                }
            }
            tokio::select! {
                () = backoff.wait() => {}
                changed = leadership.changed() => match changed {
                    Ok(()) => backoff = Backoff::new(),
                    Err(_stopped) => return,
                },
            }
        }
    }

    /// Why this process can take no part any more: another one has registered under the node's id.
    fn replaced(&self, epoch: BrokerEpoch) -> Option<String> {
        let image = self.quorum.image();
        let registered = image.broker(self.registration.node)?;
        replaced_by(&self.registration, epoch, registered)
    }

    fn endpoint(&self, node: NodeId) -> Option<Endpoint> {
        let registered = self
            .quorum
            .image()
            .broker(node)
            .map(|broker| broker.internal.clone());
        registered.or_else(|| {
            let listed = self.config.controllers.iter().find(|(id, _)| *id == node);
            listed.map(|(_, endpoint)| endpoint.clone())
        })
    }

    /// Sends heartbeats until the session ends or another node leads; gives who may lead then.
    async fn beat(
        &self,
        mut session: ControllerSession,
        epoch: BrokerEpoch,
        controller: NodeId,
    ) -> Option<NodeId> {
        let mut leadership = self.quorum.leadership();
        let mut images = self.quorum.images();
        let mut wants_shutdown = self.wants_shutdown.clone();
        let mut pulse = interval(self.config.heartbeat_interval);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered: VecDeque<(u64, Duration)> = VecDeque::new();
        let mut answered = Answered::default();
        let mut newer = self.quorum.images();
        let mut number = 0;
        let mut told_applied = false;
        loop {
            let image = self.quorum.image();
            let reached = image.applied().index.get() >= epoch.get();
            let shutting_down = *wants_shutdown.borrow();
            tokio::select! {
                _ = pulse.tick() => {}
                // What the controller waits for is told at once, not at the next pulse.
                changed = wants_shutdown.changed() => if changed.is_err() { return None },
                changed = images.changed(), if !told_applied || shutting_down => {
                    if changed.is_err() {
                        return None;
                    }
                    if !told_applied && images.borrow().applied().index.get() < epoch.get() {
                        continue;
                    }
                }
                reply = session.incoming.recv() => {
                    let reply = reply?;
                    if let Some(why) = &reply.refused {
                        debug!(%controller, why, "heartbeat refused");
                        return reply.not_controller;
                    }
                    if let Some(differs) = &reply.image_differs {
                        self.quorum.fail(image_differs(controller, differs));
                        return None;
                    }
                    while let Some((_, sent)) = unanswered.front().copied().filter(|(n, _)| *n <= reply.number) {
                        answered.hold(sent, reply.applied);
                        unanswered.pop_front();
                    }
                    let applied = newer.borrow_and_update().applied().index;
                    answered.count(applied, &self.contact);
                    if reply.may_stop {
                        self.may_stop.send_replace(true);
                    }
                    continue;
                }
                changed = newer.changed(), if !answered.is_empty() => {
                    if changed.is_err() {
                        return None;
                    }
                    let applied = newer.borrow_and_update().applied().index;
                    answered.count(applied, &self.contact);
                    continue;
                }
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    let leader = leadership.borrow_and_update().leader;
                    if leader.is_some_and(|leader| leader != controller) {
                        return leader;
                    }
                    continue;
                }
            }
            number += 1;
            let image = self.quorum.image();
            told_applied = reached || image.applied().index.get() >= epoch.get();
            if unanswered.len() == UNANSWERED {
                unanswered.pop_front();
            }
            unanswered.push_back((number, self.clock.now()));
            let heartbeat = Heartbeat {
                node: self.registration.node,
                incarnation: self.registration.incarnation,
                broker_epoch: Some(epoch),
                applied: image.applied().index,
                image_hash: image.rolling_hash(),
                wants_shutdown: *wants_shutdown.borrow(),
                ready: told_applied,
                number,
                led: self.registry.led(),
            };
            let sent = session.outgoing.send(heartbeat);
            match timeout(self.config.session_timeout, sent).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }
}

/// Heartbeats whose answers do not count yet: the controller's image was ahead of this node's. One that
/// was frozen is answered at once when it goes on, and does not know yet that it was replaced (R6).
#[derive(Default)]
struct Answered(VecDeque<(Duration, RaftIndex)>);

impl Answered {
    /// An answer to the heartbeat of that time; the oldest is given up where too many wait.
    fn hold(&mut self, sent: Duration, applied: RaftIndex) {
        if self.0.len() == UNANSWERED {
            self.0.pop_front();
        }
        self.0.push_back((sent, applied));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those count that this node's image has reached.
    fn count(&mut self, applied: RaftIndex, contact: &ControllerContact) {
        while let Some((sent, needed)) = self.0.front().copied()
            && needed <= applied
        {
            contact.record(sent);
            self.0.pop_front();
        }
    }
}

/// What is wrong where a newer registration of the node is not this process's, and what to do.
fn replaced_by(mine: &RegisterBroker, epoch: BrokerEpoch, now: &Registered) -> Option<String> {
    if now.epoch <= epoch || now.incarnation == mine.incarnation {
        return None;
    }
    let (node, directory) = (mine.node, now.directory);
    Some(format!(
        "another process has registered as node {node}, with data directory {directory} (this one's is \
         {}): see that only one runs under this id. Where none other does, it was a late registration \
         of one that has ended: start this node again",
        mine.directory
    ))
}

/// What is wrong, and what to do.
fn image_differs(controller: NodeId, differs: &ImageDifference) -> String {
    let ImageDifference {
        index,
        controller: theirs,
        broker: ours,
    } = differs;
    format!(
        "this node's metadata is not that of the active controller, node {controller}: at entry \
         {index} its hash is {ours:016x}, the controller's {theirs:016x}. See that all nodes run \
         the same version and start this one again, so that it reads its snapshot and log anew. If \
         it stops again, keep a copy of its data directory for a report of this bug, and, while \
         the other voters have a quorum, empty the directory, so that the node joins as a new \
         member"
    )
}

/// Whether the image shows this very life of the node as taking part.
pub(crate) fn is_active(
    registered: Option<&Registered>,
    incarnation: Incarnation,
    epoch: Option<BrokerEpoch>,
) -> bool {
    registered.is_some_and(|broker| {
        broker.incarnation == incarnation
            && Some(broker.epoch) == epoch
            && broker.state == BrokerState::Active
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_registration_of_another_process_is_told_and_none_of_its_own() {
        use quorate_types::{BootId, DirectoryId, Endpoint};
        let endpoint = Endpoint {
            host: "h".into(),
            port: 1,
        };
        let life = |random| Incarnation { start: 2, random };
        let mine = RegisterBroker {
            node: NodeId::new(1),
            directory: DirectoryId::from_bytes([1; 16]),
            incarnation: life(1),
            boot: BootId::from_bytes([1; 16]),
            clean_epoch: None,
            damaged: Vec::new(),
            client: endpoint.clone(),
            internal: endpoint.clone(),
            rack: None,
            min_level: 1,
            max_level: 1,
        };
        let registered = |epoch, random| Registered {
            node: mine.node,
            directory: DirectoryId::from_bytes([2; 16]),
            incarnation: life(random),
            boot: mine.boot,
            epoch: BrokerEpoch::new(epoch),
            state: BrokerState::Fenced,
            starting: true,
            client: endpoint.clone(),
            internal: endpoint.clone(),
            rack: None,
            min_level: 1,
            max_level: 1,
        };
        let told =
            |epoch, random| replaced_by(&mine, BrokerEpoch::new(5), &registered(epoch, random));
        // A former life, this one, and one that came after it.
        assert_eq!(told(4, 9), None);
        assert_eq!(told(5, 1), None);
        assert!(told(6, 9).is_some_and(|why| why.contains("node 1")));
    }

    #[test]
    fn an_answer_counts_once_the_image_is_as_new_as_the_controllers() {
        let contact = ControllerContact::default();
        let mut answered = Answered::default();
        let at = Duration::from_millis;
        let index = RaftIndex::new;
        answered.hold(at(10), index(5));
        answered.hold(at(20), index(8));
        answered.count(index(4), &contact);
        assert_eq!(contact.last(), Duration::ZERO);
        answered.count(index(7), &contact);
        assert_eq!(contact.last(), at(10));
        answered.count(index(8), &contact);
        assert_eq!(contact.last(), at(20));
        assert!(answered.is_empty());
        for beat in 0..100 {
            answered.hold(at(beat), index(99));
        }
        assert_eq!(answered.0.len(), UNANSWERED);
    }
}
