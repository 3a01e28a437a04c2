//! What a check of files found: where, how bad, what. Bounded: of each file so many findings are
//! kept, and how many more there were is counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_types::Offset;

/// Findings kept of one file.
const PER_FILE: usize = 20;
/// Findings kept of everything.
const IN_ALL: usize = 10_000;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something that had been on the disk is not what was written.
    Corruption,
    /// The end of a file, not known to have been on the disk, is not whole: what a crash leaves.
    TornTail,
    /// Nothing is wrong, but somebody may want to know.
    Note,
}

impl Severity {
    /// Its name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::TornTail => "torn-tail",
            Self::Note => "note",
        }
    }
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file or directory.
    pub file: PathBuf,
    /// Where in it, in bytes; for a checksum over the whole file 0.
    pub position: Option<u64>,
    /// The record offset that is concerned, where there is one.
    pub offset: Option<Offset>,
    /// How bad it is.
    pub severity: Severity,
    /// What, and what the node's next start does about it.
    pub what: String,
}

/// Collects findings.
#[derive(Debug)]
pub struct Findings {
    root: PathBuf,
    kept: Vec<Finding>,
    per_file: BTreeMap<String, (usize, u64, Severity)>,
    clean: bool,
}

impl Findings {
    /// None yet; files are named below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            kept: Vec::new(),
            per_file: BTreeMap::new(),
            clean: true,
        }
    }

    /// Notes a finding; `file` is relative to the root. The first 20 of a file and 10,000 in all
    /// are kept in full.
    pub fn add(
        &mut self,
        severity: Severity,
        file: &str,
        position: impl Into<Option<u64>>,
        offset: impl Into<Option<Offset>>,
        what: impl Into<String>,
    ) {
        if severity != Severity::Note {
            self.clean = false;
        }
        if !self.per_file.contains_key(file) && self.per_file.len() >= IN_ALL {
            return;
        }
        let (count, more, worst) =
            self.per_file
                .entry(file.to_owned())
                .or_insert((0, 0, Severity::Note));
        if *count >= PER_FILE || self.kept.len() >= IN_ALL {
            *more += 1;
            *worst = (*worst).min(severity);
            return;
        }
        *count += 1;
        self.kept.push(Finding {
            file: self.root.join(file),
            position: position.into(),
            offset: offset.into(),
            severity,
            what: what.into(),
        });
    }

    /// Whether nothing but notes was found.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Everything kept, in the order in which it was found, with one finding for each file of
    /// which more was found.
    pub fn into_list(mut self) -> Vec<Finding> {
        for (file, (_, more, worst)) in &self.per_file {
            if *more > 0 {
                self.kept.push(Finding {
                    file: self.root.join(file),
                    position: None,
                    offset: None,
                    severity: *worst,
                    what: format!("and {more} more in this file"),
                });
            }
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_file_so_many_are_kept_and_the_rest_is_counted() {
        let mut findings = Findings::new(Path::new("data"));
        findings.add(Severity::Note, "a", None, None, "fine");
        assert!(findings.is_clean());
        for position in 0..50 {
            findings.add(Severity::Corruption, "b", position, None, "broken");
        }
        assert!(!findings.is_clean());
        let list = findings.into_list();
        assert_eq!(list.len(), 1 + PER_FILE + 1);
        let last = list.last().unwrap();
        assert_eq!(last.file, Path::new("data/b"));
        assert_eq!(last.what, "and 30 more in this file");
        assert_eq!(last.severity, Severity::Corruption);
    }
}
