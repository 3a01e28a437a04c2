//! A whole cluster under the simulator: every seed holds, and the same seed is the same run. That
//! planted faults are found is in `sim_mutants.rs`.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::time::Instant;

use cluster_tests::sim::{first_failure, run, seeds_from_environment};
use quorate_types::NoFaults;

/// Seeds in a normal run.
const SEEDS: u64 = 1_000;

#[test]
fn seeds_hold() {
    let begun = Instant::now();
    match first_failure::<NoFaults>(seeds_from_environment(0..SEEDS)) {
        Ok(totals) => {
            let each = totals.seeds as f64 / begun.elapsed().as_secs_f64();
            println!("{totals}; {each:.0} seeds/s");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        let (once, again) = (run::<NoFaults>(seed, true), run::<NoFaults>(seed, true));
        assert_eq!(once, again, "seed {seed}");
        assert!(!once.lines.is_empty());
        // Whether anybody reads of it changes nothing.
        assert_eq!(run::<NoFaults>(seed, false).hash, once.hash, "seed {seed}");
    }
    let (one, other) = (run::<NoFaults>(1, false), run::<NoFaults>(2, false));
    assert_ne!(one.hash, other.hash);
}
