//! Proposals about groups in few words, for the trace.

use quorate_metadata::{AlterGroup, GroupCommit};
use quorate_types::TopicPartition;

use crate::sim::trace::named;

/// Partitions in few letters.
pub(in crate::sim) fn names<'a>(ids: impl IntoIterator<Item = &'a TopicPartition>) -> String {
    let names: Vec<String> = ids.into_iter().map(|id| named(*id)).collect();
    names.join(" ")
}

pub(in crate::sim) fn changes_in_words(changes: &[AlterGroup]) -> String {
    let changes = changes.iter().map(|alter| {
        let gone = alter.gone.iter().map(|id| format!(", {id} goes"));
        let members = alter.members.iter().map(|change| {
            let new = change.profile.as_ref().map_or("", |_| " says what it is");
            let told = [
                ("releases", &change.release),
                ("is to give up", &change.revoke),
                ("gets", &change.assign),
            ];
            let told = told.iter().filter(|(_, ids)| !ids.is_empty());
            let told: String = told
                .map(|(what, ids)| format!(" {what} {}", names(*ids)))
                .collect();
            format!(", {}{new}{told}", change.member)
        });
        let words: String = gone.chain(members).collect();
        let (version, coordinator) = (alter.version, alter.coordinator_epoch);
        let epoch = version.map_or_else(|| "new".to_owned(), |of| format!("at {}", of.epoch));
        format!(
            "{} {epoch} by coordinator epoch {coordinator}{words}",
            alter.group
        )
    });
    changes.collect::<Vec<_>>().join("; ")
}

pub(in crate::sim) fn commits_in_words(commits: &[GroupCommit]) -> String {
    let commits = commits.iter().map(|commit| {
        let by = commit.by.as_ref().map_or_else(
            || "outside".to_owned(),
            |by| {
                format!(
                    "{} at {} #{:?}",
                    by.member,
                    by.epoch,
                    by.seq.map(|seq| seq.get())
                )
            },
        );
        let offsets = commit.offsets.iter();
        let offsets: String = offsets
            .map(|of| {
                format!(
                    " {} {:?}",
                    named(of.partition),
                    of.offset.map(|of| of.get())
                )
            })
            .collect();
        format!("{}: {by} commits{offsets}", commit.group)
    });
    commits.collect::<Vec<_>>().join("; ")
}
