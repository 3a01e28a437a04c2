//! Keeps a member a member: heartbeats that wait for news, one after the other, at its coordinator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::ErrorCode;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::coordinator::{Backoff, Coordinator};
use super::member::{Member, News};
use super::options::{GroupOptions, millis};
use crate::client::Patience;
use crate::error::ClientError;

/// An answer is waited for so much longer than the heartbeat may wait for news.
const GRACE: Duration = Duration::from_secs(2);
/// An answer to who joins is waited for so long: the quorum decides first.
const JOIN: Duration = Duration::from_secs(8);

/// A heartbeat that waited for most of its time has waited: less than so much of it is not slept off.
const REST: u32 = 8;

/// Who leaves before it has heard that it joined may be made a member so much later still.
const JOINING: Duration = Duration::from_secs(1);

/// What the heartbeats and the consumer share.
pub(super) struct Shared {
    pub(super) options: GroupOptions,
    /// What the member says of itself, now. In every heartbeat: a change that was answered can be lost
    /// with its coordinator.
    profile: Mutex<v1::MemberProfile>,
    pub(super) coordinator: Coordinator,
    pub(super) member: Mutex<Member>,
    /// For the consumer: what the member may read has changed.
    pub(super) news: Notify,
    /// For the heartbeats: something was given up, or a life is over.
    pub(super) hurry: Notify,
    /// Why there are no heartbeats any more.
    pub(super) failed: Mutex<Option<ClientError>>,
    last_commit: AtomicU64,
}

/// The end of a life, seen by the coordinator. `FENCED_MEMBER_EPOCH` is none: who says so has not seen
/// yet what the member was told, and whether its session ends is seen without it.
pub(super) fn is_lost(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::UnknownMemberId | ErrorCode::GroupIdNotFound | ErrorCode::FencedInstanceId)
    )
}

/// An id that nobody else has drawn.
pub(super) fn draw() -> String {
    Uuid::new_v4().to_string()
}

impl Shared {
    pub(super) fn new(options: GroupOptions, coordinator: Coordinator) -> Self {
        Self {
            profile: Mutex::new(options.profile()),
            options,
            coordinator,
            member: Mutex::new(Member::new(draw())),
            news: Notify::new(),
            hurry: Notify::new(),
            failed: Mutex::default(),
            last_commit: AtomicU64::new(0),
        }
    }

