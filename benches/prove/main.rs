//! The long checks, in one binary.
//!
//! ```sh
//! cargo bench --bench prove -- sim --seeds 3000
//! ```
//!
//! Each ends with one line: what was met, counted by kind, and how long it took. A failure ends
//! with status 1 and the command that runs the failed case again.
#![expect(clippy::print_stdout, reason = "a check talks")]
#![expect(clippy::unwrap_used, reason = "a check may fail")]

mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Proves what can be proven by trying")]
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
}

fn main() -> ExitCode {
    match Args::parse().check {
        Check::Sim(args) => sim::run(&args),
    }
}
