//! Test doubles, conformance suites and a simulator, for this crate's tests and for those of
//! programs that embed it (feature `testing`).
//!
//! | module | what it checks |
//! | --- | --- |
//! | [`store_suite`] | your `Store` against its laws: determinism, batches, snapshots, crashes between any two calls |
//! | [`sim`] | your `Store` in whole clusters under a virtual clock: crashes, partitions, failing disks, members that come and go |
//! | [`cluster`] | your program on nodes in one process, with real threads and a network that can be cut |
//! | [`linearizability`] | the history of calls to any system |
//! | [`log_suite`] | your own `LogStorage` against its contract, with [`vfs`] to fail and crash it |
//!
//! A Store of your own, checked in your `cargo test`:
//!
//! ```
//! # struct Sum(u64);
//! # #[raftline::async_trait]
//! # impl raftline::Store for Sum {
//! #     async fn apply(&mut self, m: &[u8]) -> raftline::Result<Vec<u8>> {
//! #         self.0 += m.len() as u64;
//! #         Ok(self.0.to_le_bytes().to_vec())
//! #     }
//! #     async fn query(&self, _: &[u8]) -> raftline::Result<Vec<u8>> {
//! #         Ok(self.0.to_le_bytes().to_vec())
//! #     }
//! #     async fn snapshot(&self) -> raftline::Result<Vec<u8>> {
//! #         Ok(self.0.to_le_bytes().to_vec())
//! #     }
//! #     async fn restore(&mut self, s: &[u8]) -> raftline::Result<()> {
//! #         self.0 = u64::from_le_bytes(s.try_into().map_err(|_| "eight bytes")?);
//! #         Ok(())
//! #     }
//! # }
//! use raftline::testing::{rng::Rng, sim, store_suite};
//!
//! // #[test]
//! fn my_store_keeps_its_promises() {
//!     let command = |rng: &mut Rng| vec![7; 1 + rng.below(9) as usize];
//!     let query = |_: &mut Rng| Vec::new();
//!     store_suite::check(|| Sum(0), command, query, sim::seeds(50));
//!     let subject = move || sim::Subject::new(|| Sum(0), command, query);
//!     let held = sim::check(sim::seeds(5), subject).unwrap_or_else(|failure| panic!("{failure}"));
//!     println!("{held}");
//! }
//! # my_store_keeps_its_promises();
//! ```
//!
//! What fails prints the line that runs it again, alone. The environment that these lines set:
//!
//! | variable | what it does |
//! | --- | --- |
//! | `RAFTLINE_SEED=7` | [`store_suite`] and [`sim`] run that seed alone |
//! | `RAFTLINE_PLAN='seed=7 nodes=3 ..'` | [`sim`] runs that plan alone |
//! | `RAFTLINE_MINIMISE=1` | a failure of [`sim`] is made small before it is reported |
//! | `RAFTLINE_PATIENCE=5` | seconds that a call of a Store may take before it counts as hung; 60 otherwise |

mod again;
pub mod cluster;
mod contain;
#[doc(hidden)]
pub mod crash_states;
#[doc(hidden)]
pub mod fuzz;
pub mod linearizability;
pub mod log_suite;
pub mod rng;
pub mod sim;
pub mod store_suite;
mod text;
pub mod vfs;
mod watch;
/// Deliberate defects that the checks must catch.
#[doc(hidden)]
pub mod zoo {
    pub use crate::zoo::{BUILT, ENTRIES, Entry, Layer};
}
