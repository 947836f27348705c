//! The identity file of a directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raftline::testing::fuzz::identity(data));
