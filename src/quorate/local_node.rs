//! One node of a local cluster: a child process, held from its start to its end.
//!
//! Invariant: a signal is only sent to a child that has not been waited for, so its process id
//! cannot have become another's.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node_plan::NodePlan;

/// Where the logs of the nodes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeLogs {
    /// To stderr, each line with the node's number before it.
    Prefixed,
    /// To `node-N.log` in the cluster's directory, over all starts of a node.
    Files,
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Its process runs.
    Running,
    /// Its process is frozen.
    Paused,
    /// There is no process.
    Down,
}

pub(crate) struct LocalNode {
    pub plan: NodePlan,
    child: Option<Child>,
    paused: bool,
    last_exit: Option<ExitStatus>,
}

impl LocalNode {
    pub fn new(plan: NodePlan) -> Self {
        Self {
            plan,
            child: None,
            paused: false,
            last_exit: None,
        }
    }

    /// Starts the process. Its stdin is a pipe that closes when this process ends, however it
    /// ends, and then the child ends too; a process group of its own keeps a Ctrl-C in the
    /// terminal from reaching it directly.
    pub fn start(
        &mut self,
        binary: &Path,
        arguments: &[String],
        logs: NodeLogs,
        directory: &Path,
    ) -> io::Result<()> {
        if self.state() != NodeState::Down {
            return Err(io::Error::other(format!(
                "node {} is already running",
                self.plan.node
            )));
        }
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        match logs {
            NodeLogs::Prefixed => command.stderr(Stdio::piped()),
            NodeLogs::Files => command.stderr(log_file(&self.log_path(directory))?),
        };
        let mut child = command.spawn()?;
        if let Some(stderr) = child.stderr.take() {
            forward(self.plan.node.to_string(), stderr);
        }
        self.child = Some(child);
        self.paused = false;
        self.last_exit = None;
        Ok(())
    }

    pub fn log_path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("node-{}.log", self.plan.node))
    }

    /// What the process does now; notices its end.
    pub fn state(&mut self) -> NodeState {
        let Some(child) = &mut self.child else {
            return NodeState::Down;
        };
        match child.try_wait() {
            Ok(None) if self.paused => NodeState::Paused,
            Ok(None) => NodeState::Running,
            Ok(Some(status)) => {
                self.ended(Some(status));
                NodeState::Down
            }
            Err(_) => {
                self.ended(None);
                NodeState::Down
            }
        }
    }

    /// How the process last ended, where it did.
    pub fn last_exit(&self) -> Option<ExitStatus> {
        self.last_exit
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL, then waits for the end: on return its ports and files are free.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(child) = &mut self.child else {
            return Err(self.not_running());
        };
        child.kill()?;
        let status = child.wait()?;
        self.ended(Some(status));
        Ok(())
    }

    /// SIGTERM; the node takes itself down. A frozen one is woken to hear it.
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.paused {
            self.resume()?;
        }
        Ok(())
    }

    /// SIGSTOP.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.paused = false;
        Ok(())
    }

    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.state() == NodeState::Down {
            return Err(self.not_running());
        }
        let pid = self.pid().ok_or_else(|| self.not_running())?;
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal)?;
        Ok(())
    }

    fn not_running(&self) -> io::Error {
        io::Error::other(format!("node {} is not running", self.plan.node))
    }

    fn ended(&mut self, status: Option<ExitStatus>) {
        self.child = None;
        self.paused = false;
        self.last_exit = status;
    }
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing to end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn log_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Copies a node's log to stderr, line by line, until the node ends.
fn forward(node: String, stderr: ChildStderr) {
    thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            let mut whole = format!("node {node} | ").into_bytes();
            whole.append(&mut line);
            // With stderr gone there is no place left to say so.
            let _ = io::stderr().lock().write_all(&whole);
        }
    });
}
