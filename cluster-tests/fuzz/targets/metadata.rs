//! `quorate_fuzz::fuzzed::metadata`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| quorate_fuzz::fuzzed::metadata(bytes));
