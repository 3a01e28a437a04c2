//! Streams between followers and leaders: in order and whole within one, at their own pace
//! between two, so that what an old stream still holds may come after what a newer one brought.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use quorate_replication::{Event, FollowerMessage, LeaderMessage, StreamId, StreamRoom};
use quorate_types::{LeaderEpoch, NodeId, SubscriptionId, TopicPartition};
use rand::Rng;

use super::network::Traffic;
use super::schedule::{Scheduled, ms, us};
use super::sight::{Accepted, Deed};
use super::trace::note;
use super::world::World;

/// One stream, as long as any of its ends has it.
pub(super) struct Stream {
    pub(super) follower: NodeId,
    follower_life: u64,
    pub(super) leader: NodeId,
    leader_life: u64,
    /// When the last message to the leader arrives; later ones come after.
    up_at: Duration,
    /// The same to the follower.
    down_at: Duration,
    follower_has_it: bool,
    /// What is on its way to the leader waits for the follower's next subscription, to come after
    /// it.
    held: Option<VecDeque<FollowerMessage>>,
}

/// What a follower has towards a leader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Towards {
    Opening,
    Open(StreamId),
}

#[derive(Default)]
pub(super) struct Streams {
    pub(super) open: BTreeMap<StreamId, Stream>,
    towards: BTreeMap<(NodeId, NodeId), Towards>,
    next_stream: u64,
    /// The leader epochs of the subscriptions that were asked for.
    asked: BTreeMap<(NodeId, SubscriptionId), LeaderEpoch>,
    /// Streams that take nothing just now.
    pub(super) congested: BTreeSet<StreamId>,
}

impl StreamRoom for Streams {
    fn room(&self, stream: StreamId) -> usize {
        if self.congested.contains(&stream) {
            0
        } else {
            1 << 20
        }
    }
}

impl World {
    /// A follower speaks; without a stream its words are lost and a stream is opened.
    pub(super) fn say_to_leader(&mut self, from: NodeId, to: NodeId, message: FollowerMessage) {
        let now = self.now;
        if let FollowerMessage::Subscribe(subscribe) = &message {
            let asked = &mut self.streams.asked;
            asked.insert((from, subscribe.subscription), subscribe.leader_epoch);
        }
        match self.streams.towards.get(&(from, to)) {
            Some(Towards::Opening) => {}
            Some(Towards::Open(stream)) => {
                let stream = *stream;
                let delay = self.stream_delay();
                let blocked = self.network.blocked(from, to, Traffic::Replication, now);
                let Some(state) = self.streams.open.get_mut(&stream) else {
                    return;
                };
                let arrives = blocked.unwrap_or_default().max(now + delay);
                state.up_at = state.up_at.max(arrives);
                let wait = state.up_at - now;
                self.at(wait, Scheduled::Up { stream, message });
            }
            None => {
                self.streams.towards.insert((from, to), Towards::Opening);
                let life = self.life(from);
                let wait = self.delay();
                let open = Scheduled::Open {
                    follower: from,
                    life,
                    leader: to,
                };
                self.at(wait, open);
            }
        }
    }

    /// A leader speaks on a follower's stream; lost where that is gone.
    pub(super) fn say_to_follower(
        &mut self,
        from: NodeId,
        stream: StreamId,
        message: LeaderMessage,
    ) {
        let (now, life) = (self.now, self.life(from));
        let delay = self.stream_delay();
        if let LeaderMessage::Accepted(accepted) = &message
            && let Some(state) = self.streams.open.get(&stream)
            && let asked = (state.follower, accepted.subscription)
            && let Some(asked_epoch) = self.streams.asked.get(&asked).copied()
        {
            let node = from;
            self.deeds
                .push(Deed::Accepted(Accepted { node, asked_epoch }));
        }
        if let Some(state) = self.streams.open.get_mut(&stream)
            && (state.leader, state.leader_life) == (from, life)
            && state.follower_has_it
        {
            let to = state.follower;
            let blocked = self.network.blocked(from, to, Traffic::Replication, now);
            let arrives = blocked.unwrap_or_default().max(now + delay);
            state.down_at = state.down_at.max(arrives);
            let wait = state.down_at - now;
            self.at(wait, Scheduled::Down { stream, message });
        }
    }

