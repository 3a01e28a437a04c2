//! Follows the entries of a Raft log that is read offline: what is wrong with them, what they
//! lead to, and how each is shown.

use std::io;

use openraft::EntryPayload;
use quorate_log::Severity;
use quorate_metadata::{Envelope, LogId};

use crate::disk::Found;
use crate::ids::{Entry, RaftLogId};
use crate::inspect::{MetadataEntry, MetadataSummary};
use crate::state_machine::{StateMachine, position};

/// Follows the entries: one after the other, terms that do not fall, all readable.
#[derive(Default)]
pub(crate) struct LogCheck {
    pub(crate) summary: MetadataSummary,
    pub(crate) wrong: Vec<(Severity, String)>,
    /// Applying stopped: the image would not be what the node has.
    stopped: bool,
}

/// What is wrong with entries is told so often.
const TOLD: usize = 20;

impl LogCheck {
    fn wrong(&mut self, what: String) {
        if self.wrong.len() < TOLD {
            self.wrong.push((Severity::Corruption, what));
        }
    }

    pub(crate) fn entry(
        &mut self,
        index: u64,
        bytes: u64,
        entry: io::Result<Entry>,
        marks: &Found,
        machine: &mut StateMachine,
    ) {
        let purged = marks.purged.as_ref().map(|purged| purged.index);
        if purged.is_some_and(|purged| index <= purged) {
            // The rest of a purge that was interrupted; the next start goes on with it.
            return;
        }
        let summary = &mut self.summary;
        let before = summary.last.map(|last| last.index.get()).or(purged);
        let expected = before.map_or(0, |before| before + 1);
        summary.first.get_or_insert(index);
        summary.entries += 1;
        summary.bytes += bytes;
        if index != expected {
            self.wrong(format!(
                "the Raft log has a hole: entry {index} stands where {expected} must. The node \
                 does not start"
            ));
        }
        let entry = match entry {
            Ok(entry) if entry.log_id.index == index => entry,
            Ok(entry) => {
                self.stopped = true;
                return self.wrong(format!("entry {index} says that it is {}", entry.log_id));
            }
            Err(error) => {
                self.stopped = true;
                return self.wrong(format!("entry {index} cannot be read: {error}"));
            }
        };
        let at = position(&entry.log_id);
        if let Some(last) = self.summary.last.filter(|last| at.term < last.term) {
            let what = format!(
                "entry {index} is of term {}, one before of {}",
                at.term, last.term
            );
            self.wrong(what);
        }
        self.summary.last = Some(at);
        if let EntryPayload::Normal(proposal) = &entry.payload
            && let Err(error) = Envelope::decode(&proposal.0)
        {
            self.stopped = true;
            return self.wrong(format!(
                "entry {index} cannot be read: {error}. The node stops when it applies it"
            ));
        }
        let committed = marks.committed.as_ref().map(|committed| committed.index);
        let next = machine.applied().map_or(0, |applied| applied.index + 1);
        if !self.stopped && index == next && committed >= Some(index) {
            let applied = machine.apply_entry(entry.log_id, entry.payload, &mut Vec::new());
            if let Err(error) = applied {
                self.stopped = true;
                self.wrong(format!("entry {index} cannot be applied: {error}"));
            }
        }
    }

    pub(crate) fn finish(&mut self, marks: &Found, applied: Option<RaftLogId>) {
        let purged = marks.purged.as_ref().map(position);
        let last = self.summary.last.or(purged);
        self.summary.last = last;
        if marks.vote.is_none() && last.is_some() {
            self.wrong(
                "there is a Raft log, but no vote: the node would vote twice in a term".to_owned(),
            );
        }
        if self.summary.committed > last {
            let what = format!(
                "entries are known to be committed up to {}, but the Raft log ends at {}",
                shown(self.summary.committed),
                shown(last)
            );
            self.wrong(what);
        }
        if purged > applied.as_ref().map(position) {
            let what = format!(
                "the Raft log begins after {}, but no whole snapshot reaches that far. The node \
                 does not start",
                shown(purged)
            );
            self.wrong(what);
        }
    }
}

fn shown(at: Option<LogId>) -> String {
    at.map_or_else(
        || "nothing".to_owned(),
        |at| format!("entry {} of term {}", at.index, at.term),
    )
}

/// An entry as it is shown.
pub(crate) fn describe(index: u64, bytes: u64, entry: io::Result<Entry>) -> MetadataEntry {
    let line = |term, kind, what| MetadataEntry {
        index,
        term,
        bytes,
        kind,
        what,
    };
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return line(None, "unreadable", error.to_string()),
    };
    let term = Some(entry.log_id.committed_leader_id().term);
    match entry.payload {
        EntryPayload::Blank => line(term, "blank", "a leader begins its term".to_owned()),
        EntryPayload::Membership(membership) => line(term, "membership", membership.to_string()),
        EntryPayload::Normal(proposal) => match Envelope::decode(&proposal.0) {
            Err(error) => line(term, "unreadable", error.to_string()),
            Ok(envelope) => {
                let commands = serde_json::to_string(&envelope.commands);
                let commands = commands.unwrap_or_else(|error| error.to_string());
                let from = envelope.origin.node;
                let what = format!("from node {from}, number {}: {commands}", envelope.sequence);
                line(term, "commands", what)
            }
        },
    }
}
