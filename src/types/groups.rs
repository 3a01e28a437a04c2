//! The words of consumer groups.

use std::fmt;
use std::sync::Arc;

/// Why a name of a group, a member or an instance is not legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is empty.
    #[error("a {0} must not be empty")]
    Empty(&'static str),
    /// It is too long.
    #[error("a {what} has at most {MAX_LEN} bytes, this one has {length}")]
    TooLong {
        /// What it names.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// It would not be seen, or break a line.
    #[error("a {what} must not contain {character:?}")]
    Control {
        /// What it names.
        what: &'static str,
        /// The first such character.
        character: char,
    },
}

/// The longest name, in bytes of UTF-8.
const MAX_LEN: usize = 249;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`InvalidName`], naming what is wrong.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                check($what, name).map(|()| Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, Self::Error> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }
    };
}

name!(
    /// A consumer group's name: 1–249 bytes without control characters.
    GroupId,
    "group id"
);
name!(
    /// A member of a group, drawn by whoever joins and never used again: 1–249 bytes without control
    /// characters (KIP-848).
    MemberId,
    "member id"
);
name!(
    /// What a static member is known by over its restarts (KIP-345): 1–249 bytes without control
    /// characters.
    InstanceId,
    "instance id"
);

fn check(what: &'static str, name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty(what));
    }
    if name.len() > MAX_LEN {
        let length = name.len();
        return Err(InvalidName::TooLong { what, length });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(character) => Err(InvalidName::Control { what, character }),
        None => Ok(()),
    }
}

/// How the partitions of a group are shared among its members.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Assignor {
    /// Evenly over all topics; a member keeps what it has where that is even enough (KIP-848).
    #[default]
    #[serde(rename = "uniform")]
    Uniform,
    /// Of each topic a row of neighbours, the same of topics with as many partitions and members.
    #[serde(rename = "range")]
    Range,
}

impl Assignor {
    /// Every assignor.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    /// Its name, as Kafka's `group.consumer.assignors` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// Reads it by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|assignor| assignor.name() == name)
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_visible_and_not_too_long() {
        assert!(GroupId::new("billing of Köln/1").is_ok());
        assert_eq!(GroupId::new(""), Err(InvalidName::Empty("group id")));
        assert!(MemberId::new(&"x".repeat(249)).is_ok());
        assert_eq!(
            MemberId::new(&"x".repeat(250)),
            Err(InvalidName::TooLong {
                what: "member id",
                length: 250
            })
        );
        assert!(matches!(
            InstanceId::new("a\nb"),
            Err(InvalidName::Control {
                character: '\n',
                ..
            })
        ));
    }

    #[test]
    fn assignors_are_read_back_from_their_names() {
        for assignor in Assignor::ALL {
            assert_eq!(Assignor::from_name(assignor.name()), Some(assignor));
        }
        assert_eq!(Assignor::from_name("best"), None);
    }
}
