//! The fuzz functions on what is stored: the corpus, which is written from valid inputs, and every
//! input that ever failed. `RAFTLINE_BLESS=1` writes the corpus anew.

mod seeds;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::gate::Seen;
use super::{TARGETS, Target, gate};
use crate::testing::rng::Rng;

/// Random inputs for each function.
const RANDOM: u64 = 300;

fn stored(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(target)
}

/// Inputs by file name.
fn inputs(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = stored(target);
    let list = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    list.map(|entry| {
        let path = entry.unwrap_or_else(|e| panic!("{e}")).path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    })
    .collect()
}

/// Runs one input; in words, what went wrong.
fn run(target: Target, data: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| target(data))).map_err(|e| {
        let text = e.downcast_ref::<String>().map(String::as_str);
        text.or(e.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

#[test]
fn every_stored_input_is_survived() {
    for (name, target) in TARGETS {
        for (file, data) in inputs(name) {
            run(target, &data).unwrap_or_else(|e| panic!("tests/fuzz/{name}/{file}: {e}"));
        }
    }
}

#[test]
fn the_stored_seeds_are_those_that_the_generator_writes() {
    for (name, _) in TARGETS {
        let seeds = seeds::of(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        if std::env::var_os("RAFTLINE_BLESS").is_some() {
            bless(name, &seeds);
        }
        let all = inputs(name);
        let found = all.iter().filter(|(file, _)| file.starts_with("seed-"));
        let found: BTreeMap<_, _> = found.map(|(f, d)| (f.clone(), d.clone())).collect();
        let names = |m: &BTreeMap<String, Vec<u8>>| m.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&seeds), "{name}: RAFTLINE_BLESS=1 writes them anew");
        for (file, data) in &seeds {
            let same = found[file] == *data;
            assert!(same, "tests/fuzz/{name}/{file}: RAFTLINE_BLESS=1 writes it anew");
        }
    }
}

fn bless(target: &str, seeds: &BTreeMap<String, Vec<u8>>) {
    let dir = stored(target);
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{e}"));
    for file in inputs(target).into_keys().filter(|f| f.starts_with("seed-")) {
        std::fs::remove_file(dir.join(file)).unwrap_or_else(|e| panic!("{e}"));
    }
    for (file, data) in seeds {
        std::fs::write(dir.join(file), data).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A corpus that never sees a leader searches in the dark.
#[test]
fn the_corpus_of_the_gate_sees_every_role() {
    let mut sum = [0u64; 17];
    for data in inputs("gate").values() {
        for (total, n) in sum.iter_mut().zip(counts(gate::run(data))) {
            *total += n;
        }
    }
    assert!(!sum.contains(&0), "{sum:?} of {:?}", Seen::default());
}

fn counts(s: Seen) -> [u64; 17] {
    [
        s.follower,
        s.pre_candidate,
        s.candidate,
        s.leader,
        s.learner,
        s.joiner,
        s.joint,
        s.installing,
        s.stepped,
        s.refused,
        s.crashes,
        s.ended,
        s.applied,
        s.changes,
        s.reads,
        s.captured,
        s.overwritten,
    ]
}

#[test]
fn an_input_repeats_its_run() {
    for (file, data) in inputs("gate") {
        assert_eq!(gate::run(&data), gate::run(&data), "{file}");
    }
}

#[test]
fn random_inputs_are_survived() {
    let given = std::env::var("RAFTLINE_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let count = std::env::var("RAFTLINE_SEEDS").ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = match given {
        Some(seed) => seed..seed + 1,
        None => 0..count.unwrap_or(RANDOM),
    };
    for seed in seeds {
        for (name, target) in TARGETS {
            let data = random(seed);
            run(target, &data)
                .unwrap_or_else(|e| panic!("{name} with RAFTLINE_SEED={seed}: {e}\n{data:?}"));
        }
    }
}

fn random(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let len = rng.below(400);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}
