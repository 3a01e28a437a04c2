//! The task of one `Subscribe`: brings together the client's messages, the coordinator's answers,
//! records and commits. What it sends waits for the client, and everything else goes on meanwhile.

mod tell;

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use quorate_proto::v1;
use quorate_proto::v1::subscribe_request::Message as Asked;
use quorate_proto::v1::subscribe_response::{self as answer, Message as Told};
use quorate_types::{ErrorCode, Offset, TopicId, TopicPartition};
use quorate_wire::ErrorInfo;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::Outgoing;
use super::beat::{Beaten, Heard, LEAVING, Member};
use super::commits::{self, Done};
use super::credit::{Credit, Progress};
use super::holdings::{Change, Holdings};
use super::join::Join;
use super::reading::{Begins, Read, Reading, Taken, goes_on};
use crate::consume::{Held, PartitionReader};
use crate::edge::Edge;
use crate::groups::{by_topic, refused_offset};
use crate::status::{invalid, to_status};

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);
/// How often what the client is done with is committed.
const COMMIT: Duration = Duration::from_secs(1);
/// Commits of the client without an answer, and answers that it has not taken: then its messages are
/// not read any more; and bytes of such commits, of which one may be larger.
const WAITING: usize = 64;
const WAITING_BYTES: usize = 1 << 20;

/// How a call ends.
enum End {
    /// The client said that the member leaves.
    Left,
    /// The client has ended its side.
    Ended,
    /// The client is gone.
    Gone,
    Failed(Status),
}

struct Call {
    edge: Edge,
    host: String,
    join: Join,
    member: Member,
    holdings: Holdings,
    credit: Credit,
    progress: Progress,
    reading: Reading,
    /// Of topics that the client was told of, by their ids and the newest by their names.
    names: BTreeMap<TopicId, String>,
    topics: BTreeMap<String, TopicId>,
    /// Those that the client asked for, and what they take.
    commits: FuturesUnordered<BoxFuture<'static, Done>>,
    commit_bytes: usize,
    /// What the client is done with, in this life of the member.
    own: Option<BoxFuture<'static, bool>>,
    /// What is to be sent; records only where there is nothing else.
    outbox: VecDeque<Outgoing>,
    /// What may be on the way to the client, with what it takes: one message on the wire, and one that
    /// waits for it.
    underway: VecDeque<Weak<Held>>,
}

/// Serves one call from its first message to the member's leave.
pub(super) async fn run(
    edge: Edge,
    mut requests: Streaming<v1::SubscribeRequest>,
    host: String,
    out: mpsc::Sender<Outgoing>,
    failure: oneshot::Sender<Status>,
) {
    let stopping = edge.subscriptions().stopping.clone();
    let first = stopping.run_until_cancelled(requests.message());
    let begun = match timeout(FIRST, first).await {
        Ok(None) => Err(to_status(&stops())),
        Ok(Some(first)) => first.and_then(|first| match first {
            Some(first) => Call::begin(edge, host, first).map_err(|error| to_status(&error)),
            None => Err(to_status(&bad("the first message must be `join`"))),
        }),
        Err(_elapsed) => Err(Status::deadline_exceeded("no `join` came")),
    };
    let mut call = match begun {
        Ok(call) => call,
        Err(status) => {
            let _gone = failure.send(status);
            return;
        }
    };
    let how = if call.join.is_static() {
        v1::Leave::ForNow
    } else {
        v1::Leave::ForGood
    };
    match call.work(&mut requests, &out).await {
        // The end of the call says that it has left.
        End::Left => {
            call.answer_commits(&out).await;
            call.leave(v1::Leave::ForGood).await;
        }
        End::Ended => {
            call.answer_commits(&out).await;
            drop(out);
            call.leave(how).await;
        }
        End::Gone => {
            drop(out);
            call.leave(how).await;
        }
        End::Failed(status) => {
            let _gone = failure.send(status);
            drop(out);
            // The client may leave it there for as long as its connection lasts.
            let underway = call.underway.iter().filter_map(Weak::upgrade);
            underway.for_each(|held| held.give_back());
            call.leave(how).await;
        }
    }
}

fn stops() -> ErrorInfo {
    let message = "the node stops: subscribe at another one";
    ErrorInfo::new(ErrorCode::BrokerNotAvailable, message)
}

fn bad(message: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, message)
}

