//! `prove crash-states`

use std::process::ExitCode;

use raftline::testing::crash_states::{Options, crash_states};

use crate::outcome::{at_least_one, conclude, default_jobs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Different disks to recover, at least.
    #[arg(long, default_value_t = 1_000_000)]
    states: u64,
    /// What the random workloads are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; default: one per core.
    #[arg(long, default_value_t = default_jobs(), value_parser = at_least_one)]
    jobs: usize,
    /// Runs this case alone.
    #[arg(long)]
    only: Option<u64>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let Args { states, seed, jobs, only } = *args;
    let options = Options { seed, states, jobs, only, ..Options::default() };
    let command = format!("crash-states --seed {seed}");
    conclude(&format!("crash-states, seed {seed}"), &command, || crash_states(&options))
}
