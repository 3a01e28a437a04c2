//! The loop: waits to lead, then runs `liveness` until it leads no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_liveness::{Action, Heartbeat, Liveness, LivenessTiming, Probe, ProbeResult};
use quorate_quorum::{Leadership, QuorumHandle};
use quorate_types::{Endpoint, NodeId, Term};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::agreement::{Agreement, Difference, Verdict};
use crate::handle::{ControllerHandle, Mail, Told};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(10);
/// How long a proposal of the controller's own is tried.
const PROPOSE: Duration = Duration::from_secs(1);

/// Asks an address whether somebody lives there.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Answers within 250 ms.
    async fn probe(&self, to: &Endpoint) -> ProbeResult;
}

/// What comes back from the loop's own tasks; each is bounded by the number of brokers.
enum Done {
    Proposed(Option<NodeId>),
    Probed(Probe, ProbeResult),
}

struct Active {
    quorum: QuorumHandle,
    prober: Arc<dyn Prober>,
    timing: LivenessTiming,
    start: Instant,
    done: mpsc::UnboundedSender<Done>,
    /// The last proposal was not decided, and that was said: without a quorum there are many.
    undecided: Arc<AtomicBool>,
}

/// Starts the controller of this node; it is active only while this node leads the quorum.
pub fn start(
    quorum: QuorumHandle,
    prober: Arc<dyn Prober>,
    timing: LivenessTiming,
    cancel: CancellationToken,
) -> (ControllerHandle, JoinHandle<()>) {
    let (handle, inbox) = ControllerHandle::new(quorum.clone());
    let (done, ended) = mpsc::unbounded_channel();
    let active = Active {
        quorum,
        prober,
        timing,
        start: Instant::now(),
        done,
        undecided: Arc::default(),
    };
    let run = async move {
        cancel.run_until_cancelled(active.run(inbox, ended)).await;
    };
    (
        handle,
        tokio::spawn(run.instrument(info_span!("controller"))),
    )
}

impl Active {
    async fn run(self, mut inbox: mpsc::Receiver<Mail>, mut ended: mpsc::UnboundedReceiver<Done>) {
        let mut leadership = self.quorum.leadership();
        loop {
            let now = *leadership.borrow_and_update();
            if now.is_self {
                info!(term = %now.term, "active controller");
                self.lead(now.term, &mut leadership, &mut inbox, &mut ended)
                    .await;
                info!(term = %now.term, "no longer the active controller");
            } else {
                tokio::select! {
                    changed = leadership.changed() => if changed.is_err() { return },
                    mail = inbox.recv() => match mail {
                        // Dropping the answer's sender says that this node is not active.
                        Some(mail) => drop(mail),
                        None => return,
                    },
                }
            }
        }
    }

