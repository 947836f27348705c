//! The simulator's own tests: short runs of many seeds, the same run twice, stored regressions.

use super::*;

/// Plans that failed once, or that reach what is rare; each runs with every test run.
const REGRESSIONS: &str = include_str!("regressions.txt");

/// Seeds of a test run; more run from the command line.
const SEEDS: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds_hold() {
    let seeds = match number("RAFTLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RAFTLINE_SEEDS").unwrap_or(SEEDS),
    };
    let mut summary = Summary::default();
    for seed in seeds {
        match run(&Plan::draw(seed)) {
            Ok(report) => summary.add(&report),
            Err(failure) => panic!("RAFTLINE_SEED={seed}: {failure}"),
        }
    }
    assert!(summary.stats.succeeded > 0, "runs that write nothing show nothing");
}

#[test]
fn regressions_hold() {
    let lines = REGRESSIONS.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    for line in lines {
        let plan: Plan = line.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        if let Err(failure) = run(&plan) {
            panic!("{failure}");
        }
    }
}

#[test]
fn the_same_plan_gives_the_same_run() {
    for seed in 100..103 {
        let plan = Plan::draw(seed).with(Knob::Seconds, 20);
        let [a, b] =
            [run(&plan), run(&plan)].map(|r| r.map(|r| r.stats).map_err(|f| f.to_string()));
        assert_eq!(a, b, "seed {seed}");
    }
}

#[test]
fn a_run_can_be_read() {
    let plan = Plan::calm(1).with(Knob::Seconds, 5).with(Knob::KillLeader, 2000);
    let (_, trace) = replay(&plan).unwrap_or_else(|f| panic!("{f}"));
    for word in ["node 1 starts", "crashes", "client 0 at node", "everything is healed"] {
        assert!(trace.contains(word), "{word} is missing from\n{trace}");
    }
}
