//! What the image remembers of each partition: a chain of causes, bounded, the same on every node
//! and across a snapshot.

use quorate_types::{DirectoryId, NodeId};
use xxhash_rust::xxh3::xxh3_64;

use crate::history::KEPT;
use crate::tests::{Cluster, P0, TOPIC, create, node, register, settings};
use crate::{Command, DamagedReplica, MetadataImage, Outcome};

fn told(image: &MetadataImage) -> Vec<String> {
    let events = image.partition_history(&P0);
    let told = events
        .iter()
        .map(|event| format!("{} ({})", event.kind, event.cause));
    told.collect()
}

fn fence(cluster: &mut Cluster, id: u32, cause: &str) {
    let (node, epoch) = (node(id), cluster.epoch(id));
    let cause = cause.to_owned();
    let fenced = cluster.run(Command::FenceBroker { node, epoch, cause });
    assert_eq!(fenced, Outcome::Done);
}

fn last(cluster: &Cluster) -> String {
    told(&cluster.image).pop().unwrap()
}

#[test]
fn the_cause_of_an_election_names_what_lies_behind_it() {
    let mut cluster = Cluster::of_three();
    fence(&mut cluster, 1, "no heartbeat for 3012 ms");
    assert_eq!(
        told(&cluster.image),
        [
            "topic t created with 3 partitions (asked for)",
            "t-0: broker 1 leads at epoch 0, isr 1,2,3 (the topic was created)",
            "t-0: broker 2 leads at epoch 1, isr 2,3 (broker 1 was fenced: no heartbeat for 3012 ms)",
        ]
    );
    // A process that stopped cleanly and starts again; one that did not.
    let mut again = register(2, 2, 2, 1);
    again.clean_epoch = Some(cluster.epoch(2));
    cluster.run(Command::RegisterBroker(again));
    assert_eq!(
        last(&cluster),
        "t-0: broker 3 leads at epoch 2, isr 3 (broker 2 started again after a clean shutdown)"
    );
    cluster.run(Command::RegisterBroker(register(3, 2, 3, 8)));
    assert_eq!(
        last(&cluster),
        "t-0: no leader at epoch 3, isr 3 (broker 3 started again without a clean shutdown, its \
         machine was booted)"
    );
    cluster.unfence(3);
    assert_eq!(
        last(&cluster),
        "t-0: broker 3 leads at epoch 4, isr 3 (broker 3 is back, with all that was acknowledged)"
    );
    cluster.unfence(2);
    cluster.alter(&[2, 3]);
    assert_eq!(last(&cluster), "t-0: isr 2,3 (broker 2 caught up)");
    cluster.run(Command::ElectPreferredLeaders {
        partitions: vec![P0],
    });
    cluster.alter(&[3]);
    assert_eq!(last(&cluster), "t-0: isr 3 (broker 2 fell behind)");
    let brokers = cluster.image.broker_history(node(3));
    let brokers: Vec<_> = brokers.iter().map(|event| event.cause.as_str()).collect();
    assert_eq!(
        brokers,
        [
            "its first start",
            "ready and reachable",
            "broker 3 started again without a clean shutdown, its machine was booted",
            "ready and reachable"
        ]
    );
}

