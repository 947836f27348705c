//! Three processes on loopback, measured through the public API beside the machine's own ceilings.
//!
//! ```text
//! cluster load --clients 1,64,256          durable writes; --memory, --percent-reads 100, --follower
//! cluster load --batch 256                 many proposals in one call
//! cluster failover --kills 20              time to the first write after SIGKILL of the leader
//! cluster idle                             processor time of a cluster that nobody uses
//! cluster bigstate                         an empty node joins 100 MB, and 1,000,000 entries
//! cluster big-proposal                     64 MiB in one proposal, refused, and life after it
//! ```
//!
//! Only the driver reads clocks of several processes: it starts the nodes, tells one of them to run
//! clients, and reads what all of them cost.

mod ceilings;
mod child;
mod load;
mod node;
mod procfs;
mod protocol;
mod recorder;
mod scenarios;
mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What any part fails with, in words.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "Measures a cluster of three processes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Closed-loop clients on one node.
    Load(scenarios::load::Flags),
    /// Kills the leader again and again.
    Failover(scenarios::failover::Flags),
    /// Does nothing, and measures what that costs.
    Idle(scenarios::idle::Flags),
    /// Lets an empty node join a large state.
    Bigstate(scenarios::bigstate::Flags),
    /// Proposes far more than is allowed.
    BigProposal(scenarios::big_proposal::Flags),
    /// One node; started by the others.
    #[command(hide = true)]
    Node(node::Flags),
    /// The echo server of the ceilings; started by `load`.
    #[command(hide = true)]
    Echo(ceilings::EchoFlags),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Load(flags) => scenarios::load::run(&flags),
        Command::Failover(flags) => scenarios::failover::run(&flags),
        Command::Idle(flags) => scenarios::idle::run(&flags),
        Command::Bigstate(flags) => scenarios::bigstate::run(&flags),
        Command::BigProposal(flags) => scenarios::big_proposal::run(&flags),
        Command::Node(flags) => node::run(&flags),
        Command::Echo(flags) => ceilings::serve(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
