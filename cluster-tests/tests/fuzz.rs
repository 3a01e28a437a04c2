//! What takes bytes from outside, on whole samples that were changed at random; nothing may panic, and
//! what is taken must hold what its type promises (`cluster_tests::fuzzed`).
//!
//! No coverage guides these changes: that is what `.ci/long` does with the targets in `fuzz/`, for
//! longer. These run everywhere, for 4 s each. `FUZZ_SECONDS=300` makes it more, `FUZZ_SEED=…` runs
//! one seed again. The corpora of `fuzz/`, with whatever once broke something, are run through too.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_tests::fuzzed::{
    CODECS, DECODERS, TARGETS, batches, messages, metadata, recovery, seeds,
};
use cluster_tests::hostile::batch;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

fn number(variable: &str) -> Option<u64> {
    let set = std::env::var(variable).ok()?;
    Some(
        set.parse()
            .unwrap_or_else(|_| panic!("{variable}={set}: must be a number")),
    )
}

/// Runs a target on one seed after the other until its time is over; a panic names the seed.
fn fuzz(target: impl Fn(&mut StdRng)) {
    struct Told(u64);
    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("again with FUZZ_SEED={}", self.0);
            }
        }
    }
    if let Some(seed) = number("FUZZ_SEED") {
        let _told = Told(seed);
        return target(&mut StdRng::seed_from_u64(seed));
    }
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(4));
    let (begun, first) = (Instant::now(), rand::rng().next_u64() >> 8);
    let mut seed = first;
    while begun.elapsed() < time {
        let _told = Told(seed);
        target(&mut StdRng::seed_from_u64(seed));
        seed += 1;
    }
    println!("{} runs from seed {first}", seed - first);
    assert!(seed > first, "there was time for one run at least");
}

/// Changes bytes: flips, numbers at the ends of their ranges, cuts, repeats, noise.
fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>, from: usize) {
    for _ in 0..random.random_range(1..6) {
        if bytes.len() <= from + 8 {
            bytes.extend([0; 9]);
        }
        let place = random.random_range(from..bytes.len() - 8);
        match random.random_range(0..6) {
            0 => bytes[place] ^= 1 << random.random_range(0..8),
            1 => bytes[place] = random.random(),
            2 => {
                let ends = [i64::MAX, i64::MIN, -1, 0, i64::from(i32::MAX), 1 << 40];
                let end = ends[random.random_range(0..ends.len())].to_be_bytes();
                let width = [1, 2, 4, 8][random.random_range(0..4)];
                bytes[place..place + width].copy_from_slice(&end[8 - width..]);
            }
            3 => bytes.truncate(place),
            4 => {
                let piece = bytes[place..place + random.random_range(1..8)].to_vec();
                bytes.splice(place..place, piece);
            }
            _ => random.fill_bytes(&mut bytes[place..]),
        }
    }
}

/// A target on the changed samples of its corpus.
fn changed(target: &str, taken: fn(&[u8])) {
    let samples = seeds(target);
    fuzz(|random| {
        let mut bytes = samples[random.random_range(0..samples.len())].1.clone();
        mutate(random, &mut bytes, 0);
        taken(&bytes);
    });
}

#[test]
fn no_batch_breaks_who_parses_or_reads_it() {
    fuzz(|random| {
        let values: Vec<Vec<u8>> = (0..random.random_range(1..8))
            .map(|_| vec![random.random(); random.random_range(0..200)])
            .collect();
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let whole = batch(CODECS[random.random_range(0..CODECS.len())], 1_000, &values);
        // Behind the byte that says whether length and CRC are made to fit.
        let mut bytes = [&[random.random()], &whole.bytes()[..]].concat();
        mutate(random, &mut bytes, 1);
        batches(&bytes);
    });
}

#[test]
fn no_bytes_break_who_decodes_a_message() {
    changed("messages", messages);
}

#[test]
fn no_bytes_break_who_reads_or_applies_metadata() {
    changed("metadata", metadata);
}

#[test]
fn no_files_break_who_recovers_a_log() {
    changed("recovery", recovery);
}

fn corpus(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("fuzz/corpus").join(target)
}

#[test]
fn every_file_of_the_corpora_is_taken() {
    for (name, taken) in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus(name)).unwrap().collect();
        assert!(
            files.len() >= seeds(name).len(),
            "{name}: seeds are missing"
        );
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            taken(&fs::read(path).unwrap());
        }
    }
}

/// After a change of what a target takes: `cargo test -p cluster-tests --test fuzz -- --ignored`.
#[test]
#[ignore = "writes the seeds of the corpora"]
fn write_the_seeds() {
    for (name, _) in TARGETS {
        let corpus = corpus(name);
        fs::create_dir_all(&corpus).unwrap();
        for (seed, bytes) in seeds(name) {
            fs::write(corpus.join(format!("seed-{seed}")), bytes).unwrap();
        }
    }
}

#[test]
fn every_message_of_a_call_has_its_decoder() {
    let known: BTreeSet<&str> = DECODERS.iter().map(|(name, _)| *name).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/quorate");
    let mut calls = 0;
    for folder in ["v1", "internal/v1"] {
        for file in fs::read_dir(root.join(folder)).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            let lines = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("rpc "));
            for call in lines {
                calls += 1;
                let words = call.split(['(', ')', ' ', ';']).skip(1);
                let words =
                    words.filter(|word| !["", "stream", "returns", "{", "}"].contains(word));
                for message in words {
                    assert!(known.contains(message), "{call}: {message} has no decoder");
                }
            }
        }
    }
    assert!(calls > 20, "{calls} calls were read");
}
