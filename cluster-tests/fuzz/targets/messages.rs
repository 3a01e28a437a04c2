//! `quorate_fuzz::fuzzed::messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| quorate_fuzz::fuzzed::messages(bytes));
