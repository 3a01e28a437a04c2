//! One partition under the simulator: every seed holds, the same seed is the same run, and each
//! planted fault is found.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use cluster_tests::sim::{first_failure, run, seeds_from_environment};
use quorate_replication::{Faults, NoFaults};

/// Seeds in a normal run.
const SEEDS: u64 = 200;

#[test]
fn seeds_hold() {
    match first_failure::<NoFaults>(seeds_from_environment(0..SEEDS)) {
        Ok(totals) => println!("{totals:?}"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        assert_eq!(run::<NoFaults>(seed), run::<NoFaults>(seed), "seed {seed}");
    }
    assert_ne!(run::<NoFaults>(1).hash, run::<NoFaults>(2).hash);
}

fn is_caught<F: Faults>(what: &str) {
    match first_failure::<F>(0..SEEDS) {
        Ok(totals) => panic!("{what} is not found: {totals:?}"),
        Err(failure) => println!("{what}: seed {}: {}", failure.seed, failure.violation),
    }
}

struct TruncateToHw;
impl Faults for TruncateToHw {
    const TRUNCATE_TO_HW: bool = true;
}

#[test]
fn a_follower_that_cuts_to_its_high_watermark_is_caught() {
    is_caught::<TruncateToHw>("truncation to the high watermark");
}

struct UnboundAcks;
impl Faults for UnboundAcks {
    const UNBOUND_ACKS: bool = true;
}

#[test]
fn acks_of_another_subscription_are_caught() {
    is_caught::<UnboundAcks>("acks not bound to their subscription");
}

struct EstablishEarly;
impl Faults for EstablishEarly {
    const ESTABLISH_EARLY: bool = true;
}

#[test]
fn durability_that_is_called_established_early_is_caught() {
    is_caught::<EstablishEarly>("durability established early");
}

struct ResumeOldEpoch;
impl Faults for ResumeOldEpoch {
    const RESUME_OLD_EPOCH: bool = true;
}

#[test]
fn a_leader_that_resumes_its_old_epoch_is_caught() {
    is_caught::<ResumeOldEpoch>("the old epoch after a restart");
}
