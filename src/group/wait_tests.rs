//! Heartbeats that wait for news.

use std::time::Duration;

use crate::tests::World;
use crate::{GroupTiming, Heartbeat};

#[test]
fn a_heartbeat_waits_for_news_and_no_longer() {
    let mut world = World::new(2, GroupTiming::default());
    world.beat("a").unwrap();
    world.settle(&["a"]);
    let waiting = |world: &World| Heartbeat {
        wait: Duration::from_secs(60),
        ..world.beat_of("a")
    };
    let request = world.send(waiting(&world));
    world.pass(Duration::from_secs(4));
    assert!(!world.answers.contains_key(&request));
    // Another one joins: this one has to give something up, and hears of it now.
    world.beat("b").unwrap();
    let answer = world.answers.remove(&request).unwrap().unwrap();
    assert_eq!(answer.assigned.len(), 1);
    world.beat("a").unwrap();
    world.settle(&["a", "b"]);
    let request = world.send(waiting(&world));
    world.pass(Duration::from_millis(5_100));
    assert!(
        world.answers.remove(&request).unwrap().is_ok(),
        "an interval"
    );
    // The newer of two is the one that waits.
    let first = world.send(waiting(&world));
    let second = world.send(waiting(&world));
    assert!(world.answers.contains_key(&first));
    assert!(!world.answers.contains_key(&second));
}

#[test]
fn those_who_wait_are_answered_together_and_none_late() {
    const SLOT: Duration = Duration::from_micros(156_250);
    let mut world = World::new(2, GroupTiming::default());
    for name in ["a", "b"] {
        world.beat(name).unwrap();
    }
    world.settle(&["a", "b"]);
    let interval = GroupTiming::default().heartbeat_interval;
    let waiting = |world: &World, name, wait| Heartbeat {
        wait,
        ..world.beat_of(name)
    };
    // From the beginning of a slot on.
    let begun = world.now();
    let into = begun.as_nanos() % SLOT.as_nanos();
    world.pass(SLOT - Duration::from_nanos(u64::try_from(into).unwrap()));
    let first = world.send(waiting(&world, "a", interval));
    world.pass(Duration::from_millis(100));
    let second = world.send(waiting(&world, "b", interval));
    world.pass(interval - Duration::from_millis(101));
    assert!(!world.answers.contains_key(&first) && !world.answers.contains_key(&second));
    world.pass(Duration::from_millis(1));
    assert!(world.answers.contains_key(&first) && world.answers.contains_key(&second));
    // What is short is not made shorter.
    let short = world.send(waiting(&world, "a", SLOT));
    world.pass(SLOT - Duration::from_millis(1));
    assert!(!world.answers.contains_key(&short));
    world.pass(Duration::from_millis(1));
    assert!(world.answers.contains_key(&short));
}
