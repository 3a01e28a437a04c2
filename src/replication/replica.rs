//! One replica: its log, its role, and the changes between roles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_log::{Dir, LogOptions, PartitionLog};
use quorate_metadata::DataLoss;
use quorate_record::SILENT_ROUNDS;
use quorate_types::{ErrorCode, LeaderEpoch, NodeId, RaftIndex, SubscriptionId, TopicPartition};
use tracing::{debug, error, info, warn};

use crate::events::{
    Action, Context, Event, Produce, ProduceError, ProposalId, Status, StreamId, Timing,
};
use crate::follower::{Followed, ReplicaFollower};
use crate::leader::ReplicaLeader;
use crate::leader_isr::listed;
use crate::leader_produce::Appended;
use crate::messages::{FollowerMessage, LeaderMessage, Subscribe, SubscriptionError};
use crate::replica_flush::{Backoff, Notice};
use crate::view::PartitionView;
use crate::{Faults, NoFaults};

/// Subscriptions of a newer epoch that wait for the image; more followers than any partition has.
const PARKED_MAX: usize = 64;

/// Deadlines are looked at so often while nothing is urgent.
const IDLE_TICK: Duration = Duration::from_millis(50);

pub(crate) enum Role<F> {
    Idle,
    Leader(Box<ReplicaLeader<F>>),
    Follower(ReplicaFollower),
    /// The disk failed at that leader epoch: nothing is appended or acked in it (R13).
    Failed(LeaderEpoch),
    /// It contradicts what was committed (R4): stopped until the process restarts.
    Damaged,
}

/// One replica of one partition.
pub struct Replica<D: Dir, F: Faults = NoFaults> {
    pub(crate) id: TopicPartition,
    pub(crate) log: PartitionLog<D>,
    pub(crate) timing: Timing,
    pub(crate) role: Role<F>,
    pub(crate) view: Option<PartitionView>,
    pub(crate) next_proposal: ProposalId,
    pub(crate) notice: Option<Notice>,
    /// Since when a flush is under way.
    pub(crate) flushing_since: Option<Duration>,
    pub(crate) checkpointed_at: Duration,
    /// When the present round of the producers' silence began (R11); none before the first tick.
    round_since: Option<Duration>,
    /// When a log whose disk failed may be cut and taken into use again.
    pub(crate) recovery: Backoff,
    /// The last leader epoch at which it was named leader although it is damaged.
    pub(crate) led_in_vain: Option<LeaderEpoch>,
    /// When it last resigned.
    pub(crate) resigned_at: Option<Duration>,
    /// By which image the quorum was last told where an unclean epoch begins.
    pub(crate) told_loss_at: Option<RaftIndex>,
    /// Why the only in-sync replica cannot be read somewhere, as it was told last.
    pub(crate) unreadable: Option<String>,
    pub(crate) me: NodeId,
    subscriptions: Arc<AtomicU64>,
    parked: BTreeMap<NodeId, (StreamId, Subscribe)>,
    next_deadline: Duration,
}

impl<D: Dir, F: Faults> Replica<D, F> {
    /// A replica without a role. `subscriptions` is the process's counter of subscription ids.
    pub fn new(
        me: NodeId,
        id: TopicPartition,
        log: PartitionLog<D>,
        timing: Timing,
        subscriptions: Arc<AtomicU64>,
    ) -> Self {
        Self {
            id,
            log,
            timing,
            role: Role::Idle,
            view: None,
            next_proposal: ProposalId::default(),
            notice: None,
            flushing_since: None,
            checkpointed_at: Duration::ZERO,
            round_since: None,
            recovery: Backoff::default(),
            led_in_vain: None,
            resigned_at: None,
            told_loss_at: None,
            unreadable: None,
            me,
            subscriptions,
            parked: BTreeMap::new(),
            next_deadline: Duration::ZERO,
        }
    }

    /// Its log.
    pub fn log(&self) -> &PartitionLog<D> {
        &self.log
    }

    /// Takes new settings of the log into use; what it holds stays.
    pub fn set_log_options(&mut self, options: LogOptions) {
        self.log.set_options(options);
    }

    /// Gives up its role, because the replica is about to be removed: what waits is answered.
    pub fn abandon(&mut self, out: &mut Vec<Action<D>>) {
        self.leave_role(out);
    }

    /// Gives the log back, to close it.
    pub fn into_log(self) -> PartitionLog<D> {
        self.log
    }

    /// Leader epoch of the last unclean election, by the newest image.
    pub fn unclean_epoch(&self) -> Option<LeaderEpoch> {
        self.view.as_ref()?.registration.unclean_epoch
    }

    /// What unclean elections lost, by the newest image.
    pub fn losses(&self) -> &[DataLoss] {
        let view = self.view.as_ref();
        view.map_or(&[], |view| &view.registration.losses)
    }

