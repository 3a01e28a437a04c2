//! The follower's side: subscribes, appends what it is sent, acks, cuts where histories part.

use std::time::Duration;

use quorate_log::{Dir, LogError, PartitionLog};
use quorate_metadata::ReportDataLoss;
use quorate_record::Batch;
use quorate_types::{LeaderEpoch, NodeId, Offset, SubscriptionId, TopicPartition};
use tracing::{debug, info, warn};

use crate::Faults;
use crate::events::{Action, Context, Timing};
use crate::messages::{
    Ack, Batches, Diverged, FollowerMessage, LeaderMessage, OutOfRange, Subscribe,
};
use crate::view::PartitionView;

/// Where a follower stands with its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Subscribes again at that time.
    Waiting(Duration),
    /// Has asked, at that time.
    Asked(SubscriptionId, Duration),
    /// Is sent data; heard of the leader at that time.
    Following(SubscriptionId, Duration),
}

/// A replica that follows at one epoch.
pub(crate) struct ReplicaFollower {
    pub(crate) leader: NodeId,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) view: PartitionView,
    phase: Phase,
    backoff: Duration,
    leader_high_watermark: Offset,
    /// What the leader was last told under this subscription; none where it waits for an ack
    /// whatever the positions are: it has accepted, or sent a heartbeat.
    told: Option<(Offset, Offset)>,
}

/// What a message led to, beyond what is in the actions.
#[derive(Debug)]
pub(crate) enum Followed {
    /// All is well.
    Fine,
    /// The disk failed.
    Failed(String),
    /// The leader wants a cut of what was committed (R4): this replica must stop.
    Damaged(String),
    /// An unclean election lost what this replica has. The cluster must know before it is cut (R7).
    Lost(Box<ReportDataLoss>),
}

impl ReplicaFollower {
    pub(crate) fn new(leader: NodeId, view: PartitionView, timing: &Timing, now: Duration) -> Self {
        Self {
            leader,
            epoch: view.registration.leader_epoch,
            view,
            phase: Phase::Waiting(now),
            backoff: timing.retry_min,
            leader_high_watermark: Offset::ZERO,
            told: None,
        }
    }