    /// A stream is opened, where both ends live and reach each other.
    pub(super) fn open_stream(&mut self, follower: NodeId, leader: NodeId) {
        let reached = self.process(leader).is_some_and(|process| !process.paused)
            && self
                .network
                .connects(follower, leader, Traffic::Replication, self.now);
        if !reached {
            self.streams.towards.remove(&(follower, leader));
            return self.step_all(follower, || Event::LeaderStreamClosed { leader });
        }
        // Some are slow to begin with, towards the follower.
        let slow = !self.settling && self.rng.random_bool(0.6);
        let slow_start = us(if slow {
            self.rng.random_range(0..25_000)
        } else {
            0
        });
        self.streams.next_stream += 1;
        let stream = StreamId(self.streams.next_stream);
        let state = Stream {
            follower,
            follower_life: self.life(follower),
            leader,
            leader_life: self.life(leader),
            up_at: self.now,
            down_at: self.now + slow_start,
            follower_has_it: true,
            held: None,
        };
        self.streams.open.insert(stream, state);
        self.streams
            .towards
            .insert((follower, leader), Towards::Open(stream));
        note!(self, None, "stream {}: {follower} -> {leader}", stream.0);
        self.step_all(follower, || Event::LeaderStreamOpened { leader });
    }

    /// What a follower said arrives.
    pub(super) fn up(&mut self, stream: StreamId, message: FollowerMessage) {
        let Some(state) = self.streams.open.get_mut(&stream) else {
            return;
        };
        let (from, to, life) = (state.follower, state.leader, state.leader_life);
        if let Some(held) = &mut state.held {
            return held.push_back(message);
        }
        if self.life(to) != life {
            return;
        }
        if matches!(message, FollowerMessage::Subscribe(_)) {
            self.release_where(|state| (state.follower, state.leader) == (from, to));
        }
        let id = message.partition();
        note!(
            self,
            Some(id),
            "{from} -> {to} on {}: {}",
            stream.0,
            up(&message)
        );
        let event = Event::FromFollower {
            stream,
            from,
            message,
        };
        self.step(to, id, event);
    }

    /// What a follower says from now on waits for its next subscription.
    pub(super) fn hold_streams_of(&mut self, follower: NodeId) {
        let streams = self.streams.open.values_mut();
        for state in streams.filter(|state| state.follower == follower) {
            state.held.get_or_insert_default();
        }
    }

    /// What a follower's streams have held back comes now.
    pub(super) fn release_streams_of(&mut self, follower: NodeId) {
        self.release_where(|state| state.follower == follower);
    }

    fn release_where(&mut self, concerned: impl Fn(&Stream) -> bool) {
        let mut released = Vec::new();
        for (stream, state) in &mut self.streams.open {
            if state.held.is_some() && concerned(state) {
                let held = state.held.take().unwrap_or_default();
                released.extend(held.into_iter().map(|message| (*stream, message)));
            }
        }
        if released.is_empty() {
            return;
        }
        let mut wait = us(self.rng.random_range(0..4_000));
        for (stream, message) in released {
            wait += us(self.rng.random_range(0..500));
            self.at(wait, Scheduled::Up { stream, message });
        }
    }

    /// What a leader said arrives.
    pub(super) fn down(&mut self, stream: StreamId, message: LeaderMessage) {
        let Some(state) = self.streams.open.get(&stream) else {
            return;
        };
        let (from, to, life) = (state.leader, state.follower, state.follower_life);
        if self.life(to) != life || !state.follower_has_it {
            return;
        }
        let id = message.partition();
        note!(
            self,
            Some(id),
            "{from} -> {to} on {}: {}",
            stream.0,
            down(&message)
        );
        self.step(to, id, Event::FromLeader { from, message });
    }

