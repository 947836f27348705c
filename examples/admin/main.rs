//! Looks into data directories that no node uses, and mends a cluster that cannot mend itself:
//! a majority that is lost for good, addresses that all changed at once. Stop the nodes first.
//!
//! ```text
//! admin inspect kv-1                          what a directory holds; every checksum is verified
//! admin survey kv-1 kv-3                      what is left of a cluster, and what to do
//! admin recover kv-1 --other kv-3             what a recovery would do, and what may be lost
//! admin recover kv-1 --other kv-3 --yes       found a new cluster from kv-1
//! admin addresses kv-1 --set 1=10.1.0.1:5001 --set 2=10.1.0.2:5001 --set 3=10.1.0.3:5001
//! ```
//!
//! Exit codes: 0 done, and nothing is wrong; 1 refused or failed; 2 the command line is wrong;
//! 3 nothing failed, but it is not well: damage was found, the directories are no majority, or a
//! recovery waits for `--yes`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use raftline::NodeId;
use raftline::offline::{self, Advice, RecoverOptions};

/// Looked at, and not well.
const NOT_WELL: u8 = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(name = "admin", about = "Tools for data directories that no node uses")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a data directory holds; changes nothing.
    Inspect {
        /// The data directory.
        dir: PathBuf,
    },
    /// What is left of a cluster, which directory is the most advanced, and what to do; changes
    /// nothing.
    Survey {
        /// Every data directory that is left, or a copy of it.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
    },
    /// Found a new cluster from one directory, when the majority is lost for good.
    Recover {
        /// The data directory of the most advanced member that is left.
        dir: PathBuf,
        /// Another data directory that is left; it is only read. Name all of them.
        #[arg(long = "other")]
        others: Vec<PathBuf>,
        /// Where the node will be reached; without it: where it was.
        #[arg(long)]
        addr: Option<String>,
        /// Do it. Without it, say what would happen.
        #[arg(long)]
        yes: bool,
        /// Although a majority is at hand, or another directory is more advanced.
        #[arg(long)]
        force: bool,
    },
    /// Note where members are reached now, after every address has changed. In the directory of
    /// each member, with the same list.
    Addresses {
        /// The data directory.
        dir: PathBuf,
        /// A member and its new address: `2=10.1.0.2:5001`. None at all takes back what was noted.
        #[arg(long = "set", value_parser = assignment)]
        all: Vec<(NodeId, String)>,
    },
}

fn assignment(text: &str) -> Result<(NodeId, String), String> {
    let (id, addr) = text.split_once('=').ok_or("a node id, =, and its address")?;
    let id = id.parse().map_err(|_| format!("{id:?} is no node id"))?;
    Ok((id, addr.to_owned()))
}

fn main() -> ExitCode {
    match run(std::env::args_os(), &mut std::io::stdout()) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            // NB: when standard error is gone, there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; its exit code.
pub(crate) fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            e.print()?;
            return Ok(code);
        }
    };
    match cli.command {
        Command::Inspect { dir } => {
            let report = offline::inspect(dir)?;
            writeln!(out, "{report}")?;
            Ok(if report.is_sound() { 0 } else { NOT_WELL })
        }
        Command::Survey { dirs } => {
            let survey = offline::survey(&dirs)?;
            writeln!(out, "{survey}")?;
            Ok(if survey.advice() == Advice::Start { 0 } else { NOT_WELL })
        }
        Command::Recover { dir, others, addr, yes, force } => {
            let options = RecoverOptions { others, addr, force };
            if !yes {
                writeln!(out, "{}", offline::plan_recovery(dir, &options)?)?;
                writeln!(out, "Nothing was changed. Copy the directory, then say --yes.")?;
                return Ok(NOT_WELL);
            }
            writeln!(out, "{}", offline::recover(dir, &options)?)?;
            Ok(0)
        }
        Command::Addresses { dir, all } => {
            let noted = offline::set_addresses(dir, &all)?;
            if noted.is_empty() {
                writeln!(out, "Nothing is noted: every member is where the membership has it.")?;
            }
            for moved in noted {
                writeln!(out, "Noted: {moved}.")?;
            }
            Ok(0)
        }
    }
}
