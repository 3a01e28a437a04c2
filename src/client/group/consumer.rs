//! A member of a group as its user holds it: polled, it gives records, and tells what has fallen to it
//! and what it is to give up.
//!
//! Invariants: nothing of a partition is returned after it was revoked or lost; it is given up only
//! by the poll after the one that told so, once what was returned of it is committed, where the member
//! commits by itself; what is committed so was returned by a poll before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1;
use quorate_types::{LeaderEpoch, Offset};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::commit::{self, OffsetToCommit};
use super::coordinator::Coordinator;
use super::member::Held;
use super::options::{GroupOptions, check_topics};
use super::session::{self, Shared};
use super::start::{self, Begin};
use crate::client::Client;
use crate::consumer::{Assignment, Consumed, Consumer, TopicPartition};
use crate::error::ClientError;

/// It commits by itself no more often.
const COMMITS_APART: Duration = Duration::from_millis(1);

/// What a poll of a [`GroupConsumer`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub enum GroupEvent {
    /// Records of one partition, in order; none where only its high watermark is told.
    Records(Consumed),
    /// These have fallen to the member, and are read from there on.
    Assigned(Vec<Assignment>),
    /// The member is to give these up: nothing of them is returned any more, and the next poll gives
    /// them up. Finish what is under way and commit it before.
    Revoked(Vec<TopicPartition>),
    /// These are gone already, and others may read them: the session ended, or they were not given up
    /// in time. What was not committed is read again, by whoever has them now.
    Lost(Vec<TopicPartition>),
}

/// How far a partition is.
struct Progress {
    held: Held,
    /// The offset after what was returned.
    next: Offset,
    leader_epoch: Option<LeaderEpoch>,
    committed: Option<Offset>,
}

/// What a commit that is under way says.
type Commits = Vec<(TopicPartition, Offset)>;

type Found = Result<Vec<(Held, Result<Begin, ClientError>)>, ClientError>;

/// A member of a consumer group. Made by [`Client::group`].
///
/// It stays a member while it lives, whether it is polled or not; but what it is to give up it gives up
/// only when polled, within [`GroupOptions::rebalance_timeout`]. Dropped without [`Self::close`], it
/// stays one until its session ends.
pub struct GroupConsumer {
    shared: Arc<Shared>,
    consumer: Consumer,
    /// What was told as assigned.
    progress: BTreeMap<TopicPartition, Progress>,
    /// What was told as revoked, and the next poll gives up.
    revoked: Vec<Held>,
    /// What was taken, and begins nobody knows where yet.
    unplaced: BTreeSet<Held>,
    finding: Option<AbortOnDropHandle<Found>>,
    committing: Option<AbortOnDropHandle<(Commits, Result<(), ClientError>)>>,
    commit_due: Option<Instant>,
    _session: AbortOnDropHandle<()>,
}

impl Client {
    /// A member of a group, which joins at once.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for illegal options. What the cluster says is told by
    /// [`GroupConsumer::poll`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn group(&self, options: GroupOptions) -> Result<GroupConsumer, ClientError> {
        options.check()?;
        let consumer = self.consumer(Vec::new(), options.fetch);
        let commit_due = options.auto_commit.map(|every| Instant::now() + every);
        let coordinator = Coordinator::new(self.clone());
        let shared = Arc::new(Shared::new(options, coordinator));
        let session = tokio::spawn(session::run(Arc::clone(&shared)));
        Ok(GroupConsumer {
            shared,
            consumer,
            progress: BTreeMap::new(),
            revoked: Vec::new(),
            unplaced: BTreeSet::new(),
            finding: None,
            committing: None,
            commit_due,
            _session: AbortOnDropHandle::new(session),
        })
    }
}

