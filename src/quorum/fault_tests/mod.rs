//! Three voters over the real sled store, killed, without power, wiped and cut off by a seed, while
//! clients propose: Raft is openraft's to prove, our use of it is ours.
//!
//! Held after every seed:
//! - an index has one entry for all time: equal rolling hashes wherever and whenever it was applied,
//!   and equal image bytes at the end (nothing committed is lost, equal logs give equal images);
//! - the applied index never falls within a life, a directory's snapshot never over its lives, and
//!   nobody ends below what anybody had applied;
//! - every acknowledged proposal is in the last image exactly once, one that is told to be in no log
//!   is in none;
//! - no voter answers two candidates of one term with its vote, no term has two leaders.
//!
//! A killed voter leaves its directory as the kernel has it at that moment: at a sync of the Raft
//! log, before it or after it and before anybody is told of it. One without power leaves sled's files
//! as of the last sync, and none of what was written since ([`power`]). A wiped one leaves nothing
//! and comes back as another member. One that is cut off is not reached, does not reach, or both: its
//! calls are refused, swallowed, or done with the answer lost ([`net`]).
//!
//! Not shown: writes that reached the disk in another order after the last sync, or in part; a disk
//! that loses what it has synced; directory entries that a power loss takes (the `synced_to_the_disk`
//! trace and `store_tests` look at those); what a process's own memory gets wrong. The seed gives the
//! faults and their order; how they meet the threads differs from run to run.
//!
//! More seeds: `SEEDS=0..50 cargo test -p quorate-quorum --lib fault_tests -- --nocapture`.

mod clients;
mod mutants;
mod net;
pub(crate) mod power;
mod record;
mod script;
mod voter;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use record::Record;
use script::Script;

/// Seeds of a normal run; they run side by side.
const SEEDS: Range<u64> = 0..4;
/// Nothing that is waited for takes so long on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn seeds() -> Range<u64> {
    let Ok(given) = std::env::var("SEEDS") else {
        return SEEDS;
    };
    let parsed = given
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SEEDS={given:?} is no FROM..TO"))
}

#[test]
fn voters_that_are_killed_wiped_and_cut_off_lose_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let all: Vec<u64> = seeds().collect();
    for side_by_side in all.chunks(2) {
        let runs = side_by_side.iter().map(|seed| async move {
            let record = Arc::new(Record::default());
            let told = Script::run(*seed, Arc::clone(&record)).await;
            (*seed, told, record.violations())
        });
        for (seed, told, violations) in runtime.block_on(futures::future::join_all(runs)) {
            println!("seed {seed}: {told}");
            assert!(
                violations.is_empty(),
                "seed {seed}: {violations:#?}\nagain: SEEDS={seed}..{} cargo test -p \
                 quorate-quorum --lib fault_tests",
                seed + 1
            );
        }
    }
}
