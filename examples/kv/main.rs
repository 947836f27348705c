//! A replicated key-value store over HTTP, one process per node, and the drill that shows what it
//! is worth.
//!
//! ```text
//! kv cluster                       three processes, loaded, killed, restarted, verified
//! kv --id 1 --raft-addr 127.0.0.1:500{id} --http-addr 127.0.0.1:800{id} \
//!    --peer 127.0.0.1:5001 --peer 127.0.0.1:5002 --peer 127.0.0.1:5003
//! kv --id 2 ..                     the same line on every node, but for the id
//! kv load README.md --node 127.0.0.1:8001
//! kv verify README.md --node 127.0.0.1:8002
//! ```
//!
//! `operations.sh` beside this file walks through the life of a cluster: it grows, machines are
//! replaced, it shrinks, and loses its majority.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

mod client;
mod cluster;
mod http;
mod load;
mod members;
mod node;
mod process;
mod store;
mod text;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a node answers; `http.rs` and `members.rs` tell more.
const ROUTES: &str = "\
Over HTTP, on any node:
  GET, PUT, POST (append), DELETE /kv/KEY   GET ?stale, PUT ?if=OLD, PUT ?if-absent
  GET  /   /status   /health   /members     the same for people, programs, balancers, scripts
  POST /members/add?id=4&addr=HOST:PORT     &learner=1: does not vote
  POST /members/promote?id=4   demote?id=4   remove?id=4   replace?old=4&new=5
  POST /members/set?voters=1,2,3&learners=4   update?id=4&addr=HOST:PORT
  POST /members/transfer?to=2               leadership
  POST /leave                               this node leaves the cluster and ends";

/// What any part of the program fails with, in words.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(
    about = "A replicated key-value store",
    after_help = ROUTES,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: Option<node::Flags>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node (also without the word).
    Node(node::Flags),
    /// Write every line of a file, with many clients at a time.
    Load(load::Flags),
    /// Read every line of a file back and compare.
    Verify(verify::Flags),
    /// Start three nodes, load them, kill the leader and then all of them, and verify.
    Cluster(cluster::Flags),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.command, cli.node) {
        (Some(Command::Node(flags)), _) | (None, Some(flags)) => node::run(flags).await,
        (Some(Command::Load(flags)), _) => load::run(flags).await,
        (Some(Command::Verify(flags)), _) => verify::run(flags).await,
        (Some(Command::Cluster(flags)), _) => cluster::run(flags).await,
        (None, None) => Err("say what to do: `kv --help` tells".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