    /// What it is.
    pub fn status(&self) -> Status {
        match &self.role {
            Role::Idle | Role::Failed(_) => Status::Idle,
            Role::Damaged => Status::Damaged,
            Role::Follower(follower) => Status::Follower {
                leader: follower.leader,
                epoch: follower.epoch,
            },
            Role::Leader(leader) => Status::Leader {
                epoch: leader.epoch,
                epoch_start: leader.epoch_start,
                isr: leader.view.registration.isr.clone(),
                maximal_isr: leader.maximal_isr().into_iter().collect(),
            },
        }
    }

    /// When it wants a [`Event::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        Some(self.next_deadline)
    }

    /// Reacts to one event and settles at once; what is to be done is appended to `out`, in order.
    pub fn step(&mut self, cx: &Context<'_>, event: Event, out: &mut Vec<Action<D>>) {
        self.take(cx, event, out);
        self.settle(cx, out);
    }

    /// Takes one event without what follows from any change: [`Self::settle`] must come after one
    /// or more of them, and before anything that this replica holds is shown to others.
    pub fn take(&mut self, cx: &Context<'_>, event: Event, out: &mut Vec<Action<D>>) {
        match event {
            Event::View(view) => self.take_view(cx, view, out),
            Event::Produce(produce) => self.produce(cx, produce, out),
            Event::FromFollower {
                stream,
                from,
                message,
            } => {
                self.hear_follower(cx, stream, from, message, out);
            }
            Event::FollowerStreamClosed { stream } => {
                self.parked.retain(|_, (parked, _)| *parked != stream);
                if let Role::Leader(leader) = &mut self.role {
                    leader.close_stream(stream);
                }
            }
            Event::RoomAgain { .. } => {}
            Event::FromLeader { from, message } => self.hear_leader(cx, from, message, out),
            Event::LeaderStreamOpened { leader } => {
                if let Some(follower) = self.follower_of(leader) {
                    follower.stream_opened(cx.now);
                }
            }
            Event::LeaderStreamClosed { leader } => {
                let timing = self.timing;
                if let Some(follower) = self.follower_of(leader) {
                    follower.stream_closed(&timing, cx.now);
                }
            }
            Event::Flushed(done) => self.flushed(cx, done, out),
            Event::Unreadable { why } => self.unreadable(cx, why, out),
            Event::Proposed { id, result } => self.proposed(cx, id, result),
            Event::DeleteBefore { offset } => self.delete_before(cx, offset, out),
            Event::Tick => self.tick(cx, out),
        }
    }

    fn follower_of(&mut self, leader: NodeId) -> Option<&mut ReplicaFollower> {
        match &mut self.role {
            Role::Follower(follower) if follower.leader == leader => Some(follower),
            _ => None,
        }
    }

    /// Takes a newer registration; the role follows it.
    fn take_view(&mut self, cx: &Context<'_>, view: PartitionView, out: &mut Vec<Action<D>>) {
        let before = self.view.replace(view.clone());
        let epoch = view.registration.leader_epoch;
        let serving = view.serving || F::RESUME_OLD_EPOCH;
        if let Role::Failed(failed) = self.role
            && !self.recovers(cx, failed, &view.registration)
        {
            return;
        }
        match &mut self.role {
            Role::Damaged => {
                let registration = &view.registration;
                // Its first report left it the last member: whoever came back since may lead.
                if serving
                    && registration.leader == Some(self.me)
                    && self.notice.is_none()
                    && self.led_in_vain.replace(epoch) != Some(epoch)
                {
                    self.report_damaged(cx.now, "it is damaged, and was to lead");
                }
                return;
            }
            Role::Leader(leader)
                if leader.epoch == epoch && leader.view.my_epoch == view.my_epoch && serving =>
            {
                if before.is_none_or(|old| old.registration.losses != view.registration.losses) {
                    out.push(Action::Status);
                }
                leader.take_view(view, self.log.log_end(), cx.now);
                return;
            }
            Role::Follower(follower)
                if follower.epoch == epoch
                    && follower.view.my_epoch == view.my_epoch
                    && serving =>
            {
                follower.view = view;
                self.discard_set_aside();
                return;
            }
            _ => {}
        }
        self.leave_role(out);
        match view.registration.leader {
            Some(leader) if serving && leader == self.me => self.lead(cx, view, out),
            Some(leader) if serving && view.registration.has_replica(self.me) => {
                let first = before.is_none_or(|before| before.registration.leader_epoch != epoch);
                if F::TRUNCATE_TO_HW && first {
                    let to = self.log.high_watermark();
                    if let Err(error) = self.log.truncate_to(to) {
                        return self.fail(cx, &error.to_string(), out);
                    }
                }
                info!(partition = %self.log.name(), %epoch, %leader, end = %self.log.log_end(), "follows");
                self.role =
                    Role::Follower(ReplicaFollower::new(leader, view, &self.timing, cx.now));
            }
            _ => {}
        }
        out.push(Action::Status);
    }

    /// A follower that is in sync has from its leader what recovery once had to cut here. Where
    /// records are lost, what was kept of them may be all that is left: that stays.
    fn discard_set_aside(&mut self) {
        let view = self.view.as_ref().filter(|_| self.log.has_set_aside());
        let repaired = view.is_some_and(|view| {
            view.registration.isr.contains(&self.me) && view.registration.unclean_epoch.is_none()
        });
        if repaired && let Err(error) = self.log.discard_set_aside() {
            warn!(partition = %self.log.name(), %error, "what recovery has set aside stays");
        }
    }

    pub(crate) fn leave_role(&mut self, out: &mut Vec<Action<D>>) {
        if let Role::Leader(leader) = &mut self.role {
            info!(partition = %self.log.name(), epoch = %leader.epoch, "leadership ends");
            leader.abandon(out);
        }
        self.role = Role::Idle;
    }

    fn lead(&mut self, cx: &Context<'_>, view: PartitionView, out: &mut Vec<Action<D>>) {
        let epoch = view.registration.leader_epoch;
        // R1: two histories of one epoch are told apart by nothing downstream.
        assert!(
            F::RESUME_OLD_EPOCH || self.log.last_epoch().is_none_or(|last| last < epoch),
            "{}: epoch {epoch} was begun before",
            self.id
        );
        if let Err(error) = self.log.begin_epoch(epoch) {
            return self.fail(cx, &error.to_string(), out);
        }
        let epoch_start = self.log.log_end();
        let isr = &view.registration.isr;
        info!(partition = %self.log.name(), %epoch, start = %epoch_start, isr = %listed(isr), "leads");
        if view.registration.unclean_epoch == Some(epoch) {
            warn!(
                partition = %self.log.name(), %epoch, start = %epoch_start,
                "leads by an unclean election: what was acknowledged from there on is lost"
            );
        }
        let mut leader = Box::new(ReplicaLeader::new(view, epoch_start, cx.now));
        for (from, (stream, subscribe)) in std::mem::take(&mut self.parked) {
            if subscribe.leader_epoch == epoch {
                leader.subscribe(cx, &self.log, stream, from, &subscribe, out);
            } else if subscribe.leader_epoch > epoch {
                self.parked.insert(from, (stream, subscribe));
            }
        }
        self.role = Role::Leader(leader);
    }

    fn produce(&mut self, cx: &Context<'_>, produce: Produce, out: &mut Vec<Action<D>>) {
        let id = produce.id;
        let known = self
            .view
            .as_ref()
            .map(|view| view.registration.leader_epoch);
        let Role::Leader(leader) = &mut self.role else {
            let error = match (produce.current_epoch, known) {
                (Some(asked), Some(current)) if asked > current => {
                    ProduceError::UnknownEpoch { current }
                }
                _ => ProduceError::NotLeader,
            };
            out.push(Action::Answer {
                id,
                result: Err(error),
            });
            return;
        };
        match leader.produce(cx, &mut self.log, &self.timing, produce, out) {
            Appended::Taken => {}
            Appended::Refused(error) => out.push(Action::Answer {
                id,
                result: Err(error),
            }),
            Appended::Failed(why) => {
                out.push(Action::Answer {
                    id,
                    result: Err(ProduceError::Storage(why.clone())),
                });
                self.fail(cx, &why, out);
            }
        }
    }

    fn hear_follower(
        &mut self,
        cx: &Context<'_>,
        stream: StreamId,
        from: NodeId,
        message: FollowerMessage,
        out: &mut Vec<Action<D>>,
    ) {
        match (message, &mut self.role) {
            (FollowerMessage::Subscribe(subscribe), _) => {
                self.hear_subscriber(cx, stream, from, subscribe, out);
            }
            (FollowerMessage::Ack(ack), Role::Leader(leader)) => {
                leader.ack(&self.log, from, stream, &ack, cx.now);
            }
            (FollowerMessage::Unsubscribe(end), Role::Leader(leader)) => {
                leader.unsubscribe(from, end.subscription);
            }
            _ => {}
        }
    }

    fn hear_subscriber(
        &mut self,
        cx: &Context<'_>,
        stream: StreamId,
        from: NodeId,
        subscribe: Subscribe,
        out: &mut Vec<Action<D>>,
    ) {
        let known = self
            .view
            .as_ref()
            .map(|view| view.registration.leader_epoch);
        let any = F::ANY_SUBSCRIPTION && matches!(self.role, Role::Leader(_));
        if !any && known.is_none_or(|known| subscribe.leader_epoch > known) {
            // This node is behind on metadata: the answer waits for its image.
            if self.parked.len() < PARKED_MAX || self.parked.contains_key(&from) {
                self.parked.insert(from, (stream, subscribe));
            }
            return;
        }
        match &mut self.role {
            Role::Leader(leader) if any || leader.epoch == subscribe.leader_epoch => {
                leader.subscribe(cx, &self.log, stream, from, &subscribe, out);
            }
            _ => {
                let code = if known == Some(subscribe.leader_epoch) {
                    ErrorCode::NotLeaderOrFollower
                } else {
                    ErrorCode::FencedLeaderEpoch
                };
                let Subscribe {
                    partition,
                    subscription,
                    ..
                } = subscribe;
                let error = SubscriptionError {
                    partition,
                    subscription,
                    code,
                };
                out.push(Action::ToFollower {
                    stream,
                    message: LeaderMessage::Error(error),
                });
            }
        }
    }

    fn hear_leader(
        &mut self,
        cx: &Context<'_>,
        from: NodeId,
        message: LeaderMessage,
        out: &mut Vec<Action<D>>,
    ) {
        let timing = self.timing;
        let Role::Follower(follower) = &mut self.role else {
            return;
        };
        if follower.leader != from {
            return;
        }
        let cuts = matches!(
            message,
            LeaderMessage::Diverged(_) | LeaderMessage::OutOfRange(_)
        );
        match follower.take(cx, &mut self.log, &timing, message) {
            Followed::Fine => {
                if cuts {
                    out.push(Action::Status);
                }
            }
            Followed::Failed(why) => self.fail(cx, &why, out),
            Followed::Lost(report) => self.report_loss(cx.now, *report),
            Followed::Damaged(why) => {
                error!(
                    partition = %self.log.name(),
                    why, "replica is damaged and stops"
                );
                self.role = Role::Damaged;
                self.report_damaged(cx.now, &why);
                out.push(Action::Status);
            }
        }
    }

    fn tick(&mut self, cx: &Context<'_>, out: &mut Vec<Action<D>>) {
        self.next_deadline = cx.now + IDLE_TICK;
        if let Role::Leader(leader) = &mut self.role {
            leader.expire(cx.now, out);
            leader.beat(cx, self.id, &self.log, &self.timing, out);
        }
        self.check_flush(cx.now);
        self.checkpoint_if_due(cx, out);
        self.age_producers(cx.now);
        // The image may have come before the quorum's answer, or the disk may have room again.
        if matches!(self.role, Role::Failed(_))
            && self.notice.is_none()
            && self.recovery.is_over(cx.now)
            && let Some(view) = self.view.clone()
        {
            self.take_view(cx, view, out);
        }
    }

    /// Ends a round of the producers' silence where it is over. One at most: while the process stood
    /// still, producers may have written what has not come here yet.
    fn age_producers(&mut self, now: Duration) {
        let since = *self.round_since.get_or_insert(now);
        let round = self.timing.producer_id_expiration / u32::from(SILENT_ROUNDS);
        if now.saturating_sub(since) < round {
            return;
        }
        self.round_since = Some(now);
        let forgotten = self.log.age_producers();
        if forgotten > 0 {
            debug!(
                partition = self.log.name(),
                forgotten, "silent producers are forgotten"
            );
        }
    }

    /// What follows from any change: the high watermark and its answers, ISR proposals, data for
    /// followers or an ack for the leader, subscriptions, the next flush. Depends on the present
    /// state alone, so that it may follow several events: one push and one ack for all of them.
    pub fn settle(&mut self, cx: &Context<'_>, out: &mut Vec<Action<D>>) {
        let mut pushed = Ok(());
        match &mut self.role {
            Role::Leader(leader) => {
                leader.propose_isr(
                    self.id,
                    &self.log,
                    &self.timing,
                    cx.now,
                    &mut self.next_proposal,
                    out,
                );
                if leader.advance(&mut self.log, &self.timing, cx.now) {
                    leader.acknowledge(&self.log, out);
                }
                pushed = leader.push(cx, self.id, &self.log, &self.timing, out);
                if leader.owes_high_watermark(self.log.high_watermark()) {
                    self.next_deadline = self.next_deadline.min(cx.now);
                }
            }
            Role::Follower(follower) => {
                follower.ack_if_due(self.id, &self.log, out);
                if follower.must_subscribe(&self.timing, cx.now) {
                    let id = self.subscriptions.fetch_add(1, Ordering::Relaxed);
                    let subscription = SubscriptionId::new(id);
                    follower.subscribe(cx, self.id, &self.log, subscription, out);
                }
            }
            Role::Idle | Role::Failed(_) | Role::Damaged => {}
        }
        if let Err(why) = pushed {
            self.unreadable(cx, why, out);
        }
        self.tell_unclean_start(cx.now);
        self.send_notice(cx.now, out);
        self.start_flush(cx.now, out);
    }
}