impl Call {
    fn begin(edge: Edge, host: String, first: v1::SubscribeRequest) -> Result<Self, ErrorInfo> {
        let Some(Asked::Join(join)) = first.message else {
            return Err(bad("the first message must be `join`"));
        };
        let (join, credit) = Join::read(&edge, join, &host)?;
        Ok(Self {
            member: Member::new(&edge, &join),
            reading: Reading::new(&edge),
            holdings: Holdings::default(),
            progress: Progress::default(),
            names: BTreeMap::new(),
            topics: BTreeMap::new(),
            commits: FuturesUnordered::new(),
            commit_bytes: 0,
            own: None,
            outbox: VecDeque::new(),
            underway: VecDeque::new(),
            edge,
            host,
            join,
            credit,
        })
    }

    async fn work(
        &mut self,
        requests: &mut Streaming<v1::SubscribeRequest>,
        out: &mpsc::Sender<Outgoing>,
    ) -> End {
        let allowed = self.edge.config().answer_timeout;
        let stopping = self.edge.subscriptions().stopping.clone();
        let mut patience = pin!(sleep(allowed));
        let mut tick = interval(COMMIT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waits = !self.outbox.is_empty();
            if !waits {
                patience.as_mut().reset(Instant::now() + allowed);
            }
            let listens = self.outbox.len() < WAITING
                && self.commits.len() < WAITING
                && self.commit_bytes < WAITING_BYTES;
            let reads = !waits && self.credit.is_left();
            let Member {
                beat, due, ends, ..
            } = &mut self.member;
            let (due, ends, beats) = (*due, *ends, beat.is_some());
            let done = tokio::select! {
                place = out.reserve(), if waits => {
                    let Ok(place) = place else { return End::Gone };
                    self.expire();
                    if let Some(next) = self.outbox.pop_front() {
                        self.underway.extend(next.held.as_ref().map(Arc::downgrade));
                        self.underway.drain(..self.underway.len().saturating_sub(2));
                        place.send(next);
                    }
                    patience.as_mut().reset(Instant::now() + allowed);
                    Ok(())
                }
                () = &mut patience, if waits => {
                    let message = format!("nothing was taken for {allowed:?}");
                    return End::Failed(Status::deadline_exceeded(message));
                }
                () = out.closed() => return End::Gone,
                () = stopping.cancelled() => return End::Failed(to_status(&stops())),
                request = requests.message(), if listens => match request {
                    Ok(Some(request)) => match request.message {
                        Some(Asked::Leave(_)) => return End::Left,
                        Some(asked) => self.asked(asked),
                        None => Err(bad("a message without content")),
                    },
                    Ok(None) => return End::Ended,
                    Err(_) => return End::Gone,
                },
                Some(beaten) = maybe(beat) => self.heard(beaten),
                () = sleep_until(due), if !beats => {
                    let owned = self.holdings.owned();
                    self.member.send(&self.edge, &self.join, &self.host, owned);
                    Ok(())
                }
                () = until(ends) => {
                    self.expire();
                    Ok(())
                }
                (taken, read) = self.reading.next(&self.join, reads) => self.read(taken, read),
                Some(done) = self.commits.next() => {
                    self.committed(done);
                    Ok(())
                }
                Some(committed) = maybe(&mut self.own) => {
                    self.own = None;
                    self.progress.committed(committed);
                    if committed {
                        self.settle();
                    }
                    Ok(())
                }
                _ = tick.tick(), if self.join.auto_commit => {
                    self.commit_done();
                    Ok(())
                }
            };
            if let Err(error) = done {
                return End::Failed(to_status(&error));
            }
        }
    }

    fn asked(&mut self, asked: Asked) -> Result<(), ErrorInfo> {
        match asked {
            Asked::Join(_) => return Err(bad("a member joins once a call")),
            Asked::Credit(credit) => {
                if !self.credit.given_back(credit.bytes) {
                    return Err(bad("more credit is given back than responses took"));
                }
                if self.join.auto_commit {
                    self.progress.given_back(credit.bytes);
                    self.settle();
                }
            }
            Asked::Commit(commit) => {
                let (commit, refused) = self.judge(commit)?;
                self.commit_bytes += commit.encoded_len();
                let (edge, join) = (&self.edge, &self.join);
                let commit = commits::for_client(edge, join, &mut self.member, commit, refused);
                self.commits.push(commit);
            }
            Asked::GiveUp(done) => {
                let mut done = self.edge.owned(&done.partitions)?;
                done.retain(|at| self.holdings.is_revoked(at));
                for at in done {
                    if self.join.auto_commit {
                        self.progress.abandon(&at);
                    } else {
                        self.give_up(&at);
                    }
                }
                if self.join.auto_commit {
                    self.settle();
                }
            }
            // Taken before.
            Asked::Leave(_) => {}
        }
        Ok(())
    }

