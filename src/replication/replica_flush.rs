//! Flushes and failures of the disk (R6, R13), and what the quorum must be told of them.

use std::time::Duration;

use quorate_log::{Dir, FlushDone, LogError};
use quorate_metadata::{Command, Registration, ReportDataLoss};
use quorate_types::{LeaderEpoch, Offset};
use tracing::{error, warn};

use crate::Faults;
use crate::events::{Action, Context, ProposalId, ProposalResult};
use crate::replica::{Replica, Role};

/// Something that the quorum must hear: sent until it is decided.
pub(crate) struct Notice {
    command: Command,
    id: Option<ProposalId>,
    again_at: Duration,
}

/// How long a log whose disk failed again and again is left alone: each return of a replica costs all
/// the others a leader epoch.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Duration,
}

/// The first failure costs no time, the second so long, then twice as long each time.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Who has gone on for so long has a disk that works.
const WORKS: Duration = Duration::from_secs(60);

impl Backoff {
    fn failed(&mut self, now: Duration) {
        if now > self.until + WORKS {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            more => (BACKOFF * (1 << (more - 1).min(5))).min(BACKOFF_MAX),
        };
        self.failures += 1;
        self.until = now + wait;
    }

    pub(crate) fn is_over(&self, now: Duration) -> bool {
        now >= self.until
    }
}

impl<D: Dir, F: Faults> Replica<D, F> {
    pub(crate) fn start_flush(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        if matches!(self.role, Role::Failed(_) | Role::Damaged) {
            return;
        }
        if let Some(ticket) = self.log.start_flush() {
            self.flushing_since = Some(now);
            out.push(Action::Flush(ticket));
        }
    }

    pub(crate) fn flushed(&mut self, cx: &Context<'_>, done: FlushDone, out: &mut Vec<Action<D>>) {
        self.flushing_since = None;
        if let Err(error) = self.log.complete_flush(done) {
            return self.fail(cx, &error.to_string(), out);
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.flushed(&mut self.log);
        }
    }

    /// R6: a leader whose own flush hangs cannot acknowledge; somebody else may.
    pub(crate) fn check_flush(&mut self, now: Duration) {
        let hangs = self
            .flushing_since
            .is_some_and(|since| now.saturating_sub(since) > self.timing.replica_lag_time_max);
        // Nobody may be there to take it: then it is tried again after as long.
        let lately = self
            .resigned_at
            .is_some_and(|at| now.saturating_sub(at) < self.timing.replica_lag_time_max);
        if let (true, false, None, Role::Leader(leader)) = (hangs, lately, &self.notice, &self.role)
        {
            self.resigned_at = Some(now);
            warn!(
                partition = %self.log.name(),
                "the disk takes too long: leadership resigned"
            );
            let command = Command::ResignLeadership {
                partition: self.id,
                leader: leader.view.me,
                leader_epoch: leader.epoch,
            };
            self.notice = Some(Notice {
                command,
                id: None,
                again_at: now,
            });
        }
    }

    /// R13: what was not synced must be taken for lost and is never synced again. Nothing is acked
    /// or appended any more; the quorum hears of it. The log stays as it is while this replica may be
    /// elected: what it has acked from the page cache is still there, for a process that comes after
    /// this one, too.
    pub(crate) fn fail(&mut self, cx: &Context<'_>, why: &str, out: &mut Vec<Action<D>>) {
        error!(partition = %self.log.name(), why, "the log failed");
        if matches!(self.role, Role::Damaged) {
            // It has stopped, and the quorum hears of it: only its next start, which checks every
            // batch, brings it back.
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.abandon(out);
        }
        let epoch = self
            .view
            .as_ref()
            .map(|view| view.registration.leader_epoch);
        if !matches!(self.role, Role::Failed(_)) {
            self.recovery.failed(cx.now);
        }
        self.role = Role::Failed(epoch.unwrap_or(LeaderEpoch::ZERO));
        self.flushing_since = None;
        self.report_damaged(cx.now, why);
        out.push(Action::Status);
    }

