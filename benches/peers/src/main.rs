//! raftline beside other replicated logs: the same work, three processes each, in one run.
//!
//! ```sh
//! cargo run --release -- run                  # all that is there, writes
//! cargo run --release -- run --reads          # linearizable reads, too
//! cargo run --release -- run --only raftline-memory,openraft --clients 64,256 --seconds 2
//! cargo run --release -- ceilings             # what the machine gives at best
//! ```
//!
//! The README says what is alike and what is not.

mod ceilings;
mod cluster;
mod histogram;
mod kv;
mod load;
mod node;
mod procfs;
mod report;
mod run;
mod variants;
mod wire;

use clap::{Parser, Subcommand};
use peers::Result;

#[derive(Parser)]
#[command(about = "Measures raftline beside other replicated logs, on loopback")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Loads every variant, and compares.
    Run(run::RunArgs),
    /// What the machine gives at best, alone.
    Ceilings(run::Amount),
    /// A node, started by `run`.
    #[command(hide = true)]
    Node(node::Setup),
    /// The other end of the stream, started by `ceilings`.
    #[command(hide = true)]
    Echo { addr: String },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Run(args) => run::run(&args),
        What::Ceilings(amount) => run::ceilings(&amount),
        What::Node(setup) => node::run(setup),
        What::Echo { addr } => ceilings::echo::serve(&addr),
    }
}
