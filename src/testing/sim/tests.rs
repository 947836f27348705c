//! The simulator's own tests: short runs of many seeds, the same run twice, stored regressions.

mod forged;
mod judged;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;

use super::check::search;
use super::*;
use crate::error::{Error, Result as StoreResult};
use crate::store::{Committed, Store};
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
    /// It never answers a command.
    Hangs,
    /// It panics at the fifth command.
    Panics,
    /// It panics when it is asked.
    PanicsAsked,
}

#[async_trait]
impl Store for Sum {
    async fn apply(&mut self, m: &[u8]) -> StoreResult<Vec<u8>> {
        // By the clock of the simulation: the tests wait for nothing.
        if self.flaw == Flaw::Sleeps {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if self.flaw == Flaw::Hangs {
            std::future::pending::<()>().await;
        }
        self.sum += m.len() as u64;
        self.applied += 1;
        assert!(self.flaw != Flaw::Panics || self.applied < 5, "five is too much");
        let more = u64::from(self.flaw == Flaw::Answers && self.applied == 40);
        Ok((self.sum + more).to_le_bytes().to_vec())
    }

    async fn query(&self, _: &[u8]) -> StoreResult<Vec<u8>> {
        assert!(self.flaw != Flaw::PanicsAsked, "no questions");
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
    let command = |rng: &mut Rng| vec![b'+'; 1 + rng.below(9) as usize];
    Subject::new(move || Sum { flaw, ..Sum::default() }, command, |_| b"sum".to_vec())
}

#[test]
fn stores_of_others_are_judged() {
    for fine in [Flaw::None, Flaw::Sleeps] {
        let summary = search((0..6).map(Plan::draw), || flawed(fine), false)
            .unwrap_or_else(|f| panic!("{f}"));
        assert!(summary.stats.succeeded > 0);
    }
    for flaw in [Flaw::Answers, Flaw::Snapshot, Flaw::Restore] {
        let failure = search((0..60).map(Plan::draw), || flawed(flaw), false);
        let failure = failure.expect_err("a flaw is found");
        let named = ["I5:", "I12:"].iter().any(|i| failure.reason.contains(i));
        assert!(named, "{failure}");
        assert!(failure.trace.contains("node 1 starts"), "the failure is told in full");
        assert!(failure.to_string().contains("RAFTLINE_SEED="), "{failure}");
    }
}

#[test]
fn a_failing_plan_is_made_small() {
    let run = |plan: &Plan| run_with(plan, flawed(Flaw::Snapshot));
    let mut plans = (0..60).map(|seed| Plan::draw(seed).with(Knob::Seconds, 20));
    let plan = plans.find(|p| run(p).is_err()).expect("a plan that fails");
    let smallest = minimise_with(&plan, || flawed(Flaw::Snapshot)).expect("it fails");
    assert!(run(&smallest.plan).is_err(), "what is left still fails");
    let (before, after) = (plan.faults().len(), smallest.plan.faults().len());
    assert!(after < before || before == 0, "{} became {}", plan, smallest.plan);
    assert!(smallest.plan.get(Knob::Seconds) <= plan.get(Knob::Seconds));
    // What it prints is enough to see it again.
    let text = smallest.to_string();
    let (_, line) = text.split_once("again: RAFTLINE_PLAN='").expect("a line");
    let (line, rest) = line.split_once('\'').expect("a line");
    assert!(rest.starts_with(" cargo test testing::sim::tests::a_failing_plan_is_made_small"));
    let plan: Plan = line.parse().expect("a plan");
    let again = replay_with(&plan, flawed(Flaw::Snapshot)).expect_err("it fails");
    assert_eq!((&again.reason, &again.trace), (&smallest.reason, &smallest.trace));
    assert!(format!("{again:#}").contains(&again.trace.lines().next().unwrap_or("?").to_owned()));
}

#[test]
fn a_store_that_hangs_is_named() {
    let plan = Plan::calm(1);
    let subject = flawed(Flaw::Hangs);
    let failure = run_within(Duration::from_secs(1), &plan, subject, Trace::default());
    let failure = failure.expect_err("it hangs");
    let named = failure.reason.contains("apply_batch of \"+");
    assert!(failure.hung && named, "{failure}");
    assert!(failure.reason.contains("does not come back"), "{failure}");
}

#[test]
fn a_store_that_panics_is_told_with_what_it_was_given() {
    let failure = run_with(&Plan::calm(1), flawed(Flaw::Panics)).expect_err("a panic");
    assert!(failure.reason.contains("apply panicked: five is too much"), "{failure}");
    let place = failure.reason.contains("five is too much (at src/testing/sim/tests.rs:");
    assert!(place && failure.reason.contains("the command was \"+"), "{failure}");
    let failure = run_with(&Plan::calm(1), flawed(Flaw::PanicsAsked)).expect_err("a panic");
    let named = failure.reason.contains("panics in query of \"sum\": no questions (at src/");
    assert!(named, "{failure}");
}

#[test]
fn a_failure_that_does_not_come_again_is_told_as_such() {
    let runs = std::cell::Cell::new(0);
    // The first run has a flaw, the second has none.
    let subject = || {
        runs.set(runs.get() + 1);
        flawed(if runs.get() == 1 { Flaw::Panics } else { Flaw::None })
    };
    let failure = search([Plan::calm(1)], subject, false).expect_err("a flaw");
    let asked = "did not fail: is your Store deterministic?";
    assert!(failure.reason.contains(asked), "{failure}");
}

/// A sum that is durable by itself: what its disk holds.
type SumDisk = Arc<Mutex<(u64, u64)>>;

struct DurableSum {
    disk: SumDisk,
    /// Says that it holds more than it does.
    boasts: bool,
}

impl DurableSum {
    fn held(&self) -> MutexGuard<'_, (u64, u64)> {
        self.disk.lock().expect("nobody panics with it")
    }
}

#[async_trait]
impl Store for DurableSum {
    async fn apply(&mut self, _: &[u8]) -> StoreResult<Vec<u8>> {
        Err(Error::fatal("a durable Store is given batches"))
    }

