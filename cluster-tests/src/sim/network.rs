//! Streams between followers and leaders: in order and whole within one, at their own pace
//! between two, so that what an old stream still holds may come after what a newer one brought.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use quorate_replication::{Event, Faults, FollowerMessage, LeaderMessage, StreamId};
use quorate_types::NodeId;
use rand::Rng;

use super::world::{Scheduled, World, ms};

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
pub(super) enum Towards {
    Opening,
    Open(StreamId),
}

#[derive(Default)]
pub(super) struct Network {
    pub(super) streams: BTreeMap<StreamId, Stream>,
    towards: BTreeMap<(NodeId, NodeId), Towards>,
    next_stream: u64,
    /// Pairs that cannot reach each other, until then.
    pub(super) apart: BTreeMap<(NodeId, NodeId), Duration>,
}

impl Network {
    fn held(&mut self, stream: StreamId) -> Option<&mut VecDeque<FollowerMessage>> {
        self.streams.get_mut(&stream)?.held.as_mut()
    }

    fn are_apart(&self, a: NodeId, b: NodeId, now: Duration) -> bool {
        let pair = (a.min(b), a.max(b));
        self.apart.get(&pair).is_some_and(|until| *until > now)
    }
}

impl<F: Faults> World<F> {
    /// A follower speaks; without a stream its words are lost and a stream is opened.
    pub(super) fn say_to_leader(&mut self, from: NodeId, to: NodeId, message: FollowerMessage) {
        let now = self.now;
        let delay = self.stream_delay();
        match self.network.towards.get(&(from, to)) {
            Some(Towards::Opening) => {}
            Some(Towards::Open(stream)) => {
                let stream = *stream;
                let Some(state) = self.network.streams.get_mut(&stream) else {
                    return;
                };
                state.up_at = state.up_at.max(now + delay);
                let wait = state.up_at - now;
                self.at(wait, Scheduled::Up { stream, message });
            }
            None => {
                self.network.towards.insert((from, to), Towards::Opening);
                let life = self.life(from);
                let wait = self.delay();
                self.at(
                    wait,
                    Scheduled::Open {
                        follower: from,
                        life,
                        leader: to,
                    },
                );
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
        if let Some(state) = self.network.streams.get_mut(&stream)
            && (state.leader, state.leader_life) == (from, life)
            && state.follower_has_it
        {
            state.down_at = state.down_at.max(now + delay);
            let wait = state.down_at - now;
            self.at(wait, Scheduled::Down { stream, message });
        }
    }

    /// A stream is opened, where both ends live and reach each other.
    pub(super) fn open_stream(&mut self, follower: NodeId, leader: NodeId) {
        let reached = self.process(leader).is_some_and(|process| !process.paused)
            && !self.network.are_apart(follower, leader, self.now);
        if !reached {
            self.network.towards.remove(&(follower, leader));
            self.step(follower, Event::LeaderStreamClosed { leader });
            return;
        }
        // Some are slow to begin with, towards the follower.
        let slow = !self.settling && self.rng.random_bool(0.6);
        let slow_start = ms(if slow {
            self.rng.random_range(0..250)
        } else {
            0
        });
        self.network.next_stream += 1;
        let stream = StreamId(self.network.next_stream);
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
        self.network.streams.insert(stream, state);
        self.network
            .towards
            .insert((follower, leader), Towards::Open(stream));
        self.note(&format!("stream {}: {follower} -> {leader}", stream.0));
        self.step(follower, Event::LeaderStreamOpened { leader });
    }

    /// What a follower said arrives.
    pub(super) fn up(&mut self, stream: StreamId, message: FollowerMessage) {
        let Some(state) = self.network.streams.get(&stream) else {
            return;
        };
        let (from, to, life) = (state.follower, state.leader, state.leader_life);
        if self.life(to) != life {
            return;
        }
        if let Some(held) = self.network.held(stream) {
            return held.push_back(message);
        }
        if matches!(message, FollowerMessage::Subscribe(_)) {
            self.release(from, to);
        }
        if self.whole_trace {
            self.note(&format!("{from} -> {to} on {}: {}", stream.0, up(&message)));
        }
        self.step(
            to,
            Event::FromFollower {
                stream,
                from,
                message,
            },
        );
    }

    /// What a follower says from now on waits for its next subscription.
    pub(super) fn hold_streams_of(&mut self, follower: NodeId) {
        let streams = self.network.streams.values_mut();
        for state in streams.filter(|state| state.follower == follower) {
            state.held.get_or_insert_default();
        }
    }

    /// A follower has subscribed anew: what its older streams have held back comes now.
    fn release(&mut self, follower: NodeId, leader: NodeId) {
        self.release_where(|state| (state.follower, state.leader) == (follower, leader));
    }

    /// What a follower's streams have held back comes now.
    pub(super) fn release_streams_of(&mut self, follower: NodeId) {
        self.release_where(|state| state.follower == follower);
    }

    fn release_where(&mut self, concerned: impl Fn(&Stream) -> bool) {
        let mut released = Vec::new();
        for (stream, state) in &mut self.network.streams {
            if concerned(state) {
                let held = state.held.take().unwrap_or_default();
                released.extend(held.into_iter().map(|message| (*stream, message)));
            }
        }
        let mut wait = ms(self.rng.random_range(0..6));
        for (stream, message) in released {
            wait += Duration::from_micros(self.rng.random_range(0..500));
            self.at(wait, Scheduled::Up { stream, message });
        }
    }

    /// What a leader said arrives.
    pub(super) fn down(&mut self, stream: StreamId, message: LeaderMessage) {
        let Some(state) = self.network.streams.get(&stream) else {
            return;
        };
        let (from, to, life) = (state.leader, state.follower, state.follower_life);
        if self.life(to) != life || !state.follower_has_it {
            return;
        }
        if self.whole_trace {
            self.note(&format!(
                "{from} -> {to} on {}: {}",
                stream.0,
                down(&message)
            ));
        }
        self.step(to, Event::FromLeader { from, message });
    }

    /// A stream breaks: the follower hears of it first; what it had sent may still reach the
    /// leader for a while.
    pub(super) fn break_stream(&mut self, stream: StreamId) {
        let Some(state) = self.network.streams.get_mut(&stream) else {
            return;
        };
        if !state.follower_has_it {
            return;
        }
        state.follower_has_it = false;
        let (follower, leader, life) = (state.follower, state.leader, state.follower_life);
        self.congested.remove(&stream);
        let under_way = state.up_at.saturating_sub(self.now);
        let lingers = if state.held.is_some() {
            under_way + ms(2_500)
        } else if self.settling || self.rng.random_bool(0.4) {
            Duration::ZERO
        } else if self.rng.random_bool(0.5) {
            state.held = Some(VecDeque::new());
            under_way + ms(2_500)
        } else {
            under_way
        };
        let lingers = lingers + self.delay();
        self.at(lingers, Scheduled::UpEnds { stream });
        self.note(&format!("stream {} breaks", stream.0));
        if self.life(follower) == life {
            self.network.towards.remove(&(follower, leader));
            self.step(follower, Event::LeaderStreamClosed { leader });
        }
    }

    /// The leader hears that a stream has ended.
    pub(super) fn up_ends(&mut self, stream: StreamId) {
        let Some(state) = self.network.streams.remove(&stream) else {
            return;
        };
        if self.life(state.leader) == state.leader_life {
            self.step(state.leader, Event::FollowerStreamClosed { stream });
        }
    }

    /// The process of a node has ended, with all its streams.
    pub(super) fn break_all_of(&mut self, node: NodeId) {
        self.network
            .towards
            .retain(|(follower, _), _| *follower != node);
        let theirs = self.network.streams.iter();
        let streams: Vec<StreamId> = theirs
            .filter(|(_, state)| state.follower == node || state.leader == node)
            .map(|(stream, _)| *stream)
            .collect();
        for stream in streams {
            let delay = self.delay();
            self.at(delay, Scheduled::Break { stream });
        }
    }
}

fn up(message: &FollowerMessage) -> String {
    match message {
        FollowerMessage::Subscribe(m) => format!(
            "subscribe {} epoch {} at {} after epoch {:?}",
            m.subscription, m.leader_epoch, m.fetch_offset, m.last_fetched_epoch
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
