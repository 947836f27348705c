//! Every deliberate defect, one process each: its layer must catch it within its budget, and find
//! nothing where there is none.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raftline::testing::crash_states::{self, Options, Report};
use raftline::testing::sim::{self, Plan};
use raftline::testing::zoo::{BUILT, ENTRIES, Entry, Layer};

use crate::outcome::default_jobs;
use crate::survey;

const BUILD: &str =
    "RUSTFLAGS='--cfg raftline_zoo' cargo bench --bench prove --target-dir target/zoo -- zoo";
/// What a process may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(600);
/// Seeds and states of the control run, which has no defect.
const CONTROL: [Entry; 2] = [
    Entry { name: "", rule: "", layer: Layer::Sim(40), what: "no defect" },
    Entry { name: "", rule: "", layer: Layer::CrashStates(20_000), what: "no defect" },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Processes at a time.
    #[arg(long, default_value_t = default_jobs())]
    jobs: usize,
    /// Runs these alone, and no control.
    #[arg(long)]
    only: Vec<String>,
    /// Runs this many, chosen by the day or by `--seed`.
    #[arg(long)]
    rotate: Option<usize>,
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed of the simulator.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Runs this many seeds of every entry, whatever its layer, and tells which checks of the
    /// simulator fail on which; and on which checks none fails.
    #[arg(long)]
    survey: Option<u64>,
    /// Prints the entries.
    #[arg(long)]
    list: bool,
    /// What a child does: the layer of this entry, with whatever defect the environment names.
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// What came of an entry.
struct Verdict {
    caught: Option<String>,
    /// Seeds or states that it took.
    cases: u64,
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if args.list {
        for e in ENTRIES {
            println!("{:<26} {:<4} {:<24} {}", e.name, e.rule, budget(e.layer), e.what);
        }
        return ExitCode::SUCCESS;
    }
    if !BUILT {
        println!("this build has no defects; with them: {BUILD}");
        return ExitCode::FAILURE;
    }
    if let Some(name) = &args.child {
        return match args.survey {
            Some(seeds) => survey::child(name, args.first, seeds),
            None => child(name, args.first),
        };
    }
    if let Some(seeds) = args.survey {
        return survey::run(args.first, seeds, args.jobs, &args.only);
    }
    match choose(args) {
        Ok(chosen) => all(args, &chosen),
        Err(e) => {
            println!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn budget(layer: Layer) -> String {
    match layer {
        Layer::Sim(seeds) => format!("sim, {seeds} seeds"),
        Layer::Lean(seeds, _) => format!("sim leaning, {seeds} seeds"),
        Layer::CrashStates(states) => format!("crash-states, {states}"),
        Layer::IoFaults => "io-faults, all".to_owned(),
        Layer::Flips => "flips, all".to_owned(),
    }
}

/// The entries to run, and the control beside them.
fn choose(args: &Args) -> Result<Vec<&'static Entry>, String> {
    if !args.only.is_empty() {
        let find = |name: &String| {
            ENTRIES.iter().find(|e| e.name == name).ok_or(format!("{name}: no such entry"))
        };
        return args.only.iter().map(find).collect();
    }
    let day = || std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() / 86_400);
    let count = args.rotate.unwrap_or(ENTRIES.len());
    let from = (args.seed.unwrap_or_else(day) as usize).wrapping_mul(count);
    let all = (0..count.min(ENTRIES.len())).map(|n| &ENTRIES[(from + n) % ENTRIES.len()]);
    // Long ones first, so that no single one ends last.
    let mut all: Vec<&Entry> = all.chain(&CONTROL).collect();
    all.sort_by_key(|e| std::cmp::Reverse(weight(e.layer)));
    Ok(all)
}

fn weight(layer: Layer) -> u64 {
    match layer {
        Layer::Sim(seeds) | Layer::Lean(seeds, _) => seeds * 100,
        Layer::CrashStates(states) => states,
        Layer::IoFaults | Layer::Flips => u64::MAX,
    }
}

fn all(args: &Args, chosen: &[&'static Entry]) -> ExitCode {
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(BTreeSet::new());
    println!("{:<26} {:<24} {:>9} {:>7}  caught by", "defect", "layer and budget", "after", "s");
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while let Some(entry) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = spawn(entry, args.first);
                    if !print(entry, &verdict) {
                        failed.lock().unwrap().insert((entry.name, entry.what));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    if failed.is_empty() {
        println!("zoo: ok, {} entries in {seconds:.0} s", chosen.len());
        return ExitCode::SUCCESS;
    }
    println!(
        "zoo: FAILED, {} of {} entries, {seconds:.0} s: {failed:?}",
        failed.len(),
        chosen.len()
    );
    ExitCode::FAILURE
}

/// One line of the table; whether it is as it must be.
fn print(entry: &Entry, verdict: &Verdict) -> bool {
    let control = entry.name.is_empty();
    let good = verdict.caught.is_some() != control;
    let text = match (&verdict.caught, control) {
        (Some(text), false) => text.clone(),
        (None, true) => "nothing, as it must be".to_owned(),
        (Some(text), true) => format!("FAILED without any defect: {text}"),
        (None, false) => "NOT CAUGHT".to_owned(),
    };
    let name = if control { "(none)" } else { entry.name };
    let (layer, Verdict { cases, seconds, .. }) = (budget(entry.layer), verdict);
    println!("{name:<26} {layer:<24} {cases:>9} {seconds:>7.1}  {text}");
    good
}

/// Runs an entry in a process of its own, because a defect is chosen once per process.
fn spawn(entry: &Entry, first: u64) -> Verdict {
    let begin = Instant::now();
    let ended = try_spawn(entry, first, begin);
    let seconds = begin.elapsed().as_secs_f64();
    let text = ended.unwrap_or_else(|e| format!("0\tNOT RUN: {e}"));
    let line = text.lines().last().unwrap_or_default();
    let (cases, caught) = line.split_once('\t').unwrap_or(("0", "NOT RUN: it gave no verdict"));
    let failed = caught.starts_with("NOT RUN") && !entry.name.is_empty();
    let caught = (!caught.is_empty() && !failed).then(|| caught.to_owned());
    if failed {
        println!("{}: {line}", entry.name);
    }
    Verdict { caught, cases: cases.parse().unwrap_or(0), seconds }
}

fn try_spawn(entry: &Entry, first: u64, begin: Instant) -> std::io::Result<String> {
    let child = match (entry.name.is_empty(), entry.layer) {
        (false, _) => entry.name,
        (true, Layer::Sim(_)) => "control-sim",
        (true, _) => "control-crash-states",
    };
    let mut process = Command::new(std::env::current_exe()?)
        .args(["zoo", "--child", child, "--first", &first.to_string()])
        .env("RAFTLINE_BUG", entry.name)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    while process.try_wait()?.is_none() {
        if begin.elapsed() > PATIENCE {
            process.kill()?;
            process.wait()?;
            return Err(std::io::Error::other("it does not end"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::io::read_to_string(process.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?)
}

/// Prints how many cases it took, and what was found.
fn child(name: &str, first: u64) -> ExitCode {
    let control = match name {
        "control-sim" => CONTROL.first(),
        "control-crash-states" => CONTROL.last(),
        _ => None,
    };
    let Some(entry) = control.or_else(|| ENTRIES.iter().find(|e| e.name == name)) else {
        println!("0\tNOT RUN: {name}: no such entry");
        return ExitCode::FAILURE;
    };
    // A violation is a panic that is caught; its text is printed once, below.
    std::panic::set_hook(Box::new(|_| {}));
    let options = Options { jobs: 1, ..Options::default() };
    let (cases, found) = match entry.layer {
        Layer::Sim(seeds) => simulate(first, seeds, ""),
        Layer::Lean(seeds, knobs) => simulate(first, seeds, knobs),
        Layer::CrashStates(states) => {
            let report = crash_states::crash_states(&Options { states, ..options });
            (report.distinct, first_line(report))
        }
        Layer::IoFaults => {
            let report = crash_states::io_faults(&options);
            (report.cases, first_line(report))
        }
        Layer::Flips => {
            let report = crash_states::flips(&options);
            (report.counts.of("bits"), first_line(report))
        }
    };
    println!("{cases}\t{found}");
    ExitCode::SUCCESS
}

fn first_line(report: Report) -> String {
    let what = report.failure.map(|f| f.what).unwrap_or_default();
    what.lines().next().unwrap_or_default().to_owned()
}

fn simulate(first: u64, seeds: u64, knobs: &str) -> (u64, String) {
    for seed in first..first + seeds {
        if let Err(failure) = sim::run(&leaning(seed, knobs)) {
            let line = failure.reason.lines().next().unwrap_or("(no text)").to_owned();
            return (seed - first + 1, line);
        }
    }
    (seeds, String::new())
}

/// The plan of a seed, with some of its knobs turned.
pub(crate) fn leaning(seed: u64, knobs: &str) -> Plan {
    // Later words of a plan's line win.
    format!("{} {knobs}", Plan::draw(seed)).parse().unwrap()
}