    /// A stream breaks: the follower hears of it first; what it had sent may still reach the
    /// leader for a while.
    pub(super) fn break_stream(&mut self, stream: StreamId) {
        let Some(state) = self.streams.open.get_mut(&stream) else {
            return;
        };
        if !state.follower_has_it {
            return;
        }
        state.follower_has_it = false;
        let (follower, leader, life) = (state.follower, state.leader, state.follower_life);
        self.streams.congested.remove(&stream);
        let under_way = state.up_at.saturating_sub(self.now);
        let lingers = if state.held.is_some() {
            under_way + ms(250)
        } else if self.settling || self.rng.random_bool(0.4) {
            Duration::ZERO
        } else if self.rng.random_bool(0.5) {
            state.held = Some(VecDeque::new());
            under_way + ms(250)
        } else {
            under_way
        };
        let lingers = lingers + self.delay();
        self.at(lingers, Scheduled::UpEnds { stream });
        note!(self, None, "stream {} breaks", stream.0);
        if self.life(follower) == life {
            self.streams.towards.remove(&(follower, leader));
            self.step_all(follower, || Event::LeaderStreamClosed { leader });
        }
    }

    /// The leader hears that a stream has ended.
    pub(super) fn up_ends(&mut self, stream: StreamId) {
        let Some(state) = self.streams.open.remove(&stream) else {
            return;
        };
        if self.life(state.leader) == state.leader_life {
            self.step_all(state.leader, || Event::FollowerStreamClosed { stream });
        }
    }

    pub(super) fn room_again(&mut self, stream: StreamId) {
        self.streams.congested.remove(&stream);
        if let Some(state) = self.streams.open.get(&stream) {
            let leader = state.leader;
            self.step_all(leader, || Event::RoomAgain { stream });
        }
    }

    /// The process of a node has ended, with all its streams.
    pub(super) fn break_all_of(&mut self, node: NodeId) {
        self.streams
            .towards
            .retain(|(follower, _), _| *follower != node);
        for stream in self.streams_where(|state| state.follower == node || state.leader == node) {
            let delay = self.delay();
            self.at(delay, Scheduled::Break { stream });
        }
    }

    pub(super) fn streams_where(&self, concerned: impl Fn(&Stream) -> bool) -> Vec<StreamId> {
        let streams = self.streams.open.iter();
        let concerned = streams.filter(|(_, state)| concerned(state));
        concerned.map(|(stream, _)| *stream).collect()
    }

    /// Every replica on a node hears of something.
    pub(super) fn step_all(&mut self, node: NodeId, event: impl Fn() -> Event) {
        for id in self.hosted(node) {
            self.step(node, id, event());
        }
    }

    fn hosted(&self, node: NodeId) -> Vec<TopicPartition> {
        let process = self.process(node);
        process.map_or_else(Vec::new, |process| process.slots.keys().copied().collect())
    }
}

fn up(message: &FollowerMessage) -> String {
    match message {
        FollowerMessage::Subscribe(m) => format!(
            "subscribe {} epoch {} at {} after epoch {:?}",
            m.subscription,
            m.leader_epoch,
            m.fetch_offset,
            m.last_fetched_epoch.map(|epoch| epoch.get())
        ),
        FollowerMessage::Ack(m) => {
            format!(
                "ack {} leo {} flushed {}",
                m.subscription, m.leo, m.flushed_leo
            )
        }
        FollowerMessage::Unsubscribe(m) => format!("unsubscribe {}", m.subscription),
    }
}

fn down(message: &LeaderMessage) -> String {
    match message {
        LeaderMessage::Accepted(m) => format!("accepted {}", m.subscription),
        LeaderMessage::Batches(m) => format!(
            "batches {} hw {}, {} bytes",
            m.subscription,
            m.high_watermark,
            m.bytes.len()
        ),
        LeaderMessage::Heartbeat(m) => {
            format!("heartbeat {} hw {}", m.subscription, m.high_watermark)
        }
        LeaderMessage::Diverged(m) => format!(
            "diverged {} epoch {:?} end {}",
            m.subscription, m.epoch, m.end_offset
        ),
        LeaderMessage::OutOfRange(m) => format!("out of range {}", m.subscription),
        LeaderMessage::Error(m) => format!("error {} {}", m.subscription, m.code),
    }
}
