//! Starts of `quorate server` that must be refused: each ends at once with an exit code and a message
//! that names the setting, file or port and what to do, changes nothing in the data directory, and
//! keeps the same node from nothing afterwards.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_quorate-under-test");
const SOON: Duration = Duration::from_secs(60);
/// An ordinary user for a child, where the tests run as root: nobody.
const UID: u32 = 65_534;

/// One node on ports of its own, by flags that are right.
struct Node {
    flags: BTreeMap<&'static str, String>,
}

impl Node {
    /// Nothing else takes the ports: they are of a loopback address of its own.
    fn new(data: &Path, address: &str) -> Self {
        let listener = || TcpListener::bind((address, 0)).unwrap();
        let (client, internal) = (listener(), listener());
        let at = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let flags = BTreeMap::from([
            ("node-id", "1".to_owned()),
            ("data-dir", data.to_str().unwrap().to_owned()),
            ("controllers", format!("1@{}", at(&internal))),
            ("listen", at(&client)),
            ("internal-listen", at(&internal)),
        ]);
        Self { flags }
    }

    fn command(&self, change: &[(&'static str, Option<&str>)]) -> Command {
        let mut flags = self.flags.clone();
        for (name, value) in change {
            match value {
                Some(value) => flags.insert(name, (*value).to_owned()),
                None => flags.remove(name),
            };
        }
        let mut command = Command::new(BINARY);
        command.arg("server").arg("--exit-with-parent");
        for (name, value) in flags {
            command.args([format!("--{name}"), value]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command
    }
}

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// Waits for the end of a process. Not by `wait`, which closes its stdin: that ends a node at once.
fn ended(what: &str, process: &mut Process) -> ExitStatus {
    let deadline = Instant::now() + SOON;
    loop {
        match process.0.try_wait().unwrap() {
            Some(status) => return status,
            None => assert!(Instant::now() < deadline, "{what}: it still runs"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a start that must be refused; gives the exit code and what was said.
fn refused(what: &str, mut command: Command) -> (Option<i32>, String) {
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Process(child);
    let status = ended(what, &mut child);
    let stderr = child.0.stderr.take().unwrap();
    let said: Vec<String> = BufReader::new(stderr).lines().map(Result::unwrap).collect();
    (status.code(), said.join("\n"))
}

fn expect(what: &str, command: Command, code: i32, words: &[&str]) {
    let (got, said) = refused(what, command);
    assert_eq!(got, Some(code), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    for word in words {
        assert!(said.contains(word), "{what}: no {word:?} in: {said}");
    }
}

/// Starts a node that must run, until it says so; gives it and what it has said.
fn runs(mut command: Command) -> (Process, String) {
    let mut child = Process(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let mut said = String::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let started = line.contains("member of the cluster");
        said.push_str(&line);
        said.push('\n');
        if started {
            // Somebody has to read on, or its log fills the pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return (child, said);
        }
    }
    panic!("the node did not start: {said}");
}

/// SIGTERM, and its clean end.
fn stop(mut node: Process) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(node.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = ended("a node that was asked to stop", &mut node);
    assert!(status.success(), "{status}");
}

/// Every file below a directory with its content, and every directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let content = path.is_file().then(|| fs::read(&path).unwrap());
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path, content);
        }
    }
    found
}

#[test]
fn settings_that_are_missing_unknown_wrong_or_contradict_each_other_are_named() {
    let root = TempDir::new().unwrap();
    let data = root.path().join("data");
    let node = Node::new(&data, "127.0.0.5");
    for (name, variable) in [
        ("node-id", "QUORATE_NODE_ID"),
        ("data-dir", "QUORATE_DATA_DIR"),
        ("controllers", "QUORATE_CONTROLLERS"),
    ] {
        let words = [
            &format!("{name}: is missing"),
            &format!("--{name}"),
            variable,
        ];
        expect(name, node.command(&[(name, None)]), 2, &words);
    }
    let values = [
        ("node-id", "zero", "node-id = \"zero\""),
        ("controllers", "1@nowhere", "controllers = \"1@nowhere\""),
        ("produce-timeout", "5", "a unit: 500ms"),
        ("max-connections", "many", "max-connections = \"many\""),
        ("max-connections", "0", "max-connections = \"0\""),
        ("request-bytes", "5 potatoes", "request-bytes"),
        ("listen", "7070", "listen = \"7070\""),
        ("advertise", "host:99999", "advertise = \"host:99999\""),
        ("log-level", "loud", "log-level"),
        (
            "broker-session-timeout",
            "500ms",
            "must be below broker-session-timeout",
        ),
        ("raft-election-min", "1h", "raft-election-min"),
    ];
    for (name, value, says) in values {
        expect(name, node.command(&[(name, Some(value))]), 2, &[says]);
    }
    let mut unknown = node.command(&[]);
    unknown.arg("--max-conections").arg("5");
    expect(
        "flag",
        unknown,
        2,
        &["--max-conections", "--max-connections"],
    );
    let mut unknown = node.command(&[]);
    unknown.env("QUORATE_MAX_CONECTIONS", "5");
    let words = ["QUORATE_MAX_CONECTIONS", "did you mean max-connections?"];
    expect("variable", unknown, 2, &words);

    let file = root.path().join("quorate.toml");
    let with_file = |content: &[u8]| {
        fs::write(&file, content).unwrap();
        let mut command = node.command(&[]);
        command.arg("--config").arg(&file);
        command
    };
    for (content, words) in [
        (
            &b"rack = \"a\"\nmax-conections = 5\n"[..],
            ["quorate.toml:2", "max-connections?"],
        ),
        (b"rack = \n", ["quorate.toml:1", "must be quoted"]),
        (b"\x00\xff\xfe not text", ["quorate.toml", "UTF-8"]),
        (
            b"\"segment.bytes\" = 1\n",
            ["quorate.toml:1", "segment.bytes=1: must be"],
        ),
        (b"rack = { a = 1 }\n", ["quorate.toml:1", "must be a text"]),
    ] {
        let what = String::from_utf8_lossy(content).into_owned();
        expect(&what, with_file(content), 2, &words);
    }
    let mut missing = node.command(&[]);
    missing
        .arg("--config")
        .arg(root.path().join("nowhere.toml"));
    expect("no file", missing, 2, &["nowhere.toml", "cannot be read"]);
    assert!(!data.exists(), "nothing was made by any of them");

    // A name that cannot be looked up is told, but may come to be known: the node starts.
    let mut unknown = node.command(&[("advertise", Some("no-such-host.invalid:7070"))]);
    unknown.stderr(Stdio::piped());
    let mut child = Process(unknown.spawn().unwrap());
    let mut told = String::new();
    for line in BufReader::new(child.0.stderr.take().unwrap()).lines() {
        told = line.unwrap();
        if told.contains("cannot be looked up") {
            break;
        }
    }
    assert!(
        told.contains("advertise") && told.contains("no-such-host.invalid"),
        "{told}"
    );
}

#[test]
fn a_directory_or_port_that_cannot_be_used_is_named_and_left_as_it_is() {
    let root = TempDir::new().unwrap();
    let data = root.path().join("data");
    let node = Node::new(&data, "127.0.0.6");
    stop(runs(node.command(&[])).0);
    let whole = tree(&data);
    assert!(
        whole.contains_key(&data.join("clean-shutdown")),
        "it ended cleanly"
    );
    let unchanged = |what: &str| {
        let now = tree(&data);
        let differ: Vec<_> = whole
            .keys()
            .chain(now.keys())
            .filter(|path| whole.get(*path) != now.get(*path))
            .collect();
        assert!(differ.is_empty(), "{what} changed {differ:?}");
    };
    let shown = data.to_str().unwrap();

    let other = node.command(&[("node-id", Some("2"))]);
    expect(
        "another node's",
        other,
        1,
        &[shown, "belongs to node 1", "its own directory"],
    );
    unchanged("another node's");

    for name in ["listen", "internal-listen"] {
        let taken = TcpListener::bind(&node.flags[name]).unwrap();
        let words = [&node.flags[name], name, "in use"];
        expect(name, node.command(&[]), 1, &words);
        drop(taken);
        unchanged(name);
    }
    let elsewhere = node.command(&[("listen", Some("192.0.2.1:7070"))]);
    expect(
        "an address of others",
        elsewhere,
        1,
        &["192.0.2.1:7070", "--listen"],
    );
    unchanged("an address of others");

    let file = root.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let at_file = node.command(&[("data-dir", Some(file.to_str().unwrap()))]);
    expect("a file", at_file, 1, &[file.to_str().unwrap(), "directory"]);
    assert_eq!(fs::read(&file).unwrap(), b"not a directory");

    let (running, _) = runs(node.command(&[]));
    let second = Node::new(&data, "127.0.0.6");
    expect(
        "in use",
        second.command(&[]),
        1,
        &[shown, "is used by another process"],
    );
    stop(running);

    // As somebody who may not write there.
    let binary = root.path().join("quorate");
    fs::copy(BINARY, &binary).unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let ordinary = |command: Command| {
        // Of the process's effective user.
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return command;
        }
        let mut other = Command::new(&binary);
        other.args(command.get_args()).uid(UID).gid(UID);
        other.stdin(Stdio::piped()).stdout(Stdio::null());
        other
    };
    for mode in [0o555, 0o000] {
        let before = fs::metadata(&data).unwrap().permissions();
        let locked = fs::metadata(data.join(".lock")).unwrap().permissions();
        fs::set_permissions(data.join(".lock"), fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
        let (code, said) = refused("permission", ordinary(node.command(&[])));
        fs::set_permissions(&data, before).unwrap();
        fs::set_permissions(data.join(".lock"), locked).unwrap();
        assert_eq!(code, Some(1), "{mode:o}: {said}");
        assert!(
            said.contains(shown) && said.contains("ermission denied"),
            "{mode:o}: {said}"
        );
    }
    let inside = root.path().join("closed");
    fs::create_dir(&inside).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o555)).unwrap();
    let new = inside.join("data");
    let command = ordinary(node.command(&[("data-dir", Some(new.to_str().unwrap()))]));
    expect(
        "not to be made",
        command,
        1,
        &[new.to_str().unwrap(), "cannot be made"],
    );
    assert!(!new.exists());

    // After all that it starts as if nothing had been.
    stop(runs(node.command(&[])).0);
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let root = TempDir::new().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    let (first, second) = (Node::new(&one, "127.0.0.7"), Node::new(&two, "127.0.0.8"));
    // Node 2 of the first cluster: no controller, so that it asks the controllers that it is given.
    let broker = Node::new(&root.path().join("broker"), "127.0.0.9");
    let join = |cluster: &Node| {
        let controllers = cluster.flags["controllers"].clone();
        broker.command(&[("node-id", Some("2")), ("controllers", Some(&controllers))])
    };
    let home = runs(first.command(&[])).0;
    stop(runs(join(&first)).0);
    let data = PathBuf::from(&broker.flags["data-dir"]);
    let whole = tree(&data);
    let other = runs(second.command(&[])).0;
    let words = ["belongs to cluster", "controller 1 at"];
    expect("another cluster's", join(&second), 1, &words);
    // All but the count of starts and the metadata store's own files, which it had to open.
    let own = |tree: BTreeMap<PathBuf, Option<Vec<u8>>>| {
        let store = data.join("metadata");
        let kept = tree
            .into_iter()
            .filter(|(path, _)| !path.starts_with(&store) && *path != data.join("start-count"));
        kept.collect::<BTreeMap<_, _>>()
    };
    assert!(whole.contains_key(&data.join("clean-shutdown")));
    assert_eq!(own(tree(&data)), own(whole), "it is as clean as it was");
    stop(other);
    stop(runs(join(&first)).0);
    stop(home);
}
