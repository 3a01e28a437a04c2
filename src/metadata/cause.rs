//! Why something happened. Kept in the image as what it is and put into words only where it is
//! shown: other words in a later version are no other image.

use std::fmt;
use std::sync::Arc;

use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

/// Bytes of words from outside (what a controller or a disk said) that are kept at most.
const WORDS_MAX: usize = 240;

/// A reason; a clone costs nothing, since one fencing may be the reason of 10,000 elections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cause(Arc<Reason>);

/// Words from outside, cut to what is kept.
pub(crate) fn words(text: &str) -> Arc<str> {
    let mut end = text.len().min(WORDS_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

/// Whose doing something was, and what lies behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// A person or program wanted it.
    Asked,
    /// The topic was created.
    Created,
    /// A node that nobody knew.
    FirstStart,
    /// A new process of a known broker: whether the last one had stopped cleanly, whether its
    /// machine was booted in between, whether the directory is another.
    Restart {
        node: NodeId,
        clean: bool,
        booted: bool,
        other_directory: bool,
    },
    /// What the machine's page cache held is gone (R9).
    CacheLost { node: NodeId },
    /// A replica is damaged (R9, R13): what was found, empty where that is not known.
    Damaged { node: NodeId, found: Arc<str> },
    /// A broker is recovered and reachable.
    Ready,
    /// A replica that may lead is back, in a partition without a leader.
    Back { node: NodeId },
    /// An in-sync replica may lead again, in a partition without a leader: its disk had failed.
    Again { node: NodeId },
    /// A replica is back where none is left that is sure to hold all that was acknowledged (R7).
    Unsure { node: NodeId },
    /// A broker was fenced: what the controller saw.
    Fenced { node: NodeId, why: Arc<str> },
    /// A broker was asked to stop.
    Stopping { node: NodeId },
    /// The leader's proposal (R5): who came into the ISR, who left it.
    Followed {
        joined: Vec<NodeId>,
        left: Vec<NodeId>,
    },
    /// A leader gave up: its disk takes too long (R6).
    Resigned { node: NodeId },
    /// The first replica is in sync again.
    Preferred { node: NodeId },
    /// The topic's settings changed.
    Altered,
    /// What a broker has told.
    Told { node: NodeId },
    /// In words.
    Words(Arc<str>),
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        Self(Arc::new(reason))
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        Reason::Words(words(text)).into()
    }
}

/// What was found of a damaged replica.
pub(crate) fn found(text: &str) -> Cause {
    match text {
        "" => "its disk failed or lost data".into(),
        text => text.into(),
    }
}

fn brokers(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("brokers {} and {last}", rest.join(", "))
        }
        _ => format!("broker {}", names.concat()),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Reason::Asked => f.write_str("asked for"),
            Reason::Created => f.write_str("the topic was created"),
            Reason::FirstStart => f.write_str("its first start"),
            Reason::Restart {
                node,
                clean,
                booted,
                other_directory,
            } => {
                let before = if *clean { "after" } else { "without" };
                write!(f, "broker {node} started again {before} a clean shutdown")?;
                if *booted {
                    f.write_str(", its machine was booted")?;
                }
                if *other_directory {
                    f.write_str(", with another data directory")?;
                }
                Ok(())
            }
            Reason::CacheLost { node } => write!(
                f,
                "the machine of broker {node} was booted without a clean shutdown: what was not \
                 synced is lost"
            ),
            Reason::Damaged { node, found } => {
                write!(f, "the replica of broker {node} is damaged")?;
                match &**found {
                    "" => Ok(()),
                    found => write!(f, ": {found}"),
                }
            }
            Reason::Ready => f.write_str("ready and reachable"),
            Reason::Back { node } => {
                write!(f, "broker {node} is back, with all that was acknowledged")
            }
            Reason::Again { node } => write!(
                f,
                "broker {node} was in sync when its disk failed, and can go on"
            ),
            Reason::Unsure { node } => write!(
                f,
                "broker {node} is back, and no replica is left that is sure to hold all that was \
                 acknowledged"
            ),
            Reason::Fenced { node, why } => write!(f, "broker {node} was fenced: {why}"),
            Reason::Stopping { node } => {
                write!(f, "broker {node} is shutting down: it was asked to stop")
            }
            Reason::Followed { joined, left } => match (&joined[..], &left[..]) {
                ([], []) => f.write_str("asked for by its leader"),
                (joined, []) => write!(f, "{} caught up", brokers(joined)),
                ([], left) => write!(f, "{} fell behind", brokers(left)),
                (joined, left) => write!(
                    f,
                    "{} caught up, {} fell behind",
                    brokers(joined),
                    brokers(left)
                ),
            },
            Reason::Resigned { node } => {
                write!(f, "broker {node} resigned: its disk takes too long to sync")
            }
            Reason::Preferred { node } => {
                write!(f, "broker {node}, the preferred leader, is in sync again")
            }
            Reason::Altered => f.write_str("the topic's settings changed"),
            Reason::Told { node } => write!(f, "told by broker {node}"),
            Reason::Words(text) => f.write_str(text),
        }
    }
}
