//! Proposals of the replicas, on their way to the quorum.

use std::time::Duration;

use quorate_metadata::{Command, Outcome};
use quorate_quorum::QuorumHandle;
use quorate_replication::{ProposalId, ProposalResult};
use quorate_types::TopicPartition;
use tokio::runtime::Handle;

use crate::mailbox::{Mail, Mailbox};

/// How long one proposal is tried; after that its outcome is unknown and the replica decides.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends proposals and brings their outcomes back to the plane. A replica has one in flight, so
/// the number of tasks is bounded by the number of hosted partitions.
pub(crate) struct Proposals {
    quorum: QuorumHandle,
    runtime: Handle,
    mailbox: Mailbox,
}

impl Proposals {
    pub(crate) fn new(quorum: QuorumHandle, runtime: Handle, mailbox: Mailbox) -> Self {
        Self {
            quorum,
            runtime,
            mailbox,
        }
    }

    pub(crate) fn propose(&self, partition: TopicPartition, id: ProposalId, command: Command) {
        let (quorum, mailbox) = (self.quorum.clone(), self.mailbox.clone());
        self.runtime.spawn(async move {
            let result = match quorum.propose(vec![command], TIMEOUT).await {
                Ok(outcomes) => match outcomes.into_iter().next() {
                    Some(Outcome::Refused(refusal)) => ProposalResult::Refused(refusal.code),
                    Some(_) => ProposalResult::Applied,
                    None => ProposalResult::Unknown,
                },
                Err(_unknown) => ProposalResult::Unknown,
            };
            mailbox.notify(Mail::Proposed {
                partition,
                id,
                result,
            });
        });
    }
}
