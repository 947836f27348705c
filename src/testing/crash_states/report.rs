//! What a check counted, and what it found; runs many cases on a few threads.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Numbers by name.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    numbers: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(super) fn add(&mut self, name: &'static str, n: u64) {
        *self.numbers.entry(name).or_default() += n;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (name, n) in &other.numbers {
            self.add(name, *n);
        }
    }

    /// The number of this name; 0 when it was never counted.
    pub fn of(&self, name: &str) -> u64 {
        self.numbers.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, n)) in self.numbers.iter().enumerate() {
            write!(f, "{}{name} {n}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The number that runs it again, with the same seed.
    pub case: u64,
    /// What was wrong.
    pub what: String,
}

/// What a check came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many cases were run.
    pub cases: u64,
    /// How many different disks were recovered.
    pub distinct: u64,
    /// What was met, by name.
    pub counts: Counts,
    /// The first failure, if any.
    pub failure: Option<Failure>,
}

/// What one case came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    pub(super) images: HashSet<u64>,
    pub(super) failure: Option<String>,
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("(no text)"))
}

/// Runs the cases from `first`, on `jobs` threads, until there are `total`, or so many different
/// disks, or a failure.
pub(super) fn run_cases(
    jobs: usize,
    cases: std::ops::Range<u64>,
    distinct: u64,
    run: impl Fn(u64) -> Outcome + Sync,
) -> Report {
    let next = AtomicU64::new(cases.start);
    let all = Mutex::new((Report::default(), HashSet::<u64>::new()));
    let lock = || all.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        loop {
            {
                let (report, images) = &*lock();
                if report.failure.is_some() || images.len() as u64 >= distinct {
                    return;
                }
            }
            let case = next.fetch_add(1, Ordering::Relaxed);
            if case >= cases.end {
                return;
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| run(case))).unwrap_or_else(|panic| {
                Outcome { failure: Some(panic_text(&*panic)), ..Outcome::default() }
            });
            let (report, images) = &mut *lock();
            report.cases += 1;
            report.counts.merge(&outcome.counts);
            images.extend(outcome.images);
            if let (None, Some(what)) = (&report.failure, outcome.failure) {
                report.failure = Some(Failure { case, what });
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(work);
        }
        work();
    });
    let (mut report, images) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.distinct = images.len() as u64;
    report
}
