//! The quorum (src/metadata/README.md): a command that names a term is applied under that term only.
//!
//! Not verified: commands that name none.

use quorate_metadata::Outcome;

use super::{Entry, EntryChecker, Found};

pub(super) struct NamedTerm;

impl EntryChecker for NamedTerm {
    fn name(&self) -> &'static str {
        "a command is applied under the term that it names"
    }

    fn check(&mut self, entry: &Entry<'_>) -> Result<(), Found> {
        let refused = matches!(entry.outcome, Outcome::Refused(_));
        match entry.envelope.required_term {
            Some(named) if !refused && named != entry.at.term => Err((
                None,
                format!(
                    "named {named}, applied under {}: {:?}",
                    entry.at.term, entry.envelope
                ),
            )),
            _ => Ok(()),
        }
    }
}
