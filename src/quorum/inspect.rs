//! The metadata of a stopped node, read without changing it. sled 0.34 cannot open a file only to
//! read it: it recovers, and writes while it does. So `DATA/metadata` is copied to a temporary
//! directory (`TMPDIR`), and the copy is opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use quorate_log::{Findings, Severity};
use quorate_metadata::{LogId, MetadataImage};
use tempfile::TempDir;

use crate::disk::{CONF, Disk, Found, remove_unfinished};
use crate::guarded::guarded;
use crate::ids::{RaftId, StoredMembership};
use crate::inspect_log::{LogCheck, describe};
use crate::promised::{self, PROMISED, Promised};
use crate::sled_tail::{Tail, TailKind, is_unfinished, left_away, small_file_fault};
use crate::snapshots::Snapshots;
use crate::state_machine::{StateMachine, position};

/// No larger metadata is copied, in bytes.
const COPY_MAX: u64 = 4 << 30;
/// Entries read ahead of whoever prints them.
const AHEAD: usize = 64;
const DB: &str = "metadata/log/db";
const UNFINISHED: &str = "was being written when the node ended: the next start removes it";

/// Why metadata cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is more than is copied.
    #[error(
        "{path} has {bytes} bytes; more than {COPY_MAX} are not copied, and only a copy can be read \
         without changing it"
    )]
    TooLarge {
        /// The directory.
        path: PathBuf,
        /// Bytes in it.
        bytes: u64,
    },
    /// The copy could not be made.
    #[error(
        "{path} cannot be copied to a temporary directory: {source} (TMPDIR says where that is)"
    )]
    Copy {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A member of the quorum as the metadata names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataMember {
    /// Node and directory.
    pub id: RaftId,
    /// Where other nodes reach it.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
}

/// What the metadata says.
#[derive(Debug, Clone, Default)]
pub struct MetadataSummary {
    /// The vote: term, for whom, and whether that one leads.
    pub vote: Option<String>,
    /// Known to be committed.
    pub committed: Option<LogId>,
    /// Everything up to here is only in the snapshot.
    pub purged: Option<LogId>,
    /// Index of the first entry.
    pub first: Option<u64>,
    /// The last entry.
    pub last: Option<LogId>,
    /// How many entries there are.
    pub entries: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The newest whole snapshot: its file, what it covers, bytes of its image.
    pub snapshot: Option<(String, Option<LogId>, u64)>,
    /// Who takes part, as of the last entry that counts.
    pub members: Vec<MetadataMember>,
    /// The snapshot with every entry applied that is known to be committed.
    pub image: MetadataImage,
}

/// One entry of the Raft log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataEntry {
    /// Its index.
    pub index: u64,
    /// Its term; none where it cannot be read.
    pub term: Option<u64>,
    /// Its bytes.
    pub bytes: u64,
    /// `blank`, `membership`, `commands` or `unreadable`.
    pub kind: &'static str,
    /// What it says, in words.
    pub what: String,
}

/// A copy of a node's metadata, removed when this goes.
pub struct MetadataCopy {
    copy: TempDir,
    summary: MetadataSummary,
    disk: Option<Arc<Disk>>,
}

