//! The broker's shell around the shipped coordinator: it passes requests to it, tells it the time,
//! the image and when the controller was last heard, and proposes what it decides, some changes at a
//! time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quorate_group::{Action, Context, Coordinator, ProposalId, ProposalResult, RequestId};
use quorate_metadata::{AlterGroup, Command, GroupCommit, MetadataImage, Outcome};
use quorate_types::{ErrorCode, NodeId, Timestamp};
use rand::Rng;

use super::asks::What;
use super::{AskId, GroupEvent, Reply};
use crate::sim::node::Asked;
use crate::sim::schedule::{Scheduled, ms, us};
use crate::sim::trace::note;
use crate::sim::world::World;

/// How often a coordinator looks at the time.
const TICK: Duration = ms(10);
/// Changes or commits that go in one proposal.
const AT_A_TIME: usize = 4;

/// What a proposal carried.
#[derive(Debug, Clone)]
pub(in crate::sim) enum ProposedGroups {
    Changes(Vec<ProposalId>),
    Commits(Vec<(AskId, GroupCommit)>),
}

/// What one process has of groups.
pub(in crate::sim) struct Host {
    coordinator: Coordinator,
    /// By the node's clock; the process counts its time from then, as the shipped one does.
    began: Duration,
    /// When the controller was last heard: zero, as in the shipped one, before the first time.
    contact: Duration,
    /// Answers of the controller that count once the image is as far.
    heard: VecDeque<(Duration, usize)>,
    requests: BTreeMap<RequestId, AskId>,
    changes: VecDeque<(ProposalId, AlterGroup)>,
    pub(super) commits: VecDeque<(AskId, GroupCommit)>,
    /// Reads that wait for the image to get there.
    pub(super) reads: Vec<(usize, AskId)>,
    proposes: bool,
}

impl Host {
    fn since(&self, clock: Duration) -> Duration {
        clock.saturating_sub(self.began)
    }
}

impl World {
    /// The coordinator of a process that starts.
    pub(in crate::sim) fn host_groups(&self, node: NodeId, clock: Duration) -> Option<Box<Host>> {
        let timing = self.groups.as_ref()?.plan.timing;
        let began = clock.saturating_sub(ms(1));
        let coordinator = (self.cores.coordinator)(node, timing, ms(1));
        Some(Box::new(Host {
            coordinator,
            began,
            contact: Duration::ZERO,
            heard: VecDeque::new(),
            requests: BTreeMap::new(),
            changes: VecDeque::new(),
            commits: VecDeque::new(),
            reads: Vec::new(),
            proposes: false,
        }))
    }

