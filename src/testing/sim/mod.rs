//! Deterministic simulation: the real node, gate, log and snapshot files of 1 to 7 machines in one
//! thread, under a virtual clock, with a seeded network, seeded disks, crashes, and members that
//! come and go. An oracle looks at every node after every event.
//!
//! A run has two phases. First faults, as the seed draws them; then a majority is healed, and must
//! elect a leader, write, agree, and hold every write that was ever acknowledged. Every answer that
//! a client got is held against the log: writes and reads are linearizable, or the run fails.
//!
//! The same [`Plan`] gives the same run everywhere, so that a failure is replayed by one line.
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
//! if let Err(failure) = sim::check(sim::seeds(3), subject) {
//!     panic!("{failure}");
//! }
//! ```

mod caller;
mod calls;
mod check;
mod churn;
mod clients;
mod disk;
mod disk_model;
mod life;
mod machine;
mod marks;
mod minimise;
mod nemesis;
mod net;
mod oracle;
mod phases;
mod plan;
mod report;
mod schedule;
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
        let (at, trace) = (trace.now(), trace.text());
        Err(Box::new(Failure { plan: plan.clone(), at, reason, trace, hung: true, digest: 0 }))
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
            stats: world.stats.clone(),
            marks: world.marks.clone(),
        }),
        Err(panicked) => {
            let at = trace.now();
            trace.line(at, || format!("FAILED: {panicked}"));
            // What the simulator says itself needs no place.
            let its_own = panicked.place.as_ref().is_some_and(|p| p.contains("src/testing/sim/"));
            let reason = if its_own { panicked.text } else { panicked.to_string() };
            let (trace, digest) = (trace.text(), world.stats.digest);
            Err(Box::new(Failure { plan: plan.clone(), at, reason, trace, hung: false, digest }))
        }
    }
}