    /// Names the topics of a commit by the ids that the client was told of, and refuses what it says of
    /// partitions that it had at an earlier time.
    fn judge(
        &self,
        mut commit: v1::subscribe_request::Commit,
    ) -> Result<(v1::subscribe_request::Commit, Vec<v1::RefusedOffset>), ErrorInfo> {
        let mut refused = Vec::new();
        let mut allowed = Vec::with_capacity(commit.offsets.len());
        for mut offset in commit.offsets {
            let partition = Edge::partition(offset.partition)?;
            let said = offset.topic_id.as_deref().map(quorate_wire::topic_id);
            let said = said.transpose().map_err(|error| invalid(&error))?;
            let id = said.or_else(|| self.topics.get(&offset.topic).copied());
            let next = offset.offset.map(Offset::from_signed).transpose();
            let next = next.map_err(|error| bad(&error.to_string()))?;
            let judged = match (id, next) {
                (_, None) => return Err(bad("a member commits offsets, it takes none back")),
                (None, _) => Err(ErrorCode::PartitionNotOwned),
                (Some(id), Some(next)) => {
                    let at = TopicPartition::new(id, partition);
                    self.holdings.may_commit(&at, next).map(|()| id)
                }
            };
            match judged {
                Ok(id) => {
                    offset.topic_id = Some(id.as_bytes().to_vec().into());
                    allowed.push(offset);
                }
                Err(code) => refused.push(refused_offset(&offset, code)),
            }
        }
        commit.offsets = allowed;
        Ok((commit, refused))
    }

