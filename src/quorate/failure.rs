//! Why a command did not do what was asked, for people: what failed, why, what to try.

use std::fmt;
use std::io;

/// The end of a command that did not do all that was asked.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read stdout has had enough; nothing to say about it.
    ClosedPipe,
    /// Something to tell.
    Told {
        /// What was asked for and not done.
        what: String,
        /// The cause.
        why: String,
        /// What may help.
        hint: Option<String>,
        /// What was given is wrong, whatever the state of the cluster: exit code 2.
        usage: bool,
    },
    /// Everything was already said, on stdout or stderr; only the exit code is left.
    Said,
}

/// What a command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// `what` was not done because of `why`.
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Told {
            what: what.into(),
            why: why.to_string(),
            hint: None,
            usage: false,
        }
    }

    /// `what` cannot be done as it was asked for, because of `why`: wrong usage.
    pub fn usage(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Told {
            what: what.into(),
            why: why.to_string(),
            hint: None,
            usage: true,
        }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Told { usage: true, .. } => 2,
            Self::Told { .. } | Self::Said => 1,
        }
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Told {
                what, why, usage, ..
            } => Self::Told {
                what,
                why,
                hint: Some(text.into()),
                usage,
            },
            other => other,
        }
    }

    /// A write to stdout that failed.
    pub fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedPipe
        } else {
            Self::new("could not write to stdout", error)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Told {
            what, why, hint, ..
        } = self
        else {
            return Ok(());
        };
        write!(f, "error: {what}\n  why: {why}")?;
        if let Some(hint) = hint {
            write!(f, "\n  try: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_try() {
        let failure = Failure::new("cannot list topics", "nobody answers").hint("quorate dev");
        assert_eq!(
            failure.to_string(),
            "error: cannot list topics\n  why: nobody answers\n  try: quorate dev"
        );
        assert_eq!(failure.exit_code(), 1);
        let usage = Failure::usage("no such setting", "it is unknown").hint("--help");
        assert_eq!(usage.exit_code(), 2);
    }
}