    /// R13: whether a replica whose disk failed may take a role again, by this registration: where the
    /// cluster has taken note. Then its log is cut to the last good sync.
    pub(crate) fn recovers(
        &mut self,
        cx: &Context<'_>,
        failed: LeaderEpoch,
        registration: &Registration,
    ) -> bool {
        // Until the report is decided, a proposal of before may still bring it into the ISR.
        if self.notice.is_some() {
            return false;
        }
        let electable = registration.isr.contains(&self.me) || registration.elr.contains(&self.me);
        if electable {
            let told = registration.leader_epoch > failed;
            if told && registration.leader == Some(self.me) {
                if !registration.fsync_established {
                    // The cut would lose what counts: another one, or its next start.
                    self.role = Role::Failed(registration.leader_epoch);
                    self.report_damaged(cx.now, "its disk failed");
                } else if !self.recovery.is_over(cx.now) {
                    self.role = Role::Failed(registration.leader_epoch);
                    self.report_damaged(cx.now, "its disk failed again and again");
                    return false;
                }
            }
            if !told || !registration.fsync_established {
                return false;
            }
        } else if let Some(unclean_epoch) = registration.unclean_epoch
            && Some(unclean_epoch) > self.log.last_record_epoch()
            && self.log.flushed_end() < self.log.log_end()
            && !registration.tells_of(unclean_epoch, self.log.flushed_end(), self.log.log_end())
        {
            // R7: what goes with the cut may have counted before that election.
            if let Some(view) = &self.view
                && self.told_loss_at < Some(view.applied)
            {
                self.told_loss_at = Some(view.applied);
                let report = ReportDataLoss {
                    partition: self.id,
                    node: self.me,
                    broker_epoch: view.my_epoch,
                    unclean_epoch,
                    from: self.log.flushed_end(),
                    to: Some(self.log.log_end()),
                };
                self.report_loss(cx.now, report);
            }
            return false;
        }
        if !self.recovery.is_over(cx.now) {
            return false;
        }
        if let Err(error) = self.log.cut_to_flushed() {
            if matches!(error, LogError::Corrupt { .. }) {
                error!(partition = %self.log.name(), %error, "the log cannot be cut: replica stops");
                self.stop_damaged(&error.to_string());
                self.report_damaged(cx.now, &error.to_string());
            } else if matches!(error, LogError::Failed(_)) {
                error!(partition = %self.log.name(), %error, "only a start mends the log: replica stops");
                self.role = Role::Damaged;
                self.report_damaged(cx.now, &error.to_string());
            } else {
                warn!(partition = %self.log.name(), %error, "the log cannot be cut yet");
                self.recovery.failed(cx.now);
                if registration.leader == Some(self.me) {
                    self.role = Role::Failed(registration.leader_epoch);
                    self.report_damaged(cx.now, &error.to_string());
                }
            }
            return false;
        }
        true
    }

    /// R13: a batch of this log cannot be read from the disk. Another in-sync replica has it: this
    /// one gives way, and its next start checks every batch. The only one goes on with what it has:
    /// nobody could do better.
    pub(crate) fn unreadable(&mut self, cx: &Context<'_>, why: String, out: &mut Vec<Action<D>>) {
        if matches!(self.role, Role::Damaged) {
            return;
        }
        let isr = self.view.as_ref().map(|view| &view.registration.isr);
        if isr.is_some_and(|isr| isr.iter().all(|member| *member == self.me)) {
            if self.unreadable.as_ref() != Some(&why) {
                error!(
                    partition = %self.log.name(),
                    why, "the only in-sync replica is damaged"
                );
                self.unreadable = Some(why);
            }
            return;
        }
        error!(
            partition = %self.log.name(),
            why, "replica is damaged and stops"
        );
        self.leave_role(out);
        self.stop_damaged(&why);
        self.report_damaged(cx.now, &why);
        out.push(Action::Status);
    }

