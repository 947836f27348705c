//! One run: the machine, its ceilings, then every variant under every load, and the table.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use peers::Result;
use peers::machine::Machine;
use peers::results::{self, Ceilings, Cell, Line, Op};

use crate::ceilings;
use crate::cluster::Cluster;
use crate::load::Load;
use crate::report;
use crate::variants::Variant;

/// A ceiling needs no longer to settle.
const CEILING: Duration = Duration::from_secs(2);

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Amount {
    /// Clients, one column each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024")]
    clients: Vec<usize>,
    /// Bytes of a value; a key has eight.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Measured seconds per cell; a ceiling takes two at most.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number")?;
    let fits = (0.0..=3600.0).contains(&seconds);
    if fits { Ok(seconds) } else { Err("from 0 to 3600".into()) }
}

/// What a run does.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    amount: Amount,
    /// Seconds before each cell that do not count.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warmup: f64,
    /// Only these variants.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Variant>,
    /// Linearizable reads as well, of those that have them, after the writes.
    #[arg(long)]
    reads: bool,
    /// Where results are appended as JSON lines, for `plot`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers.jsonl"))]
    out: PathBuf,
}

/// What a run has found.
#[derive(Default)]
pub struct Found {
    pub ceilings: Ceilings,
    pub cells: Vec<Cell>,
    /// Variants without figures, and why.
    pub missing: Vec<(Variant, String)>,
}

/// Measures the ceilings only.
pub fn ceilings(amount: &Amount) -> Result<()> {
    println!("{}\n", Machine::look());
    let window = Duration::from_secs_f64(amount.seconds).min(CEILING);
    let ceilings = ceilings::measure(&amount.clients, amount.payload, window)?;
    println!("\n{}", report::ceilings(&amount.clients, &ceilings));
    Ok(())
}

/// Measures everything, and compares.
pub fn run(args: &RunArgs) -> Result<()> {
    let machine = Machine::look();
    println!("{machine}\n");
    if let Some(dir) = args.out.parent() {
        std::fs::create_dir_all(dir)?;
    }
    results::append(&args.out, &Line::Machine(machine.clone()))?;
    let amount = &args.amount;
    let window = Duration::from_secs_f64(amount.seconds).min(CEILING);
    let ceilings = ceilings::measure(&amount.clients, amount.payload, window)?;
    results::append(&args.out, &Line::Ceilings(ceilings.clone()))?;
    let mut found = Found { ceilings, ..Found::default() };
    for &variant in Variant::value_variants() {
        let wanted = args.only.is_empty() || args.only.contains(&variant);
        if !wanted {
            continue;
        }
        match variant.title() {
            Ok(title) => measure(args, variant, &title, &mut found)?,
            Err(why) => {
                println!("\nSKIPPED: {variant}: {why}");
                found.missing.push((variant, why.to_string()));
            }
        }
    }
    println!("\n{machine}\n\n{}", report::table(&amount.clients, &found));
    println!("results: {}", args.out.display());
    Ok(())
}

/// One cluster of a variant under every load. A variant that fails does not end the run.
fn measure(args: &RunArgs, variant: Variant, title: &str, found: &mut Found) -> Result<()> {
    println!("\n{variant} ({title})\n{}", report::HEAD);
    let mut cluster = match Cluster::start(variant) {
        Ok(cluster) => cluster,
        Err(why) => {
            println!("FAILED to start: {why}");
            found.missing.push((variant, format!("it did not start: {why}")));
            return Ok(());
        }
    };
    let reads = args.reads && variant.reads();
    let ops = [Op::Put].into_iter().chain(reads.then_some(Op::Get));
    for (op, &clients) in ops.flat_map(|op| args.amount.clients.iter().map(move |n| (op, n))) {
        match cell(args, variant, title, &mut cluster, op, clients) {
            Ok(cell) => {
                println!("{}", report::row(&cell));
                keep(&args.out, found, cell)?;
            }
            Err(why) => {
                println!("FAILED at {op}, {clients} clients: {why}");
                found.missing.push((variant, format!("{op}, {clients} clients: {why}")));
                return Ok(());
            }
        }
    }
    Ok(())
}

fn keep(out: &Path, found: &mut Found, cell: Cell) -> Result<()> {
    results::append(out, &Line::Cell(cell.clone()))?;
    found.cells.push(cell);
    Ok(())
}

fn cell(
    args: &RunArgs,
    variant: Variant,
    title: &str,
    cluster: &mut Cluster,
    op: Op,
    clients: usize,
) -> Result<Cell> {
    let Amount { payload, seconds, .. } = args.amount;
    let (warmup, window) = (Duration::from_secs_f64(args.warmup), Duration::from_secs_f64(seconds));
    let load = Load { op, clients, payload, warmup, window, pids: Vec::new() };
    let (measured, elected) = cluster.load(&load)?;
    let (variant, title) = (variant.to_string(), title.to_owned());
    Ok(Cell { variant, title, op, clients, payload, seconds, elected, measured })
}
