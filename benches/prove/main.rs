//! The long checks, in one binary.
//!
//! ```sh
//! cargo bench --bench prove -- sim --seeds 3000
//! cargo bench --bench prove -- crash-states --states 1000000 --jobs 2
//! cargo bench --bench prove -- flips
//! cargo bench --bench prove -- io-faults
//! RUSTFLAGS='--cfg raftline_zoo' cargo bench --bench prove --target-dir target/zoo -- zoo
//! ```
//!
//! Each ends with one line: what was met, counted by kind, and how long it took. A failure ends
//! with status 1 and the command that runs the failed case again.
#![expect(clippy::print_stdout, reason = "a check talks")]
#![expect(clippy::unwrap_used, reason = "a check may fail")]

mod crash_states;
mod flips;
mod io_faults;
mod outcome;
mod sim;
mod survey;
mod zoo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  everything that the simulator may meet, in a minute or two:
    cargo bench --bench prove -- sim --seeds 4000 --all-marks
  one seed, or one plan, with everything that happens; and a smaller plan that fails as well:
    cargo bench --bench prove -- sim --replay 7
    cargo bench --bench prove -- sim --replay 'seed=7 nodes=3 kill_leader=2000'
    cargo bench --bench prove -- sim --replay 7 --minimise
  the files:
    cargo bench --bench prove -- crash-states --states 100000
    cargo bench --bench prove -- flips --stride 10
    cargo bench --bench prove -- io-faults
  every deliberate defect, in a build of its own:
    RUSTFLAGS='--cfg raftline_zoo' cargo bench --bench prove --target-dir target/zoo -- zoo
  which checks of the simulator they make fail, and which none of them does:
    RUSTFLAGS='--cfg raftline_zoo' cargo bench --bench prove --target-dir target/zoo -- \
      zoo --survey 100

Each ends with status 0 when everything held, and with 1 and the command that runs what failed.";

#[derive(Parser)]
#[command(
    about = "Proves what can be proven by trying",
    bin_name = "cargo bench --bench prove --",
    after_help = EXAMPLES
)]
struct Args {
    /// Given by `cargo bench`; means nothing.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    check: Check,
}

#[derive(Subcommand)]
enum Check {
    /// Seeds of the simulator.
    Sim(sim::Args),
    /// Losses of power: every prefix of what workloads write, what may be left of it, recovered.
    CrashStates(crash_states::Args),
    /// Every single flipped bit of logs, identities and snapshots.
    Flips(outcome::Exhaustive),
    /// Every single call of the file layer failing.
    IoFaults(outcome::Exhaustive),
    /// Every deliberate defect: caught by the check that must catch it.
    Zoo(zoo::Args),
}

fn main() -> ExitCode {
    match Args::parse().check {
        Check::Sim(args) => sim::run(&args),
        Check::CrashStates(args) => crash_states::run(&args),
        Check::Flips(args) => flips::run(&args),
        Check::IoFaults(args) => io_faults::run(&args),
        Check::Zoo(args) => zoo::run(&args),
    }
}