    /// Orders a commit behind all before.
    pub(super) fn next_commit(&self) -> u64 {
        self.last_commit.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reads other topics from the next heartbeat on, which goes at once.
    pub(super) fn subscribe(&self, topics: Vec<String>) {
        self.profile.lock().topics = topics;
        self.hurry.notify_one();
    }

    /// Ends the member's life where its session is over.
    pub(super) fn expire(&self) {
        if self.member.lock().expire(Instant::now(), draw) {
            self.hurry.notify_one();
            self.news.notify_one();
        }
    }

    fn heartbeat(&self) -> Beat {
        let member = self.member.lock();
        let joins = member.epoch() == 0;
        let request = v1::HeartbeatRequest {
            group: self.options.group.clone(),
            member_id: member.id().to_owned(),
            member_epoch: member.epoch(),
            profile: Some(self.profile.lock().clone()),
            owned: member.owned(),
            leave: v1::Leave::No.into(),
            max_wait_ms: millis(member.interval()),
        };
        Beat {
            request,
            life: member.life(),
            // One that is lost leaves time for another in the session.
            patience: match member.ends() {
                Some(ends) if !joins => {
                    let half = ends.saturating_duration_since(Instant::now()) / 2;
                    half.max(member.interval()).min(member.interval() + GRACE)
                }
                _ => JOIN,
            },
            wait: member.interval(),
            ends: member.ends(),
        }
    }

    /// Leaves the group; what it had may go to others, unless it is a static member.
    ///
    /// # Errors
    /// [`ClientError`] where that was not heard: then the session ends by itself.
    pub(super) async fn leave(&self) -> Result<(), ClientError> {
        let for_now = self.options.instance_id.is_some();
        let leave = if for_now {
            v1::Leave::ForNow
        } else {
            v1::Leave::ForGood
        };
        let request = {
            let member = self.member.lock();
            v1::HeartbeatRequest {
                group: self.options.group.clone(),
                member_id: member.id().to_owned(),
                member_epoch: member.epoch(),
                leave: leave.into(),
                ..v1::HeartbeatRequest::default()
            }
        };
        let mut backoff = Backoff::new();
        let joined_by = Instant::now() + JOINING;
        loop {
            match self.say_farewell(&request).await {
                Err(error) if is_lost(&error) => {
                    let may_be_joining = request.member_epoch == 0 && Instant::now() < joined_by;
                    if !may_be_joining {
                        return Ok(());
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
                said => return said,
            }
        }
    }

    async fn say_farewell(&self, request: &v1::HeartbeatRequest) -> Result<(), ClientError> {
        // Where there is nobody to hear it the session ends by itself.
        let mut patience = Patience::new(self.coordinator.client().options().call_timeout);
        let call =
            |mut groups: GroupsClient<_>, request| async move { groups.heartbeat(request).await };
        let left = self.coordinator.until(request, JOIN, &mut patience, call);
        left.await.map(|_| ())
    }
}

/// A heartbeat as it is sent.
struct Beat {
    request: v1::HeartbeatRequest,
    life: u64,
    patience: Duration,
    wait: Duration,
    ends: Option<Instant>,
}

/// Waits for ever where there is no such time.
pub(super) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Sends heartbeats until it is dropped, or the coordinator refuses the member for good.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = Backoff::new();
    loop {
        shared.expire();
        let beat = shared.heartbeat();
        let sent = Instant::now();
        let call = shared.coordinator.once(
            &beat.request,
            beat.patience,
            |mut groups, request| async move { groups.heartbeat(request).await },
        );
        let answer = tokio::select! {
            answer = call => answer,
            () = shared.hurry.notified() => continue,
            () = until(beat.ends) => continue,
        };
        let pause = match answer {
            Ok(answer) => match shared.take(&beat, sent, &answer) {
                Ok(()) => {
                    backoff = Backoff::new();
                    // A node that does not wait for news is not asked all the time.
                    match beat.request.member_epoch == answer.member_epoch {
                        true => match beat.wait.saturating_sub(sent.elapsed()) {
                            rest if rest < beat.wait / REST => continue,
                            rest => rest,
                        },
                        false => continue,
                    }
                }
                Err(why) => {
                    tracing::warn!(group = shared.options.group, why, "unreadable heartbeat");
                    backoff.next()
                }
            },
            Err(error) if is_lost(&error) => {
                shared.lose(beat.life);
                backoff.next()
            }
            Err(error)
                if error.is_retriable() || error.code() == Some(ErrorCode::FencedMemberEpoch) =>
            {
                tracing::debug!(group = shared.options.group, %error, "no heartbeat");
                backoff.next()
            }
            Err(error) => {
                shared.lose(beat.life);
                *shared.failed.lock() = Some(error);
                shared.news.notify_one();
                return;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.hurry.notified() => {}
            () = until(beat.ends) => {}
        }
    }
}

impl Shared {
    fn take(
        &self,
        beat: &Beat,
        sent: Instant,
        answer: &v1::HeartbeatResponse,
    ) -> Result<(), String> {
        // One that comes after the end of its session does not bring it back.
        self.expire();
        let mut member = self.member.lock();
        if member.life() != beat.life {
            return Ok(());
        }
        let news = member.answered(sent, answer)?;
        drop(member);
        if news == News::Some {
            self.news.notify_one();
        }
        Ok(())
    }

    fn lose(&self, life: u64) {
        let mut member = self.member.lock();
        if member.life() == life {
            member.lose(draw());
            drop(member);
            self.news.notify_one();
        }
    }
}
