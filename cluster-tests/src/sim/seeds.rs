//! Running seeds, on as many threads as there are cores.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use quorate_replication::Faults;

use super::world::{Run, World};

/// A seed that broke an invariant.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which seed.
    pub seed: u64,
    /// The invariant, and how it broke.
    pub violation: String,
    /// The end of the trace.
    pub tail: String,
}

/// The seeds to run: those of `SEEDS=FROM..TO`, or `default`.
///
/// # Panics
/// Where `SEEDS` is set to something else.
pub fn seeds_from_environment(default: Range<u64>) -> Range<u64> {
    let Ok(given) = std::env::var("SEEDS") else {
        return default;
    };
    let range = given
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or_else(|| panic!("SEEDS={given}: expected FROM..TO, for example 0..1000"))
}

/// Runs one seed. A panic of the code under test is a violation like any other.
pub fn run<F: Faults>(seed: u64) -> Run {
    let whole = std::env::var_os("SIM_TRACE").is_some();
    let mut world = World::<F>::new(seed, whole);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        world.violate(format!("panic: {}", text.unwrap_or_default()));
    }
    world.report()
}

fn run_to_failure<F: Faults>(seed: u64) -> Result<Run, Failure> {
    let run = run::<F>(seed);
    match run.violation.clone() {
        None => Ok(run),
        Some(violation) => Err(Failure {
            seed,
            violation,
            tail: run.tail,
        }),
    }
}

/// Runs seeds until one fails; gives the lowest of those that failed, or the runs' totals.
///
/// # Errors
/// The failure.
pub fn first_failure<F: Faults>(seeds: Range<u64>) -> Result<Totals, Box<Failure>> {
    let next = AtomicU64::new(seeds.start);
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    let totals = Mutex::new(Totals::default());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().is_ok_and(|failed| failed.is_some()) {
                        return;
                    }
                    match run_to_failure::<F>(seed) {
                        Ok(run) => {
                            if let Ok(mut totals) = totals.lock() {
                                totals.add(&run);
                            }
                        }
                        Err(failure) => {
                            if let Ok(mut failed) = failed.lock()
                                && failed
                                    .as_ref()
                                    .is_none_or(|known| failure.seed < known.seed)
                            {
                                *failed = Some(failure);
                            }
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(Some(failure)) => Err(Box::new(failure)),
        _ => Ok(totals.into_inner().unwrap_or_default()),
    }
}

/// What some runs came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Seeds run.
    pub seeds: u64,
    /// Events handled.
    pub steps: u64,
    /// Batches acknowledged with `acks=all`.
    pub acked: u64,
    /// Leader epochs begun.
    pub elections: u64,
}

impl Totals {
    fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.steps += run.steps;
        self.acked += run.acked as u64;
        self.elections += u64::from(run.elections);
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seed = self.seed;
        writeln!(f, "seed {seed}: {}", self.violation)?;
        f.write_str(&self.tail)?;
        write!(
            f,
            "again, with the whole trace: SIM_TRACE=1 SEEDS={seed}..{} cargo test -p cluster-tests --test sim_partition seeds_hold -- --nocapture",
            seed + 1
        )
    }
}
