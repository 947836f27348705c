//! One node among peers that say anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raftline::testing::fuzz::gate(data));
