//! What `quorate log dump` prints of a data directory beside its partitions: whose it is, and the
//! metadata.

use quorate_log::{Findings, Offline, verify_directory};
use quorate_metadata::{BrokerState, LogId};
use quorate_quorum::{MetadataCopy, MetadataSummary};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::log_dump::Printer;
use crate::output::or_dash;

fn place(at: Option<LogId>) -> String {
    at.map_or_else(
        || "-".to_owned(),
        |at| format!("{} (term {})", at.index, at.term),
    )
}

fn place_json(at: Option<LogId>) -> Value {
    at.map_or(
        Value::Null,
        |at| json!({"index": at.index.get(), "term": at.term.get()}),
    )
}

/// Prints it; each entry of the log where `entries` says so.
pub(crate) fn print(offline: &Offline, entries: bool, printer: &mut Printer) -> Outcome {
    let root = offline.root().display().to_string();
    let mut findings = Findings::new(offline.root());
    let facts = verify_directory(offline.dir(), &mut findings)
        .map_err(|error| Failure::new(format!("cannot print {root}"), error))?;
    let object = json!({
        "path": root,
        "node_id": facts.node.map(|node| node.get()),
        "directory_id": facts.directory.map(|id| id.to_string()),
        "cluster_id": facts.cluster.map(|id| id.to_string()),
        "starts": facts.starts,
        "clean_broker_epoch": facts.clean_epoch.map(|epoch| epoch.get()),
        "boot_id": facts.boot.map(|id| id.to_string()),
    });
    printer.put("directory", object, || {
        let ended = facts.clean_epoch.map_or_else(
            || "not stopped cleanly".to_owned(),
            |epoch| format!("stopped cleanly with broker epoch {epoch}"),
        );
        format!(
            "data directory {root}: node {}, directory {}, cluster {}, started {} times, {ended}",
            or_dash(facts.node),
            or_dash(facts.directory),
            or_dash(facts.cluster),
            or_dash(facts.starts),
        )
    })?;
    if offline.root().join("metadata").is_dir() {
        let copy = MetadataCopy::open(offline.root(), &mut findings)
            .map_err(|error| Failure::new("cannot print the metadata", error))?;
        summary(copy.summary(), printer)?;
        if entries {
            for entry in copy.entries() {
                let object = json!({
                    "index": entry.index,
                    "term": entry.term,
                    "bytes": entry.bytes,
                    "entry": entry.kind,
                    "what": entry.what,
                });
                printer.put("entry", object, || {
                    format!(
                        "  entry {} term {} {} bytes {}: {}",
                        entry.index,
                        or_dash(entry.term),
                        entry.bytes,
                        entry.kind,
                        entry.what
                    )
                })?;
            }
        }
    }
    if !findings.is_clean() {
        let what = format!("something is damaged: `quorate log verify {root}` says what");
        printer.put("damage", json!({"what": what}), || what.clone())?;
    }
    Ok(())
}

fn summary(summary: &MetadataSummary, printer: &mut Printer) -> Outcome {
    let snapshot = summary.snapshot.as_ref().map(
        |(file, covers, bytes)| json!({"file": file, "last": place_json(*covers), "bytes": bytes}),
    );
    let object = json!({
        "vote": summary.vote,
        "committed": place_json(summary.committed),
        "purged": place_json(summary.purged),
        "first_index": summary.first,
        "last": place_json(summary.last),
        "entries": summary.entries,
        "bytes": summary.bytes,
        "snapshot": snapshot,
    });
    printer.put("metadata", object, || {
        let snapshot = summary.snapshot.as_ref().map_or_else(
            || "no snapshot".to_owned(),
            |(file, covers, bytes)| format!("{file} up to {}, {bytes} bytes", place(*covers)),
        );
        format!(
            "metadata: vote {}, entries {} to {} ({}, {} bytes), committed {}, purged {}, {snapshot}",
            or_dash(summary.vote.as_ref()),
            or_dash(summary.first),
            place(summary.last),
            summary.entries,
            summary.bytes,
            place(summary.committed),
            place(summary.purged),
        )
    })?;
    for member in &summary.members {
        let object = json!({
            "node_id": member.id.node.get(),
            "directory_id": member.id.directory.to_string(),
            "address": member.address,
            "voter": member.voter,
        });
        printer.put("member", object, || {
            let role = if member.voter { "voter" } else { "observer" };
            format!("  {role} {} at {}", member.id, member.address)
        })?;
    }
    let image = &summary.image;
    for broker in image.brokers().values() {
        let state = match broker.state {
            BrokerState::Fenced => "fenced",
            BrokerState::Active => "active",
            BrokerState::ShuttingDown => "shutting down",
        };
        let object = json!({
            "node_id": broker.node.get(),
            "state": state,
            "broker_epoch": broker.epoch.get(),
            "address": broker.client.to_string(),
            "internal_address": broker.internal.to_string(),
        });
        printer.put("broker", object, || {
            format!(
                "  broker {}: {state}, epoch {}, clients {}, nodes {}",
                broker.node, broker.epoch, broker.client, broker.internal
            )
        })?;
    }
    for topic in image.topics().values() {
        let object = json!({
            "name": topic.name.as_str(),
            "topic_id": topic.id.to_string(),
            "partitions": topic.partitions,
            "config": topic.config,
        });
        printer.put("topic", object, || {
            format!(
                "  topic {}: id {}, {} partitions, config {:?}",
                topic.name, topic.id, topic.partitions, topic.config
            )
        })?;
    }
    Ok(())
}
