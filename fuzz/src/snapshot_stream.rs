//! Snapshots on their way in, and their files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raftline::testing::fuzz::snapshot_stream(data));
