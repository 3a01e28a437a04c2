//! `quorate_fuzz::fuzzed::recovery`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| quorate_fuzz::fuzzed::recovery(bytes));
