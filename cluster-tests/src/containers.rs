//! The cluster of docker-compose.yml for a test: a project and ports of its own, ended with its
//! volumes even when the test fails. The image is named by `QUORATE_IMAGE`, the project by
//! `CLUSTER_TEST_PROJECT`; `.ci/containers` makes the image, and the engine, and runs the tests.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::fcntl::Flock;
use quorate_client::{Client, ClientOptions};
use quorate_types::{Endpoint, NodeId};
use tokio::process::{Child, Command};

use crate::harness::alone;
use crate::view::{View, eventually};

const NODES: u32 = 3;
/// Ports are taken here. Source of an outgoing connection is 127.0.0.1, so that none takes a
/// node's port while the node is down.
const HOST: &str = "127.0.0.2";

/// What every call of compose is told.
struct Project {
    directory: PathBuf,
    name: String,
    environment: Vec<(String, String)>,
}

impl Project {
    fn compose(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("docker-compose");
        command
            .current_dir(&self.directory)
            .args(["--project-name", &self.name])
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let arguments = ["down", "--volumes", "--remove-orphans", "--timeout", "1"];
        match self.compose(&arguments).output() {
            Ok(output) if output.status.success() => {}
            failed => eprintln!("the project {} was not removed: {failed:?}", self.name),
        }
    }
}

/// A running cluster of three containers.
pub struct Containers {
    /// What a client on the host sees of it.
    pub view: View,
    /// Container ids, of node 1 first.
    ids: Vec<String>,
    network: String,
    project: Project,
    _alone: Flock<File>,
}

/// Output of a command that must succeed.
async fn output(command: std::process::Command) -> String {
    let shown = format!("{command:?}");
    let output = Command::from(command).kill_on_drop(true).output().await;
    told(&shown, output.expect("the command can be started"))
}

fn told(what: &str, output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what} failed: {out}{error}");
    out
}

/// Runs `docker`, which must succeed; gives what it printed.
async fn docker(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new("docker");
    command.args(arguments).stdin(Stdio::null());
    output(command).await.trim().to_owned()
}

impl Containers {
    /// Brings the containers up and waits until they are healthy.
    pub async fn start() -> Self {
        let image = std::env::var("QUORATE_IMAGE")
            .expect("QUORATE_IMAGE names the image: run the test with `.ci/containers`");
        let alone = alone().await;
        // Held until all are known, so that they differ.
        let free: Vec<TcpListener> = (0..NODES)
            .map(|_| TcpListener::bind((HOST, 0)).expect("loopback has free ports"))
            .collect();
        let port = |listener: &TcpListener| {
            let address = listener.local_addr().expect("a listener has an address");
            address.port()
        };
        let ports: Vec<u16> = free.iter().map(port).collect();
        drop(free);
        let mut environment = vec![
            ("QUORATE_IMAGE".to_owned(), image),
            ("QUORATE_PUBLISH".to_owned(), HOST.to_owned()),
            ("QUORATE_ADVERTISE_HOST".to_owned(), HOST.to_owned()),
        ];
        for (number, port) in (1..).zip(&ports) {
            environment.push((format!("QUORATE_PORT_{number}"), port.to_string()));
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let project = Project {
            directory: directory.expect("the room is in the workspace").to_owned(),
            name: std::env::var("CLUSTER_TEST_PROJECT")
                .unwrap_or_else(|_| format!("quorate-test-{}", std::process::id())),
            environment,
        };
        output(project.compose(&["up", "--detach", "--no-build"])).await;
        let mut ids = Vec::new();
        for number in 1..=NODES {
            let service = format!("quorate-{number}");
            let id = output(project.compose(&["ps", "--quiet", &service])).await;
            ids.push(id.trim().to_owned());
        }
        let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
        let network = docker(&["inspect", "--format", networks, &ids[0]]).await;
        let endpoint = |port| Endpoint {
            host: HOST.to_owned(),
            port,
        };
        let addresses = ports.into_iter().map(endpoint).collect();
        let client = Client::new(addresses, ClientOptions::default()).expect("there are addresses");
        let cluster = Self {
            view: View { client },
            ids,
            network,
            project,
            _alone: alone,
        };
        cluster.healthy().await;
        cluster.view.all_active().await;
        cluster
    }

    /// Waits until the engine calls every container healthy.
    pub async fn healthy(&self) {
        eventually("three healthy containers", || async {
            let mut inspect = vec!["inspect", "--format", "{{.State.Health.Status}}"];
            inspect.extend(self.ids.iter().map(String::as_str));
            let states = docker(&inspect).await;
            let healthy = states.lines().filter(|state| *state == "healthy").count();
            (healthy == self.ids.len()).then_some(()).ok_or(states)
        })
        .await;
    }

    /// The numbers of the nodes.
    pub fn node_ids(&self) -> Vec<NodeId> {
        (1..=NODES).map(NodeId::new).collect()
    }

    fn id(&self, node: NodeId) -> &str {
        &self.ids[node.get() as usize - 1]
    }

    /// `docker kill`: SIGKILL, and the container's network goes with it.
    pub async fn kill(&self, node: NodeId) {
        docker(&["kill", self.id(node)]).await;
    }

    /// `docker start` of a container that was killed.
    pub async fn start_node(&self, node: NodeId) {
        docker(&["start", self.id(node)]).await;
    }

    /// `docker stop` with the grace of the compose file; gives the exit code.
    pub async fn stop(&self, node: NodeId) -> i32 {
        let service = format!("quorate-{node}");
        output(self.project.compose(&["stop", &service])).await;
        let code = docker(&["inspect", "--format", "{{.State.ExitCode}}", self.id(node)]).await;
        code.parse().expect("an exit code is a number")
    }

    /// `docker pause`: the node freezes.
    pub async fn pause(&self, node: NodeId) {
        docker(&["pause", self.id(node)]).await;
    }

    /// `docker unpause`.
    pub async fn unpause(&self, node: NodeId) {
        docker(&["unpause", self.id(node)]).await;
    }

    /// Takes a running node's network away.
    pub async fn disconnect(&self, node: NodeId) {
        docker(&["network", "disconnect", &self.network, self.id(node)]).await;
    }

    /// Gives the network back, with the service's name (which compose had given it).
    pub async fn connect(&self, node: NodeId) {
        let alias = format!("quorate-{node}");
        let id = self.id(node);
        docker(&["network", "connect", "--alias", &alias, &self.network, id]).await;
    }

    /// Runs the command line in a container of its own within the network; it must succeed.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let mut run = vec!["run", "--rm", "-T", "cli"];
        run.extend(arguments);
        output(self.project.compose(&run)).await
    }

    /// Starts the command line in a container of its own; its stdin and output are pipes.
    pub fn start_cli(&self, arguments: &[&str]) -> Child {
        let mut run = vec!["run", "--rm", "-T", "cli"];
        run.extend(arguments);
        let mut command = self.project.compose(&run);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .expect("docker-compose can be started")
    }
}
