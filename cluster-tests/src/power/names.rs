//! The names in one directory: as processes see them, as they are on the disk, and what lies
//! between.
//!
//! A name that was made, renamed or removed is durable once its directory is synced, and by nothing
//! else. A rename is one step: never both names, never none.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use rand::Rng;
use rand::rngs::StdRng;

use super::Fate;
use super::unsynced::Unsynced;

#[derive(Debug)]
enum Edit {
    Put(OsString, u64),
    Remove(OsString),
    Rename(OsString, OsString, u64),
}

type Entries = BTreeMap<OsString, u64>;

/// The names in one directory, each with the number of what it names.
#[derive(Debug, Default)]
pub(super) struct Names {
    now: Entries,
    durable: Entries,
    unsynced: Unsynced<Edit>,
}

fn apply(entries: &mut Entries, edit: &Edit) {
    match edit {
        Edit::Put(name, number) => {
            entries.insert(name.clone(), *number);
        }
        Edit::Remove(name) => {
            entries.remove(name);
        }
        Edit::Rename(from, to, number) => {
            entries.remove(from);
            entries.insert(to.clone(), *number);
        }
    }
}

impl Names {
    pub(super) fn get(&self, name: &OsStr) -> Option<u64> {
        self.now.get(name).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OsString, u64)> {
        self.now.iter().map(|(name, number)| (name, *number))
    }

    pub(super) fn put(&mut self, name: &OsStr, number: u64) {
        self.edit(Edit::Put(name.to_owned(), number));
    }

    pub(super) fn remove(&mut self, name: &OsStr) {
        self.edit(Edit::Remove(name.to_owned()));
    }

    /// What had the new name has none any more.
    pub(super) fn rename(&mut self, from: &OsStr, to: &OsStr) -> Option<()> {
        let number = self.get(from)?;
        self.edit(Edit::Rename(from.to_owned(), to.to_owned(), number));
        Some(())
    }

    fn edit(&mut self, edit: Edit) {
        apply(&mut self.now, &edit);
        self.unsynced.push(edit);
    }

    pub(super) fn mark(&self) -> u64 {
        self.unsynced.mark()
    }

    /// Makes durable what was done before `mark`.
    pub(super) fn sync(&mut self, mark: u64) {
        for edit in self.unsynced.synced(mark) {
            apply(&mut self.durable, &edit);
        }
    }

    /// The power goes and comes back. Returns how many edits are undone.
    pub(super) fn lose_power(&mut self, fate: Fate, random: &mut StdRng) -> u64 {
        let edits = self.unsynced.take();
        // A journal keeps the order; without one each block of a directory goes its own way.
        let journal = random
            .random_bool(0.5)
            .then(|| random.random_range(0..=edits.len()));
        let mut undone = 0;
        for (at, edit) in edits.iter().enumerate() {
            let kept = match (fate, journal) {
                (Fate::Nothing, _) => false,
                (Fate::Everything, _) => true,
                (Fate::Some, Some(written)) => at < written,
                (Fate::Some, None) => random.random_bool(0.5),
            };
            if kept {
                apply(&mut self.durable, edit);
            } else {
                undone += 1;
            }
        }
        self.now.clone_from(&self.durable);
        undone
    }

    /// What is named, as processes see it.
    pub(super) fn named(&self) -> impl Iterator<Item = u64> {
        self.now.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn shown(names: &Names) -> Vec<(&str, u64)> {
        let all = names.iter();
        all.map(|(name, number)| (name.to_str().unwrap_or_default(), number))
            .collect()
    }

    /// `a` was made and synced; then `b` was made, and renamed to `a`.
    fn replaced() -> Names {
        let mut names = Names::default();
        names.put(OsStr::new("a"), 1);
        names.sync(names.mark());
        names.put(OsStr::new("b"), 2);
        names.rename(OsStr::new("b"), OsStr::new("a"));
        names
    }

    #[test]
    fn a_rename_that_was_not_synced_is_undone_and_one_that_was_stays() {
        let mut random = StdRng::seed_from_u64(1);
        let mut names = replaced();
        assert_eq!(shown(&names), [("a", 2)]);
        assert_eq!(names.lose_power(Fate::Nothing, &mut random), 2);
        assert_eq!(shown(&names), [("a", 1)]);
        let mut names = replaced();
        names.sync(names.mark());
        assert_eq!(names.lose_power(Fate::Nothing, &mut random), 0);
        assert_eq!(shown(&names), [("a", 2)]);
    }

    #[test]
    fn any_of_the_steps_may_have_been_written() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut names = replaced();
            names.lose_power(Fate::Some, &mut StdRng::seed_from_u64(seed));
            seen.insert(format!("{:?}", shown(&names)));
        }
        let expected = [vec![("a", 1)], vec![("a", 1), ("b", 2)], vec![("a", 2)]];
        assert_eq!(seen, expected.map(|names| format!("{names:?}")).into());
    }
}
