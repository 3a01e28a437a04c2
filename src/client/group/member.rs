//! What a member of a group has and may read, as its coordinator's answers say (KIP-848). Pure.
//!
//! Invariants, which keep two members from reading a partition at once:
//! - What was taken stays in the heartbeats until it is given up, also where it was revoked.
//! - A partition that was revoked once is given up before it is read again, also where the coordinator
//!   thinks better of it: records of it may have been passed over.
//! - Who has had no answer to a heartbeat that was sent within the session timeout, less a part for
//!   clocks that differ, has nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_types::{PartitionId, TopicId};
use tokio::time::Instant;

use crate::consumer::TopicPartition;

/// Before the coordinator has said otherwise.
const INTERVAL: Duration = Duration::from_secs(5);
/// A clock may go by so much of a session slower than the coordinator's: an eighth, as it reckons for
/// former coordinators, too.
const DRIFT: u32 = 8;
/// So many heartbeats fit into a session, at least: each may wait for news so long, so that the last one
/// that was answered was sent two of them ago, and one may be lost.
const BEATS: u32 = 6;

/// A partition of a topic of that name and id. One of a topic that was made anew is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    pub(super) topic: String,
    pub(super) topic_id: TopicId,
    pub(super) partition: PartitionId,
}

impl Held {
    pub(super) fn name(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), self.partition)
    }
}

/// As the protocol has them.
pub(super) fn by_topic<'a>(held: impl IntoIterator<Item = &'a Held>) -> Vec<v1::TopicPartitions> {
    let mut topics: BTreeMap<(&str, TopicId), Vec<i32>> = BTreeMap::new();
    for held in held {
        let partitions = topics.entry((&held.topic, held.topic_id)).or_default();
        partitions.push(held.partition.to_signed());
    }
    let topics = topics.into_iter();
    let topics = topics.map(|((topic, id), partitions)| v1::TopicPartitions {
        topic: topic.to_owned(),
        topic_id: Bytes::copy_from_slice(id.as_bytes()),
        partitions,
    });
    topics.collect()
}

/// What an answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// There is something to take or to give up.
    Some,
    /// Nothing.
    None,
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    id: String,
    /// How often it has joined anew.
    life: u64,
    epoch: u32,
    /// What the last answer lets it read.
    assigned: BTreeSet<Held>,
    /// What it has, with what it is to give up.
    taken: BTreeSet<Held>,
    /// What of that was revoked.
    revoked: BTreeSet<Held>,
    /// What its former lives had.
    lost: BTreeSet<Held>,
    interval: Duration,
    /// When its session ends, unless another heartbeat is answered; none before the first.
    ends: Option<Instant>,
}

