//! The house rule: a room depends only on rooms of lower floors, and pure rooms reach no runtime,
//! no network, no store and no randomness.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// The floor of each room; cluster-tests stands outside.
const FLOORS: [(&str, u32); 20] = [
    ("quorate-types", 0),
    ("quorate-proto", 0),
    ("quorate-record", 1),
    ("quorate-config", 1),
    ("quorate-wire", 1),
    ("quorate-metadata", 2),
    ("quorate-log", 2),
    ("quorate-replication", 3),
    ("quorate-group", 3),
    ("quorate-liveness", 3),
    ("quorate-quorum", 4),
    ("quorate-client", 4),
    ("quorate-broker", 5),
    ("quorate-controller", 5),
    ("quorate-workload", 5),
    ("quorate-rpc", 6),
    ("quorate-console", 6),
    ("quorate-node", 7),
    ("quorate", 8),
    ("cluster-tests", 9),
];

const PURE: [&str; 8] = [
    "quorate-types",
    "quorate-record",
    "quorate-config",
    "quorate-metadata",
    "quorate-log",
    "quorate-replication",
    "quorate-group",
    "quorate-liveness",
];

const IMPURE: [&str; 4] = ["tokio", "tonic", "sled", "rand"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn no_room_depends_on_one_of_its_own_floor_or_above() {
    let metadata = metadata();
    let floors: BTreeMap<&str, u32> = FLOORS.into_iter().collect();
    let mut rooms = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if !package["source"].is_null() {
            continue;
        }
        let floor = floors
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the table"));
        rooms.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if let Some(below) = floors.get(on) {
                assert!(
                    below < floor,
                    "{name} (floor {floor}) depends on {on} (floor {below})"
                );
            }
        }
    }
    assert_eq!(rooms.len(), FLOORS.len(), "a room of the table is gone");
}

#[test]
fn pure_rooms_reach_no_runtime_network_store_or_randomness() {
    let metadata = metadata();
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        names.insert(
            package["id"].as_str().unwrap(),
            package["name"].as_str().unwrap(),
        );
    }
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = node["deps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| {
                // Tests may use what they like; the shipped room may not.
                dependency["dep_kinds"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|kind| kind["kind"].is_null())
            });
        let to = normal
            .map(|dependency| dependency["pkg"].as_str().unwrap())
            .collect();
        edges.insert(node["id"].as_str().unwrap(), to);
    }
    for (id, name) in &names {
        if !PURE.contains(name) {
            continue;
        }
        let (mut seen, mut open) = (BTreeSet::new(), vec![*id]);
        while let Some(next) = open.pop() {
            if seen.insert(next) {
                assert!(
                    !IMPURE.contains(&names[next]),
                    "{name} reaches {}",
                    names[next]
                );
                open.extend(&edges[next]);
            }
        }
    }
}
