//! Who joins, and what of it stays as it was said then.

use quorate_types::InstanceId;

use crate::tests::{World, group, member};
use crate::{GroupError, GroupTiming};

#[test]
fn who_a_member_is_and_its_session_do_not_change_while_it_lives() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    let before = world.image.group(&group()).unwrap().clone();
    let mut other = world.beat_of("a");
    let said = other.profile.as_mut().unwrap();
    said.client_host = "127.0.0.2".to_owned();
    said.instance = Some(InstanceId::new("i").unwrap());
    // An answer that promised the longer one would be believed beyond the session here.
    said.session_timeout_ms *= 10;
    world.send(other);
    assert_eq!(world.image.group(&group()), Some(&before));
}

#[test]
fn who_joins_twice_before_it_is_decided_is_what_it_said_first() {
    let mut world = World::new(2, GroupTiming::default());
    world.held = Some(Vec::new());
    world.send(world.beat_of("a"));
    let first = world.beat_of("a").profile.unwrap();
    let mut other = world.beat_of("a");
    other.profile.as_mut().unwrap().session_timeout_ms *= 10;
    world.send(other);
    for (node, action) in world.held.take().unwrap() {
        world.carry_out(node, action);
    }
    world.settle(&["a"]);
    let joined = &world.image.group(&group()).unwrap().members[&member("a")];
    assert_eq!(joined.profile, first);
}

#[test]
fn two_that_join_under_one_instance_id_at_once_are_one() {
    let mut world = World::new(2, GroupTiming::default());
    let join = |world: &mut World, name| {
        let mut beat = world.beat_of(name);
        beat.profile.as_mut().unwrap().instance = Some(InstanceId::new("i").unwrap());
        world.send(beat)
    };
    // The first is not decided yet.
    world.held = Some(Vec::new());
    join(&mut world, "a");
    let second = join(&mut world, "b");
    let refused = world.answers.remove(&second);
    assert_eq!(refused, Some(Err(GroupError::UnreleasedInstance)));
    // Said again it is the same.
    join(&mut world, "a");
    for (node, action) in world.held.take().unwrap() {
        world.carry_out(node, action);
    }
    assert_eq!(world.members(), 1);
}
