//! Real processes, mistreated: clusters of the kv example on this machine, clients on every node,
//! processes killed and paused, links cut, delayed and reset, a disk that is full. Every operation
//! is recorded and checked.
//!
//! ```sh
//! cargo bench --bench chaos -- gate                    # all of it, about five minutes
//! cargo bench --bench chaos -- run --nodes 3 --ops 50000 --faults 40 --seed 7
//! cargo bench --bench chaos -- found --times 10        # empty nodes, killed while they found
//! cargo bench --bench chaos -- namespaces              # as root: the kernel's own network
//! cargo bench --bench chaos -- disk-full               # as root: a small tmpfs
//! ```
//!
//! A seed fixes which faults come in which order, what they are like and whom they hit; when the
//! processes do what, the machine decides. So a failure leaves its history, timeline, data and
//! logs behind.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

#[path = "../../examples/kv/client.rs"]
#[expect(dead_code, reason = "the kv example's own client; not all of it is needed here")]
mod client;
mod clients;
mod cluster;
mod disk;
mod faults;
mod found;
mod history;
mod link;
mod namespaces;
mod network;
mod patience;
mod places;
mod process;
mod proxy;
mod resources;
mod run;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use faults::Kind;
use raftline::testing::rng::Rng;
use run::{Plan, Summary};

/// What any part of the program fails with, in words.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Faults and operations of the gate: at least 40 and 50,000 over two clusters.
const GATE: &[(u64, usize, usize)] = &[(3, 40_000, 22), (5, 40_000, 22)];

#[derive(Parser)]
#[command(about = "Mistreats clusters of the kv example and checks what they answer")]
struct Args {
    /// Given by `cargo bench`; means nothing.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    /// The kv example to run; built if not given.
    #[arg(long, global = true)]
    kv: Option<PathBuf>,
    /// Draws the faults; printed, and random if not given.
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Where data, logs and histories are; kept then. Default: a temporary directory, kept on
    /// failure.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// One cluster on loopback, a proxy on every link.
    Run {
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=9))]
        nodes: u64,
        #[arg(long, default_value_t = 40_000)]
        ops: usize,
        #[arg(long, default_value_t = 22)]
        faults: usize,
    },
    /// One cluster, a network namespace for every node; SKIPPED unless root.
    Namespaces {
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=9))]
        nodes: u64,
        #[arg(long, default_value_t = 2_500)]
        ops: usize,
        #[arg(long, default_value_t = 7)]
        faults: usize,
    },
    /// Three and five empty nodes, started at once and killed while they found one cluster.
    Found {
        /// How often, each.
        #[arg(long, default_value_t = 10)]
        times: usize,
    },
    /// A node on a small disk that is filled; SKIPPED unless root.
    DiskFull,
    /// All of it.
    Gate,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let Some(what) = args.what.clone() else {
        println!("say what to do: `cargo bench --bench chaos -- gate`, or `-- --help`");
        return ExitCode::SUCCESS;
    };
    let seed = args.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.subsec_nanos().into())
    });
    println!("seed {seed}");
    // Interrupted, it still takes down what it set up.
    let done = tokio::select! {
        done = everything(&args, &what, seed) => done,
        stopped = interrupted() => stopped,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("FAILED: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Fails at ctrl-c and SIGTERM.
async fn interrupted() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Err("interrupted".into())
}

async fn everything(args: &Args, what: &What, seed: u64) -> Result<(), Failure> {
    let program = places::program(args.kv.as_deref())?;
    let temporary = tempfile::tempdir()?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let scenarios = match what {
        What::Gate => {
            let mut all: Vec<_> = GATE
                .iter()
                .map(|(nodes, ops, faults)| What::Run { nodes: *nodes, ops: *ops, faults: *faults })
                .collect();
            all.extend([What::Namespaces { nodes: 3, ops: 2_500, faults: 7 }, What::DiskFull]);
            all
        }
        one => vec![one.clone()],
    };
    let (mut closing, mut failed) = (Vec::new(), 0);
    for scenario in scenarios {
        let dir = dir.join(format!("{}-{}", name(&scenario), closing.len()));
        std::fs::create_dir_all(&dir)?;
        let started = Instant::now();
        let done = perform(&scenario, &program, &dir, seed).await;
        let took = started.elapsed().as_secs_f64();
        let line = match done {
            Ok(told) => format!("{}: {told}; {took:.0} s", name(&scenario)),
            Err(e) => {
                failed += 1;
                let (name, again) = (name(&scenario), again(&scenario, seed));
                let left = files(&dir).join("\n  ");
                format!("{name}: FAILED after {took:.0} s: {e}\n  again: {again}\n  {left}")
            }
        };
        println!("{} took {took:.0} s", name(&scenario));
        closing.push(line);
    }
    let left = process::children()?;
    if !left.is_empty() {
        return Err(format!("processes are left behind: {}", left.join(", ")).into());
    }
    println!("--- seed {seed}, no process left behind");
    for line in closing {
        println!("{line}");
    }
    if failed > 0 {
        let kept = temporary.keep();
        let kept = args.dir.clone().unwrap_or(kept);
        return Err(format!("{failed} of the scenarios; all is kept in {}", kept.display()).into());
    }
    Ok(())
}

/// The command that does the same again.
fn again(scenario: &What, seed: u64) -> String {
    let what = match scenario {
        What::Run { nodes, ops, faults } => {
            format!("run --nodes {nodes} --ops {ops} --faults {faults}")
        }
        What::Namespaces { nodes, ops, faults } => {
            format!("namespaces --nodes {nodes} --ops {ops} --faults {faults}")
        }
        What::Found { times } => format!("found --times {times}"),
        What::DiskFull => "disk-full".to_owned(),
        What::Gate => "gate".to_owned(),
    };
    format!("cargo bench --bench chaos -- {what} --seed {seed}")
}

/// What tells how it came about: the history, the timeline, the nodes' logs.
fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    let mut paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    paths.sort();
    paths
}

