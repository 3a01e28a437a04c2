//! Three nodes in one process, of which one has another image than its log gives: it stops by itself
//! and says what differs, whichever role it has, and the other two go on.
//!
//! Its snapshot is changed while it is down, with checksums that fit. Not shown: what a change of
//! the image that no outcome depends on would do; the hash is over commands and outcomes.

use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64;

use crate::tests::{DEADLINE, Running, create, eventually, plan, start_with, stop};

/// More entries than a test makes.
const NEVER: u64 = 10_000;

/// Bytes before the snapshot's head: magic and the head's length.
const MAGIC: usize = 8;
const LENGTH: usize = 8;

#[derive(serde::Serialize, serde::Deserialize)]
struct Image<'a> {
    checksum: u64,
    #[serde(borrow)]
    image: &'a RawValue,
}

/// The same snapshot with another rolling hash in its image.
fn with_another_hash(file: &[u8]) -> Vec<u8> {
    let length_at = |at: usize| {
        let bytes: [u8; LENGTH] = file[at..at + LENGTH].try_into().unwrap();
        usize::try_from(u64::from_be_bytes(bytes)).unwrap()
    };
    let head_end = MAGIC + LENGTH + length_at(MAGIC);
    let encoded = &file[head_end + LENGTH..head_end + LENGTH + length_at(head_end)];
    let image: Image = serde_json::from_slice(&encoded[1..]).unwrap();
    let value: Value = serde_json::from_str(image.image.get()).unwrap();
    let hash = value["hash"].as_u64().unwrap();
    let (old, new) = (
        format!("\"hash\":{hash},"),
        format!("\"hash\":{},", hash ^ 1),
    );
    assert_eq!(image.image.get().matches(&old).count(), 1);
    let changed = image.image.get().replace(&old, &new);
    let mut bytes = vec![encoded[0]];
    let changed = Image {
        checksum: xxh3_64(changed.as_bytes()),
        image: serde_json::from_str(&changed).unwrap(),
    };
    serde_json::to_writer(&mut bytes, &changed).unwrap();
    let mut out = file[..head_end].to_vec();
    out.extend((bytes.len() as u64).to_be_bytes());
    out.extend(bytes);
    let checksum = xxh3_64(&out);
    out.extend(checksum.to_be_bytes());
    out
}

fn change_the_snapshot_in(data: &Path) {
    let snapshots = data.join("metadata/snapshots");
    let files = std::fs::read_dir(snapshots).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let changed = with_another_hash(&std::fs::read(&files[0]).unwrap());
    std::fs::write(&files[0], changed).unwrap();
}

async fn all_take_part(running: &[Running]) {
    for node in running {
        eventually("a node takes part", || async { node.broker.ready() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_image_differs_stops_and_the_others_go_on() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    // The first entries of a cluster are enough for a snapshot, which drops the log before it. Then no
    // more are made: a node that lacks entries which the others dropped gets their snapshot, and that
    // would put the image right. The second life sees to it that nobody lacks any.
    let start = |snapshot_every: u64| {
        start_with(&plan, root.path(), move |settings| {
            settings.snapshot_every_entries = snapshot_every;
            settings.snapshot_keep_entries = 1;
        })
    };
    let running = start(5).await;
    eventually("a topic is created", || create(&plan[0].1)).await;
    stop(running).await;
    let running = start(NEVER).await;
    all_take_part(&running).await;
    stop(running).await;
    change_the_snapshot_in(&root.path().join("3"));

    let mut running = start(NEVER).await;
    let differing = running.pop().unwrap();
    let ended = timeout(DEADLINE, differing.task).await;
    let why = ended.expect("it stops").unwrap().unwrap_err().to_string();
    println!("{why}");
    for part in ["at entry ", "its hash is ", "start this one again"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    all_take_part(&running).await;
    stop(running).await;
}
