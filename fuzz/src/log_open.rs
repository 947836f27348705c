//! The files of a log directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raftline::testing::fuzz::log_open(data));
