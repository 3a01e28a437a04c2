//! The task that owns the coordinator of this node's groups: brings it heartbeats, images, time and
//! outcomes, and carries out what it wants. It ends with the broker, and whoever waits is told.
//!
//! Bounds: the inbox; proposals under way, and what is in one ([`Gathered`]). Heartbeats that wait are
//! bounded by the requests that the edge lets in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use quorate_group::{
    Action, Answer, Context, Coordinator, GroupError, GroupTiming, Heartbeat, ProposalId,
    ProposalResult, RequestId,
};
use quorate_metadata::{
    AlterGroup, Command, GROUP_SHARDS, MemberChange, MemberProfile, MetadataImage, Outcome,
    RefusedItem, Shard,
};
use quorate_quorum::QuorumHandle;
use quorate_types::{CoordinatorEpoch, GroupId, GroupShard, MemberId, NodeId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, ControllerContact};
use crate::gathered::{Gathered, IN_FLIGHT, Size};
use crate::group_commits::{self, Commit, Committed, Piece};

/// Requests that may wait for the runner.
pub(crate) const WAITING: usize = 4_096;
/// Requests taken at a time: time and outcomes are looked at in between.
const AT_ONCE: usize = 256;
/// Time passes for the coordinator at least so often.
const TICK: Duration = Duration::from_millis(50);
/// How long a change of groups is tried. Then its outcome is unknown, and the coordinator decides.
const TRIED: Duration = Duration::from_secs(2);

/// What the runner is asked for.
pub(crate) enum GroupMail {
    Heartbeat {
        beat: Heartbeat,
        answer: oneshot::Sender<Result<Answer, GroupError>>,
    },
    Delete {
        group: GroupId,
        answer: oneshot::Sender<Result<Answer, GroupError>>,
    },
    Commit(Piece),
}

/// Who coordinates each shard, by its number.
pub type Coordinators = Arc<Vec<Shard>>;

pub(crate) struct GroupRunner {
    pub(crate) quorum: QuorumHandle,
    pub(crate) clock: Clock,
    pub(crate) contact: ControllerContact,
    pub(crate) timing: GroupTiming,
    pub(crate) coordinators: watch::Sender<Coordinators>,
}

/// A proposal that has an outcome.
enum Decided {
    Altered {
        ids: Vec<ProposalId>,
        /// None: not known.
        refused: Option<Vec<RefusedItem>>,
    },
    Committed {
        committed: Committed,
        numbered: bool,
    },
}

/// What the runner has at hand while it runs.
struct Running {
    core: Coordinator,
    image: Arc<MetadataImage>,
    quorum: QuorumHandle,
    timing: GroupTiming,
    answers: BTreeMap<RequestId, oneshot::Sender<Result<Answer, GroupError>>>,
    next_request: RequestId,
    alters: Gathered<(ProposalId, AlterGroup)>,
    commits: Gathered<Commit>,
    /// Commits that nobody numbered: the later one is to win, so that one proposal waits for another.
    unnumbered: Gathered<Commit>,
    proposals: JoinSet<Decided>,
    figures: Figures,
}

struct Figures {
    heartbeats: Counter,
    items: Counter,
    commit_proposals: Counter,
    changes: Counter,
    proposals: Counter,
    groups: Gauge,
}

impl GroupRunner {
    pub(crate) async fn run(self, inbox: mpsc::Receiver<GroupMail>, cancel: CancellationToken) {
        // Whoever waits still is told by the end of the channel to it.
        cancel.run_until_cancelled(self.work(inbox)).await;
    }

