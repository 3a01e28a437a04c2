//! `quorate_fuzz::fuzzed::batches`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| quorate_fuzz::fuzzed::batches(bytes));
