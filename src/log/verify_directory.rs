//! Checks the small files of a data directory: whose it is, how often it was started, whether it
//! was stopped cleanly, of which boot it is. Also names what is no part of one.

use std::collections::BTreeSet;

use quorate_types::{BootId, BrokerEpoch, ClusterId, DirectoryId, NodeId, TopicPartition};

use crate::checkpoint::{frame_fault, unframe};
use crate::data_directory::LOCK;
use crate::dir::Dir;
use crate::error::{LogError, at};
use crate::finding::{Findings, Severity};
use crate::identity::{BOOT, CLEAN, HOSTED, META, Meta, STARTS, hosted_of};
use crate::ledger::{DELETED, LOGS, parse_name};
use crate::verify_files::read;

/// What the small files say; none where a file is missing or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirectoryFacts {
    /// The node that it belongs to.
    pub node: Option<NodeId>,
    /// Drawn when it was made.
    pub directory: Option<DirectoryId>,
    /// The cluster that it belongs to.
    pub cluster: Option<ClusterId>,
    /// How often it was started.
    pub starts: Option<u64>,
    /// The broker epoch of the last life, where that ended cleanly.
    pub clean_epoch: Option<BrokerEpoch>,
    /// The machine's boot when it was started last.
    pub boot: Option<BootId>,
}

/// Reads the small files of a data directory and says what is wrong with them.
///
/// # Errors
/// [`LogError`] where the directory cannot be listed.
pub fn verify_directory<D: Dir>(
    dir: &D,
    findings: &mut Findings,
) -> Result<DirectoryFacts, LogError> {
    let mut facts = DirectoryFacts::default();
    match read(dir, META, findings).map(|bytes| read_meta(&bytes)) {
        Some(Ok(meta)) => {
            facts.node = Some(meta.node);
            facts.directory = Some(meta.directory);
            facts.cluster = meta.cluster;
        }
        Some(Err(why)) => {
            let what = format!("{why}. The node does not start");
            findings.add(Severity::Corruption, META, 0, None, what);
        }
        None => {
            let what = "is missing: the next start draws a new directory id, as if the disk were a \
                        new one";
            findings.add(Severity::Corruption, META, None, None, what);
        }
    }
    let mut framed = |name: &str, length: usize, then: &str| -> Option<Vec<u8>> {
        let file = read(dir, name, findings)?;
        let fault = frame_fault(&file).or_else(|| {
            let body = unframe(&file)?;
            (body.len() != length).then(|| (4, format!("{} bytes, not {length}", body.len())))
        });
        match fault {
            None => unframe(&file).map(<[u8]>::to_vec),
            Some((position, why)) => {
                let what = format!("{why}. {then}");
                findings.add(Severity::Corruption, name, position, None, what);
                None
            }
        }
    };
    let number = |body: Vec<u8>| body.try_into().ok().map(u64::from_be_bytes);
    facts.starts = framed(STARTS, 8, "The node does not start").and_then(number);
    facts.clean_epoch = framed(CLEAN, 8, "The next start takes the last stop for a crash")
        .and_then(number)
        .map(BrokerEpoch::new);
    facts.boot = framed(
        BOOT,
        16,
        "The next start takes the machine for booted since",
    )
    .and_then(|body| BootId::from_slice(&body));
    let hosted = read(dir, HOSTED, findings).map(|file| hosted(&file, findings));
    let found = strays(dir, findings)?;
    for gone in hosted.unwrap_or_default().difference(&found) {
        let what = format!(
            "lists partition {gone}, and its directory is gone: the next start reports the replica \
             as damaged"
        );
        findings.add(Severity::Corruption, HOSTED, None, None, what);
    }
    Ok(facts)
}

fn hosted(file: &[u8], findings: &mut Findings) -> BTreeSet<TopicPartition> {
    let listed = unframe(file).and_then(hosted_of);
    listed.unwrap_or_else(|| {
        let (position, why) =
            frame_fault(file).unwrap_or((4, "its length does not fit".to_owned()));
        let what = format!("{why}. The node does not start");
        findings.add(Severity::Corruption, HOSTED, position, None, what);
        BTreeSet::new()
    })
}

fn read_meta(bytes: &[u8]) -> Result<Meta, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    Meta::from_text(text)
}

/// Names what is no part of a data directory, and what is missing; gives the partitions found.
fn strays<D: Dir>(dir: &D, findings: &mut Findings) -> Result<BTreeSet<TopicPartition>, LogError> {
    const FILES: [&str; 6] = [LOCK, META, STARTS, CLEAN, BOOT, HOSTED];
    let mut has_starts = false;
    let mut has_logs = false;
    let mut has_hosted = false;
    let mut found = BTreeSet::new();
    for entry in dir.list(".").map_err(at("."))? {
        has_starts |= entry.name == STARTS;
        has_hosted |= entry.name == HOSTED;
        has_logs |= entry.is_dir && entry.name == LOGS;
        let known = FILES.contains(&entry.name.as_str())
            || (entry.is_dir && (entry.name == LOGS || entry.name == "metadata"));
        if !known {
            let what = if entry.name.ends_with(".tmp") {
                "was being written when the node ended: nobody reads it"
            } else {
                "is no part of a data directory: nobody reads it"
            };
            findings.add(Severity::Note, &entry.name, None, None, what);
        }
    }
    if !has_starts && has_logs {
        let what = "is missing: the node does not start";
        findings.add(Severity::Corruption, STARTS, None, None, what);
    }
    if !has_hosted && has_logs {
        let what = "is missing: the next start takes the partitions found for all there were";
        findings.add(Severity::Note, HOSTED, None, None, what);
    }
    if !has_logs {
        let what = "is missing: there is no partition";
        findings.add(Severity::Note, LOGS, None, None, what);
        return Ok(found);
    }
    let mut deleted = 0_u64;
    for entry in dir.list(LOGS).map_err(at(LOGS))? {
        if entry.name.contains(DELETED) {
            deleted += 1;
            continue;
        }
        match parse_name(&entry.name) {
            Some((_, id)) if entry.is_dir => {
                found.insert(id);
            }
            _ => {
                let path = format!("{LOGS}/{}", entry.name);
                let what = "is no partition's directory: left alone, not checked";
                findings.add(Severity::Note, &path, None, None, what);
            }
        }
    }
    // One note of all: a deleted topic leaves many.
    if deleted > 0 {
        let what = match deleted {
            1 => "holds a deleted partition".to_owned(),
            many => format!("holds {many} deleted partitions"),
        };
        let what = format!("{what}, removed after a grace time; not checked");
        findings.add(Severity::Note, LOGS, None, None, what);
    }
    Ok(found)
}
