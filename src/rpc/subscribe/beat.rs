//! The member as its coordinator knows it: its id and epoch, when it was heard last, and the next
//! heartbeat.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_proto::v1;
use quorate_types::{ErrorCode, TopicPartition};
use quorate_wire::ErrorInfo;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::asking::RETRY;
use super::join::Join;
use crate::edge::Edge;
use crate::groups::by_topic;
use crate::status::told;

/// An answer takes no longer than this beside the time that it may wait for news.
const ANSWER: Duration = Duration::from_secs(10);
/// How long joining is tried where no coordinator takes it.
const JOINING: Duration = Duration::from_secs(30);
/// How long leaving is tried.
pub(super) const LEAVING: Duration = Duration::from_secs(5);

/// This node's clock may go by so much of a session slower than the coordinator's: an eighth.
const DRIFT: u32 = 8;

/// What became of a heartbeat.
pub(super) struct Beaten {
    sent: Instant,
    waited: Duration,
    result: Result<v1::HeartbeatResponse, ErrorInfo>,
}

/// What a heartbeat's answer means.
pub(super) enum Heard {
    /// What the member may read.
    Assigned {
        joined: bool,
        assigned: BTreeSet<TopicPartition>,
    },
    /// Nothing new: it is tried again.
    Nothing,
    /// It is no member any more.
    Lost,
    /// The call cannot go on.
    Failed(ErrorInfo),
}

pub(super) struct Member {
    pub(super) id: String,
    pub(super) epoch: u32,
    /// Of the last commit.
    pub(super) seq: u64,
    /// Its session may have ended then; none before it has joined.
    pub(super) ends: Option<Instant>,
    interval: Duration,
    session: Duration,
    backoff: Duration,
    /// How long joining is tried, and until when now.
    joining: Duration,
    join_until: Option<Instant>,
    /// The heartbeat under way.
    pub(super) beat: Option<BoxFuture<'static, Beaten>>,
    /// When the next one is due.
    pub(super) due: Instant,
}

impl Member {
    pub(super) fn new(edge: &Edge, join: &Join) -> Self {
        let timing = edge.broker().groups().timing();
        let session = match join.profile.session_timeout_ms {
            0 => timing.session.1,
            asked => Duration::from_millis(asked.into()),
        };
        // Of a static member whose former life has not left, a session may have to end first.
        let joining = if join.is_static() {
            JOINING.max(session + timing.heartbeat_interval)
        } else {
            JOINING
        };
        let now = Instant::now();
        Self {
            id: Uuid::new_v4().to_string(),
            epoch: 0,
            seq: 0,
            ends: None,
            interval: timing.heartbeat_interval,
            session,
            backoff: RETRY.0,
            joining,
            join_until: Some(now + joining),
            beat: None,
            due: now,
        }
    }

    /// Joins under a new id: the one before is not used again.
    pub(super) fn anew(&mut self) {
        self.id = Uuid::new_v4().to_string();
        self.epoch = 0;
        self.ends = None;
        self.beat = None;
        self.backoff = RETRY.0;
        let now = Instant::now();
        // A client whose node is cut off is to try another one.
        self.join_until = Some(now + self.joining);
        self.due = now;
    }

    /// Something is to be said: not after the answer that is waited for. A join is waited for.
    pub(super) fn hurry(&mut self) {
        if self.epoch > 0 {
            self.beat = None;
        }
        self.due = Instant::now();
    }

    /// Sends a heartbeat with all that the member has.
    pub(super) fn send(
        &mut self,
        edge: &Edge,
        join: &Join,
        host: &str,
        owned: impl Iterator<Item = TopicPartition>,
    ) {
        let joins = self.epoch == 0;
        let waits = if joins { Duration::ZERO } else { self.interval };
        let request = v1::HeartbeatRequest {
            group: join.group.clone(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            // It does not change.
            profile: joins.then(|| join.profile.clone()),
            owned: by_topic(&edge.image(), owned),
            leave: v1::Leave::No.into(),
            max_wait_ms: u32::try_from(waits.as_millis()).unwrap_or(u32::MAX),
        };
        let (edge, host) = (edge.clone(), host.to_owned());
        let sent = Instant::now();
        // One that is lost leaves time for another in the session.
        let patience = match self.ends {
            Some(ends) => (ends.saturating_duration_since(sent) / 2).max(waits),
            None => waits + ANSWER,
        };
        self.beat = Some(Box::pin(async move {
            let asked = edge.group_heartbeat(request, &host, false);
            let result = match timeout(patience.min(waits + ANSWER), asked).await {
                Ok(answer) => answer.map_err(|status| told(&status)),
                Err(_elapsed) => {
                    let message = "the group's coordinator does not answer";
                    Err(ErrorInfo::new(ErrorCode::RequestTimedOut, message))
                }
            };
            Beaten {
                sent,
                waited: sent.elapsed(),
                result,
            }
        }));
    }

    /// Takes the answer to the heartbeat that was under way.
    pub(super) fn heard(&mut self, edge: &Edge, beaten: Beaten) -> Heard {
        self.beat = None;
        let answer = match beaten.result {
            Ok(answer) => answer,
            Err(error) => return self.refused(error),
        };
        // Of before the last one: a newer answer was here already.
        if answer.member_epoch < self.epoch {
            return self.later();
        }
        self.backoff = RETRY.0;
        // The coordinator may know of a topic that this node does not show yet.
        let assigned = match edge.named(&answer.assigned) {
            Ok(assigned) => assigned,
            Err(error) => return Heard::Failed(error),
        };
        let (news, joined) = (answer.member_epoch != self.epoch, self.epoch == 0);
        self.epoch = answer.member_epoch;
        self.session = Duration::from_millis(answer.session_timeout_ms.into());
        self.interval = Duration::from_millis(answer.heartbeat_interval_ms.into());
        self.join_until = None;
        self.ends = Some(beaten.sent + self.session - self.session / DRIFT);
        // Where the coordinator lets nobody wait, it is not asked on and on.
        let early = !news && beaten.waited < self.interval / 2;
        self.due = if early {
            beaten.sent + self.interval / 2
        } else {
            Instant::now()
        };
        Heard::Assigned { joined, assigned }
    }

    fn refused(&mut self, error: ErrorInfo) -> Heard {
        let joins = self.epoch == 0;
        match error.code {
            // A former coordinator that is cut off says so, too: the session's end decides.
            ErrorCode::FencedMemberEpoch if !joins => {}
            ErrorCode::UnknownMemberId if !joins => return Heard::Lost,
            code if code.is_retriable() => {
                if self.join_until.is_some_and(|until| Instant::now() >= until) {
                    return Heard::Failed(error);
                }
            }
            _ => return Heard::Failed(error),
        }
        self.later()
    }

    fn later(&mut self) -> Heard {
        self.due = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(RETRY.1);
        Heard::Nothing
    }

    /// Says that it leaves; where that reaches nobody in time, its session ends.
    pub(super) async fn leave(&mut self, edge: &Edge, join: &Join, host: &str, how: v1::Leave) {
        // Who is about to join is a member when that is decided, and not before.
        if let Some(join) = self.beat.take_if(|_| self.epoch == 0) {
            let _joined = timeout(LEAVING, join).await;
        }
        self.beat = None;
        let request = v1::HeartbeatRequest {
            group: join.group.clone(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            leave: how.into(),
            ..v1::HeartbeatRequest::default()
        };
        let until = Instant::now() + LEAVING;
        let left = super::asking::asked(Some(until), || {
            edge.group_heartbeat(request.clone(), host, false)
        });
        let _left = timeout(LEAVING, left).await;
    }
}