#[test]
fn damage_is_told_with_what_was_found() {
    let mut cluster = Cluster::of_three();
    let broker_epoch = cluster.epoch(1);
    cluster.run(Command::ReportReplicaDamaged {
        partition: P0,
        node: node(1),
        broker_epoch,
        found: "a checksum does not fit".to_owned(),
    });
    let found = told(&cluster.image);
    assert_eq!(
        found[found.len() - 2..],
        [
            "t-0: the replica of broker 1 is damaged (a checksum does not fit)",
            "t-0: broker 2 leads at epoch 1, isr 2,3 (the replica of broker 1 is damaged: a \
             checksum does not fit)",
        ]
    );
    // Found by recovery, though the replica is in no ISR any more.
    let mut again = register(1, 2, 1, 1);
    let damaged = |found: &str| DamagedReplica {
        partition: P0,
        had: None,
        gone: false,
        found: found.to_owned(),
    };
    again.damaged = vec![damaged("it ended before its checkpoint")];
    cluster.run(Command::RegisterBroker(again.clone()));
    assert!(last(&cluster).ends_with("damaged (it ended before its checkpoint)"));
    // From a proposer that does not say what it found.
    again.incarnation.start += 1;
    again.damaged = vec![damaged("")];
    cluster.run(Command::RegisterBroker(again.clone()));
    assert!(last(&cluster).ends_with("damaged (its disk failed or lost data)"));
    again.incarnation.start += 1;
    again.damaged.clear();
    again.directory = DirectoryId::from_bytes([9; 16]);
    // Another directory waits until the old session has ended.
    cluster.fence(1);
    cluster.run(Command::RegisterBroker(again));
    let broker = cluster.image.broker_history(NodeId::new(1));
    assert!(
        broker
            .last()
            .unwrap()
            .cause
            .contains("another data directory")
    );
}

#[test]
fn a_history_is_bounded_and_survives_a_snapshot() {
    let mut cluster = Cluster::of_three();
    for value in 0..2 * KEPT {
        let value = format!("{}", 60_000 + value);
        cluster.run(settings(&[("segment.ms", &value)], &[]));
        cluster.alter(&[1]);
        cluster.alter(&[1, 2, 3]);
    }
    for _ in 0..KEPT {
        fence(&mut cluster, 3, &"ä".repeat(1_000));
        cluster.unfence(3);
    }
    let events = cluster.image.partition_history(&P0);
    assert_eq!(events.len(), 2 * KEPT, "its own and those of its topic");
    assert!(events.is_sorted_by_key(|event| event.index));
    assert_eq!(cluster.image.broker_history(node(3)).len(), KEPT);
    let longest = cluster.image.broker_history(node(3));
    assert!(longest.iter().all(|event| event.cause.len() <= 240));
    let again = MetadataImage::decode(&cluster.image.encode()).unwrap();
    assert_eq!(again, cluster.image);
    assert_eq!(again.partition_history(&P0), events);
    assert_eq!(again.encode(), cluster.image.encode());
}

#[test]
fn nothing_is_remembered_of_a_topic_that_is_gone() {
    let mut cluster = Cluster::of_three();
    cluster.run(Command::DeleteTopic { topic_id: TOPIC });
    assert!(cluster.image.partition_history(&P0).is_empty());
    let other = quorate_types::TopicId::from_bytes([8; 16]);
    cluster.run(create("t", other, 1, 3));
    assert!(cluster.image.partition_history(&P0).is_empty());
    let id = quorate_types::TopicPartition::new(other, quorate_types::PartitionId::ZERO);
    assert_eq!(cluster.image.partition_history(&id).len(), 2);
    let stored: serde_json::Value = serde_json::from_slice(&cluster.image.encode()[1..]).unwrap();
    let history = &stored["image"]["history"];
    for kind in ["topics", "partitions"] {
        assert_eq!(history[kind].as_array().unwrap().len(), 1, "{kind}");
    }
}

#[test]
fn an_image_stored_before_there_were_histories_is_read() {
    let image = Cluster::of_three().image;
    let bytes = image.encode();
    let mut snapshot: serde_json::Value = serde_json::from_slice(&bytes[1..]).unwrap();
    let mut stored = snapshot["image"].take();
    assert!(stored.as_object_mut().unwrap().remove("history").is_some());
    let stored = stored.to_string();
    let checksum = xxh3_64(stored.as_bytes());
    let mut older = vec![bytes[0]];
    older.extend(format!("{{\"checksum\":{checksum},\"image\":{stored}}}").into_bytes());
    let read = MetadataImage::decode(&older).unwrap();
    assert_eq!(read.partitions(), image.partitions());
    assert!(read.partition_history(&P0).is_empty());
}
