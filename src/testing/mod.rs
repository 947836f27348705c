//! Test doubles and conformance suites, for this crate's tests and for those of programs that
//! embed it (feature `testing`).

pub mod cluster;
pub mod linearizability;
pub mod log_suite;
pub mod rng;
pub mod store_suite;
pub mod vfs;