    async fn lead(
        &self,
        term: Term,
        leadership: &mut watch::Receiver<Leadership>,
        inbox: &mut mpsc::Receiver<Mail>,
        ended: &mut mpsc::UnboundedReceiver<Done>,
    ) {
        let mut images = self.quorum.images();
        let first = images.borrow_and_update().clone();
        let mut agreement = Agreement::new(self.quorum.node());
        let mut liveness = Liveness::new(self.timing, first, self.start.elapsed());
        // What an earlier term's tasks bring back means nothing to this one.
        while ended.try_recv().is_ok() {}
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut actions = Vec::new();
        // The leader before was found gone a moment ago. Its address may not answer any more, so
        // that no probe could find it again: where its container's network has gone with it.
        let gone = self.quorum.gone();
        if let Some(gone) = gone.filter(|gone| gone.at.elapsed() < self.timing.session_timeout) {
            let now = self.start.elapsed();
            liveness.gone(gone.node, gone.broker_epoch, now, &mut actions);
        }
        for action in actions.drain(..) {
            self.carry_out(term, action);
        }
        loop {
            tokio::select! {
                biased;
                changed = leadership.changed() => {
                    let now = *leadership.borrow_and_update();
                    if changed.is_err() || !now.is_self || now.term != term {
                        return;
                    }
                }
                Some(done) = ended.recv() => match done {
                    Done::Proposed(node) => liveness.proposed(node),
                    Done::Probed(probe, result) => {
                        liveness.probed(&probe, result, self.start.elapsed(), &mut actions);
                    }
                },
                changed = images.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let image = images.borrow_and_update().clone();
                    liveness.take_image(image, self.start.elapsed());
                }
                _ = tick.tick() => liveness.tick(self.start.elapsed(), &mut actions),
                mail = inbox.recv() => match mail {
                    None => return,
                    Some(Mail::Ended { connection, reset }) => {
                        liveness.connection_ended(connection, reset, self.start.elapsed());
                    }
                    Some(Mail::Heartbeat { connection, beat, hash, answer }) => {
                        let now = self.start.elapsed();
                        let told = Told {
                            answer: liveness.heartbeat(connection, &beat, now, &mut actions),
                            applied: self.quorum.image().applied().index,
                            image_differs: self.compare(&mut agreement, &beat, hash),
                        };
                        let _gone = answer.send(told);
                    }
                },
            }
            for action in actions.drain(..) {
                self.carry_out(term, action);
            }
        }
    }

    /// Compares a broker's image with this node's, where both know the hash of one entry.
    fn compare(
        &self,
        agreement: &mut Agreement,
        beat: &Heartbeat,
        theirs: Option<u64>,
    ) -> Option<Difference> {
        let (index, theirs) = (beat.applied, theirs?);
        let ours = self.quorum.hash_at(index)?;
        let image = self.quorum.image();
        // Another life's heartbeat, or another cluster's, says nothing about this one.
        let broker = image.broker(beat.node)?;
        if beat.broker_epoch != Some(broker.epoch) || beat.incarnation != broker.incarnation {
            return None;
        }
        let living = image.brokers().values().filter(|broker| !broker.is_gone());
        let living: Vec<NodeId> = living.map(|broker| broker.node).collect();
        match agreement.compare(beat.node, index, theirs == ours, &living) {
            Verdict::None => None,
            Verdict::BrokerIsWrong => {
                let difference = Difference {
                    index,
                    controller: ours,
                    broker: theirs,
                };
                error!(node = %beat.node, ?difference, "a broker's metadata differs: it must stop");
                Some(difference)
            }
            Verdict::ControllerIsWrong => {
                self.quorum.fail(format!(
                    "the metadata of most brokers is not that of this node, the active controller: \
                     at entry {index} its hash is {ours:016x}, that of node {} {theirs:016x}. See \
                     that all nodes run the same version and start this one again, so that it reads \
                     its snapshot and log anew. If it stops again, keep a copy of its data \
                     directory for a report of this bug, and, while the other voters have a \
                     quorum, empty the directory, so that the node joins as a new member",
                    beat.node
                ));
                None
            }
        }
    }

    /// Each action is a task that ends within its time-out and brings its result back.
    fn carry_out(&self, term: Term, action: Action) {
        let done = self.done.clone();
        match action {
            Action::Probe(probe) => {
                let prober = Arc::clone(&self.prober);
                tokio::spawn(async move {
                    let result = prober.probe(&probe.endpoint).await;
                    let _gone = done.send(Done::Probed(probe, result));
                });
            }
            Action::Propose { node, command } => {
                let quorum = self.quorum.clone();
                let undecided = Arc::clone(&self.undecided);
                tokio::spawn(async move {
                    let proposed = quorum.propose_in_term(term, vec![command], PROPOSE).await;
                    let failed = proposed.is_err();
                    let before = undecided.swap(failed, Ordering::Relaxed);
                    match proposed {
                        Err(error) if !before => {
                            warn!(%error, "a proposal of the controller was not decided");
                        }
                        Err(error) => debug!(%error, "nor was this one"),
                        Ok(_) => {}
                    }
                    let _gone = done.send(Done::Proposed(node));
                });
            }
        }
    }
}