    pub(in crate::sim) fn group_event(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Turn { seat, life } => self.member_turn(seat, life),
            GroupEvent::Starts { seat } => self.member_starts(seat),
            GroupEvent::GivenUp {
                seat,
                life,
                partition,
                mark,
            } => self.partition_given_up(seat, life, partition, mark),
            GroupEvent::AskArrives { ask } => self.ask_arrives(ask),
            GroupEvent::Answered { ask, reply } => self.ask_answered(ask, reply),
            GroupEvent::Tick { node, life } => {
                self.with_coordinator(node, |of, cx, out| of.tick(cx, out));
                self.at(TICK, Scheduled::Group(GroupEvent::Tick { node, life }));
            }
            GroupEvent::Propose { node, .. } => self.propose_for_groups(node),
            GroupEvent::ReadConfirmed { node, ask, .. } => self.read_confirmed(node, ask),
            GroupEvent::Deletes { group, tries } => self.group_is_deleted(group, tries),
            GroupEvent::Fault => self.group_fault(),
        }
    }

    /// A process has started.
    pub(in crate::sim) fn groups_start(&mut self, node: NodeId) {
        let life = self.life(node);
        if self.groups.is_some() {
            self.groups_see_image(node);
            self.at(TICK, Scheduled::Group(GroupEvent::Tick { node, life }));
        }
    }

    /// Lets a node's coordinator do something, and carries out what it wants.
    fn with_coordinator(
        &mut self,
        node: NodeId,
        act: impl FnOnce(&mut Coordinator, &Context<'_>, &mut Vec<Action>),
    ) {
        let (clock, wall) = (self.clock_of(node), self.nodes[&node].clock.wall(self.now));
        let Some(image) = self.image_of(node) else {
            return;
        };
        let Some(host) = self.host(node) else {
            return;
        };
        let cx = host.context(clock, wall, &image);
        let mut out = Vec::new();
        act(&mut host.coordinator, &cx, &mut out);
        for action in out {
            self.carry_out_for_groups(node, action);
        }
    }

    pub(super) fn host(&mut self, node: NodeId) -> Option<&mut Host> {
        self.process_mut(node)?.groups.as_deref_mut()
    }

    pub(super) fn image_of(&self, node: NodeId) -> Option<Arc<MetadataImage>> {
        let process = self.process(node)?;
        Some(Arc::clone(&self.quorum.images[process.image]))
    }

    /// The controller has answered what the process sent at `sent`; it had applied so much then.
    pub(in crate::sim) fn groups_hear(&mut self, node: NodeId, sent: Duration, applied: usize) {
        if let Some(host) = self.host(node) {
            let sent = host.since(sent);
            host.heard.push_back((sent, applied));
        }
        self.count_contact(node);
    }

    /// The shipped shell counts an answer of the controller only once its own image is as far as the
    /// controller's was.
    fn count_contact(&mut self, node: NodeId) {
        let reached = self.process(node).map_or(0, |process| process.image);
        let Some(host) = self.host(node) else {
            return;
        };
        while let Some((sent, needed)) = host.heard.front().copied()
            && needed <= reached
        {
            host.contact = host.contact.max(sent);
            host.heard.pop_front();
        }
    }

    pub(in crate::sim) fn groups_see_image(&mut self, node: NodeId) {
        if self.groups.is_none() {
            return;
        }
        self.count_contact(node);
        self.with_coordinator(node, |of, cx, out| of.take_image(cx, out));
        self.serve_reads(node);
    }

    /// What a member sent arrives.
    fn ask_arrives(&mut self, id: AskId) {
        let Some(groups) = self.groups.as_mut() else {
            return;
        };
        let Some(ask) = groups.asks.get(&id).cloned() else {
            return;
        };
        let request = groups.name_request();
        let node = ask.to;
        match ask.what {
            What::Beat(beat) => {
                let Some(host) = self.host(node) else {
                    return;
                };
                host.requests.insert(request, id);
                self.with_coordinator(node, |of, cx, out| of.heartbeat(cx, request, beat, out));
            }
            What::Commit(by, offsets) => self.commit_arrives(node, id, ask.group, by, offsets),
            What::Fetch(_) => self.fetch_arrives(node, id, ask.group),
            What::Delete => {
                let group = groups.ids[ask.group].clone();
                let Some(host) = self.host(node) else {
                    return;
                };
                host.requests.insert(request, id);
                self.with_coordinator(node, |of, cx, out| of.delete(cx, request, &group, out));
            }
        }
    }

    /// Whether a node coordinates a group, and may say so.
    pub(super) fn coordinates(
        &mut self,
        node: NodeId,
        group: usize,
    ) -> Option<Result<quorate_types::CoordinatorEpoch, Reply>> {
        let (clock, wall) = (self.clock_of(node), self.nodes[&node].clock.wall(self.now));
        let image = self.image_of(node)?;
        let id = self.groups.as_ref()?.ids[group].clone();
        let host = self.host(node)?;
        let checked = host
            .coordinator
            .check(&host.context(clock, wall, &image), &id);
        Some(checked.map_err(|error| match error {
            quorate_group::GroupError::NotCoordinator { coordinator } => {
                Reply::Elsewhere(coordinator)
            }
            _ => Reply::Elsewhere(None),
        }))
    }

    fn carry_out_for_groups(&mut self, node: NodeId, action: Action) {
        match action {
            Action::Propose { id, change } => {
                let seen = self.process(node).map_or(0, |process| process.image as u64);
                if let Some(groups) = &mut self.groups {
                    groups.deletions.propose(&change, seen);
                }
                if let Some(host) = self.host(node) {
                    host.changes.push_back((id, change));
                }
                self.propose_soon(node);
            }
            Action::Answer { request, result } => {
                let ask = self.host(node).and_then(|of| of.requests.remove(&request));
                let Some(ask) = ask else {
                    return self.violate(None, format!("node {node} answers {request:?} again"));
                };
                match &result {
                    Err(error) => note!(self, None, "node {node} refuses {ask:?}: {error}"),
                    Ok(of) => note!(self, None, "node {node} answers {ask:?}: {}", of.epoch),
                }
                self.reply(ask, Reply::Beat(result));
            }
        }
    }

    pub(super) fn propose_soon(&mut self, node: NodeId) {
        let life = self.life(node);
        let Some(host) = self.host(node) else {
            return;
        };
        if !std::mem::replace(&mut host.proposes, true)
            && let Some(groups) = &mut self.groups
        {
            let wait = us(groups.rng.random_range(0..1_500));
            self.at(wait, Scheduled::Group(GroupEvent::Propose { node, life }));
        }
    }

    fn propose_for_groups(&mut self, node: NodeId) {
        let Some(host) = self.host(node) else {
            return;
        };
        host.proposes = false;
        let upto = host.changes.len().min(AT_A_TIME);
        let (ids, changes): (Vec<_>, Vec<_>) = host.changes.drain(..upto).unzip();
        let upto = host.commits.len().min(AT_A_TIME);
        let commits: Vec<(AskId, GroupCommit)> = host.commits.drain(..upto).collect();
        let more = !host.changes.is_empty() || !host.commits.is_empty();
        if !changes.is_empty() {
            let asked = Asked::Groups(ProposedGroups::Changes(ids));
            self.propose(node, asked, None, Command::AlterGroups { changes });
        }
        if !commits.is_empty() {
            let items = commits.iter().map(|(_, commit)| commit.clone()).collect();
            let asked = Asked::Groups(ProposedGroups::Commits(commits));
            let command = Command::CommitOffsets { commits: items };
            self.propose(node, asked, None, command);
        }
        if more {
            self.propose_soon(node);
        }
    }

    /// What became of a proposal; none: nobody knows.
    pub(in crate::sim) fn groups_proposed(
        &mut self,
        node: NodeId,
        proposed: ProposedGroups,
        outcome: Option<&Outcome>,
    ) {
        match proposed {
            ProposedGroups::Changes(ids) => {
                for (number, id) in (0..).zip(ids) {
                    let result = outcome.map_or(ProposalResult::Unknown, |outcome| {
                        let code = refused(outcome, number).next().map(|(_, code)| code);
                        code.map_or(ProposalResult::Applied, ProposalResult::Refused)
                    });
                    self.with_coordinator(node, |of, cx, out| of.proposed(cx, id, result, out));
                }
            }
            ProposedGroups::Commits(commits) => {
                for (number, (ask, commit)) in (0..).zip(commits) {
                    self.committed_for(ask, number, &commit, outcome);
                }
            }
        }
    }
}

impl Host {
    fn context<'a>(
        &self,
        clock: Duration,
        wall: Timestamp,
        image: &'a Arc<MetadataImage>,
    ) -> Context<'a> {
        Context {
            now: self.since(clock),
            wall,
            controller_contact: self.contact,
            image,
        }
    }
}

/// The items of one of a command's groups that were refused.
pub(super) fn refused(
    outcome: &Outcome,
    number: u32,
) -> impl Iterator<Item = (usize, ErrorCode)> + '_ {
    let (whole, some) = match outcome {
        Outcome::Refused(refusal) => (Some((0, refusal.code)), &[][..]),
        Outcome::Judged { refused } => (None, &refused[..]),
        _ => (None, &[][..]),
    };
    let some = some.iter().filter(move |item| item.group == number);
    whole
        .into_iter()
        .chain(some.map(|item| (item.item as usize, item.code)))
}
