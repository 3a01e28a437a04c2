//! The leader's side: what it knows of its followers, and the high watermark (R2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::marker::PhantomData;
use std::time::Duration;

use quorate_log::{Dir, PartitionLog};
use quorate_metadata::AlterPartition;
use quorate_types::{BrokerEpoch, Durability, LeaderEpoch, NodeId, Offset, SubscriptionId};

use crate::Faults;
use crate::events::{Action, Context, ProposalId, StreamId, Timing};
use crate::leader_produce::Pending;
use crate::messages::{
    Accepted, Ack, Diverged, LeaderMessage, OutOfRange, Subscribe, SubscriptionError,
};
use crate::view::PartitionView;

/// One follower's current subscription.
pub(crate) struct Subscription {
    pub(crate) id: SubscriptionId,
    pub(crate) stream: StreamId,
    pub(crate) broker_epoch: BrokerEpoch,
    /// Positions as acked; nothing counts before the first ack.
    pub(crate) acked: Option<(Offset, Offset)>,
    /// Next offset to push.
    pub(crate) next: Offset,
    /// Pushed and not acked: where each message ended, and its bytes.
    pub(crate) under_way: VecDeque<(Offset, u64)>,
    pub(crate) bytes_under_way: u64,
    pub(crate) told_high_watermark: Offset,
    pub(crate) last_sent: Duration,
}

/// What the leader knows of one replica.
pub(crate) struct Follower {
    pub(crate) subscription: Option<Subscription>,
    /// When it last had all that there was.
    pub(crate) caught_up: Duration,
    /// Where the log ended at an earlier ack: having that now is having been caught up then.
    pub(crate) mark: (Offset, Duration),
}

/// A proposed ISR whose fate the image has not shown yet.
pub(crate) struct Proposal {
    pub(crate) command: AlterPartition,
    /// Its current sending; none while it waits to be sent again.
    pub(crate) id: Option<ProposalId>,
    pub(crate) again_at: Duration,
}

/// A replica that leads at one epoch.
pub(crate) struct ReplicaLeader<F> {
    pub(crate) epoch: LeaderEpoch,
    /// The log's end when the epoch began.
    pub(crate) epoch_start: Offset,
    pub(crate) view: PartitionView,
    pub(crate) followers: BTreeMap<NodeId, Follower>,
    pub(crate) pending: BTreeMap<(Offset, crate::events::RequestId), Pending>,
    pub(crate) proposal: Option<Proposal>,
    /// Everyone ever asked into the ISR since the image's partition epoch: any of these proposals
    /// may still be applied (R2, KIP-497).
    pub(crate) proposed: BTreeSet<NodeId>,
    /// A proposal of unknown fate is about.
    pub(crate) unknown: bool,
    _faults: PhantomData<F>,
}

impl<F: Faults> ReplicaLeader<F> {
    pub(crate) fn new(view: PartitionView, epoch_start: Offset, now: Duration) -> Self {
        let mut leader = Self {
            epoch: view.registration.leader_epoch,
            epoch_start,
            view,
            followers: BTreeMap::new(),
            pending: BTreeMap::new(),
            proposal: None,
            proposed: BTreeSet::new(),
            unknown: false,
            _faults: PhantomData,
        };
        leader.sync_followers(epoch_start, now);
        leader
    }

    /// Takes a newer image of the same epoch: a higher partition epoch decides every proposal.
    pub(crate) fn take_view(&mut self, view: PartitionView, log_end: Offset, now: Duration) {
        if view.registration.partition_epoch > self.view.registration.partition_epoch {
            self.proposal = None;
            self.proposed.clear();
            self.unknown = false;
        }
        self.view = view;
        self.sync_followers(log_end, now);
    }

    fn sync_followers(&mut self, log_end: Offset, now: Duration) {
        let me = self.view.me;
        let registration = &self.view.registration;
        self.followers
            .retain(|node, _| registration.has_replica(*node));
        for replica in registration
            .replicas
            .iter()
            .filter(|replica| replica.node != me)
        {
            self.followers
                .entry(replica.node)
                .or_insert_with(|| Follower {
                    subscription: None,
                    caught_up: now,
                    mark: (log_end, now),
                });
        }
    }

    fn counts(&self, leo: Offset, flushed: Offset) -> Offset {
        match self.view.settings.durability {
            Durability::Fsync => flushed,
            Durability::PageCache => leo,
        }
    }

    /// The leader's own position that counts.
    pub(crate) fn own_position<D: Dir>(&self, log: &PartitionLog<D>) -> Offset {
        self.counts(log.log_end(), log.flushed_end())
    }

    /// A follower's position that counts; none before the first ack of its subscription.
    pub(crate) fn position(&self, node: NodeId) -> Option<Offset> {
        let subscription = self.followers.get(&node)?.subscription.as_ref()?;
        subscription
            .acked
            .map(|(leo, flushed)| self.counts(leo, flushed))
    }

    /// The ISR and everyone that may have been taken into it (R2).
    pub(crate) fn maximal_isr(&self) -> BTreeSet<NodeId> {
        self.view
            .registration
            .isr
            .iter()
            .copied()
            .chain(self.proposed.iter().copied())
            .collect()
    }

    /// Whether a replica is among those.
    pub(crate) fn is_in_maximal_isr(&self, node: NodeId) -> bool {
        self.view.registration.isr.contains(&node) || self.proposed.contains(&node)
    }

