//! The disk behind one mount, in memory: files and directories, and what a power loss leaves of
//! them.
//!
//! Neither links nor renames from one directory to another, which nobody under test makes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use fuser::Errno;
use rand::Rng;
use rand::rngs::StdRng;

use super::content::Content;
use super::names::Names;
use super::{Fate, Lost};

pub(super) const ROOT: u64 = 1;

/// What a number stands for.
#[derive(Debug)]
pub(super) enum Kind {
    File(Content),
    Folder(Names),
}

/// A file or directory.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) permissions: u16,
    pub(super) changed: SystemTime,
}

impl Node {
    fn new(kind: Kind, permissions: u16) -> Self {
        Self {
            kind,
            permissions,
            changed: SystemTime::now(),
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        matches!(self.kind, Kind::Folder(_))
    }
}

/// Everything on one disk.
#[derive(Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<u64, Node>,
    last: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        let root = Node::new(Kind::Folder(Names::default()), 0o755);
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            last: ROOT,
        }
    }

    pub(super) fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    fn node_mut(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn names(&self, number: u64) -> Result<&Names, Errno> {
        match &self.node(number)?.kind {
            Kind::Folder(names) => Ok(names),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    /// The names, to be changed.
    fn names_mut(&mut self, number: u64) -> Result<&mut Names, Errno> {
        let node = self.node_mut(number)?;
        node.changed = SystemTime::now();
        match &mut node.kind {
            Kind::Folder(names) => Ok(names),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn content_mut(&mut self, number: u64) -> Result<&mut Content, Errno> {
        let node = self.node_mut(number)?;
        node.changed = SystemTime::now();
        match &mut node.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(super) fn find(&self, folder: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names(folder)?.get(name).ok_or(Errno::ENOENT)
    }

    pub(super) fn list(&self, folder: u64) -> Result<Vec<(OsString, u64, bool)>, Errno> {
        let names = self.names(folder)?.iter();
        let entry = |(name, number): (&OsString, u64)| {
            let is_folder = self.node(number).is_ok_and(Node::is_folder);
            (name.clone(), number, is_folder)
        };
        Ok(names.map(entry).collect())
    }

    pub(super) fn make(
        &mut self,
        folder: u64,
        name: &OsStr,
        kind: Kind,
        permissions: u16,
    ) -> Result<u64, Errno> {
        let number = self.last + 1;
        let names = self.names_mut(folder)?;
        if names.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        names.put(name, number);
        self.last = number;
        self.nodes.insert(number, Node::new(kind, permissions));
        Ok(number)
    }

    /// What was named stays until the power goes: processes may hold it open, and the disk may
    /// still name it.
    pub(super) fn remove(
        &mut self,
        folder: u64,
        name: &OsStr,
        a_folder: bool,
    ) -> Result<(), Errno> {
        match &self.node(self.find(folder, name)?)?.kind {
            Kind::Folder(_) if !a_folder => return Err(Errno::EISDIR),
            Kind::File(_) if a_folder => return Err(Errno::ENOTDIR),
            Kind::Folder(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.names_mut(folder)?.remove(name);
        Ok(())
    }

    pub(super) fn rename(&mut self, folder: u64, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let renamed = self.find(folder, from)?;
        if let Ok(replaced) = self.find(folder, to)
            && let Kind::Folder(names) = &self.node(replaced)?.kind
            && (!names.is_empty() || !self.node(renamed)?.is_folder())
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.names_mut(folder)?
            .rename(from, to)
            .ok_or(Errno::ENOENT)
    }

    pub(super) fn read(&self, file: u64, at: usize, length: usize) -> Result<&[u8], Errno> {
        match &self.node(file)?.kind {
            Kind::File(content) => Ok(content.read(at, length)),
            Kind::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(super) fn write(&mut self, file: u64, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.content_mut(file)?.write(at, bytes);
        Ok(())
    }

    pub(super) fn set_len(&mut self, file: u64, length: usize) -> Result<(), Errno> {
        self.content_mut(file)?.set_len(length);
        Ok(())
    }

    /// Where a sync of a file or a directory begins.
    pub(super) fn mark(&self, number: u64) -> Result<u64, Errno> {
        Ok(match &self.node(number)?.kind {
            Kind::File(content) => content.mark(),
            Kind::Folder(names) => names.mark(),
        })
    }

    /// Ends the sync that began at `mark`.
    pub(super) fn sync(&mut self, number: u64, mark: u64) -> Result<(), Errno> {
        match &mut self.node_mut(number)?.kind {
            Kind::File(content) => content.sync(mark),
            Kind::Folder(names) => names.sync(mark),
        }
        Ok(())
    }

    /// The power goes and comes back. Of what was not synced nothing is left, or `some`: then each
    /// file and each directory has a fate of its own.
    pub(super) fn lose_power(&mut self, some: bool, random: &mut StdRng) -> Lost {
        let mut lost = Lost::default();
        for node in self.nodes.values_mut() {
            let fate = match random.random_range(0..4) {
                _ if !some => Fate::Nothing,
                0 => Fate::Nothing,
                1 => Fate::Everything,
                _ => Fate::Some,
            };
            match &mut node.kind {
                Kind::File(content) => {
                    let bytes = content.lose_power(fate, random);
                    lost.bytes += bytes;
                    lost.files += u64::from(bytes > 0);
                }
                Kind::Folder(names) => lost.names += names.lose_power(fate, random),
            }
        }
        self.forget_unnamed();
        lost
    }

    fn forget_unnamed(&mut self) {
        let mut named = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(folder) = open.pop() {
            if let Ok(names) = self.names(folder) {
                open.extend(names.named().filter(|number| named.insert(*number)));
            }
        }
        self.nodes.retain(|number, _| named.contains(number));
    }
}
