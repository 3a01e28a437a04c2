//! Who is in sync (R5), and the proposals that say so.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_log::{Dir, PartitionLog};
use quorate_metadata::{AlterPartition, Command};
use quorate_types::{Durability, NodeId, TopicPartition};
use tracing::info;

use crate::Faults;
use crate::events::{Action, ProposalId, ProposalResult, Timing};
use crate::leader::{Proposal, ReplicaLeader};

/// `1,2,3`, for people.
pub(crate) fn listed<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let nodes: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
    nodes.join(",")
}

impl<F: Faults> ReplicaLeader<F> {
    fn is_caught_up(&self, node: NodeId, timing: &Timing, now: Duration) -> bool {
        self.followers.get(&node).is_some_and(|follower| {
            now.saturating_sub(follower.caught_up) <= timing.replica_lag_time_max
        })
    }

    /// Followers outside the maximal ISR that may be proposed into it: those whose position that
    /// counts has reached the high watermark and this epoch's first offset, subscribed at the very
    /// registration that the image shows active.
    pub(crate) fn eligible<D: Dir>(
        &self,
        log: &PartitionLog<D>,
        timing: &Timing,
        now: Duration,
    ) -> Vec<NodeId> {
        let threshold = log.high_watermark().max(self.epoch_start);
        let may_join = |node: &NodeId| {
            let subscription = self.followers.get(node)?.subscription.as_ref()?;
            let known = self.view.eligible_epoch(*node)? == subscription.broker_epoch
                || F::JOIN_BY_OLD_LIFE;
            let level = self.position(*node)? >= threshold
                || F::JOIN_BY_LEO && subscription.acked?.0 >= threshold;
            (known && level && self.is_caught_up(*node, timing, now)).then_some(())
        };
        self.followers
            .keys()
            .filter(|node| !self.is_in_maximal_isr(**node) && may_join(node).is_some())
            .copied()
            .collect()
    }

    /// Proposes an ISR where the present one is not what it should be; one proposal at a time.
    pub(crate) fn propose_isr<D: Dir>(
        &mut self,
        partition: TopicPartition,
        log: &PartitionLog<D>,
        timing: &Timing,
        now: Duration,
        next_id: &mut ProposalId,
        out: &mut Vec<Action<D>>,
    ) {
        if self.proposal.is_none() {
            let present = &self.view.registration.isr;
            let stays = |node: &NodeId| self.stays_in_sync(*node, timing, now);
            let as_desired =
                present.iter().all(stays) && self.eligible(log, timing, now).is_empty();
            // After a refusal with another copy about, any proposal ends the doubt: whichever is
            // applied raises the partition epoch.
            let establish = self.may_establish(log);
            if as_desired && !establish && !self.unknown {
                return;
            }
            let isr = self.desired_isr(log, timing, now);
            let Some(command) = self.command(partition, &isr, establish) else {
                return;
            };
            info!(
                %partition, epoch = %self.epoch, from = %listed(present), to = %listed(&isr), establish,
                "ISR proposed"
            );
            self.proposed.extend(isr);
            self.proposal = Some(Proposal {
                command,
                id: None,
                again_at: now,
            });
        }
        if let Some(proposal) = &mut self.proposal
            && proposal.id.is_none()
            && proposal.again_at <= now
        {
            next_id.0 += 1;
            proposal.id = Some(*next_id);
            let command = Command::AlterPartition(proposal.command.clone());
            out.push(Action::Propose {
                id: *next_id,
                command,
            });
        }
    }

    fn stays_in_sync(&self, node: NodeId, timing: &Timing, now: Duration) -> bool {
        node == self.view.me || self.is_caught_up(node, timing, now)
    }

    fn desired_isr<D: Dir>(
        &self,
        log: &PartitionLog<D>,
        timing: &Timing,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        let mut isr: BTreeSet<NodeId> = self
            .view
            .registration
            .isr
            .iter()
            .copied()
            .filter(|node| self.stays_in_sync(*node, timing, now))
            .collect();
        isr.extend(self.eligible(log, timing, now));
        isr
    }

    /// R17: everything below the high watermark is on the disk of everyone who may lead next, and
    /// from now on nothing is acknowledged that is not.
    fn may_establish<D: Dir>(&self, log: &PartitionLog<D>) -> bool {
        let registration = &self.view.registration;
        if registration.fsync_established || self.view.settings.durability != Durability::Fsync {
            return false;
        }
        if F::ESTABLISH_EARLY {
            return true;
        }
        let high_watermark = log.high_watermark();
        let mut others = self.maximal_isr();
        others.extend(registration.elr.iter().copied());
        others.remove(&self.view.me);
        high_watermark >= self.epoch_start
            && log.flushed_end() >= high_watermark
            && others
                .iter()
                .all(|node| self.position(*node) >= Some(high_watermark))
    }

    fn command(
        &self,
        partition: TopicPartition,
        isr: &BTreeSet<NodeId>,
        fsync_established: bool,
    ) -> Option<AlterPartition> {
        let mut members = Vec::with_capacity(isr.len());
        for node in isr {
            let epoch = if *node == self.view.me {
                self.view.my_epoch
            } else {
                self.view.eligible_epoch(*node)?
            };
            members.push((*node, epoch));
        }
        Some(AlterPartition {
            partition,
            leader: self.view.me,
            leader_broker_epoch: self.view.my_epoch,
            leader_epoch: self.epoch,
            partition_epoch: self.view.registration.partition_epoch,
            isr: members,
            fsync_established,
        })
    }

    /// Takes the end of a sending. Only the image tells what was applied; a time-out ends nothing.
    pub(crate) fn proposed(
        &mut self,
        name: &str,
        id: ProposalId,
        result: ProposalResult,
        timing: &Timing,
        now: Duration,
    ) {
        let Some(proposal) = &mut self.proposal else {
            return;
        };
        if proposal.id != Some(id) {
            return;
        }
        match result {
            // The id stays: nothing is sent again, the image is on its way.
            ProposalResult::Applied => {}
            ProposalResult::Unknown => {
                self.unknown = true;
                proposal.id = None;
                proposal.again_at = now + timing.proposal_retry;
                if F::FORGET_PROPOSAL {
                    self.proposal = None;
                    self.proposed.clear();
                    self.unknown = false;
                }
            }
            ProposalResult::Refused(code) => {
                info!(partition = %name, %code, "ISR proposal refused");
                self.proposal = None;
                if !self.unknown {
                    self.proposed.clear();
                }
            }
        }
    }
}
