//! What happened in a run, line by line: its end for people, a hash over all of it for the proof
//! that a seed gives the same run again.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

/// Lines kept unless all are asked for.
const TAIL: usize = 80;

/// The trace of one run.
pub struct Trace {
    tail: VecDeque<String>,
    keep: usize,
    hash: DefaultHasher,
    lines: u64,
}

impl Trace {
    /// An empty trace; `whole` keeps every line.
    pub fn new(whole: bool) -> Self {
        Self {
            tail: VecDeque::new(),
            keep: if whole { usize::MAX } else { TAIL },
            hash: DefaultHasher::new(),
            lines: 0,
        }
    }

    /// Adds a line.
    pub fn note(&mut self, now: Duration, what: &str) {
        let line = format!("{:>9.3} ms  {what}", now.as_secs_f64() * 1_000.0);
        self.hash.write(line.as_bytes());
        self.lines += 1;
        if self.tail.len() >= self.keep {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// A hash over every line so far.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let shown = self.tail.len() as u64;
        let mut out = format!("({} earlier lines)\n", self.lines - shown);
        for line in &self.tail {
            out.push_str(line);
            out.push('\n');
        }
        out
    }
}