    /// The coordinator has answered.
    fn heard(&mut self, beaten: Beaten) -> Result<(), ErrorInfo> {
        match self.member.heard(&self.edge, beaten) {
            Heard::Assigned { joined, assigned } => {
                if joined {
                    let member_id = self.member.id.clone();
                    self.tell(Told::Joined(answer::Joined { member_id }));
                }
                let change = self.holdings.follow(assigned);
                self.follow(change);
            }
            Heard::Nothing => {}
            Heard::Lost => self.lose_all(),
            Heard::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn follow(&mut self, change: Change) {
        let Change {
            begin,
            revoke,
            given_up,
        } = change;
        let image = self.edge.image();
        for at in &revoke {
            self.reading.stop(at);
        }
        let exists = |at: &TopicPartition| image.partition(at).is_some();
        let (revoked, gone): (Vec<_>, Vec<_>) = revoke.into_iter().partition(exists);
        if !revoked.is_empty() {
            let partitions = by_topic(&image, revoked.into_iter());
            self.tell(Told::Revoked(answer::Revoked { partitions }));
        }
        self.lose(gone);
        self.reading.begin(&self.join, begin);
        if given_up {
            self.member.hurry();
        }
        if self.join.auto_commit {
            self.settle();
        }
    }

    /// With `auto_commit`: commits what is done of revoked partitions, and gives up those of which
    /// all is.
    fn settle(&mut self) {
        let revoked: Vec<_> = self.holdings.revoked().collect();
        if revoked.is_empty() {
            return;
        }
        self.commit_done();
        for at in revoked {
            if self.progress.is_settled(&at) {
                self.give_up(&at);
            }
        }
    }

    fn give_up(&mut self, at: &TopicPartition) {
        if self.holdings.give_up(at) {
            let back = self.holdings.come_back();
            self.reading.begin(&self.join, back);
            self.member.hurry();
        }
    }

    fn commit_done(&mut self) {
        if let Some(places) = self.progress.commit() {
            let (edge, join) = (&self.edge, &self.join);
            let commit = commits::own(edge, join, &mut self.member, &places, COMMIT * 10);
            self.own = Some(commit);
        }
    }

    fn committed(&mut self, done: Done) {
        self.commit_bytes = self.commit_bytes.saturating_sub(done.bytes);
        self.tell(Told::Committed(done.answer));
    }

    /// A partition's place is found, and it is read from there on.
    fn begun(&mut self, taken: Taken, begins: Begins, reader: PartitionReader) {
        let (at, turn) = taken;
        let image = self.edge.image();
        if let Some(topic) = image.topic(at.topic_id)
            && self.holdings.begun(&at, turn, begins.offset)
        {
            let name = topic.name.to_string();
            self.topics.insert(name.clone(), at.topic_id);
            self.names.insert(at.topic_id, name);
            if self.join.auto_commit && !begins.committed {
                self.progress.begun(at, begins.offset);
            }
            self.tell_assigned(topic.name.to_string(), at, begins.offset);
            self.reading.read(taken, reader);
        }
    }

    /// Places, records, or that there will be none.
    fn read(&mut self, taken: Option<Taken>, read: Read) -> Result<(), ErrorInfo> {
        if self.expire() {
            return Ok(());
        }
        match (taken, read) {
            (Some(taken), Read::Begun(reader, begins)) => self.begun(taken, begins, *reader),
            (Some((at, turn)), Read::Records(given)) => {
                if self.holdings.reads(&at, turn) {
                    self.send(at, given);
                }
            }
            // It is begun anew with the next answer of the coordinator that names it.
            (Some((at, turn)), Read::Unknown) => {
                if self.holdings.wants(&at, turn) {
                    self.lose(vec![at]);
                }
            }
            // Taken away meanwhile.
            (Some((at, turn)), Read::Failed(_)) if !self.holdings.wants(&at, turn) => {}
            // The topic is deleted.
            (Some((at, _)), Read::Failed(_)) if self.edge.image().topic(at.topic_id).is_none() => {
                self.lose(vec![at]);
            }
            (Some(taken), Read::Failed(error)) => self.interrupted(taken, error),
            (Some((at, turn)), Read::Moved(reader, next, why)) => {
                if self.holdings.reads(&at, turn) {
                    self.holdings.moved(&at, next);
                    self.progress.lose(&at);
                    if self.join.auto_commit {
                        self.progress.begun(at, next);
                    }
                    self.tell_interrupted(&at, &why, Some(next));
                    self.reading.read((at, turn), *reader);
                }
            }
            (None, Read::Failed(error)) => return Err(error),
            (None, Read::Begun(..) | Read::Moved(..) | Read::Records(..) | Read::Unknown) => {}
        }
        Ok(())
    }

    /// Reading of a partition failed: it is read on where that makes sense, and told in any case. What
    /// else the member has goes on.
    fn interrupted(&mut self, taken: Taken, error: ErrorInfo) {
        let (at, turn) = taken;
        let start = goes_on(&error, self.join.start);
        match start {
            Some(start) if self.holdings.reads(&at, turn) => {
                self.reading.move_to(&self.join, taken, start, error);
            }
            _ => {
                self.reading.stop(&at);
                self.tell_interrupted(&at, &error, None);
            }
        }
    }

    /// Partitions are gone, without having been given up.
    fn lose(&mut self, lost: Vec<TopicPartition>) {
        let lost = lost.into_iter().filter(|at| self.holdings.lose(at));
        let lost: Vec<TopicPartition> = lost.collect();
        self.tell_lost(lost);
    }

    /// Nothing is sent once others may have it: all is lost where the session may be over.
    fn expire(&mut self) -> bool {
        let over = self.member.ends.is_some_and(|ends| ends <= Instant::now());
        if over {
            self.lose_all();
        }
        over
    }

    /// The session has ended, or may have: others may read what the member had, also what the client has
    /// not taken yet. It joins anew.
    fn lose_all(&mut self) {
        let (credit, progress) = (&mut self.credit, &mut self.progress);
        self.outbox
            .retain(|waiting| match &waiting.response.message {
                Some(Told::Records(records)) => {
                    credit.unsent(records.bytes);
                    progress.unsent();
                    false
                }
                _ => true,
            });
        let lost = self.holdings.lose_all();
        self.reading = Reading::new(&self.edge);
        // A commit of this life says nothing of the next one's.
        self.own = None;
        self.tell_lost(lost);
        self.member.anew();
    }

    /// The client has said all that it says: its commits are answered still, and whatever else there is to
    /// tell, as far as it listens.
    async fn answer_commits(&mut self, out: &mpsc::Sender<Outgoing>) {
        let answered = async {
            while let Some(done) = self.commits.next().await {
                self.committed(done);
            }
            while let Some(next) = self.outbox.pop_front() {
                if out.send(next).await.is_err() {
                    break;
                }
            }
        };
        let _late = timeout(LEAVING, answered).await;
    }

    /// Commits what is done and leaves.
    async fn leave(&mut self, how: v1::Leave) {
        if self.join.auto_commit && self.member.epoch > 0 {
            // What is under way is decided first: there is one at a time.
            let decided = async {
                if let Some(own) = self.own.take() {
                    self.progress.committed(own.await);
                }
                if let Some(places) = self.progress.commit() {
                    let (edge, join) = (&self.edge, &self.join);
                    commits::own(edge, join, &mut self.member, &places, LEAVING).await;
                }
            };
            let _late = timeout(LEAVING, decided).await;
        }
        self.member
            .leave(&self.edge, &self.join, &self.host, how)
            .await;
    }
}

/// The value of a future that may be missing; none, at once, where it is.
async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
