//! `quorate dev`: a second one takes nothing away from the first, and says why it does not start.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use quorate::NodePlan;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// No start and no end takes longer.
const BOUND: Duration = Duration::from_secs(60);

/// A `quorate dev` that notes itself as the last started in `notes` only.
fn dev(notes: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-under-test"));
    command
        .arg("dev")
        .args(arguments)
        .env("TMPDIR", notes)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// One that does not start says why, and nothing on stdout.
async fn refused(mut command: Command, why: &str) {
    let output: Output = timeout(BOUND, command.output()).await.unwrap().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(why), "{told}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
}

/// Two ports in a row that nobody listens at now.
fn base_port() -> u16 {
    loop {
        let port = NodePlan::on_free_ports(1).unwrap()[0].client.port;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if port <= 65_000 && free(port) && free(port + 1) {
            return port;
        }
    }
}

#[tokio::test]
async fn a_second_dev_does_not_start_and_the_first_goes_on() {
    let notes = TempDir::new().unwrap();
    let (first, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (first, other) = (
        first.path().to_str().unwrap(),
        other.path().to_str().unwrap(),
    );
    let (port, free) = (base_port().to_string(), base_port().to_string());
    let in_first = ["--nodes", "1", "--data-dir", first, "--base-port", &port];
    let mut running = dev(notes.path(), &in_first);
    let mut running = running.stderr(Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let ready = async {
        loop {
            let line = lines.next_line().await.unwrap();
            if line
                .expect("it is ready before it ends")
                .starts_with("ready: ")
            {
                return;
            }
        }
    };
    timeout(BOUND, ready).await.unwrap();

    let same_ports = ["--nodes", "1", "--data-dir", other, "--base-port", &port];
    let why = format!("port {port} is in use");
    refused(dev(notes.path(), &same_ports), &why).await;
    let same_directory = ["--nodes", "1", "--data-dir", first, "--base-port", &free];
    refused(dev(notes.path(), &same_directory), "is used by another").await;

    // Both ways to the first still lead to it: the last one started, and its directory.
    for stop in [&["kill", "1"][..], &["stop", "--data-dir", first]] {
        let stopped = timeout(BOUND, dev(notes.path(), stop).output()).await;
        let stopped = stopped.unwrap().unwrap();
        assert!(stopped.status.success(), "{stopped:?}");
    }
    let ended = timeout(BOUND, running.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}
