//! What happened in a run: a hash over all of it, for the proof that a seed gives the same run
//! again, and lines for people, made only where somebody will read them.

use std::time::Duration;

use quorate_types::TopicPartition;

/// Lines shown of a run that failed.
const SHOWN: usize = 80;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub at: Duration,
    /// The partition that it is about; none: nodes, the quorum.
    pub partition: Option<TopicPartition>,
    /// What happened.
    pub text: String,
}

/// The trace of one run.
pub struct Trace {
    lines: Option<Vec<Line>>,
    hash: u64,
}

impl Trace {
    /// An empty trace; lines are kept only where `kept`.
    pub fn new(kept: bool) -> Self {
        Self {
            lines: kept.then(Vec::new),
            hash: 0,
        }
    }

    /// Whether lines are kept.
    pub fn is_kept(&self) -> bool {
        self.lines.is_some()
    }

    /// Adds a line.
    pub fn push(&mut self, at: Duration, partition: Option<TopicPartition>, text: String) {
        if let Some(lines) = &mut self.lines {
            lines.push(Line {
                at,
                partition,
                text,
            });
        }
    }

    /// Adds a number to the hash.
    pub fn mix(&mut self, number: u64) {
        let mixed = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = mixed.rotate_left(29);
    }

    /// A hash over all that happened so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// All lines.
    pub fn into_lines(self) -> Vec<Line> {
        self.lines.unwrap_or_default()
    }
}

/// The last lines, of one partition and of the nodes only where one is given.
pub fn shortened(lines: &[Line], partition: Option<TopicPartition>) -> String {
    let concerned: Vec<&Line> = lines
        .iter()
        .filter(|line| {
            line.partition.is_none() || partition.is_none_or(|id| line.partition == Some(id))
        })
        .collect();
    let from = concerned.len().saturating_sub(SHOWN);
    let mut out = format!(
        "({} earlier lines)\n",
        lines.len() - (concerned.len() - from)
    );
    for line in &concerned[from..] {
        out.push_str(&line.to_string());
        out.push('\n');
    }
    out
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.at.as_secs_f64() * 1_000.0;
        match self.partition {
            Some(id) => write!(f, "{millis:>9.3} ms  {}  {}", named(id), self.text),
            None => write!(f, "{millis:>9.3} ms  {}", self.text),
        }
    }
}

/// A partition in few letters: the topic's number and the partition's.
pub(super) fn named(id: TopicPartition) -> String {
    let bytes = id.topic_id.as_bytes();
    format!(
        "t{}-{}",
        u16::from_be_bytes([bytes[14], bytes[15]]),
        id.partition
    )
}

/// Notes a line in a world's trace, where lines are kept.
macro_rules! note {
    ($world:expr, $partition:expr, $($text:tt)+) => {
        if $world.trace.is_kept() {
            let text = format!($($text)+);
            $world.trace.push($world.now, $partition, text);
        }
    };
}
pub(super) use note;
