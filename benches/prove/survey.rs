//! Which checks of the simulator fail on which deliberate defect, and which on none: those need a
//! test that forges what they look for, or are blind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use raftline::testing::sim;
use raftline::testing::zoo::{ENTRIES, Entry, Layer};

use crate::zoo::leaning;

/// Failures of one entry that are enough.
const ENOUGH: u64 = 40;

/// A check, by its place, and what it said first.
type Checks = BTreeMap<String, (String, BTreeMap<&'static str, u64>)>;

pub(crate) fn run(first: u64, seeds: u64, jobs: usize, only: &[String]) -> ExitCode {
    let chosen = |e: &&Entry| only.is_empty() || only.iter().any(|name| name == e.name);
    let chosen: Vec<&Entry> = ENTRIES.iter().filter(chosen).collect();
    let (next, checks) = (AtomicUsize::new(0), Mutex::new(Checks::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(entry) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let text = spawn(entry, first, seeds).unwrap_or_else(|e| e.to_string());
                    note(&mut checks.lock().unwrap(), entry.name, &text);
                }
            });
        }
    });
    let checks = checks.into_inner().unwrap();
    for (place, (what, by)) in &checks {
        let by: Vec<String> = by.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{place}  {what}\n    {}", by.join(", "));
    }
    let all = places();
    let blind: Vec<&String> = all.iter().filter(|place| !checks.contains_key(*place)).collect();
    println!("{} checks, {} of them fail on no defect:", all.len(), blind.len());
    blind.iter().for_each(|place| println!("    {place}"));
    ExitCode::SUCCESS
}

fn spawn(entry: &Entry, first: u64, seeds: u64) -> std::io::Result<String> {
    let child = Command::new(std::env::current_exe()?)
        .args(["zoo", "--child", entry.name, "--first", &first.to_string()])
        .args(["--survey", &seeds.to_string()])
        .env("RAFTLINE_BUG", entry.name)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}

fn note(checks: &mut Checks, name: &'static str, text: &str) {
    for line in text.lines() {
        let (place, what) = line.split_once('\t').unwrap_or(("no place", line));
        let (_, by) = checks.entry(place.to_owned()).or_insert((what.to_owned(), BTreeMap::new()));
        *by.entry(name).or_default() += 1;
    }
}

/// Prints the place and the words of every failure.
pub(crate) fn child(name: &str, first: u64, seeds: u64) -> ExitCode {
    let Some(entry) = ENTRIES.iter().find(|e| e.name == name) else { return ExitCode::FAILURE };
    std::panic::set_hook(Box::new(|_| {}));
    let knobs = match entry.layer {
        Layer::Lean(_, knobs) => knobs,
        Layer::Sim(_) | Layer::CrashStates(_) | Layer::IoFaults | Layer::Flips => "",
    };
    let mut failures = 0;
    for seed in first..first + seeds {
        let Err(failure) = sim::run(&leaning(seed, knobs)) else { continue };
        let what = failure.reason.lines().next().unwrap_or_default();
        println!("{}\t{what}", line_of(&failure.place));
        failures += 1;
        if failures >= ENOUGH {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// File and line, without the column.
fn line_of(place: &str) -> &str {
    place.rsplit_once(':').map_or(place, |(line, _)| line)
}

/// Every place of the simulator's source, tests excepted, that ends a run.
fn places() -> Vec<String> {
    let dir = "src/testing/sim";
    let mut places = Vec::new();
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap();
    for path in files.map(|f| f.unwrap().path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".rs") || name == "tests.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().take_while(|line| !line.starts_with("mod tests {"));
        for (number, line) in (1..).zip(code) {
            let ends = ["assert!(", "assert_eq!(", "panic!("];
            if ends.iter().any(|word| line.contains(word)) && !line.trim().starts_with("//") {
                places.push(format!("{dir}/{name}:{number}"));
            }
        }
    }
    places.sort();
    places
}