    fn stop_damaged(&mut self, why: &str) {
        self.role = Role::Damaged;
        if let Err(error) = self.log.mark_damaged(why) {
            error!(partition = %self.log.name(), %error, "the next start may not know of the damage");
        }
    }

    pub(crate) fn report_damaged(&mut self, now: Duration, why: &str) {
        let Some(view) = &self.view else { return };
        let command = Command::ReportReplicaDamaged {
            partition: self.id,
            node: view.me,
            broker_epoch: view.my_epoch,
            found: why.to_owned(),
        };
        self.notice = Some(Notice {
            command,
            id: None,
            again_at: now,
        });
    }

    /// R7: the cluster must hear of it before this replica cuts what it has.
    pub(crate) fn report_loss(&mut self, now: Duration, report: ReportDataLoss) {
        if self.notice.is_none() {
            let ReportDataLoss {
                unclean_epoch,
                from,
                to,
                ..
            } = report;
            warn!(partition = %self.log.name(), %unclean_epoch, %from, ?to, "lost by an unclean election");
            self.notice = Some(Notice {
                command: Command::ReportDataLoss(report),
                id: None,
                again_at: now,
            });
        }
    }

    /// R7: where the history that an unclean election chose begins to differ from what was there
    /// before. Whoever leads tells, until it is on record: the first one may have ended.
    pub(crate) fn tell_unclean_start(&mut self, now: Duration) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let view = &leader.view;
        let registration = &view.registration;
        let Some(unclean_epoch) = registration.unclean_epoch else {
            return;
        };
        let on_record = registration.losses.last().map(|loss| loss.epoch);
        if on_record >= Some(unclean_epoch) || self.told_loss_at >= Some(view.applied) {
            return;
        }
        let epochs = self.log.epochs().entries();
        let began = epochs.iter().find(|(epoch, _)| *epoch >= unclean_epoch);
        let report = ReportDataLoss {
            partition: self.id,
            node: self.me,
            broker_epoch: view.my_epoch,
            unclean_epoch,
            from: began.map_or(leader.epoch_start, |(_, first)| *first),
            to: None,
        };
        if self.notice.is_none() {
            self.told_loss_at = Some(view.applied);
            self.report_loss(now, report);
        }
    }

    /// The log begins later from now on.
    pub(crate) fn delete_before(
        &mut self,
        cx: &Context<'_>,
        offset: Offset,
        out: &mut Vec<Action<D>>,
    ) {
        if matches!(self.role, Role::Leader(_))
            && let Err(error) = self.log.delete_before(offset)
        {
            self.fail(cx, &error.to_string(), out);
        }
    }

    pub(crate) fn send_notice(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        if let Some(notice) = &mut self.notice
            && notice.id.is_none()
            && notice.again_at <= now
        {
            self.next_proposal.0 += 1;
            notice.id = Some(self.next_proposal);
            let command = notice.command.clone();
            out.push(Action::Propose {
                id: self.next_proposal,
                command,
            });
        }
    }

    pub(crate) fn proposed(&mut self, cx: &Context<'_>, id: ProposalId, result: ProposalResult) {
        if let Some(notice) = &mut self.notice
            && notice.id == Some(id)
        {
            match result {
                ProposalResult::Unknown => {
                    notice.id = None;
                    notice.again_at = cx.now + self.timing.proposal_retry;
                }
                ProposalResult::Applied | ProposalResult::Refused(_) => self.notice = None,
            }
        } else if let Role::Leader(leader) = &mut self.role {
            leader.proposed(self.log.name(), id, result, &self.timing, cx.now);
        }
    }

    pub(crate) fn checkpoint_if_due(&mut self, cx: &Context<'_>, out: &mut Vec<Action<D>>) {
        let due = cx.now.saturating_sub(self.checkpointed_at) >= self.timing.checkpoint_interval;
        if !due || matches!(self.role, Role::Failed(_) | Role::Damaged) {
            return;
        }
        self.checkpointed_at = cx.now;
        if let Err(error) = self.log.checkpoint() {
            self.fail(cx, &error.to_string(), out);
        }
    }
}