/// The outcome of a task, where there is one.
async fn outcome<T>(task: &mut Option<AbortOnDropHandle<T>>) -> T {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    match running.await {
        Ok(outcome) => {
            *task = None;
            outcome
        }
        // It is aborted only with its owner.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn names<'a>(held: impl IntoIterator<Item = &'a Held>) -> Vec<TopicPartition> {
    held.into_iter().map(Held::name).collect()
}

impl GroupConsumer {
    /// What happens next: records, or a change of what the member reads. With auto commit, what was
    /// returned before counts as done when this is called. May be dropped and called again: nothing
    /// is lost.
    ///
    /// # Errors
    /// [`ClientError`] of a partition, which is read no further until a [`Self::seek`]; or of the
    /// membership, where the cluster refuses it for good: then it is told each time.
    pub async fn poll(&mut self) -> Result<GroupEvent, ClientError> {
        loop {
            if let Some(event) = self.follow().await? {
                return Ok(event);
            }
            let ends = self.shared.member.lock().ends();
            let reading = self.consumer.has_partitions();
            tokio::select! {
                polled = self.consumer.poll_one(), if reading => {
                    if let Some((partition, polled)) = polled
                        && let Some(polled) = self.judge(&partition, polled)
                    {
                        return polled.map(GroupEvent::Records);
                    }
                }
                () = self.shared.news.notified() => {}
                found = outcome(&mut self.finding) => {
                    if let Some(event) = self.place(found)? {
                        return Ok(event);
                    }
                }
                (commits, result) = outcome(&mut self.committing) => self.committed(commits, result),
                // Both are looked after before the next wait.
                () = session::until(self.commit_due) => {}
                () = session::until(ends) => {}
            }
        }
    }

    /// Commits all that was returned, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with what was refused first, and with `UNKNOWN_MEMBER_ID` where the
    /// membership was lost; [`ClientError::TimedOut`] where it is not known after
    /// [`GroupOptions::commit_timeout`].
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let commits = self.uncommitted();
        let offsets = self.to_proto(&commits);
        let patience = self.shared.options.commit_timeout;
        match commit::commit(&self.shared, offsets, patience).await {
            // Of a topic that was deleted nobody reads on.
            Err(error) if !commit::is_gone(&error) => Err(error),
            _ => {
                self.note(commits);
                Ok(())
            }
        }
    }

    /// Commits these offsets of partitions that the member has, and waits for the answer. With auto
    /// commit, that commits its own later.
    ///
    /// # Errors
    /// As [`Self::commit`]; where some were refused, the others are committed.
    pub async fn commit_offsets(&mut self, offsets: &[OffsetToCommit]) -> Result<(), ClientError> {
        let each = offsets.iter().map(|offset| {
            let at = TopicPartition::new(offset.topic.clone(), offset.partition);
            let held = self.progress.get(&at).map(|progress| &progress.held);
            offset.to_proto(held.map(|held| held.topic_id))
        });
        let each = each.collect();
        commit::commit(&self.shared, each, self.shared.options.commit_timeout).await
    }

    /// Goes on elsewhere in a partition that the member has.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where it has not.
    pub fn seek(&mut self, partition: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        self.consumer.seek(partition, offset)?;
        if let Some(progress) = self.progress.get_mut(partition) {
            progress.next = offset;
            progress.leader_epoch = None;
        }
        Ok(())
    }

    /// Stops to read a partition for a while, as [`Consumer::pause`] does; the member keeps it.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where it has not.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<(), ClientError> {
        self.consumer.pause(partition)
    }

    /// Goes on with a partition after [`Self::pause`].
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where the member has not.
    pub fn resume(&mut self, partition: &TopicPartition) -> Result<(), ClientError> {
        self.consumer.resume(partition)
    }

    /// Reads these topics from now on instead of those before. What it has of others it is told to give
    /// up, and what falls to it of new ones is told, both by [`Self::poll`].
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for none, and for illegal names; nothing is changed then.
    pub fn subscribe<T: Into<String>>(
        &mut self,
        topics: impl IntoIterator<Item = T>,
    ) -> Result<(), ClientError> {
        let topics: Vec<String> = topics.into_iter().map(Into::into).collect();
        check_topics(&topics)?;
        self.shared.subscribe(topics);
        Ok(())
    }

    /// What the member reads, and how far it is: the offset after what was returned.
    pub fn assigned(&self) -> Vec<Assignment> {
        self.consumer.assigned()
    }

    /// The id that it has drawn; another one each time that it joins anew.
    pub fn member_id(&self) -> String {
        self.shared.member.lock().id().to_owned()
    }

    /// Whether the coordinator knows it.
    pub fn is_member(&self) -> bool {
        self.shared.member.lock().epoch() > 0
    }

    /// Commits what was returned, where the member commits by itself, and leaves the group. A static
    /// member keeps its partitions until its session ends.
    ///
    /// # Errors
    /// What went wrong first; it has left all the same, or does so when its session ends.
    pub async fn close(mut self) -> Result<(), ClientError> {
        // Of what was lost others may have committed more since.
        self.shared.expire();
        let lost = self.shared.member.lock().take_lost();
        self.forget(&lost);
        // The heartbeats go on: the commit may take longer than the session.
        let committed = match self.commit_due {
            Some(_) => self.commit().await,
            None => Ok(()),
        };
        let Self {
            shared, _session, ..
        } = self;
        drop(_session);
        let left = shared.leave().await;
        match committed {
            // What was lost others have read on from what was committed.
            Err(error) if !session::is_lost(&error) => Err(error),
            _ => left,
        }
    }

    /// Follows the membership: what was lost, what is to be given up, what has newly fallen to it.
    async fn follow(&mut self) -> Result<Option<GroupEvent>, ClientError> {
        self.shared.expire();
        loop {
            let lost = self.shared.member.lock().take_lost();
            if !lost.is_empty() {
                let told = self.forget(&lost);
                if !told.is_empty() {
                    return Ok(Some(GroupEvent::Lost(told)));
                }
            }
            if let Some(error) = self.shared.failed.lock().clone() {
                return Err(error);
            }
            if self.revoked.is_empty() {
                break;
            }
            self.commit_before_giving_up().await;
            let revoked = std::mem::take(&mut self.revoked);
            self.give_up(&revoked);
        }
        let revoked = self.shared.member.lock().revoked().clone();
        for held in &revoked {
            self.consumer.unassign(&held.name());
        }
        // Of what was not told yet nothing was returned.
        let (told, untold): (Vec<_>, Vec<_>) = revoked.into_iter().partition(|held| {
            let progress = self.progress.get(&held.name());
            progress.is_some_and(|progress| progress.held == *held)
        });
        self.give_up(&untold);
        if !told.is_empty() {
            let names = names(&told);
            self.revoked = told;
            return Ok(Some(GroupEvent::Revoked(names)));
        }
        self.unplaced.extend(self.shared.member.lock().take());
        if self.finding.is_none() && !self.unplaced.is_empty() {
            let wanted = self.unplaced.iter().cloned().collect();
            let shared = Arc::clone(&self.shared);
            let finding = async move {
                let Shared { options, .. } = &*shared;
                let (group, start) = (&options.group, options.start);
                start::find(&shared.coordinator, group, start, wanted).await
            };
            self.finding = Some(AbortOnDropHandle::new(tokio::spawn(finding)));
        }
        self.auto_commit();
        Ok(None)
    }

    /// Has these no more; gives those that were told as assigned.
    fn forget<'a>(&mut self, gone: impl IntoIterator<Item = &'a Held>) -> Vec<TopicPartition> {
        let mut told = Vec::new();
        for held in gone {
            let name = held.name();
            // What was found of it is of before: others may commit until it comes back.
            if self.unplaced.remove(held) {
                self.finding = None;
            }
            self.revoked.retain(|revoked| revoked != held);
            let progress = self.progress.get(&name);
            if progress.is_some_and(|progress| progress.held == *held) {
                self.progress.remove(&name);
                self.consumer.unassign(&name);
                told.push(name);
            }
        }
        told
    }

    fn give_up(&mut self, held: &[Held]) {
        if held.is_empty() {
            return;
        }
        // A commit of before must not be tried again once they have come back (KIP-1251).
        self.committing = None;
        self.forget(held);
        self.shared.member.lock().give_up(held);
        self.shared.hurry.notify_one();
    }

    /// Where it fails, what was returned is read again by who reads on: nothing is passed over.
    async fn commit_before_giving_up(&mut self) {
        if self.commit_due.is_none() {
            return;
        }
        let options = &self.shared.options;
        let patience = options.commit_timeout.min(options.rebalance_timeout);
        let commits = self.uncommitted();
        let offsets = self.to_proto(&commits);
        match commit::commit(&self.shared, offsets, patience).await {
            Ok(()) => self.note(commits),
            Err(error) => {
                let group = &self.shared.options.group;
                tracing::warn!(group, %error, "given up without a commit");
            }
        }
    }

    /// Where the partitions begin that were looked for; some may be gone by now.
    fn place(&mut self, found: Found) -> Result<Option<GroupEvent>, ClientError> {
        let passes = |error: &ClientError| {
            let passes = error.is_retriable() || matches!(error, ClientError::TimedOut(_));
            if passes {
                let group = &self.shared.options.group;
                tracing::warn!(group, %error, "it is not known yet where to begin");
            }
            passes
        };
        let found = match found {
            Ok(found) => found,
            Err(error) if passes(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut assigned, mut refused) = (Vec::new(), None);
        for (held, begin) in found {
            let may_read = self.shared.member.lock().may_read(&held);
            if !may_read || !self.unplaced.contains(&held) {
                continue;
            }
            // One that is not placed is looked for anew, beside those that fall to the member until then.
            let begin = match begin {
                Ok(begin) => begin,
                Err(error) => {
                    if !passes(&error) {
                        refused.get_or_insert(error);
                    }
                    continue;
                }
            };
            self.unplaced.remove(&held);
            let name = held.name();
            let assignment = Assignment {
                topic: name.topic.clone(),
                partition: name.partition,
                offset: begin.offset,
            };
            let topic_id = held.topic_id;
            let progress = Progress {
                held,
                next: begin.offset,
                leader_epoch: begin.leader_epoch,
                committed: begin.committed.then_some(begin.offset),
            };
            self.progress.insert(name, progress);
            let epoch = begin.leader_epoch;
            self.consumer
                .assign_after(assignment.clone(), topic_id, epoch);
            assigned.push(assignment);
        }
        assigned.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        match refused {
            // Else it is told the next time: what is assigned is told first.
            Some(error) if assigned.is_empty() => Err(error),
            _ => Ok((!assigned.is_empty()).then_some(GroupEvent::Assigned(assigned))),
        }
    }

    /// What was fetched, where it may be returned still; then it counts as returned.
    fn judge(
        &mut self,
        partition: &TopicPartition,
        polled: Result<Consumed, ClientError>,
    ) -> Option<Result<Consumed, ClientError>> {
        self.shared.expire();
        let progress = self.progress.get_mut(partition)?;
        if !self.shared.member.lock().may_read(&progress.held) {
            return None;
        }
        match &polled {
            Ok(consumed) => {
                progress.next = consumed.next;
                progress.leader_epoch = consumed.leader_epoch;
            }
            Err(ClientError::Corrupt { next, .. }) if self.shared.options.fetch.skip_corrupt => {
                progress.next = *next;
            }
            Err(_) => {}
        }
        Some(polled)
    }

    /// Begins a commit where it is time for one and none is under way.
    fn auto_commit(&mut self) {
        let now = Instant::now();
        let (Some(due), Some(every)) = (self.commit_due, self.shared.options.auto_commit) else {
            return;
        };
        if due > now {
            return;
        }
        self.commit_due = Some(now + every.max(COMMITS_APART));
        let commits = self.uncommitted();
        if self.committing.is_some() || commits.is_empty() {
            return;
        }
        let offsets = self.to_proto(&commits);
        let shared = Arc::clone(&self.shared);
        let committing = async move {
            let patience = shared.options.commit_timeout;
            (commits, commit::commit(&shared, offsets, patience).await)
        };
        self.committing = Some(AbortOnDropHandle::new(tokio::spawn(committing)));
    }

    fn committed(&mut self, commits: Commits, result: Result<(), ClientError>) {
        match result {
            Ok(()) => self.note(commits),
            // The next one says it again; a lost membership is told by itself.
            Err(error) => {
                let group = &self.shared.options.group;
                tracing::warn!(group, %error, "not committed");
            }
        }
    }

    fn note(&mut self, commits: Commits) {
        for (partition, offset) in commits {
            if let Some(progress) = self.progress.get_mut(&partition) {
                progress.committed = Some(offset);
            }
        }
    }

    fn uncommitted(&self) -> Commits {
        let ahead = self.progress.iter();
        let ahead = ahead.filter(|(_, progress)| progress.committed != Some(progress.next));
        ahead
            .map(|(at, progress)| (at.clone(), progress.next))
            .collect()
    }

    fn to_proto(&self, commits: &Commits) -> Vec<v1::OffsetToCommit> {
        let each = commits.iter().filter_map(|(at, offset)| {
            let progress = self.progress.get(at)?;
            let commit = OffsetToCommit {
                leader_epoch: progress.leader_epoch,
                ..OffsetToCommit::new(at.topic.clone(), at.partition, *offset)
            };
            Some(commit.to_proto(Some(progress.held.topic_id)))
        });
        each.collect()
    }
}