    /// Asks the leader for everything from the log's end on, under a fresh subscription.
    pub(crate) fn subscribe<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        partition: TopicPartition,
        log: &PartitionLog<D>,
        subscription: SubscriptionId,
        out: &mut Vec<Action<D>>,
    ) {
        self.phase = Phase::Asked(subscription, cx.now);
        let message = FollowerMessage::Subscribe(Subscribe {
            partition,
            subscription,
            leader_epoch: self.epoch,
            broker_epoch: self.view.my_epoch,
            fetch_offset: log.log_end(),
            last_fetched_epoch: log.last_record_epoch(),
        });
        out.push(Action::ToLeader {
            leader: self.leader,
            message,
        });
    }

    /// Whether it is time to subscribe: a wait is over, or the leader has been silent for long.
    pub(crate) fn must_subscribe(&self, timing: &Timing, now: Duration) -> bool {
        match self.phase {
            Phase::Waiting(until) => until <= now,
            Phase::Asked(_, at) => now.saturating_sub(at) >= timing.retry_max,
            Phase::Following(_, heard) => now.saturating_sub(heard) >= timing.session_timeout,
        }
    }

    /// The stream is new: what was asked before it went nowhere.
    pub(crate) fn stream_opened(&mut self, now: Duration) {
        self.phase = Phase::Waiting(now);
    }

    pub(crate) fn stream_closed(&mut self, timing: &Timing, now: Duration) {
        self.back_off(timing, now);
    }

    fn back_off(&mut self, timing: &Timing, now: Duration) {
        self.phase = Phase::Waiting(now + self.backoff);
        self.backoff = (self.backoff * 2).min(timing.retry_max);
    }

    fn current(&self) -> Option<SubscriptionId> {
        match self.phase {
            Phase::Waiting(_) => None,
            Phase::Asked(id, _) | Phase::Following(id, _) => Some(id),
        }
    }

    pub(crate) fn take<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        message: LeaderMessage,
    ) -> Followed {
        if self.current() != Some(message.subscription()) {
            return Followed::Fine;
        }
        let id = message.subscription();
        let following = matches!(self.phase, Phase::Following(..));
        match message {
            LeaderMessage::Accepted(accepted) => {
                if self.begins_too_late(log, accepted.log_start) {
                    return self.restart(cx, log, accepted.log_start);
                }
                // Before anything is acked: it would count as held.
                if let Err(error) = give_up_below(log, accepted.log_start) {
                    return Followed::Failed(error.to_string());
                }
                self.phase = Phase::Following(id, cx.now);
                self.backoff = timing.retry_min;
                self.told = None;
            }
            LeaderMessage::Batches(batches) if following => {
                return self.append(cx, log, timing, batches);
            }
            LeaderMessage::Heartbeat(heartbeat) if following => {
                self.phase = Phase::Following(id, cx.now);
                // R5: no silence is health.
                self.told = None;
                if let Err(error) = give_up_below(log, heartbeat.log_start) {
                    return Followed::Failed(error.to_string());
                }
                return self.learn_all(log, heartbeat.high_watermark, heartbeat.log_start);
            }
            LeaderMessage::Diverged(diverged) => {
                return self.cut(cx, log, timing, &diverged);
            }
            LeaderMessage::OutOfRange(out_of_range) => {
                return self.start_anew(cx, log, timing, &out_of_range);
            }
            LeaderMessage::Error(error) => {
                debug!(partition = %log.name(), code = %error.code, "not subscribed");
                self.back_off(timing, cx.now);
            }
            LeaderMessage::Batches(_) | LeaderMessage::Heartbeat(_) => {
                // Before it was accepted: no leader of ours speaks so.
                self.back_off(timing, cx.now);
            }
        }
        Followed::Fine
    }

    fn append<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        message: Batches,
    ) -> Followed {
        let partition = message.partition;
        let batches = match Batch::split(message.bytes) {
            Ok(batches) => batches,
            Err(error) => {
                warn!(%partition, %error, "the leader sent what is no batch");
                self.back_off(timing, cx.now);
                return Followed::Fine;
            }
        };
        if let Err(error) = give_up_below(log, message.log_start) {
            return Followed::Failed(error.to_string());
        }
        // An unclean election's history may have a batch across where this log, without a record,
        // was to begin.
        if let Some(first) = batches.first()
            && self.view.registration.unclean_epoch.is_some()
            && log.last_record_epoch().is_none()
            && (first.base_offset()..first.end_offset()).contains(&log.log_end())
            && first.base_offset() < log.log_end()
            && let Err(error) = log.restart_at(first.base_offset())
        {
            return Followed::Failed(error.to_string());
        }
        let (mut end, mut last) = (log.log_end(), log.last_record_epoch());
        for batch in &batches {
            let falls = last.is_some_and(|last| batch.leader_epoch() < last);
            let beyond = batch.leader_epoch() > self.epoch && !D::Faults::ANY_EPOCH;
            if batch.base_offset() != end || falls || beyond {
                warn!(%partition, offset = %batch.base_offset(), "the leader's batch does not follow");
                self.back_off(timing, cx.now);
                return Followed::Fine;
            }
            (end, last) = (batch.end_offset(), Some(batch.leader_epoch()));
        }
        if let Err(error) = log.append_all(&batches, cx.wall) {
            return Followed::Failed(error.to_string());
        }
        self.phase = Phase::Following(message.subscription, cx.now);
        self.learn_all(log, message.high_watermark, message.log_start)
    }

    /// What the leader has given up is given up here, too.
    fn learn_all<D: Dir>(
        &mut self,
        log: &mut PartitionLog<D>,
        high_watermark: Offset,
        log_start: Offset,
    ) -> Followed {
        self.learn(log, high_watermark);
        match log.delete_before(log_start) {
            Ok(()) => Followed::Fine,
            Err(error) => Followed::Failed(error.to_string()),
        }
    }

    /// R15: the leader has nothing any more of what follows here. A replica that may be elected is
    /// never so far behind; one that takes itself for such waits for a newer image.
    fn start_anew<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        message: &OutOfRange,
    ) -> Followed {
        let (partition, start) = (message.partition, message.log_start);
        let registration = &self.view.registration;
        let me = self.view.me;
        // One that may be elected is never so far behind: this image is, and a newer one will show it.
        let electable = registration.isr.contains(&me) || registration.elr.contains(&me);
        if electable || start <= log.log_end() {
            self.back_off(timing, cx.now);
            return Followed::Fine;
        }
        warn!(%partition, %start, end = %log.log_end(), "behind the leader's log: begins anew");
        self.restart(cx, log, start)
    }

    /// A log without a record agrees with any leader's. But where an unclean election's history has
    /// records before its beginning, those are not what retention took here: it lacks them (R15).
    fn begins_too_late<D: Dir>(&self, log: &PartitionLog<D>, log_start: Offset) -> bool {
        let registration = &self.view.registration;
        let me = self.view.me;
        registration.unclean_epoch.is_some()
            && !registration.isr.contains(&me)
            && !registration.elr.contains(&me)
            && log.last_record_epoch().is_none()
            && log.log_end() > log_start
    }

    /// The log begins anew, and so does its subscription.
    fn restart<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        start: Offset,
    ) -> Followed {
        if let Err(error) = log.restart_at(start) {
            return Followed::Failed(error.to_string());
        }
        self.leader_high_watermark = Offset::ZERO;
        self.phase = Phase::Waiting(cx.now);
        Followed::Fine
    }

    /// R10: keeps min(leader's high watermark, own flushed end), never a lower one.
    fn learn<D: Dir>(&mut self, log: &mut PartitionLog<D>, high_watermark: Offset) {
        self.leader_high_watermark = self.leader_high_watermark.max(high_watermark);
        let own = self.leader_high_watermark.min(log.flushed_end());
        if own > log.high_watermark() {
            log.set_high_watermark(own);
        }
    }

    /// Tells the leader how far this replica is, where there is a subscription to tell it under
    /// and the leader waits for it or does not know it yet.
    pub(crate) fn ack_if_due<D: Dir>(
        &mut self,
        partition: TopicPartition,
        log: &PartitionLog<D>,
        out: &mut Vec<Action<D>>,
    ) {
        if let Phase::Following(subscription, _) = self.phase {
            let (leo, flushed_leo) = (log.log_end(), log.flushed_end());
            if self.told == Some((leo, flushed_leo)) {
                return;
            }
            self.told = Some((leo, flushed_leo));
            let ack = Ack {
                partition,
                subscription,
                leo,
                flushed_leo,
            };
            out.push(Action::ToLeader {
                leader: self.leader,
                message: FollowerMessage::Ack(ack),
            });
        }
    }

    /// A flush has ended: the high watermark may follow.
    pub(crate) fn flushed<D: Dir>(&mut self, log: &mut PartitionLog<D>) {
        self.learn(log, self.leader_high_watermark);
    }

    /// R4: cuts where the histories part, durably, and asks again.
    fn cut<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        diverged: &Diverged,
    ) -> Followed {
        let partition = diverged.partition;
        let shared = crate::divergence::cut_at(
            log.epochs(),
            log.log_start(),
            log.log_end(),
            diverged.epoch,
            diverged.end_offset,
        );
        // A batch is cut as a whole: what is lost is told from its beginning on.
        let end = match log.base_of_batch_at(shared.max(log.log_start())) {
            Ok(end) => end,
            Err(error) => return Followed::Failed(error.to_string()),
        };
        let registration = &self.view.registration;
        let unclean = registration.unclean_epoch;
        let unclean = unclean.filter(|epoch| Some(*epoch) > log.last_record_epoch());
        if let Some(unclean_epoch) = unclean
            && end < log.log_end()
            && !registration.tells_of(unclean_epoch, end, log.log_end())
        {
            let report = ReportDataLoss {
                partition,
                node: self.view.me,
                broker_epoch: self.view.my_epoch,
                unclean_epoch,
                from: end,
                to: Some(log.log_end()),
            };
            self.back_off(timing, cx.now);
            return Followed::Lost(Box::new(report));
        }
        if shared < log.high_watermark() && unclean.is_none() {
            return Followed::Damaged(format!(
                "the leader's history ends at {shared}, {} is committed here",
                log.high_watermark()
            ));
        }
        info!(%partition, epoch = %self.epoch, from = %log.log_end(), to = %end, "log cut");
        let cut = if shared < end {
            // The histories part below where this log begins: nothing of it is shared.
            log.restart_at(shared)
        } else {
            log.truncate_to(end)
        };
        if let Err(error) = cut {
            return Followed::Failed(error.to_string());
        }
        self.leader_high_watermark = Offset::ZERO;
        self.phase = Phase::Waiting(cx.now);
        Followed::Fine
    }
}

/// Where the leader's log begins at the end of this one, it has accepted a history that it cannot
/// compare. What of it is not known for committed here may be another one: it goes before anything
/// is acked or appended (R15).
fn give_up_below<D: Dir>(log: &mut PartitionLog<D>, log_start: Offset) -> Result<(), LogError> {
    if log.log_end() == log_start && log.high_watermark() < log_start {
        return log.restart_at(log_start);
    }
    Ok(())
}