impl Member {
    /// One that has not joined yet.
    pub(super) fn new(id: String) -> Self {
        Self {
            id,
            life: 0,
            epoch: 0,
            assigned: BTreeSet::new(),
            taken: BTreeSet::new(),
            revoked: BTreeSet::new(),
            lost: BTreeSet::new(),
            interval: INTERVAL,
            ends: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Changes with each new id.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// 0: it has not joined.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// How long a heartbeat may wait for news.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// All that it has.
    pub(super) fn owned(&self) -> Vec<v1::TopicPartitions> {
        by_topic(&self.taken)
    }

    /// Takes the answer to a heartbeat that was sent at `sent`.
    ///
    /// # Errors
    /// What makes no sense in it; nothing is changed then.
    pub(super) fn answered(
        &mut self,
        sent: Instant,
        answer: &v1::HeartbeatResponse,
    ) -> Result<News, String> {
        if answer.member_epoch == 0 {
            return Err("a member's epoch is not 0".to_owned());
        }
        let mut assigned = BTreeSet::new();
        // One without a name is deleted, as far as the node knew that answered.
        let topics = answer.assigned.iter();
        for topic in topics.filter(|topic| !topic.topic.is_empty()) {
            let topic_id = TopicId::from_slice(&topic.topic_id);
            let topic_id = topic_id.ok_or("a topic id has 16 bytes")?;
            for number in &topic.partitions {
                let partition =
                    PartitionId::from_signed(*number).map_err(|error| error.to_string())?;
                assigned.insert(Held {
                    topic: topic.topic.clone(),
                    topic_id,
                    partition,
                });
            }
        }
        let session = Duration::from_millis(answer.session_timeout_ms.into());
        let interval = Duration::from_millis(answer.heartbeat_interval_ms.into());
        self.interval = interval.min(session / BEATS).max(Duration::from_millis(1));
        self.ends = Some(sent + session - session / DRIFT);
        self.epoch = answer.member_epoch;
        let before = self.revoked.len();
        self.revoked
            .extend(self.taken.difference(&assigned).cloned());
        self.assigned = assigned;
        let more = self.assigned.difference(&self.taken).next().is_some();
        match more || self.revoked.len() > before {
            true => Ok(News::Some),
            false => Ok(News::None),
        }
    }

    /// Ends this life where its session is over; says whether it was.
    pub(super) fn expire(&mut self, now: Instant, next: impl FnOnce() -> String) -> bool {
        let over = self.ends.is_some_and(|ends| ends <= now);
        if over {
            self.lose(next());
        }
        over
    }

    /// It is no member any more, and joins anew under another id.
    pub(super) fn lose(&mut self, next: String) {
        self.id = next;
        self.life += 1;
        self.epoch = 0;
        self.ends = None;
        self.assigned.clear();
        self.revoked.clear();
        self.lost.append(&mut self.taken);
    }

    /// What was lost since this was last asked.
    pub(super) fn take_lost(&mut self) -> BTreeSet<Held> {
        std::mem::take(&mut self.lost)
    }

    /// Takes what has newly fallen to it.
    pub(super) fn take(&mut self) -> Vec<Held> {
        let new: Vec<Held> = self.assigned.difference(&self.taken).cloned().collect();
        self.taken.extend(new.iter().cloned());
        new
    }

    /// What it is to give up.
    pub(super) fn revoked(&self) -> &BTreeSet<Held> {
        &self.revoked
    }

    /// It has given that up.
    pub(super) fn give_up<'a>(&mut self, given_up: impl IntoIterator<Item = &'a Held>) {
        for held in given_up {
            if self.revoked.remove(held) {
                self.taken.remove(held);
            }
        }
    }

    /// Whether it may read that.
    pub(super) fn may_read(&self, held: &Held) -> bool {
        self.taken.contains(held) && !self.revoked.contains(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(9);

    fn answer(epoch: u32, partitions: &[i32]) -> v1::HeartbeatResponse {
        v1::HeartbeatResponse {
            member_epoch: epoch,
            assigned: vec![v1::TopicPartitions {
                topic: "t".into(),
                topic_id: vec![1; 16].into(),
                partitions: partitions.to_vec(),
            }],
            heartbeat_interval_ms: 5_000,
            session_timeout_ms: SESSION.as_millis() as u32,
        }
    }

    fn numbers<'a>(held: impl IntoIterator<Item = &'a Held>) -> Vec<u32> {
        held.into_iter().map(|held| held.partition.get()).collect()
    }

    fn owned(member: &Member) -> Vec<i32> {
        let owned = member.owned().into_iter();
        owned.flat_map(|topic| topic.partitions).collect()
    }

    #[test]
    fn what_is_revoked_stays_in_the_heartbeats_until_it_is_given_up() {
        let now = Instant::now();
        let mut member = Member::new("m".into());
        assert_eq!(member.answered(now, &answer(1, &[0, 1])), Ok(News::Some));
        // Nothing is had before it is taken: who gives it to another meanwhile need not wait.
        assert!(owned(&member).is_empty());
        assert_eq!(numbers(&member.take()), [0, 1]);
        assert_eq!(member.answered(now, &answer(1, &[0, 1])), Ok(News::None));
        assert_eq!(member.answered(now, &answer(2, &[0])), Ok(News::Some));
        assert_eq!(owned(&member), [0, 1]);
        let revoked: Vec<Held> = member.revoked().iter().cloned().collect();
        assert_eq!(numbers(&revoked), [1]);
        assert!(!member.may_read(&revoked[0]));
        member.give_up(&revoked);
        assert_eq!(owned(&member), [0]);
    }

    #[test]
    fn a_partition_that_was_revoked_is_given_up_even_where_it_comes_back_first() {
        let now = Instant::now();
        let mut member = Member::new("m".into());
        member.answered(now, &answer(1, &[0])).unwrap();
        member.take();
        member.answered(now, &answer(2, &[])).unwrap();
        member.answered(now, &answer(3, &[0])).unwrap();
        let revoked: Vec<Held> = member.revoked().iter().cloned().collect();
        assert_eq!(numbers(&revoked), [0]);
        assert!(!member.may_read(&revoked[0]));
        assert!(member.take().is_empty());
        member.give_up(&revoked);
        assert_eq!(numbers(&member.take()), [0]);
        assert!(member.may_read(&revoked[0]));
    }

    #[test]
    fn a_session_counts_from_when_the_heartbeat_was_sent() {
        let sent = Instant::now();
        let mut member = Member::new("a".into());
        assert!(!member.expire(sent + SESSION * 9, || "b".into()));
        member.answered(sent, &answer(1, &[0])).unwrap();
        assert_eq!(member.interval(), SESSION / BEATS);
        let taken = member.take();
        let ends = sent + SESSION - SESSION / DRIFT;
        assert!(!member.expire(ends - Duration::from_millis(1), || "b".into()));
        assert!(member.expire(ends, || "b".into()));
        assert!(!member.may_read(&taken[0]));
        assert_eq!((member.id(), member.epoch()), ("b", 0));
        assert_eq!(numbers(&member.take_lost()), [0]);
        assert!(member.take_lost().is_empty());
        assert!(!member.expire(sent + SESSION * 9, || "c".into()));
    }

    #[test]
    fn an_answer_that_makes_no_sense_changes_nothing() {
        let now = Instant::now();
        let mut member = Member::new("m".into());
        let mut wrong = answer(1, &[0]);
        wrong.assigned[0].topic_id = vec![1].into();
        for wrong in [wrong, answer(0, &[0]), answer(1, &[-1])] {
            assert!(member.answered(now, &wrong).is_err());
            assert_eq!((member.epoch(), member.ends()), (0, None));
            assert!(member.take().is_empty());
        }
    }
}
