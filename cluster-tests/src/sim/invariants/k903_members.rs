//! R5, KIP-903: whoever an applied proposal adds to an ISR is active at that moment, under the very
//! registration that the leader saw catch up.
//!
//! Not verified: that it caught up; that is I8.

use quorate_metadata::{BrokerState, Command, Outcome};

use super::{Entry, EntryChecker, Found};

pub(super) struct MembersAreCurrent;

impl EntryChecker for MembersAreCurrent {
    fn name(&self) -> &'static str {
        "R5 members of an ISR are current"
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        if matches!(entry.outcome, Outcome::Refused(_)) || entry.repeat {
            return Ok(());
        }
        for command in &entry.envelope.commands {
            let Command::AlterPartition(alter) = command else {
                continue;
            };
            for (node, epoch) in &alter.isr {
                let broker = entry.before.broker(*node);
                let current = broker.is_some_and(|broker| {
                    broker.epoch == *epoch
                        && (broker.state == BrokerState::Active || alter.leader == *node)
                });
                if !current {
                    let what = format!("node {node} at broker epoch {epoch}: {broker:?}");
                    return Err((Some(alter.partition), what));
                }
            }
        }
        Ok(())
    }
}