    /// Moves the high watermark as far as R2 lets it; says whether it moved.
    pub(crate) fn advance<D: Dir>(
        &mut self,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        now: Duration,
    ) -> bool {
        let required = self
            .view
            .registration
            .effective_min_isr(&self.view.settings);
        if self.view.registration.isr.len() < required {
            return false;
        }
        let mut target = self.own_position(log);
        let none = BTreeSet::new();
        let asked = if F::HW_OVER_COMMITTED {
            &none
        } else {
            &self.proposed
        };
        let maximal = self.view.registration.isr.iter().chain(asked);
        for node in maximal.filter(|node| **node != self.view.me) {
            match self.position(*node) {
                Some(position) => target = target.min(position),
                None => return false,
            }
        }
        // One that is about to be proposed holds it back, or it would never be level.
        for node in self.eligible(log, timing, now) {
            target = target.min(self.position(node).unwrap_or(target));
        }
        if target <= log.high_watermark() {
            return false;
        }
        log.set_high_watermark(target);
        true
    }

    pub(crate) fn subscribe<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &PartitionLog<D>,
        stream: StreamId,
        from: NodeId,
        subscribe: &Subscribe,
        out: &mut Vec<Action<D>>,
    ) {
        let (partition, id) = (subscribe.partition, subscribe.subscription);
        let Some(follower) = self.followers.get_mut(&from) else {
            let code = quorate_types::ErrorCode::NotLeaderOrFollower;
            let message = SubscriptionError {
                partition,
                subscription: id,
                code,
            };
            out.push(Action::ToFollower {
                stream,
                message: LeaderMessage::Error(message),
            });
            return;
        };
        // It replaces everything known of the follower, downward too.
        follower.subscription = None;
        let history =
            crate::divergence::judge(subscribe, log.epochs(), log.log_start(), log.log_end());
        let message = match history {
            crate::divergence::History::BelowStart => LeaderMessage::OutOfRange(OutOfRange {
                partition,
                subscription: id,
                log_start: log.log_start(),
            }),
            crate::divergence::History::Diverges(epoch, end_offset) => {
                LeaderMessage::Diverged(Diverged {
                    partition,
                    subscription: id,
                    epoch,
                    end_offset,
                })
            }
            crate::divergence::History::Agrees => {
                follower.mark = (log.log_end(), cx.now);
                follower.subscription = Some(Subscription {
                    id,
                    stream,
                    broker_epoch: subscribe.broker_epoch,
                    acked: None,
                    next: subscribe.fetch_offset,
                    under_way: VecDeque::new(),
                    bytes_under_way: 0,
                    told_high_watermark: Offset::ZERO,
                    last_sent: cx.now,
                });
                LeaderMessage::Accepted(Accepted {
                    partition,
                    subscription: id,
                    log_start: log.log_start(),
                })
            }
        };
        out.push(Action::ToFollower { stream, message });
    }

    /// Takes an ack of the current subscription; others are of the past. Within one subscription
    /// positions only rise.
    pub(crate) fn ack<D: Dir>(
        &mut self,
        log: &PartitionLog<D>,
        from: NodeId,
        stream: StreamId,
        ack: &Ack,
        now: Duration,
    ) -> bool {
        let counts_flushed = self.view.settings.durability == Durability::Fsync;
        let Some(follower) = self.followers.get_mut(&from) else {
            return false;
        };
        let Some(subscription) = follower.subscription.as_mut() else {
            return false;
        };
        let current = subscription.id == ack.subscription && subscription.stream == stream;
        if !current && !F::UNBOUND_ACKS {
            return false;
        }
        if ack.leo > log.log_end() || ack.flushed_leo > ack.leo {
            return false;
        }
        let (leo, flushed) = subscription.acked.unwrap_or_default();
        let (leo, flushed) = (leo.max(ack.leo), flushed.max(ack.flushed_leo));
        subscription.acked = Some((leo, flushed));
        while let Some((end, bytes)) = subscription.under_way.front().copied() {
            if end > leo {
                break;
            }
            subscription.under_way.pop_front();
            subscription.bytes_under_way -= bytes;
        }
        let position = if counts_flushed && !F::STALLED_STAYS {
            flushed
        } else {
            leo
        };
        let (mark, marked_at) = follower.mark;
        if position >= log.log_end() {
            follower.caught_up = now;
            follower.mark = (log.log_end(), now);
        } else if position >= mark {
            follower.caught_up = follower.caught_up.max(marked_at);
            follower.mark = (log.log_end(), now);
        }
        true
    }

    pub(crate) fn close_stream(&mut self, stream: StreamId) {
        for follower in self.followers.values_mut() {
            if follower
                .subscription
                .as_ref()
                .is_some_and(|current| current.stream == stream)
            {
                follower.subscription = None;
            }
        }
    }

    pub(crate) fn unsubscribe(&mut self, from: NodeId, id: SubscriptionId) {
        if let Some(follower) = self.followers.get_mut(&from)
            && follower
                .subscription
                .as_ref()
                .is_some_and(|current| current.id == id)
        {
            follower.subscription = None;
        }
    }

    /// How many replicas of the ISR have everything below `end`, and how many on their disks.
    pub(crate) fn holders<D: Dir>(&self, log: &PartitionLog<D>, end: Offset) -> (u32, u32) {
        let mut have = u32::from(log.log_end() >= end);
        let mut synced = u32::from(log.flushed_end() >= end);
        for node in &self.view.registration.isr {
            let subscription = self
                .followers
                .get(node)
                .and_then(|follower| follower.subscription.as_ref());
            if let Some((leo, flushed)) = subscription.and_then(|current| current.acked) {
                have += u32::from(leo >= end);
                synced += u32::from(flushed >= end);
            }
        }
        (have, synced)
    }
}
