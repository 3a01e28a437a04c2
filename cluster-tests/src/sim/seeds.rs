//! Running seeds, on as many threads as there are cores.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use quorate_types::{Faults, TopicPartition};

use super::cores::Cores;
use super::counts::Counts;
use super::trace::{Line, named, shortened};
use super::world::World;

/// Steps of a run while faults strike, unless `STEPS` says otherwise.
const STEPS: u64 = 500;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The invariant that broke, and how; the partition, where it is of one.
    pub violation: Option<(Option<TopicPartition>, String)>,
    /// A hash over everything that happened.
    pub hash: u64,
    /// What happened, where that was asked for.
    pub lines: Vec<Line>,
    /// How often what happened.
    pub counts: Counts,
}

/// A seed that broke an invariant.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which seed.
    pub seed: u64,
    /// The invariant, and how it broke.
    pub violation: String,
    /// The end of the trace, of the partition and of the nodes.
    pub trace: String,
    steps: u64,
}

fn number(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    let number = given.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={given}: expected a number")))
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

/// Runs one seed; keeps every line of its trace where `traced`. A panic of the code under test is a
/// violation like any other.
pub fn run<F: Faults>(seed: u64, traced: bool) -> Run {
    run_cores(Cores::of::<F>(), seed, traced)
}

fn run_cores(cores: Cores, seed: u64, traced: bool) -> Run {
    let steps = number("STEPS").unwrap_or(STEPS);
    let mut world = World::new(seed, cores, traced);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run(steps))) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        world.violate(None, format!("panic: {}", text.unwrap_or_default()));
    }
    Run {
        violation: world.violation.take(),
        hash: world.trace.hash(),
        counts: world.counts,
        lines: world.trace.into_lines(),
    }
}

/// Runs the seed of a failure again for its trace, whole where `SIM_TRACE` is set.
fn explain(cores: Cores, seed: u64) -> Failure {
    let run = run_cores(cores, seed, true);
    let (partition, violation) = run.violation.unwrap_or_default();
    let trace = if std::env::var_os("SIM_TRACE").is_some() {
        let lines = run.lines.iter().map(|line| format!("{line}\n"));
        lines.collect()
    } else {
        shortened(&run.lines, partition)
    };
    let place = partition.map_or_else(String::new, |id| format!("{}: ", named(id)));
    Failure {
        seed,
        violation: format!("{place}{violation}"),
        trace,
        steps: number("STEPS").unwrap_or(STEPS),
    }
}

/// Runs seeds until one fails; gives the lowest of those that failed, or the runs' totals.
///
/// # Errors
/// The failure.
pub fn first_failure<F: Faults>(seeds: Range<u64>) -> Result<Totals, Box<Failure>> {
    let cores = Cores::of::<F>();
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicU64::new(u64::MAX);
    let totals = Mutex::new(Totals::default());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed > failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let run = run_cores(cores, seed, false);
                    if run.violation.is_some() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    } else if let Ok(mut totals) = totals.lock() {
                        totals.seeds += 1;
                        totals.counts.add(&run.counts);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        u64::MAX => Ok(totals.into_inner().unwrap_or_default()),
        seed => Err(Box::new(explain(cores, seed))),
    }
}

/// What some runs came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Seeds run.
    pub seeds: u64,
    /// How often what happened in all of them.
    pub counts: Counts,
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seeds = self.seeds.max(1) as f64;
        let each = |count: u64| count as f64 / seeds;
        let Counts {
            steps,
            faulty,
            events,
            faults,
            acked,
            elections,
            unclean,
            truncations,
            starts,
            damaged,
            deleted,
            commits,
            taken,
            groups_deleted,
        } = self.counts;
        write!(
            f,
            "{} seeds, each: {:.0} steps with faults, {:.0} in all, {:.0} events; {:.1} faults, \
             {:.1} acknowledged, {:.2} elections, {:.3} unclean, {:.2} truncations, {:.2} starts, \
             {:.3} damaged, {:.3} topics and {:.3} groups deleted, {:.1} commits, {:.1} partitions \
             taken by members",
            self.seeds,
            each(faulty),
            each(steps),
            each(events),
            each(faults),
            each(acked),
            each(elections),
            each(unclean),
            each(truncations),
            each(starts),
            each(damaged),
            each(deleted),
            each(groups_deleted),
            each(commits),
            each(taken)
        )
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seed, steps) = (self.seed, self.steps);
        writeln!(f, "seed {seed}: {}", self.violation)?;
        f.write_str(&self.trace)?;
        write!(
            f,
            "again, with the whole trace: SIM_TRACE=1 STEPS={steps} SEEDS={seed}..{} cargo test -p cluster-tests --test sim_cluster seeds_hold -- --nocapture",
            seed + 1
        )
    }
}