    async fn apply_batch(&mut self, batch: &[Committed<'_>]) -> Vec<StoreResult<Vec<u8>>> {
        let mut held = self.held();
        let add = |c: &Committed<'_>| {
            held.0 += c.data.len() as u64;
            held.1 = c.index;
            Ok(held.0.to_le_bytes().to_vec())
        };
        batch.iter().map(add).collect()
    }

    async fn query(&self, _: &[u8]) -> StoreResult<Vec<u8>> {
        Ok(self.held().0.to_le_bytes().to_vec())
    }

    async fn snapshot(&self) -> StoreResult<Vec<u8>> {
        let (sum, applied) = *self.held();
        Ok([sum.to_le_bytes(), applied.to_le_bytes()].concat())
    }

    async fn restore(&mut self, s: &[u8]) -> StoreResult<()> {
        let (words, _) = s.as_chunks::<8>();
        let [sum, applied] = words else { return Err("two words".into()) };
        *self.held() = (u64::from_le_bytes(*sum), u64::from_le_bytes(*applied));
        Ok(())
    }

    fn applied(&self) -> Option<u64> {
        let applied = self.held().1;
        Some(if self.boasts && applied > 0 { applied + 1 } else { applied })
    }
}

fn durable(boasts: bool) -> Subject {
    let disks: Arc<Mutex<BTreeMap<u64, SumDisk>>> = Arc::default();
    let open = move |id, wiped| {
        let mut disks = disks.lock().expect("nobody panics with it");
        if wiped {
            disks.remove(&id);
        }
        DurableSum { disk: disks.entry(id).or_default().clone(), boasts }
    };
    let command = |rng: &mut Rng| vec![b'+'; 1 + rng.below(9) as usize];
    Subject::durable(open, command, |_| Vec::new())
}

#[test]
fn durable_stores_of_others_are_judged() {
    let plans = || (0..12).map(Plan::draw);
    let summary = search(plans(), || durable(false), false).unwrap_or_else(|f| panic!("{f}"));
    let text = summary.to_string();
    assert!(text.starts_with("everything held in 12 runs, which simulated 0."), "{text}");
    assert!(search(plans(), || durable(true), false).is_err(), "it skips what it does not hold");
}
