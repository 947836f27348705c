//! Deterministic simulation: the real node, gate, log and snapshot files of 1 to 7 machines in one
//! thread, under a virtual clock, with a seeded network, seeded disks, crashes, and members that
//! come and go. An oracle looks at every node after every event.
//!
//! A run has two phases. First faults, as the seed draws them; then a majority is healed, and must
//! elect a leader, write, agree, and hold every write that was ever acknowledged. Every answer that
//! a client got is held against the log: writes and reads are linearizable, or the run fails.
//!
//! The same [`Plan`] gives the same run everywhere, so that a failure is replayed by one line, which
//! it prints:
//!
//! - `RAFTLINE_SEED=7 cargo test my_test` runs the plan that this seed draws, alone;
//! - `RAFTLINE_PLAN='seed=7 nodes=3 ..' cargo test my_test` runs any plan;
//! - `RAFTLINE_MINIMISE=1` before either looks for a smaller plan that fails as well (some hundred
//!   runs: much faster with `cargo test --release`), and tells that failure;
//! - `panic!("{failure:#}")` shows everything that happened, `{failure}` the end of it.
//!
//! [`replay_with`] and [`minimise_with`] do the same by call. A call of the Store that does not come
//! back within a minute (`RAFTLINE_PATIENCE=5`: five seconds) ends the run with the name of the call;
//! the thread that hangs is left behind.
//!
//! Your own Store under the simulator:
//!
//! ```
//! use raftline::testing::sim::{self, Subject};
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
//! let subject = || {
//!     let command = |rng: &mut raftline::testing::rng::Rng| vec![7; 1 + rng.below(9) as usize];
//!     Subject::new(|| Sum(0), command, |_| Vec::new())
//! };
//! let summary = sim::check(sim::seeds(3), subject).unwrap_or_else(|failure| panic!("{failure}"));
//! println!("{summary}");
//! ```
//!
//! What a failure names:
//!
//! | | what must hold |
//! | --- | --- |
//! | I1 | at most one leader per term |
//! | I2 | the durable vote of a term never changes, the durable term never goes back |
//! | I3 | the same index and term name the same entry on every disk |
//! | I4 | a leader holds every committed entry |
//! | I5 | replicas that applied the same commands gave the same answers and give them to queries |
//! | I6 | a committed entry is on a quorum's disks, and never changes |
//! | I7 | within a run of a process, term, commit, applied and compacted never go back |
//! | I8 | compacted <= emitted to the Store <= commit <= last |
//! | I9 | no message leaves before what it says is durable |
//! | I10 | an acknowledged write is in the log, a refused one is not, one of unknown outcome at most as often as it was asked |
//! | I11 | exactly once per session; there are no sessions yet |
//! | I12 | writes and reads are linearizable: their indices respect real time, their answers are those of the log |
//! | I13 | memberships agree and are the fold of the log; ids are never used again |
//! | I14 | whoever waits for a decided proposal is answered |
//! | I15 | a healed majority has a leader within ten election timeouts and a fresh write within twenty |
//! | I16 | a peer that waits for a snapshot is sent one |
//! | R.., H.. | the ordering rules and hazards of the engine that ARCHITECTURE.md and the code speak of |
//! | gate | no message of an honest member is refused as hostile |
//!
//! With a Store of one's own, I5 and I12 are what its mistakes break: replicas that differ, because
//! `apply` is not deterministic or a snapshot leaves something out. A Store that stops its node, by
//! an error or a panic, without having been told to, is named with its command.
#![doc = include_str!("knobs.md")]

mod admin;
mod caller;
mod calls;
mod check;
mod churn;
mod clients;
mod disk;
mod disk_model;
mod ledger;
mod life;
mod machine;
mod marks;
mod minimise;
mod nemesis;
mod net;
mod oracle;
mod phases;
mod plan;
mod refusals;
mod report;
mod schedule;
mod stopping;
mod storing;
mod subject;
#[cfg(test)]
mod tests;
mod trace;
mod transfers;
mod values;
mod verdict;
mod world;

use std::time::Duration;

use trace::Trace;
use world::World;

pub use check::{check, seeds};
pub use marks::{Mark, Marks};
pub use minimise::{minimise, minimise_with};
pub use plan::{FAULTS, Knob, Plan};
pub use report::{Failure, Report, Stats, Summary};
pub use subject::Subject;

use crate::testing::contain::contained;
use crate::testing::watch::{Calls, patience, watched};

/// Runs a plan with the simulator's own Store and workload.
///
/// # Errors
/// What did not hold.
pub fn run(plan: &Plan) -> Result<Report, Box<Failure>> {
    run_traced(plan, subject::mixed(plan), Trace::default())
}

/// The same, with everything that happens in the failure's trace, or beside the report.
///
/// # Errors
/// What did not hold.
pub fn replay(plan: &Plan) -> Result<(Report, String), Box<Failure>> {
    replay_with(plan, subject::mixed(plan))
}

/// Runs a plan with a Store and workload of one's own.
///
/// # Errors
/// What did not hold.
pub fn run_with(plan: &Plan, subject: Subject) -> Result<Report, Box<Failure>> {
    run_traced(plan, subject, Trace::default())
}

/// The same, with everything that happens in the failure's trace, or beside the report. The line
/// of a plan is one by `parse`: `replay_with(&"seed=7 nodes=3 ..".parse()?, subject())`.
///
/// # Errors
/// What did not hold.
pub fn replay_with(plan: &Plan, subject: Subject) -> Result<(Report, String), Box<Failure>> {
    let trace = Trace::recording();
    run_traced(plan, subject, trace.clone()).map(|report| (report, trace.text()))
}

fn run_traced(plan: &Plan, subject: Subject, trace: Trace) -> Result<Report, Box<Failure>> {
    run_within(patience(), plan, subject, trace)
}

/// Runs on a thread of its own, because a Store may hang.
fn run_within(
    patience: Duration,
    plan: &Plan,
    subject: Subject,
    trace: Trace,
) -> Result<Report, Box<Failure>> {
    let (of_plan, of_trace) = (plan.clone(), trace.clone());
    let ran = watched(patience, move |calls| run_here(&of_plan, subject, of_trace, calls));
    ran.unwrap_or_else(|hang| {
        let reason = format!("{}: {}", caller::who(hang.place.0), hang.text);
        let (at, trace, place) = (trace.now(), trace.text(), String::new());
        let plan = plan.clone();
        Err(Box::new(Failure { plan, at, reason, place, trace, hung: true, digest: 0 }))
    })
}

fn run_here(
    plan: &Plan,
    subject: Subject,
    trace: Trace,
    calls: &Calls,
) -> Result<Report, Box<Failure>> {
    let mut world = World::new(plan, subject, trace.clone(), calls.clone());
    match contained(|| world.run()) {
        Ok(()) => Ok(Report {
            plan: plan.clone(),
            simulated: world.now(),
            stats: world.stats(),
            marks: world.marks.clone(),
        }),
        Err(panicked) => {
            let at = trace.now();
            let place = panicked.place.as_deref().unwrap_or("an unknown place");
            trace.line(at, || format!("FAILED, as {place} says"));
            // What the simulator says itself needs no place.
            let its_own = panicked.place.as_ref().is_some_and(|p| p.contains("src/testing/sim/"));
            let reason = if its_own { panicked.text } else { panicked.to_string() };
            let (trace, digest) = (trace.text(), world.stats.digest);
            let (plan, place) = (plan.clone(), place.to_owned());
            Err(Box::new(Failure { plan, at, reason, place, trace, hung: false, digest }))
        }
    }
}
