//! Bytes of a peer, as each message that a node reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raftline::testing::fuzz::wire(data));
