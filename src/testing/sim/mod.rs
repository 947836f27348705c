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

mod calls;
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

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use trace::Trace;
use world::World;

pub use marks::{Mark, Marks};
pub use minimise::minimise;
pub use plan::{FAULTS, Knob, Plan};
pub use report::{Failure, Report, Stats, Summary};
pub use subject::Subject;

use crate::store::panic_text;

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
    let trace = Trace::recording();
    run_traced(plan, subject::mixed(plan), trace.clone()).map(|report| (report, trace.text()))
}

/// Runs a plan with a Store and workload of one's own.
///
/// # Errors
/// What did not hold.
pub fn run_with(plan: &Plan, subject: Subject) -> Result<Report, Box<Failure>> {
    run_traced(plan, subject, Trace::default())
}

/// The seeds of a test run: this many, or the one that the environment variable `RAFTLINE_SEED`
/// names, to replay it alone.
///
/// # Panics
/// When the variable is no number: running other seeds would look as if the failure were gone.
pub fn seeds(count: u64) -> Range<u64> {
    let Ok(text) = std::env::var("RAFTLINE_SEED") else { return 0..count };
    match text.parse::<u64>() {
        Ok(seed) => seed..seed.saturating_add(1),
        Err(_) => panic!("RAFTLINE_SEED={text} is not a number; a whole plan goes to run_with"),
    }
}

/// Runs the plans of these seeds with a Store and workload of one's own; what they came to.
///
/// # Errors
/// What did not hold first, with everything that happened before in its trace. `RAFTLINE_SEED`
/// and [`seeds`] run that seed alone, [`run_with`] any plan.
pub fn check(
    seeds: impl IntoIterator<Item = u64>,
    subject: impl Fn() -> Subject,
) -> Result<Summary, Box<Failure>> {
    let mut summary = Summary::default();
    for seed in seeds {
        let plan = Plan::draw(seed);
        match run_with(&plan, subject()) {
            Ok(report) => summary.add(&report),
            // The same run once more, told in full.
            Err(failure) => match run_traced(&plan, subject(), Trace::recording()) {
                Ok(_) => return Err(failure),
                Err(told) => return Err(told),
            },
        }
    }
    Ok(summary)
}

fn run_traced(plan: &Plan, subject: Subject, trace: Trace) -> Result<Report, Box<Failure>> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan, subject, trace.clone());
        world.run();
        let simulated = world.now();
        Report {
            plan: plan.clone(),
            simulated,
            stats: world.stats.clone(),
            marks: world.marks.clone(),
        }
    }));
    ran.map_err(|panic| {
        let reason = panic_text(&*panic);
        Box::new(Failure { plan: plan.clone(), at: trace.now(), reason, trace: trace.text() })
    })
}
