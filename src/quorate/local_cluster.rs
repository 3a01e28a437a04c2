//! A cluster of real processes on this machine: for `quorate dev`, for fault injection, for tests.
//!
//! It only ever ends processes that it started, by process id, and ends all of them when it is
//! dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use quorate_types::{Endpoint, NodeId};
use tokio::time::{Instant, interval};

use crate::local_node::{LocalNode, NodeLogs, NodeState};
use crate::node_plan::{NodePlan, controllers};

/// How a local cluster is made.
#[derive(Debug, Clone)]
pub struct LocalClusterOptions {
    /// The `quorate` binary.
    pub binary: PathBuf,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// Node N keeps its data in `node-N` there.
    pub directory: PathBuf,
    /// Further arguments of `quorate server`, for every node.
    pub server_arguments: Vec<String>,
    /// Where the logs go.
    pub logs: NodeLogs,
}

/// A cluster of processes that this one started.
pub struct LocalCluster {
    options: LocalClusterOptions,
    nodes: BTreeMap<NodeId, LocalNode>,
}

impl LocalCluster {
    /// Starts every node. It does not wait until they work together.
    ///
    /// # Errors
    /// When a directory cannot be made or a process cannot be started; those that were are ended.
    pub fn start(options: LocalClusterOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.directory)?;
        let nodes = options
            .nodes
            .iter()
            .map(|plan| (plan.node, LocalNode::new(plan.clone())))
            .collect();
        let mut cluster = Self { options, nodes };
        for node in cluster.node_ids() {
            cluster.start_node(node)?;
        }
        Ok(cluster)
    }

    /// The numbers of all nodes, running or not.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Where the nodes listen for clients, running or not.
    pub fn addresses(&self) -> Vec<Endpoint> {
        self.nodes
            .values()
            .map(|node| node.plan.client.clone())
            .collect()
    }

    /// Where other nodes reach the nodes, running or not.
    pub fn internal_addresses(&self) -> Vec<Endpoint> {
        self.nodes
            .values()
            .map(|node| node.plan.internal.clone())
            .collect()
    }

    /// Where the data and, with [`NodeLogs::Files`], the logs are.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    /// The log of a node, with [`NodeLogs::Files`].
    pub fn log_path(&self, node: NodeId) -> io::Result<PathBuf> {
        Ok(self.node(node)?.log_path(&self.options.directory))
    }

    /// Whether a node runs.
    pub fn state(&mut self, node: NodeId) -> io::Result<NodeState> {
        Ok(self.node_mut(node)?.state())
    }

    /// How a node's process last ended; `None` while it runs.
    pub fn last_exit(&self, node: NodeId) -> io::Result<Option<ExitStatus>> {
        Ok(self.node(node)?.last_exit())
    }

    /// The process id of a running node.
    pub fn pid(&self, node: NodeId) -> io::Result<Option<u32>> {
        Ok(self.node(node)?.pid())
    }

    /// Starts a node that is down, with the data that it has.
    pub fn start_node(&mut self, node: NodeId) -> io::Result<()> {
        let arguments = self.arguments(node)?;
        let (binary, directory) = (self.options.binary.clone(), self.options.directory.clone());
        let logs = self.options.logs;
        self.node_mut(node)?
            .start(&binary, &arguments, logs, &directory)
    }

    /// Kills a node with SIGKILL; it has ended when this returns.
    pub fn kill(&mut self, node: NodeId) -> io::Result<()> {
        self.node_mut(node)?.kill()
    }

    /// Freezes a node with SIGSTOP.
    pub fn pause(&mut self, node: NodeId) -> io::Result<()> {
        self.node_mut(node)?.pause()
    }

    /// Lets a frozen node go on.
    pub fn resume(&mut self, node: NodeId) -> io::Result<()> {
        self.node_mut(node)?.resume()
    }

    /// Asks a node to stop (SIGTERM); see [`wait_down`](Self::wait_down).
    pub fn terminate(&mut self, node: NodeId) -> io::Result<()> {
        self.node_mut(node)?.terminate()
    }

    /// Waits until a node's process has ended, and says how.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it still runs at the deadline.
    pub async fn wait_down(
        &mut self,
        node: NodeId,
        within: Duration,
    ) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + within;
        let mut again = interval(Duration::from_millis(10));
        while self.state(node)? != NodeState::Down {
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("node {node} still runs {within:?} after it was asked to stop"),
                ));
            }
            again.tick().await;
        }
        self.last_exit(node)
    }

    /// Asks all nodes to stop, and gives all of them `within` together; whoever has not ended by
    /// then is killed. Returns the nodes that had to be.
    pub async fn stop(&mut self, within: Duration) -> io::Result<Vec<NodeId>> {
        let deadline = Instant::now() + within;
        let mut asked = Vec::new();
        for node in self.node_ids() {
            if self.state(node)? != NodeState::Down {
                self.terminate(node)?;
                asked.push(node);
            }
        }
        let mut killed = Vec::new();
        for node in asked {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.wait_down(node, left).await.is_err() {
                self.kill(node)?;
                killed.push(node);
            }
        }
        Ok(killed)
    }

    fn arguments(&self, node: NodeId) -> io::Result<Vec<String>> {
        let plan = &self.node(node)?.plan;
        let data = self.options.directory.join(format!("node-{node}"));
        let data = data
            .to_str()
            .ok_or_else(|| io::Error::other(format!("{} is not UTF-8", data.display())))?;
        let mut arguments: Vec<String> = [
            "server",
            "--exit-with-parent",
            "--node-id",
            &node.to_string(),
            "--data-dir",
            data,
            "--controllers",
            &controllers(&self.options.nodes),
            "--listen",
            &plan.client.to_string(),
            "--internal-listen",
            &plan.internal.to_string(),
            "--advertise",
            &plan.advertised.to_string(),
            "--internal-advertise",
            &plan.internal.to_string(),
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(self.options.server_arguments.iter().cloned());
        Ok(arguments)
    }

    fn node(&self, node: NodeId) -> io::Result<&LocalNode> {
        self.nodes.get(&node).ok_or_else(|| self.unknown(node))
    }

    fn node_mut(&mut self, node: NodeId) -> io::Result<&mut LocalNode> {
        if !self.nodes.contains_key(&node) {
            return Err(self.unknown(node));
        }
        Ok(self
            .nodes
            .get_mut(&node)
            .expect("the node was found a line above"))
    }

    fn unknown(&self, node: NodeId) -> io::Error {
        let known: Vec<String> = self.nodes.keys().map(ToString::to_string).collect();
        io::Error::other(format!(
            "there is no node {node}; the nodes are {}",
            known.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A cluster whose "binary" is a script that ignores its arguments.
    fn cluster(script: &str) -> (tempfile::TempDir, LocalCluster) {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("fake");
        let mut file = fs::File::create(&binary).unwrap();
        writeln!(file, "#!/bin/sh\n{script}").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o755))
            .unwrap();
        drop(file);
        let options = LocalClusterOptions {
            binary,
            nodes: NodePlan::on_free_ports(2).unwrap(),
            directory: directory.path().to_owned(),
            server_arguments: Vec::new(),
            logs: NodeLogs::Files,
        };
        loop {
            match LocalCluster::start(options.clone()) {
                Ok(cluster) => return (directory, cluster),
                // Another test's child was forked while the script was open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    const FIRST: NodeId = NodeId::new(1);
    const SECOND: NodeId = NodeId::new(2);

    #[tokio::test]
    async fn nodes_are_killed_frozen_and_started_one_by_one() {
        let (_directory, mut cluster) = cluster("cat");
        assert_eq!(cluster.state(FIRST).unwrap(), NodeState::Running);
        cluster.pause(FIRST).unwrap();
        assert_eq!(cluster.state(FIRST).unwrap(), NodeState::Paused);
        cluster.resume(FIRST).unwrap();
        cluster.kill(FIRST).unwrap();
        assert_eq!(cluster.state(FIRST).unwrap(), NodeState::Down);
        assert!(cluster.kill(FIRST).is_err(), "a dead node is not killed");
        assert_eq!(cluster.state(SECOND).unwrap(), NodeState::Running);
        cluster.start_node(FIRST).unwrap();
        assert!(cluster.start_node(FIRST).is_err(), "never started twice");
        let unknown = cluster.kill(NodeId::new(3)).unwrap_err().to_string();
        assert_eq!(unknown, "there is no node 3; the nodes are 1, 2");
    }

    #[tokio::test]
    async fn a_node_that_does_not_stop_is_killed() {
        // `cat` holds the shell until stdin closes; the trap keeps it from ending by SIGTERM.
        let (_directory, mut cluster) = cluster("trap '' TERM\ncat");
        // Until the shell has set its trap, SIGTERM would end it: wait for its child.
        let killed = loop {
            let killed = cluster.stop(Duration::from_millis(300)).await.unwrap();
            if killed.len() == 2 {
                break killed;
            }
            for node in [FIRST, SECOND] {
                cluster.start_node(node).unwrap();
            }
        };
        assert_eq!(killed, [FIRST, SECOND]);
    }

    #[tokio::test]
    async fn a_node_that_ends_by_itself_is_noticed() {
        let (_directory, mut cluster) = cluster("echo no >&2; exit 7");
        let status = cluster.wait_down(FIRST, Duration::from_secs(30)).await;
        assert_eq!(status.unwrap().unwrap().code(), Some(7));
        let log = fs::read_to_string(cluster.log_path(FIRST).unwrap()).unwrap();
        assert_eq!(log, "no\n");
    }
}
