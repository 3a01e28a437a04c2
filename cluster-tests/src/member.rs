//! A member of a consumer group as a process of its own, `group-member`, and what it tells: a line for
//! each thing that it does, written before it does the next, so that SIGKILL takes nothing of it back.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use quorate_types::Endpoint;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A member that is to leave has left within this.
const LEAVES: Duration = Duration::from_secs(60);

/// Time since some moment that is the same for all processes of the machine.
///
/// # Panics
/// On a system without such a clock.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.expect("the system has a monotonic clock").into()
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It has the partition, and reads from this offset on.
    Assigned {
        /// The partition.
        partition: u32,
        /// The first offset.
        offset: u64,
    },
    /// It has done with a record.
    Processed {
        /// The record's partition.
        partition: u32,
        /// The record's offset.
        offset: u64,
        /// The record's number.
        number: u64,
    },
    /// It does nothing more in the partition, because it was told to give it up, or because it leaves.
    GivenUp {
        /// The partition.
        partition: u32,
    },
    /// It was told that the partition is gone already.
    Lost {
        /// The partition.
        partition: u32,
    },
}

/// What a member does, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// By [`monotonic`].
    pub at: Duration,
    /// What.
    pub what: What,
}

impl Told {
    /// It happens now.
    pub fn now(what: What) -> Self {
        Self {
            at: monotonic(),
            what,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ", self.at.as_nanos())?;
        match self.what {
            What::Assigned { partition, offset } => write!(out, "assigned {partition} {offset}"),
            What::Processed {
                partition,
                offset,
                number,
            } => write!(out, "processed {partition} {offset} {number}"),
            What::GivenUp { partition } => write!(out, "given-up {partition}"),
            What::Lost { partition } => write!(out, "lost {partition}"),
        }
    }
}

impl FromStr for Told {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> Result<u64, String> {
            let word = words.get(at).ok_or_else(|| format!("short: {line:?}"))?;
            word.parse().map_err(|error| format!("{line:?}: {error}"))
        };
        let partition = u32::try_from(number(2)?).map_err(|error| format!("{line:?}: {error}"))?;
        let what = match words.get(1) {
            Some(&"assigned") => What::Assigned {
                partition,
                offset: number(3)?,
            },
            Some(&"processed") => What::Processed {
                partition,
                offset: number(3)?,
                number: number(4)?,
            },
            Some(&"given-up") => What::GivenUp { partition },
            Some(&"lost") => What::Lost { partition },
            _ => return Err(format!("what is {line:?}?")),
        };
        let at = Duration::from_nanos(number(0)?);
        Ok(Self { at, what })
    }
}

/// A running member, or one that has ended. It is killed when this is dropped.
#[derive(Debug)]
pub struct MemberProcess {
    child: Child,
    /// Closed, it leaves.
    stdin: Option<ChildStdin>,
    told: Arc<Mutex<Vec<Told>>>,
    reads: JoinHandle<()>,
}

impl MemberProcess {
    /// Starts `binary`, the `group-member`, in a group that reads a topic from its beginning.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(
        binary: &Path,
        nodes: &[Endpoint],
        (group, topic): (&str, &str),
        session: Duration,
    ) -> Self {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        let mut command = Command::new(binary);
        command
            .args([&nodes.join(","), group, topic])
            .arg(session.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("a member can be started");
        let stdout = child.stdout.take().expect("its stdout is a pipe");
        let told = Arc::<Mutex<Vec<Told>>>::default();
        Self {
            stdin: child.stdin.take(),
            child,
            reads: tokio::spawn(read(stdout, Arc::clone(&told))),
            told,
        }
    }

    /// All that it has told so far, in order.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().clone()
    }

    /// The partitions that it has, as far as it has told.
    pub fn has(&self) -> BTreeSet<u32> {
        let mut has = BTreeSet::new();
        for told in self.told.lock().iter() {
            match told.what {
                What::Assigned { partition, .. } => has.insert(partition),
                What::GivenUp { partition } | What::Lost { partition } => has.remove(&partition),
                What::Processed { .. } => continue,
            };
        }
        has
    }

    /// Ends it with SIGKILL; all that it has told is known then.
    ///
    /// # Panics
    /// Where it has ended by itself.
    pub async fn kill(&mut self) {
        let ended = self.child.try_wait().expect("a child can be asked after");
        assert_eq!(ended, None, "the member has ended by itself");
        self.child.kill().await.expect("a child can be killed");
        self.end().await;
    }

    /// Has it leave the group, and waits until it has ended well; all that it has told is known then.
    ///
    /// # Panics
    /// Where it does not, or says that something went wrong.
    pub async fn leave(&mut self) {
        self.stdin = None;
        let ended = timeout(LEAVES, self.child.wait()).await;
        let status = ended.expect("a member leaves in time");
        let status = status.expect("a child can be waited for");
        assert!(status.success(), "the member ended with {status}");
        self.end().await;
    }

    async fn end(&mut self) {
        let read = (&mut self.reads).await;
        read.expect("a member tells what can be read");
    }
}

/// Reads what a member tells until its end. A line that was cut by its end was not told.
async fn read(stdout: ChildStdout, told: Arc<Mutex<Vec<Told>>>) {
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    while lines.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let Some(whole) = line.strip_suffix('\n') else {
            return;
        };
        told.lock()
            .push(whole.parse().expect("a line as it tells them"));
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_told() {
        let partition = 3;
        let (offset, number) = (4, 5);
        for what in [
            What::Assigned { partition, offset },
            What::Processed {
                partition,
                offset,
                number,
            },
            What::GivenUp { partition },
            What::Lost { partition },
        ] {
            let told = Told::now(what);
            assert_eq!(told.to_string().parse(), Ok(told));
        }
        for wrong in ["", "1 processed 3 4", "1 left 2", "x assigned 1 2"] {
            assert!(wrong.parse::<Told>().is_err(), "{wrong}");
        }
    }
}