    async fn work(self, mut inbox: mpsc::Receiver<GroupMail>) {
        let mut images = self.quorum.images();
        let mut running = Running {
            core: Coordinator::new(self.quorum.node(), self.timing, self.clock.now()),
            image: images.borrow_and_update().clone(),
            quorum: self.quorum.clone(),
            timing: self.timing,
            answers: BTreeMap::new(),
            next_request: RequestId(0),
            alters: Gathered::new(IN_FLIGHT),
            commits: Gathered::new(IN_FLIGHT),
            unnumbered: Gathered::new(1),
            proposals: JoinSet::new(),
            figures: Figures::new(),
        };
        let mut mail = Vec::with_capacity(AT_ONCE);
        let mut ticked = self.clock.now();
        self.show(&mut running);
        loop {
            let due = running.core.next_deadline().unwrap_or(Duration::MAX);
            let due = due.min(ticked + TICK);
            tokio::select! {
                taken = inbox.recv_many(&mut mail, AT_ONCE) => if taken == 0 { return },
                changed = images.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    running.image = images.borrow_and_update().clone();
                    self.show(&mut running);
                }
                Some(decided) = running.proposals.join_next() => match decided {
                    Ok(decided) => self.with(&mut running, |running, cx, out| {
                        running.decided(decided, cx, out);
                    }),
                    // A panic that has been told; whoever waited knows by the end of its channel.
                    Err(_died) => return,
                },
                () = sleep(due.saturating_sub(self.clock.now())) => {}
            }
            for mail in mail.drain(..) {
                self.with(&mut running, |running, cx, out| running.take(mail, cx, out));
            }
            // Whatever else there is: sessions end in time.
            if self.clock.now() >= due {
                ticked = self.clock.now();
                self.with(&mut running, |running, cx, out| running.core.tick(cx, out));
                running
                    .figures
                    .groups
                    .set(running.core.active_groups() as f64);
            }
            running.propose();
        }
    }

    /// Shows the newest image to the coordinator, and to those who follow who coordinates what.
    fn show(&self, running: &mut Running) {
        self.with(running, |running, cx, out| running.core.take_image(cx, out));
        let image = &running.image;
        self.coordinators.send_if_modified(|known| {
            let now = (0..GROUP_SHARDS).map(|shard| image.shard(GroupShard::new(shard)));
            let changed = !now.clone().eq(known.iter().copied());
            if changed {
                *known = Arc::new(now.collect());
            }
            changed
        });
    }

    fn with(
        &self,
        running: &mut Running,
        event: impl FnOnce(&mut Running, &Context<'_>, &mut Vec<Action>),
    ) {
        let image = Arc::clone(&running.image);
        let cx = Context {
            now: self.clock.now(),
            wall: Clock::wall(),
            controller_contact: self.contact.last(),
            image: &image,
        };
        let mut out = Vec::new();
        event(running, &cx, &mut out);
        out.into_iter().for_each(|action| running.act(action));
    }
}

impl Running {
    fn take(&mut self, mail: GroupMail, cx: &Context<'_>, out: &mut Vec<Action>) {
        match mail {
            GroupMail::Heartbeat { beat, answer } => {
                self.figures.heartbeats.increment(1);
                let request = self.name(answer);
                self.core.heartbeat(cx, request, beat, out);
            }
            GroupMail::Delete { group, answer } => {
                let request = self.name(answer);
                self.core.delete(cx, request, &group, out);
            }
            GroupMail::Commit(piece) => match self.may_commit(&piece, cx) {
                Ok(epoch) => {
                    let size = group_commits::size(piece.by.as_ref(), &piece.offsets);
                    let numbered = piece.by.as_ref().is_some_and(|by| by.seq.is_some());
                    self.commits(numbered).push(Commit { piece, epoch }, size);
                }
                Err(error) => {
                    let _gone = piece.answer.send(Err(error));
                }
            },
        }
    }

    /// Whether a commit is worth a proposal, and at which epoch. Who has been told that it is a member
    /// is one in this image; what else is to be judged is judged where it is applied.
    fn may_commit(&self, piece: &Piece, cx: &Context<'_>) -> Result<CoordinatorEpoch, GroupError> {
        let epoch = self.core.check(cx, &piece.group)?;
        let groups = self.image.groups();
        let group = groups.get(&piece.group);
        match (&piece.by, group) {
            (None, None) if groups.len() >= self.timing.max_groups => {
                Err(GroupError::TooManyGroups(groups.len()))
            }
            (None, Some(group)) if !group.members.is_empty() => {
                Err(GroupError::NonEmpty(group.members.len()))
            }
            (Some(by), group)
                if group.is_none_or(|group| !group.members.contains_key(&by.member)) =>
            {
                Err(GroupError::UnknownMember(by.member.clone()))
            }
            _ => Ok(epoch),
        }
    }

