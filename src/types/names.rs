//! Topic names and what makes one legal.

use std::fmt;
use std::sync::Arc;

/// A legal topic name, by Kafka's rules: 1–249 characters of `[a-zA-Z0-9._-]`, not `.` or `..`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// Why a topic name is not legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicName {
    /// It is empty.
    #[error("a topic name must not be empty")]
    Empty,
    /// It is longer than a directory name can carry.
    #[error(
        "a topic name has at most {} characters, this one has {length}",
        TopicName::MAX_LEN
    )]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It is `.` or `..`.
    #[error("a topic cannot be called \".\" or \"..\"")]
    Dots,
    /// It has a character outside the legal set.
    #[error("a topic name is made of a-z, A-Z, 0-9, '.', '_' and '-'; {0:?} is none of them")]
    IllegalCharacter(char),
}

impl TopicName {
    /// The longest legal name, in characters (as in Kafka).
    pub const MAX_LEN: usize = 249;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidTopicName`], naming what is wrong.
    pub fn new(name: &str) -> Result<Self, InvalidTopicName> {
        if name.is_empty() {
            return Err(InvalidTopicName::Empty);
        }
        if name == "." || name == ".." {
            return Err(InvalidTopicName::Dots);
        }
        if let Some(illegal) = name
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
        {
            return Err(InvalidTopicName::IllegalCharacter(illegal));
        }
        if name.len() > Self::MAX_LEN {
            return Err(InvalidTopicName::TooLong { length: name.len() });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for TopicName {
    type Error = InvalidTopicName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0.as_ref().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rules() {
        assert!(TopicName::new("orders.v1_eu-west").is_ok());
        assert_eq!(TopicName::new(""), Err(InvalidTopicName::Empty));
        assert_eq!(TopicName::new(".."), Err(InvalidTopicName::Dots));
        assert_eq!(
            TopicName::new("a/b"),
            Err(InvalidTopicName::IllegalCharacter('/'))
        );
        assert!(TopicName::new(&"x".repeat(249)).is_ok());
        assert_eq!(
            TopicName::new(&"x".repeat(250)),
            Err(InvalidTopicName::TooLong { length: 250 })
        );
    }
}
