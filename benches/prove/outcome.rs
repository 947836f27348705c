//! How a check over numbered cases ends.

use std::process::ExitCode;
use std::time::Instant;

use raftline::testing::crash_states::{Options, Report};

/// Threads, unless told otherwise.
pub(crate) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How much of a check is run whose cases are known beforehand.
#[derive(clap::Args)]
pub(crate) struct Exhaustive {
    /// One in so many is tried; 1: all.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub(crate) stride: usize,
    /// Threads; default: one per core.
    #[arg(long, default_value_t = default_jobs(), value_parser = at_least_one)]
    jobs: usize,
    /// Runs this case alone.
    #[arg(long)]
    only: Option<u64>,
}

/// A number of things without which nothing is done.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 would mean none at all; the least is 1".to_owned()),
        Ok(count) => Ok(count),
        Err(e) => Err(format!("a number from 1 on is wanted: {e}")),
    }
}

impl Exhaustive {
    pub(crate) fn options(&self) -> Options {
        let Self { stride, jobs, only } = *self;
        Options { stride, jobs, only, ..Options::default() }
    }
}

/// Runs a check, prints its closing line, and after a failure how to run that case again:
/// `command` with the case's number.
pub(crate) fn conclude(check: &str, command: &str, run: impl FnOnce() -> Report) -> ExitCode {
    let start = Instant::now();
    let Report { cases, distinct, counts, failure } = run();
    if let Some(failure) = &failure {
        println!("FAILED: {}", failure.what);
        println!("again: cargo bench --bench prove -- {command} --only {}", failure.case);
    }
    let verdict = if failure.is_some() { "FAILED" } else { "ok" };
    let disks = if distinct > 0 { format!(", {distinct} distinct states") } else { String::new() };
    let seconds = start.elapsed().as_secs_f64();
    println!("{check}: {verdict}, {cases} cases{disks}; {counts}; {seconds:.1} s");
    if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