    fn name(&mut self, answer: oneshot::Sender<Result<Answer, GroupError>>) -> RequestId {
        self.next_request.0 += 1;
        self.answers.insert(self.next_request, answer);
        self.next_request
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Propose { id, change } => {
                tell(&change);
                let size = size(&change);
                self.alters.push((id, change), size);
            }
            Action::Answer { request, result } => {
                if let Some(answer) = self.answers.remove(&request) {
                    let _gone = answer.send(result);
                }
            }
        }
    }

    /// Begins as many proposals as may be under way.
    fn propose(&mut self) {
        while let Some(changes) = self.alters.next(|_| true) {
            self.figures.proposals.increment(1);
            self.figures.changes.increment(changes.len() as u64);
            let quorum = self.quorum.clone();
            self.proposals.spawn(alter(quorum, changes));
        }
        for numbered in [true, false] {
            let wanted = |commit: &Commit| !commit.piece.answer.is_closed();
            while let Some(commits) = self.commits(numbered).next(wanted) {
                self.figures.commit_proposals.increment(1);
                let items = commits.iter().map(|commit| commit.piece.offsets.len());
                self.figures.items.increment(items.sum::<usize>() as u64);
                let proposed = group_commits::propose(self.quorum.clone(), commits);
                self.proposals.spawn(async move {
                    Decided::Committed {
                        committed: proposed.await,
                        numbered,
                    }
                });
            }
        }
    }

    fn commits(&mut self, numbered: bool) -> &mut Gathered<Commit> {
        if numbered {
            &mut self.commits
        } else {
            &mut self.unnumbered
        }
    }

    fn decided(&mut self, decided: Decided, cx: &Context<'_>, out: &mut Vec<Action>) {
        match decided {
            Decided::Altered { ids, refused } => {
                self.alters.ended();
                for (group, id) in (0..).zip(ids) {
                    let result = match &refused {
                        None => ProposalResult::Unknown,
                        Some(refused) => {
                            let own = refused.iter().find(|item| item.group == group);
                            own.map_or(ProposalResult::Applied, |item| {
                                ProposalResult::Refused(item.code)
                            })
                        }
                    };
                    self.core.proposed(cx, id, result, out);
                }
            }
            Decided::Committed {
                committed,
                numbered,
            } => {
                self.commits(numbered).ended();
                committed.answer(|group| elsewhere(cx.image, self.quorum.node(), group));
            }
        }
    }
}

/// Another node coordinates the group, or will know soon that it does.
pub(crate) fn elsewhere(image: &MetadataImage, me: NodeId, group: &GroupId) -> GroupError {
    let coordinator = image.coordinator(group).coordinator;
    GroupError::NotCoordinator {
        coordinator: coordinator.filter(|node| *node != me),
    }
}

/// Proposes changes of groups as one command.
async fn alter(quorum: QuorumHandle, changes: Vec<(ProposalId, AlterGroup)>) -> Decided {
    let (ids, changes): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
    let outcomes = quorum
        .propose(vec![Command::AlterGroups { changes }], TRIED)
        .await;
    let first = outcomes.map(|outcomes| outcomes.into_iter().next());
    let refused = match first {
        Ok(Some(Outcome::Judged { refused })) => Some(refused),
        // As a whole: nothing of it.
        Ok(Some(Outcome::Refused(refusal))) => {
            let code = refusal.code;
            let all = (0..).take(ids.len()).map(|group| RefusedItem {
                group,
                item: 0,
                code,
            });
            Some(all.collect())
        }
        Ok(_) | Err(_) => None,
    };
    Decided::Altered { ids, refused }
}

/// Says in the log who comes and goes, of some by their names.
fn tell(change: &AlterGroup) {
    const NAMED: usize = 4;
    let group = &change.group;
    if change.delete {
        tracing::info!(%group, "the group is to be deleted");
        return;
    }
    let names = |members: Vec<&MemberId>| {
        let named = members.iter().take(NAMED).map(ToString::to_string);
        let mut names: Vec<String> = named.collect();
        if members.len() > NAMED {
            names.push(format!("{} more", members.len() - NAMED));
        }
        names.join(", ")
    };
    let says = |member: &&MemberChange| member.profile.is_some();
    let coming = change.members.iter().filter(says).map(|of| &of.member);
    let (coming, gone) = (names(coming.collect()), names(change.gone.iter().collect()));
    if !coming.is_empty() {
        tracing::info!(%group, members = coming, "join the group, or change what they read");
    }
    if !gone.is_empty() {
        tracing::info!(%group, members = gone, "leave the group, or their sessions are over");
    }
}

/// How much a change takes, about.
fn size(change: &AlterGroup) -> Size {
    const PARTITION: usize = 64;
    const MEMBER: usize = 320;
    let profile = |profile: &MemberProfile| {
        let topics = profile.topics.iter().map(|topic| topic.as_str().len() + 3);
        topics.sum::<usize>() + profile.client_id.len() + profile.client_host.len()
    };
    let members = change.members.iter().map(|member| {
        let lists = member.release.len() + member.revoke.len() + member.assign.len();
        MEMBER + PARTITION * lists + member.profile.as_ref().map_or(0, profile)
    });
    Size {
        items: change.gone.len() + change.members.len().max(1),
        bytes: MEMBER * (1 + change.gone.len()) + members.sum::<usize>(),
    }
}

impl Figures {
    fn new() -> Self {
        Self {
            heartbeats: counter!("quorate_group_heartbeats_total"),
            items: counter!("quorate_group_commit_items_total"),
            commit_proposals: counter!("quorate_group_commit_proposals_total"),
            changes: counter!("quorate_group_changes_total"),
            proposals: counter!("quorate_group_change_proposals_total"),
            groups: gauge!("quorate_groups_coordinated"),
        }
    }
}