fn name(scenario: &What) -> String {
    match scenario {
        What::Run { nodes, .. } => format!("{nodes} nodes behind proxies"),
        What::Namespaces { nodes, .. } => format!("{nodes} nodes in namespaces"),
        What::Found { .. } => "founding".to_owned(),
        What::DiskFull => "full disk".to_owned(),
        What::Gate => "gate".to_owned(),
    }
    .replace(' ', "-")
}

async fn perform(
    scenario: &What,
    program: &Path,
    dir: &Path,
    seed: u64,
) -> Result<String, Failure> {
    let plan = |ops, faults, kinds| Plan { ops, faults, kinds, seed, dir: dir.to_owned() };
    match *scenario {
        What::Run { nodes, ops, faults } => {
            let mut cluster = places::on_loopback(nodes, program, dir, seed).await?;
            Ok(told(&run::run(&plan(ops, faults, Kind::all()), &mut cluster).await?))
        }
        What::Namespaces { nodes, ops, faults } => {
            if let Some(why) = namespaces::Namespaces::missing() {
                return Ok(format!("SKIPPED, the kernel's own network was NOT tested: {why}"));
            }
            let mut cluster = places::in_namespaces(nodes, program, dir)?;
            Ok(told(&run::run(&plan(ops, faults, Kind::CUTS.to_vec()), &mut cluster).await?))
        }
        What::Found { times } => found_often(times, program, dir, seed).await,
        What::DiskFull => {
            let small = match disk::Small::mount(&dir.join("small")) {
                Ok(small) => small,
                Err(e) => return Ok(format!("SKIPPED, a full disk was NOT tested: {e}")),
            };
            let victim = 2;
            let mut cluster = places::plain(3, program, dir, (victim, &dir.join("small")))?;
            disk::run(&mut cluster, victim, &small, dir).await
        }
        What::Gate => Err("a gate is made of scenarios".into()),
    }
}

/// Three and five nodes, so many times; the directories of those that held are removed.
async fn found_often(
    times: usize,
    program: &Path,
    dir: &Path,
    seed: u64,
) -> Result<String, Failure> {
    let (mut rng, mut told) = (Rng::new(seed), found::Told::default());
    for round in 0..times {
        for nodes in [3, 5] {
            let dir = dir.join(format!("{round}-{nodes}"));
            let done = found::run(nodes, program, &dir, &mut rng, &mut told).await;
            done.map_err(|e| format!("round {round} of {nodes} nodes: {e}; {}", dir.display()))?;
            std::fs::remove_dir_all(&dir)?;
        }
    }
    Ok(format!(
        "{} times one cluster; {} kills, {} of them before the node belonged to it; all together \
         {:.1} s after the last start at most",
        told.clusters,
        told.kills,
        told.before,
        told.longest.as_secs_f64(),
    ))
}

/// What a run did, in one line.
fn told(s: &Summary) -> String {
    let faults: Vec<_> = s.faults.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    format!(
        "{} nodes, {} operations checked: {} ok, {} not applied, {} unknown; {} faults ({}); {} \
         leader changes, {} chunks reordered; longest time without an acknowledged write {:.1} s, \
         {:.1} s after healing; whole again {:.1} s after a restart of all; peak {}; {}",
        s.nodes,
        s.operations,
        s.ok,
        s.not_applied,
        s.unknown,
        s.faults.values().sum::<usize>(),
        faults.join(", "),
        s.leader_changes,
        s.late,
        s.unavailable.as_secs_f64(),
        s.again.as_secs_f64(),
        s.recovery.as_secs_f64(),
        s.peak,
        s.verdict,
    )
}
