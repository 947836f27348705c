//! `prove flips`

use std::process::ExitCode;

use raftline::testing::crash_states::flips;

use crate::outcome::{Exhaustive, conclude};

pub(crate) fn run(args: &Exhaustive) -> ExitCode {
    let command = format!("flips --stride {}", args.stride);
    conclude("flips", &command, || flips(&args.options()))
}
