//! `prove io-faults`

use std::process::ExitCode;

use raftline::testing::crash_states::io_faults;

use crate::outcome::{Exhaustive, conclude};

pub(crate) fn run(args: &Exhaustive) -> ExitCode {
    let command = format!("io-faults --stride {}", args.stride);
    conclude("io-faults", &command, || io_faults(&args.options()))
}
