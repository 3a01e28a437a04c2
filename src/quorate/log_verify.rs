//! `quorate log verify`: checks everything, tells all of it.

use std::path::Path;
use std::time::Instant;

use quorate_log::{
    Checked, DirectoryFacts, Finding, Findings, Offline, OfflineTarget, Severity, verify_directory,
    verify_partition,
};
use quorate_quorum::{MetadataCopy, MetadataSummary};
use serde_json::{Value, json};

use crate::cli::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::log_tool::open;
use crate::output::{self, counted};

pub(crate) fn run(format: OutputFormat, path: &Path) -> Outcome {
    let began = Instant::now();
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot check {}", path.display()), error)
    };
    let offline = open(path)?;
    let mut findings = Findings::new(offline.root());
    let mut checked = Checked::default();
    let mut entries = 0;
    let mut only = None;
    match offline.target() {
        OfflineTarget::DataDirectory => {
            let facts =
                verify_directory(offline.dir(), &mut findings).map_err(|error| failed(&error))?;
            if let Some(metadata) = verify_metadata(&offline, &facts, &mut findings)? {
                entries = metadata.entries;
            }
        }
        OfflineTarget::Segment(_, base) => only = Some(*base),
        OfflineTarget::Partition(_) => {}
    }
    for partition in offline.partitions().map_err(|error| failed(&error))? {
        let dir = offline.dir();
        verify_partition(dir, &partition.path, only, &mut findings, &mut checked)
            .map_err(|error| failed(&error))?;
    }
    let clean = findings.is_clean();
    let findings = findings.into_list();
    let elapsed = began.elapsed();
    match format {
        OutputFormat::Json => output::json(&json!({
            "path": path.display().to_string(),
            "clean": clean,
            "partitions": checked.partitions,
            "segments": checked.segments,
            "batches": checked.batches,
            "records": checked.records,
            "bytes": checked.bytes,
            "metadata_entries": entries,
            "elapsed_ms": elapsed.as_millis() as u64,
            "findings": findings.iter().map(as_json).collect::<Vec<Value>>(),
        }))?,
        OutputFormat::Text => {
            for finding in &findings {
                output::line(as_text(finding))?;
            }
            output::line(format!(
                "{}, {}, {}, {}, {}, {} checked in {elapsed:.1?}: {}",
                counted(checked.partitions, "partition", "partitions"),
                counted(checked.segments, "segment", "segments"),
                counted(checked.batches, "batch", "batches"),
                counted(checked.records, "record", "records"),
                counted(entries, "metadata entry", "metadata entries"),
                counted(checked.bytes, "byte", "bytes"),
                verdict(&findings),
            ))?;
        }
    }
    if clean { Ok(()) } else { Err(Failure::Said) }
}

/// Checks the metadata, and that it is of the same cluster and as far as the rest says.
fn verify_metadata(
    offline: &Offline,
    facts: &DirectoryFacts,
    findings: &mut Findings,
) -> Result<Option<MetadataSummary>, Failure> {
    if !offline.root().join("metadata").is_dir() {
        let (severity, what) = match facts.cluster {
            Some(cluster) => (
                Severity::Corruption,
                format!(
                    "is missing, although this directory belongs to cluster {cluster}: the node \
                     does not start"
                ),
            ),
            None => (Severity::Note, "is missing: the node is new".to_owned()),
        };
        findings.add(severity, "metadata", None, None, what);
        return Ok(None);
    }
    let copy = MetadataCopy::open(offline.root(), findings)
        .map_err(|error| Failure::new("cannot check the metadata", error))?;
    let summary = copy.summary().clone();
    if let (Some(ours), Some(theirs)) = (facts.cluster, summary.image.cluster_id())
        && ours != theirs
    {
        let what = format!(
            "names cluster {ours}, the metadata is of cluster {theirs}. The node does not start"
        );
        findings.add(Severity::Corruption, "meta.properties", 0, None, what);
    }
    let reached = summary.last.map_or(0, |last| last.index.get());
    if let Some(clean) = facts.clean_epoch.filter(|clean| clean.get() > reached) {
        let what = format!(
            "the Raft log ends at entry {reached}, but the last life was registered by entry \
             {clean}: the end of the log is missing"
        );
        findings.add(Severity::Corruption, "metadata/log/db", None, None, what);
    }
    let partitions = offline
        .partitions()
        .map_err(|error| Failure::new("cannot list the partitions", error))?;
    let unknown = partitions.iter().filter(|partition| {
        let id = partition.id.as_ref().map(|(_, id)| id);
        id.is_some_and(|id| summary.image.partition(id).is_none())
    });
    // A topic that was deleted leaves many until they are removed: one note of all.
    let unknown: Vec<_> = unknown.collect();
    if let Some(first) = unknown.first() {
        let what = match unknown.len() - 1 {
            0 => "is of no partition that the metadata on this disk knows".to_owned(),
            more => {
                format!("and {more} more are of no partition that the metadata on this disk knows")
            }
        };
        findings.add(Severity::Note, &first.path, None, None, what);
    }
    Ok(Some(summary))
}

fn verdict(findings: &[Finding]) -> String {
    let of = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (corrupt, torn) = (of(Severity::Corruption), of(Severity::TornTail));
    let notes = match of(Severity::Note) {
        0 => String::new(),
        1 => " (1 note)".to_owned(),
        notes => format!(" ({notes} notes)"),
    };
    if corrupt + torn == 0 {
        return format!("clean{notes}");
    }
    format!("{corrupt} corrupt, {torn} torn at the end{notes}")
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "file": finding.file.display().to_string(),
        "position": finding.position,
        "offset": finding.offset.map(|offset| offset.get()),
        "severity": finding.severity.name(),
        "what": finding.what,
    })
}

fn as_text(finding: &Finding) -> String {
    let mut place = finding.file.display().to_string();
    if let Some(position) = finding.position {
        place.push_str(&format!(", position {position}"));
    }
    if let Some(offset) = finding.offset {
        place.push_str(&format!(", offset {offset}"));
    }
    format!("{}: {place}: {}", finding.severity.name(), finding.what)
}
