//! Three processes on loopback, measured through the public API.
//!
//! ```sh
//! cargo bench --bench cluster -- load                     # writes, durable, 128 B
//! cargo bench --bench cluster -- load --reads --clients 1,64,256,1024
//! cargo bench --bench cluster -- load --memory --on follower --payload 1024
//! cargo bench --bench cluster -- load --batch 256         # 256 proposals a call
//! cargo bench --bench cluster -- failover --kills 20
//! cargo bench --bench cluster -- idle
//! cargo bench --bench cluster -- join                     # 100 MB, and 1,000,000 entries
//! cargo bench --bench cluster -- big-proposal
//! cargo bench --bench cluster -- steady                   # 60 s, with snapshots
//! cargo bench --bench cluster -- overload                 # three times what it can take
//! cargo bench --bench cluster -- join-under-load
//! cargo bench --bench cluster -- restart                  # with 1,000,000 commands
//! cargo bench --bench cluster -- state --mb 1,100
//! cargo bench --bench cluster -- guard                    # counters within their bounds?
//! ```
//!
//! Clients are closed loops inside the process of the node they ask. `load` measures its own
//! ceilings in the same run: the p50 of fdatasync with three files at once, and the round trip of
//! a bidirectional tonic stream between two processes. Compare ratios, not absolute figures: all
//! processes share the machine.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark talks and gives up")]

mod ceilings;
mod control;
mod echo;
mod guard;
mod load;
mod node;
mod open;
mod scenarios;
mod stress;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures a three-node cluster on loopback")]
struct Args {
    /// Given by `cargo bench`; means nothing.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Closed-loop clients: operations per second and latencies.
    Load(scenarios::LoadArgs),
    /// Kills the leader again and again: time to the first write after it.
    Failover {
        /// How often.
        #[arg(long, default_value_t = 20)]
        kills: usize,
    },
    /// Three idle nodes: processor time.
    Idle {
        /// For how long.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// An empty node joins a cluster with much state.
    Join,
    /// One proposal of 64 MiB is refused; the cluster goes on.
    BigProposal,
    /// 64 clients for a while, with snapshots: what the worst moments are like.
    Steady {
        /// Measured seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Three times as many calls as a node can take.
    Overload {
        /// Measured seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Bytes per command.
        #[arg(long, default_value_t = 1024)]
        payload: usize,
    },
    /// An empty node joins a cluster that is at work: what its clients notice.
    JoinUnderLoad,
    /// A million commands, and then a restart of all.
    Restart,
    /// Work on a state of each of these sizes.
    State {
        /// MB of state, one row each.
        #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
        mb: Vec<u64>,
    },
    /// Counters of a loaded cluster within their bounds; fails otherwise.
    Guard,
    #[command(hide = true)]
    Node(node::NodeArgs),
    #[command(hide = true)]
    Echo {
        addr: String,
        #[arg(long)]
        single_thread: bool,
    },
}

fn main() {
    match Args::parse().what {
        What::Load(args) => scenarios::load(&args),
        What::Failover { kills } => scenarios::failover(kills),
        What::Idle { seconds } => scenarios::idle(seconds),
        What::Join => scenarios::join(),
        What::BigProposal => scenarios::big_proposal(),
        What::Steady { seconds } => stress::steady(seconds),
        What::Overload { seconds, payload } => stress::overload(seconds, payload),
        What::JoinUnderLoad => stress::join_under_load(),
        What::Restart => stress::restart(),
        What::State { mb } => stress::state(&mb),
        What::Guard => {
            if !guard::guard() {
                std::process::exit(1);
            }
        }
        What::Node(args) => node::run(args),
        What::Echo { addr, single_thread } => ceilings::serve_echo(&addr, single_thread),
    }
}
