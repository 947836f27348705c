//! Many seeds of the simulator, on all cores; replays and makes small what fails.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raftline::testing::sim::{self, Failure, Plan, Summary};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed. Default: from the clock, so that every run is a fresh one.
    #[arg(long)]
    first: Option<u64>,
    /// Stops after this many seconds instead of a number of seeds.
    #[arg(long)]
    for_seconds: Option<u64>,
    /// Ends after so many seeds that failed.
    #[arg(long, default_value_t = 1)]
    failures: u64,
    /// Threads.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Runs this plan (`seed=1 nodes=3 ..`) or seed alone, and prints everything that happens.
    #[arg(long)]
    replay: Option<String>,
    /// Looks for a smaller plan than the one of `--replay` that fails as well.
    #[arg(long, requires = "replay")]
    minimise: bool,
    /// Goes on until every situation was met, and fails when one is not, with five times as many
    /// seeds.
    #[arg(long)]
    all_marks: bool,
    /// Runs every seed twice and compares.
    #[arg(long)]
    twice: bool,
}

/// How many times as many seeds look for situations that were not met yet.
const PATIENCE: u64 = 5;

pub(crate) fn run(args: &Args) -> ExitCode {
    match &args.replay {
        Some(text) => replay(text, args.minimise),
        None => many(args),
    }
}

impl Args {
    /// Whether so many seeds are enough.
    fn over(&self, done: u64, met: impl FnOnce() -> bool) -> bool {
        let enough = done >= self.seeds && (!self.all_marks || met());
        enough || done >= self.seeds.saturating_mul(PATIENCE)
    }
}

fn replay(text: &str, minimise: bool) -> ExitCode {
    let plan: Plan = match text.parse() {
        Ok(plan) => plan,
        Err(e) => {
            println!("{e}");
            return ExitCode::FAILURE;
        }
    };
    if minimise {
        return match sim::minimise(&plan) {
            Some(failure) => fail(&failure),
            None => {
                println!("it does not fail: {plan}");
                ExitCode::SUCCESS
            }
        };
    }
    match sim::replay(&plan) {
        Ok((_, trace)) => {
            println!("{trace}\nit holds: {plan}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.trace);
            fail(&failure)
        }
    }
}

fn fail(failure: &Failure) -> ExitCode {
    println!("FAILED: {}", failure.what());
    println!("replay: cargo bench --bench prove -- sim --replay '{}'", failure.plan);
    ExitCode::FAILURE
}

fn many(args: &Args) -> ExitCode {
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64) >> 8;
    let first = args.first.unwrap_or_else(clock);
    println!("seeds from {first}, {} threads", args.jobs);
    let begin = Instant::now();
    let limit = args.for_seconds.map(Duration::from_secs);
    let next = AtomicU64::new(first);
    let failed = AtomicU64::new(0);
    let total = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < args.failures {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let met = || total.lock().unwrap().marks.missing().is_empty();
                    let over = match limit {
                        Some(limit) => begin.elapsed() > limit,
                        None => args.over(seed - first, met),
                    };
                    if over {
                        break;
                    }
                    match once(seed, args.twice) {
                        Ok(report) => total.lock().unwrap().add(&report),
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            let _one_at_a_time = total.lock().unwrap();
                            fail(&failure);
                        }
                    }
                }
            });
        }
    });
    let summary = total.into_inner().unwrap();
    for mark in sim::Mark::ALL {
        println!("{:>9}  {}", summary.marks.count(*mark), mark.text());
    }
    println!("{}", summary.line(begin.elapsed(), args.jobs as usize));
    let failed = failed.into_inner();
    if failed > 0 {
        println!("FAILED: {failed} of {} seeds, see above", summary.seeds + failed);
        return ExitCode::FAILURE;
    }
    let missing = summary.marks.missing();
    if args.all_marks && !missing.is_empty() {
        println!("FAILED: never met: {missing:?}");
        return ExitCode::FAILURE;
    }
    if args.all_marks
        && let Some(lack) = too_little_churn(&summary)
    {
        println!("FAILED: {lack}");
        return ExitCode::FAILURE;
    }
    println!(
        "simulation: everything held; {} marks, {} of them met",
        sim::Mark::ALL.len(),
        sim::Mark::ALL.len() - missing.len()
    );
    ExitCode::SUCCESS
}

/// What a run of 4000 seeds must have seen of changing members, at least, in proportion: seeds in
/// which they change, changes, and crashes between a change's commit and its being applied.
fn too_little_churn(summary: &Summary) -> Option<String> {
    let s = &summary.stats;
    let all = [
        ("seeds with churn", summary.churned, 1600),
        ("membership changes", s.changes, 20_000),
        ("crashes before a change was applied", s.cut_short, 1000),
    ];
    let lacks = |(_, seen, of_4000): &&(&str, u64, u64)| seen * 4000 < of_4000 * summary.seeds;
    let (what, seen, of_4000) = all.iter().find(lacks)?;
    Some(format!("only {seen} {what}; {of_4000} are wanted in 4000 seeds, here {}", summary.seeds))
}

fn once(seed: u64, twice: bool) -> Result<sim::Report, Box<Failure>> {
    let plan = Plan::draw(seed);
    let report = sim::run(&plan)?;
    if twice {
        let again = sim::run(&plan)?;
        if again.stats != report.stats {
            let reason = format!(
                "the same plan gave two runs: {:016x} and {:016x}",
                report.stats.digest, again.stats.digest
            );
            let (place, trace, digest) = (String::new(), String::new(), again.stats.digest);
            return Err(Box::new(Failure {
                plan,
                at: 0,
                reason,
                place,
                trace,
                hung: false,
                digest,
            }));
        }
    }
    Ok(report)
}
