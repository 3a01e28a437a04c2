//! Changes of great groups come in pieces, none of which is larger than an entry may be.

use std::time::Duration;

use quorate_metadata::MemberProfile;
use quorate_types::TopicName;

use crate::plan::CHANGE_BYTES;
use crate::tests::{World, group, profile};
use crate::{GroupTiming, Heartbeat};

/// What an entry takes beside its change.
const HEAD: usize = 1 << 10;

#[test]
fn many_who_join_at_once_and_say_much_come_in_pieces() {
    const MEMBERS: usize = 1_000;
    let mut world = World::new(3, GroupTiming::default());
    let names = (0..20).map(|number| TopicName::new(&format!("{number:0>200}")).unwrap());
    let topics = names.chain([TopicName::new("t").unwrap()]).collect();
    let profile = MemberProfile {
        topics,
        ..profile()
    };
    // The first proposal is under way while all others come.
    world.held = Some(Vec::new());
    for number in 0..MEMBERS {
        let beat = world.beat_of(&format!("{number:0>36}"));
        world.send(Heartbeat {
            profile: Some(profile.clone()),
            wait: Duration::ZERO,
            ..beat
        });
    }
    let (before, held) = (world.image.applied().index, world.held.take().unwrap());
    for (node, action) in held {
        world.carry_out(node, action);
    }
    assert_eq!(world.members(), MEMBERS);
    assert_eq!(world.answers.len(), MEMBERS);
    assert!(world.answers.values().all(Result::is_ok));
    let entries = world.image.applied().index.get() - before.get();
    assert!(
        world.largest < CHANGE_BYTES + HEAD,
        "{} bytes",
        world.largest
    );
    assert!((5..20).contains(&entries), "{entries} entries");
    assert_eq!(world.image.group(&group()).unwrap().owners.len(), 3);
}

#[test]
fn partitions_of_one_member_come_and_go_in_pieces() {
    const PARTITIONS: u32 = 10_000;
    let mut world = World::new(PARTITIONS, GroupTiming::default());
    world.largest = 0;
    world.beat("a").unwrap();
    let owners = |world: &World| world.image.group(&group()).unwrap().owners.len();
    assert_eq!(owners(&world), PARTITIONS as usize);
    assert!(world.largest > CHANGE_BYTES / 2, "it takes more than one");
    // Half of them move to another one.
    world.beat("b").unwrap();
    world.settle(&["a", "b"]);
    assert_eq!(world.owned(&["a", "b"]), [5_000, 5_000]);
    assert!(
        world.largest < CHANGE_BYTES + HEAD,
        "{} bytes",
        world.largest
    );
}
