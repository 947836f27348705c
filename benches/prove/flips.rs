//! `prove flips`

use std::process::ExitCode;

use raftline::testing::crash_states::{Options, flips};

use crate::outcome::{conclude, default_jobs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One in so many is tried; 1: all.
    #[arg(long, default_value_t = 1)]
    stride: usize,
    /// Threads; default: one per core.
    #[arg(long, default_value_t = default_jobs())]
    jobs: usize,
    /// Runs this case alone.
    #[arg(long)]
    only: Option<u64>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let Args { stride, jobs, only } = *args;
    let options = Options { stride, jobs, only, ..Options::default() };
    let command = format!("flips --stride {stride}");
    conclude("flips", &command, || flips(&options))
}
