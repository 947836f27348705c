//! Many plans with a Store of one's own, and what a person needs when one of them fails: the
//! failure told in full, whether it comes again, the smallest plan that shows it.

use super::minimise::minimise_with;
use super::plan::Plan;
use super::report::{Failure, Report, Summary};
use super::run_traced;
use super::subject::Subject;
use super::trace::Trace;
use crate::testing::again;

/// What may make two runs of one plan differ.
const CAUSES: &str = "is your Store deterministic? What it, or the closures that draw its \
    commands, answer may depend on time, on randomness, on the order of a HashMap, on threads, or \
    on what an earlier run has left in a static or on a disk";

/// The seeds of a test run: this many, or the one that the environment variable `RAFTLINE_SEED`
/// names, to replay it alone.
///
/// # Panics
/// When the variable is no number: running other seeds would look as if the failure were gone.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match again::seed() {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..count,
    }
}

/// Runs the plans of these seeds with a Store and workload of one's own; what they came to.
///
/// The environment goes first: `RAFTLINE_PLAN='seed=7 nodes=3 ..'` runs that plan alone,
/// `RAFTLINE_SEED=7` that seed, and `RAFTLINE_MINIMISE=1` looks for a smaller plan that fails, too.
///
/// # Errors
/// What did not hold first, with everything that happened before in its trace, and the line that
/// runs it again.
///
/// # Panics
/// When the environment names no plan, or no seed.
pub fn check(
    seeds: impl IntoIterator<Item = u64>,
    subject: impl Fn() -> Subject,
) -> Result<Summary, Box<Failure>> {
    let small = again::minimise();
    match asked_for() {
        Some(plan) => search([plan], subject, small),
        None => search(seeds.into_iter().map(Plan::draw), subject, small),
    }
}

/// The plan that the environment names.
fn asked_for() -> Option<Plan> {
    match again::plan() {
        Some(line) => Some(line.parse().unwrap_or_else(|e| panic!("RAFTLINE_PLAN='{line}': {e}"))),
        None => again::seed().map(Plan::draw),
    }
}

/// Runs plans until one fails.
pub(super) fn search(
    plans: impl IntoIterator<Item = Plan>,
    subject: impl Fn() -> Subject,
    small: bool,
) -> Result<Summary, Box<Failure>> {
    let mut summary = Summary::default();
    for plan in plans {
        match run_traced(&plan, subject(), Trace::default()) {
            Ok(report) => summary.add(&report),
            Err(failure) if failure.hung => return Err(failure),
            Err(failure) => {
                let smallest = if small { minimise_with(&plan, &subject) } else { None };
                return Err(smallest.unwrap_or_else(|| told(failure, &subject)));
            }
        }
    }
    Ok(summary)
}

/// The same run once more, told in full; and whether it is the same.
pub(super) fn told(failure: Box<Failure>, subject: impl Fn() -> Subject) -> Box<Failure> {
    let again = run_traced(&failure.plan, subject(), Trace::recording());
    compared(failure, again)
}

pub(super) fn compared(
    mut first: Box<Failure>,
    again: Result<Report, Box<Failure>>,
) -> Box<Failure> {
    let differs = match again {
        Err(told) if told.is_like(&first) => return told,
        Err(told) => {
            let text = format!("failed otherwise ({}; the trace is of that run)", told.reason);
            first.trace = told.trace;
            text
        }
        Ok(_) => "did not fail".to_owned(),
    };
    first.reason.push_str(&format!("\n  the same plan, run again, {differs}: {CAUSES}"));
    first
}
