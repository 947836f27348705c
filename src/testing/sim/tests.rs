//! The simulator's own tests: short runs of many seeds, the same run twice, stored regressions.

use async_trait::async_trait;

use super::*;
use crate::error::Result as StoreResult;
use crate::store::Store;
use crate::testing::rng::Rng;

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

/// Sums lengths; with one thing wrong.
#[derive(Default)]
struct Sum {
    sum: u64,
    flaw: Flaw,
    applied: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Flaw {
    #[default]
    None,
    /// What it answers depends on how long this replica has been running.
    Answers,
    /// A snapshot is one command behind.
    Snapshot,
    /// A restore adds to what was there.
    Restore,
    /// None: it sleeps before it answers.
    Sleeps,
}

#[async_trait]
impl Store for Sum {
    async fn apply(&mut self, m: &[u8]) -> StoreResult<Vec<u8>> {
        if self.flaw == Flaw::Sleeps {
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        self.sum += m.len() as u64;
        self.applied += 1;
        let more = u64::from(self.flaw == Flaw::Answers && self.applied == 40);
        Ok((self.sum + more).to_le_bytes().to_vec())
    }

    async fn query(&self, _: &[u8]) -> StoreResult<Vec<u8>> {
        Ok(self.sum.to_le_bytes().to_vec())
    }

    async fn snapshot(&self) -> StoreResult<Vec<u8>> {
        let less = u64::from(self.flaw == Flaw::Snapshot);
        Ok((self.sum - less).to_le_bytes().to_vec())
    }

    async fn restore(&mut self, s: &[u8]) -> StoreResult<()> {
        let sum = u64::from_le_bytes(s.try_into().map_err(|_| "eight bytes")?);
        self.sum = if self.flaw == Flaw::Restore { self.sum + sum } else { sum };
        Ok(())
    }
}

fn flawed(flaw: Flaw) -> Subject {
    let command = |rng: &mut Rng| vec![7; 1 + rng.below(9) as usize];
    Subject::new(move || Sum { flaw, ..Sum::default() }, command, |_| Vec::new())
}

#[test]
fn stores_of_others_are_judged() {
    for fine in [Flaw::None, Flaw::Sleeps] {
        let summary = check(0..6, || flawed(fine)).unwrap_or_else(|f| panic!("{f}"));
        assert!(summary.stats.succeeded > 0);
    }
    for flaw in [Flaw::Answers, Flaw::Snapshot, Flaw::Restore] {
        let failure = check(0..60, || flawed(flaw)).expect_err("a flaw is found");
        let named = ["I5:", "I12:"].iter().any(|i| failure.reason.contains(i));
        assert!(named, "{failure}");
        assert!(failure.trace.contains("node 1 starts"), "the failure is told in full");
        assert!(failure.to_string().contains("RAFTLINE_SEED="), "{failure}");
    }
}

#[test]
fn a_failing_plan_is_made_small() {
    let run = |plan: &Plan| run_with(plan, flawed(Flaw::Snapshot));
    let plan = (0..60).map(Plan::draw).find(|p| run(p).is_err()).expect("a plan that fails");
    let smallest = minimise(&plan, run).expect("it fails");
    assert!(run(&smallest.plan).is_err(), "what is left still fails");
    let (before, after) = (plan.faults().len(), smallest.plan.faults().len());
    assert!(after < before || before == 0, "{} became {}", plan, smallest.plan);
    assert!(smallest.plan.get(Knob::Seconds) <= plan.get(Knob::Seconds));
}
