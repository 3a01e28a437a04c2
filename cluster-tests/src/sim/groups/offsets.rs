//! Commits and reads of offsets at the coordinator: commits go into the quorum's log with others,
//! reads wait for the image to be as far as the quorum was when they came.

use quorate_metadata::{Committer, GroupCommit, OffsetToCommit, Outcome};
use quorate_types::NodeId;

use super::asks::What;
use super::coordinator::refused;
use super::{AskId, GroupEvent, Reply};
use crate::sim::network::Traffic;
use crate::sim::schedule::Scheduled;
use crate::sim::world::World;

impl World {
    pub(super) fn commit_arrives(
        &mut self,
        node: NodeId,
        ask: AskId,
        group: usize,
        by: Option<Committer>,
        offsets: Vec<OffsetToCommit>,
    ) {
        let coordinator_epoch = match self.coordinates(node, group) {
            None => return,
            Some(Err(elsewhere)) => return self.reply(ask, elsewhere),
            Some(Ok(epoch)) => epoch,
        };
        let Some(id) = self.groups.as_ref().map(|groups| groups.ids[group].clone()) else {
            return;
        };
        let commit = GroupCommit {
            group: id,
            coordinator_epoch,
            by,
            offsets,
        };
        if let Some(host) = self.host(node) {
            host.commits.push_back((ask, commit));
        }
        self.propose_soon(node);
    }

    /// A commit was decided, or nobody knows: from here on an acknowledgement binds.
    pub(super) fn committed_for(
        &mut self,
        ask: AskId,
        number: u32,
        commit: &GroupCommit,
        outcome: Option<&Outcome>,
    ) {
        let Some(outcome) = outcome else {
            return self.reply(ask, Reply::Commit);
        };
        let whole = matches!(outcome, Outcome::Refused(_));
        let refused: Vec<_> = refused(outcome, number).collect();
        let image = std::sync::Arc::clone(self.quorum.latest());
        let taken = commit.offsets.iter().enumerate();
        let taken = taken.filter(|(at, _)| !whole && !refused.iter().any(|(of, _)| of == at));
        let mut wrong = None;
        if let Some(groups) = &mut self.groups {
            for (_, item) in taken {
                if let Err(found) = groups.offsets.acknowledge(commit, item, &image) {
                    wrong.get_or_insert(found);
                }
            }
        }
        if let Some((partition, why)) = wrong {
            self.violate(partition, why);
        }
        self.counts.commits += 1;
        self.reply(ask, Reply::Commit);
    }

    pub(super) fn fetch_arrives(&mut self, node: NodeId, ask: AskId, group: usize) {
        match self.coordinates(node, group) {
            None => {}
            Some(Err(elsewhere)) => self.reply(ask, elsewhere),
            Some(Ok(_)) => {
                let leader = self.quorum.announced.leader;
                let reached = leader.is_some_and(|leader| {
                    self.network
                        .connects(node, leader, Traffic::Control, self.now)
                });
                if reached {
                    let life = self.life(node);
                    let wait = self.quorum_wait() + self.delay();
                    let confirmed = GroupEvent::ReadConfirmed { node, life, ask };
                    self.at(wait, Scheduled::Group(confirmed));
                }
            }
        }
    }

    /// The quorum says how far it is.
    pub(super) fn read_confirmed(&mut self, node: NodeId, ask: AskId) {
        let index = self.quorum.index();
        if let Some(host) = self.host(node) {
            host.reads.push((index, ask));
        }
        self.serve_reads(node);
    }

    /// Answers the reads that the image is far enough for.
    pub(super) fn serve_reads(&mut self, node: NodeId) {
        let Some(reached) = self.process(node).map(|process| process.image) else {
            return;
        };
        let Some(image) = self.image_of(node) else {
            return;
        };
        let Some(host) = self.host(node).filter(|of| !of.reads.is_empty()) else {
            return;
        };
        let due = host.reads.extract_if(.., |(index, _)| *index <= reached);
        let due: Vec<(usize, AskId)> = due.collect();
        for (_, ask) in due {
            let Some(groups) = &self.groups else {
                return;
            };
            let Some(of) = groups.asks.get(&ask) else {
                continue;
            };
            let What::Fetch(wanted) = &of.what else {
                continue;
            };
            let offsets = image.offsets(&groups.ids[of.group]);
            let known = wanted.keys().filter_map(|id| {
                let committed = offsets.get(id)?;
                Some((*id, committed.offset.get()))
            });
            let known = known.collect();
            self.reply(ask, Reply::Fetch(known));
        }
    }
}
