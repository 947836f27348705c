//! Test doubles and conformance suites, for this crate's tests and for those of programs that
//! embed it (feature `testing`).

pub mod cluster;
#[doc(hidden)]
pub mod crash_states;
#[doc(hidden)]
pub mod fuzz;
pub mod linearizability;
pub mod log_suite;
pub mod rng;
pub mod sim;
pub mod store_suite;
pub mod vfs;
/// Deliberate defects that the checks must catch.
#[doc(hidden)]
pub mod zoo {
    pub use crate::zoo::{BUILT, ENTRIES, Entry, Layer};
}