fn size_of(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            size_of(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

impl MetadataCopy {
    /// Copies the metadata of the data directory `data`, reads all of it, and says what is wrong
    /// with it; files are named relative to `data`.
    ///
    /// # Errors
    /// [`InspectError`] where no copy can be made.
    pub fn open(data: &Path, findings: &mut Findings) -> Result<Self, InspectError> {
        let path = data.join("metadata");
        let failed = |source| InspectError::Copy {
            path: path.clone(),
            source,
        };
        let bytes = size_of(&path).map_err(failed)?;
        if bytes > COPY_MAX {
            return Err(InspectError::TooLarge { path, bytes });
        }
        let copy = tempfile::Builder::new()
            .prefix("quorate-metadata-")
            .tempdir()
            .map_err(failed)?;
        copy_tree(&path, copy.path()).map_err(failed)?;
        let log = copy.path().join("log");
        if log.is_dir() {
            remove_unfinished(&log).map_err(failed)?;
        }
        strays(&path, findings);
        let mut opened = Self {
            copy,
            summary: MetadataSummary::default(),
            disk: None,
        };
        opened.read(&path, findings);
        Ok(opened)
    }

    /// What it says.
    pub fn summary(&self) -> &MetadataSummary {
        &self.summary
    }

    /// Every entry, in order.
    pub fn entries(&self) -> EntryLines {
        let (lines, received) = mpsc::sync_channel(AHEAD);
        if let Some(disk) = self.disk.clone() {
            let spawned = std::thread::Builder::new()
                .name("metadata-reader".to_owned())
                .spawn(move || {
                    let told = disk.each_entry(|index, bytes, entry| {
                        lines.send(describe(index, bytes as u64, entry)).is_ok()
                    });
                    if let Err(error) = told {
                        tracing::error!(%error, "the metadata log cannot be read to its end");
                    }
                });
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread to read the metadata log");
            }
        }
        EntryLines(received)
    }

    fn read(&mut self, original: &Path, findings: &mut Findings) {
        let snapshots = self.copy.path().join("snapshots");
        let machine = read_snapshots(&snapshots, &mut self.summary, findings);
        let log = self.copy.path().join("log");
        if !log.join("db").is_file() {
            let what = "is missing: the Raft log and the vote are gone; the node does not start \
                        where meta.properties names a cluster";
            findings.add(Severity::Corruption, DB, None, None, what);
            return;
        }
        let opening = log.clone();
        let mut machine = match machine {
            Some(machine) => machine,
            None => return,
        };
        let disk = match guarded(move || Disk::open_copy(&opening)) {
            Ok(Ok(disk)) => Arc::new(disk),
            Ok(Err(error)) => return unreadable(findings, &error.to_string()),
            Err(error) => return unreadable(findings, &error.to_string()),
        };
        match left_away(&original.join("log").join("db"), &log) {
            Ok(None) => {}
            Ok(Some(tail)) => tell_tail(&tail, findings),
            Err(error) => unreadable(findings, &error.to_string()),
        }
        let reading = disk.clone();
        let read = guarded(move || {
            let mut log = LogCheck::default();
            let marks = reading.marks();
            let read = marks.and_then(|marks| {
                log.summary.note(&marks);
                reading.each_entry(|index, bytes, entry| {
                    log.entry(index, bytes as u64, entry, &marks, &mut machine);
                    true
                })?;
                log.finish(&marks, machine.applied());
                Ok(())
            });
            log.summary.members = members(machine.membership());
            log.summary.image = machine.image().clone();
            (log, read)
        });
        match read {
            Ok((log, read)) => {
                let snapshot = self.summary.snapshot.take();
                self.summary = MetadataSummary {
                    snapshot,
                    ..log.summary
                };
                for (severity, what) in log.wrong {
                    findings.add(severity, DB, None, None, what);
                }
                if let Err(error) = read {
                    unreadable(findings, &error.to_string());
                }
                check_promised(&original.join("log").join(PROMISED), &disk, findings);
                self.disk = Some(disk);
            }
            Err(error) => unreadable(findings, &error.to_string()),
        }
    }
}

/// The entries of the Raft log, read by a thread of their own.
pub struct EntryLines(mpsc::Receiver<MetadataEntry>);

impl Iterator for EntryLines {
    type Item = MetadataEntry;

    fn next(&mut self) -> Option<MetadataEntry> {
        self.0.recv().ok()
    }
}

fn unreadable(findings: &mut Findings, error: &str) {
    let what = format!("the Raft log cannot be read: {error}. The node does not start");
    findings.add(Severity::Corruption, DB, 0, None, what);
}

/// What this member has promised to others must be in the log: an opening refuses otherwise.
fn check_promised(path: &Path, disk: &Arc<Disk>, findings: &mut Findings) {
    let file = format!("metadata/log/{PROMISED}");
    let promised = match Promised::read(path) {
        Ok(Some(promised)) => promised,
        Ok(None) => {
            let what = "is missing: the next start takes what is in the log for all there was";
            return findings.add(Severity::Note, &file, None, None, what);
        }
        Err(error) => {
            let what = format!("{error}. The node does not start");
            return findings.add(Severity::Corruption, &file, 0, None, what);
        }
    };
    let disk = disk.clone();
    let why = match guarded(move || disk.holds(&promised)) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let what = format!("{why}. The node does not start");
    findings.add(Severity::Corruption, DB, None, None, what);
}

fn tell_tail(tail: &Tail, findings: &mut Findings) {
    let (severity, what) = match tail.kind {
        TailKind::Dropped(at) => (
            Severity::Corruption,
            format!(
                "what is here cannot be read, but whole messages follow, from position {at} on. \
                 sled takes its log for ended here: the next start forgets votes and entries that \
                 were written after"
            ),
        ),
        TailKind::UnfinishedBatch => (
            Severity::TornTail,
            "the last entries were not written whole: the next start goes on without them"
                .to_owned(),
        ),
        TailKind::Unfinished => (
            Severity::TornTail,
            "the last write is not whole: the next start goes on without it".to_owned(),
        ),
    };
    findings.add(severity, DB, tail.position, None, what);
}

fn strays(path: &Path, findings: &mut Findings) {
    let names = |folder: &str| -> Vec<String> {
        let listed = fs::read_dir(path.join(folder));
        let mut names: Vec<String> = listed
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    for name in names(".") {
        if name != "log" && name != "snapshots" {
            let file = format!("metadata/{name}");
            findings.add(Severity::Note, &file, None, None, "is no part of metadata");
        }
    }
    for name in names("log") {
        let known =
            ["db", CONF, "blobs", PROMISED].contains(&name.as_str()) || name.starts_with("snap.");
        if !known {
            let file = format!("metadata/log/{name}");
            findings.add(Severity::Note, &file, None, None, "is no file of sled's");
        }
        if is_unfinished(&name) {
            let file = format!("metadata/log/{name}");
            findings.add(Severity::Note, &file, None, None, UNFINISHED);
            continue;
        }
        let content = match name.as_str() {
            "db" | "blobs" => continue,
            _ => fs::read(path.join("log").join(&name)).unwrap_or_default(),
        };
        if name == PROMISED
            && let Some((at, why)) = promised::fault(&content)
        {
            let file = format!("metadata/log/{name}");
            findings.add(Severity::Corruption, &file, at, None, why);
        }
        if let Some(why) = small_file_fault(&name, &content) {
            let file = format!("metadata/log/{name}");
            let what = format!("{why}. The node does not start");
            findings.add(Severity::Corruption, &file, 0, None, what);
        }
    }
    for name in names("snapshots") {
        let what = match name.as_str() {
            "unfinished" => UNFINISHED,
            name if name.starts_with("snapshot-") => continue,
            _ => "is no snapshot: nobody reads it",
        };
        let file = format!("metadata/snapshots/{name}");
        findings.add(Severity::Note, &file, None, None, what);
    }
}

/// Checks every snapshot file and begins a state machine with the newest whole one.
fn read_snapshots(
    path: &Path,
    summary: &mut MetadataSummary,
    findings: &mut Findings,
) -> Option<StateMachine> {
    const FOLDER: &str = "metadata/snapshots";
    let checked = Snapshots::open(path.to_owned()).and_then(|snapshots| {
        for (name, stored) in snapshots.check()? {
            let file = format!("{FOLDER}/{name}");
            match stored {
                Ok(stored) => {
                    let covers = stored.meta.last_log_id.as_ref().map(position);
                    let whole = (name, covers, stored.image.len() as u64);
                    summary.snapshot.get_or_insert(whole);
                }
                Err(error) => {
                    let what = format!("{error}: the next start takes an older one, or none");
                    findings.add(Severity::Corruption, &file, 0, None, what);
                }
            }
        }
        StateMachine::open(snapshots)
    });
    match checked {
        Ok((machine, _view)) => Some(machine),
        Err(error) => {
            let what = format!("{error}. The node does not start");
            findings.add(Severity::Corruption, FOLDER, 0, None, what);
            None
        }
    }
}

impl MetadataSummary {
    fn note(&mut self, marks: &Found) {
        self.vote = marks.vote.as_ref().map(ToString::to_string);
        self.committed = marks.committed.as_ref().map(position);
        self.purged = marks.purged.as_ref().map(position);
    }
}

fn members(stored: &StoredMembership) -> Vec<MetadataMember> {
    let membership = stored.membership();
    let voters: Vec<RaftId> = membership.voter_ids().collect();
    membership
        .nodes()
        .map(|(id, peer)| MetadataMember {
            id: *id,
            address: peer.address.clone(),
            voter: voters.contains(id),
        })
        .collect()
}
