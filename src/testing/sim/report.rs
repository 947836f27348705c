//! What a run, and many runs together, came to.

use std::fmt;
use std::time::Duration;

use super::marks::{Mark, Marks};
use super::plan::{FAULTS, Knob, Plan};
use super::schedule::{SECOND, Time};
use super::subject::mix;
use crate::node::probe::Probe;
use crate::testing::again;
use crate::types::NodeId;

/// Lines of a trace that a failure shows.
const TRACE_LINES: usize = 12;

/// Counts of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events that happened.
    pub events: u64,
    /// Raft messages that were sent.
    pub messages: u64,
    /// Writes of logs.
    pub syncs: u64,
    /// Starts of nodes.
    pub starts: u64,
    /// Operations of clients.
    pub operations: u64,
    /// Operations that were answered with Ok.
    pub succeeded: u64,
    /// Runs whose answers the search by values could not judge within its bound.
    pub undecided: u64,
    /// Changes of the configuration that were committed; a joint one counts once.
    pub changes: u64,
    /// Crashes of nodes that held such a change, committed, and had not applied it.
    pub cut_short: u64,
    /// Identifies the run: every state of every node went into it.
    pub digest: u64,
    faults: Vec<u64>,
}

impl Stats {
    pub(super) fn fault(&mut self, knob: Knob) {
        self.faults.resize(Knob::ALL.len(), 0);
        if let Some(count) = self.faults.get_mut(knob as usize) {
            *count += 1;
        }
    }

    pub(super) fn digest(&mut self, now: Time, id: NodeId, p: &Probe) {
        let all = [now, id, p.term, p.commit, p.last, p.emitted, p.leader, p.compacted];
        self.digest = all.iter().fold(self.digest, |d, n| mix(d, &n.to_le_bytes()));
    }

    /// An answer that a client got.
    pub(super) fn digest_answer(&mut self, answer: &[u8]) {
        self.digest = mix(self.digest, answer);
    }

    /// How many faults of a kind there were.
    pub fn faults(&self, knob: Knob) -> u64 {
        self.faults.get(knob as usize).copied().unwrap_or(0)
    }

    /// `kill 3, cut 12`.
    fn fault_list(&self) -> String {
        let kinds = FAULTS.iter().filter(|k| self.faults(**k) > 0);
        let kinds: Vec<String> =
            kinds.map(|k| format!("{} {}", k.name(), self.faults(*k))).collect();
        kinds.join(", ")
    }

    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.messages += other.messages;
        self.syncs += other.syncs;
        self.starts += other.starts;
        self.operations += other.operations;
        self.succeeded += other.succeeded;
        self.undecided += other.undecided;
        self.changes += other.changes;
        self.cut_short += other.cut_short;
        // Runs end in any order when several threads share them.
        self.digest = self.digest.wrapping_add(other.digest);
        self.faults.resize(Knob::ALL.len(), 0);
        for (count, more) in self.faults.iter_mut().zip(&other.faults) {
            *count += more;
        }
    }
}

/// A run in which everything held.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub plan: Plan,
    /// Its virtual time in microseconds.
    pub simulated: Time,
    /// Counts.
    pub stats: Stats,
    /// What was met.
    pub marks: Marks,
}

/// A run in which something did not hold. Its `Display` says what, shows the end of the trace, and
/// the line that runs it again; `{:#}` shows the whole trace.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was run; replays it.
    pub plan: Plan,
    /// When it failed, in virtual microseconds.
    pub at: Time,
    /// What did not hold.
    pub reason: String,
    /// File, line and column of the check that it did not pass; empty: none, it hung.
    pub place: String,
    /// What happened before, if it was recorded.
    pub trace: String,
    /// A call of the Store has not come back: the run has no end.
    pub hung: bool,
    /// Identifies the run up to there.
    pub digest: u64,
}

impl Failure {
    /// What did not hold, when, and of which plan, without its trace.
    pub fn what(&self) -> String {
        let seconds = self.at as f64 / SECOND as f64;
        format!(
            "{}\n  after {seconds:.3} virtual seconds of the plan\n  {}",
            self.reason, self.plan
        )
    }

    /// Whether it is the same failure of the same run.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.at, &self.reason, self.digest) == (other.at, &other.reason, other.digest)
    }

    /// What a Store that fails like this is likely to do.
    fn advice(&self) -> Option<&'static str> {
        let differs = self.reason.starts_with("I5:") || self.reason.starts_with("I12:");
        differs.then_some(
            "replicas of a Store differ when apply depends on anything but state and command \
             (time, randomness, the order of a HashMap, threads), or when a snapshot or restore \
             leaves something out; store_suite tells which",
        )
    }

    fn write_trace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.trace.lines().collect();
        let shown = match f.alternate() {
            true => lines.as_slice(),
            false => lines.get(lines.len().saturating_sub(TRACE_LINES)..).unwrap_or_default(),
        };
        if shown.is_empty() {
            return Ok(());
        }
        let all =
            if shown.len() < lines.len() { ", the end of it (print {:#} for all)" } else { "" };
        write!(f, "\n  what happened, by virtual seconds{all}:")?;
        shown.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        if let Some(advice) = self.advice() {
            write!(f, "\n  {advice}")?;
        }
        self.write_trace(f)?;
        let drawn = self.plan == Plan::draw(self.plan.seed);
        let line = match drawn {
            true => again::by_seed(self.plan.seed),
            false => again::by_plan(&self.plan),
        };
        write!(f, "\n  again: {line}")?;
        if drawn && !self.hung {
            write!(f, "\n  smaller: {}", again::smaller(&line))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Many runs together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs.
    pub seeds: u64,
    /// Runs in which members came and went.
    pub churned: u64,
    /// Virtual microseconds.
    pub simulated: Time,
    /// Counts.
    pub stats: Stats,
    /// What was met.
    pub marks: Marks,
}

impl Summary {
    /// Adds a run.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.churned += u64::from(report.plan.has_churn());
        self.simulated += report.simulated;
        self.stats.add(&report.stats);
        self.marks.add(&report.marks);
    }

    /// Adds other runs.
    pub fn merge(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.churned += other.churned;
        self.simulated += other.simulated;
        self.stats.add(&other.stats);
        self.marks.add(&other.marks);
    }

    /// Virtual hours.
    pub fn hours(&self) -> f64 {
        self.simulated as f64 / SECOND as f64 / 3600.0
    }

    /// One line for logs: what was run, in how much time.
    pub fn line(&self, wall: Duration, threads: usize) -> String {
        let s = &self.stats;
        let real = wall.as_secs_f64().max(1e-9);
        let ratio = self.simulated as f64 / SECOND as f64 / real / threads.max(1) as f64;
        format!(
            "{} seeds ({} with churn), {:.1} simulated hours in {real:.0} s, {ratio:.0}x real time \
             per core; {} operations ({} ok; by values alone, {} runs undecided), {} membership changes ({} crashes before they were applied), {} starts, {} messages, {} \
             log writes; faults: {}; digest {:016x}",
            self.seeds,
            self.churned,
            self.hours(),
            s.operations,
            s.succeeded,
            s.undecided,
            s.changes,
            s.cut_short,
            s.starts,
            s.messages,
            s.syncs,
            s.fault_list(),
            s.digest,
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.stats;
        let faults = match s.fault_list() {
            none if none.is_empty() => "none".to_owned(),
            list => list,
        };
        write!(
            f,
            "everything held in {} runs, which simulated {:.2} hours of clusters ({} of them with \
             members that come and go): {} operations of clients, {} of them answered, {} starts \
             of nodes, {} membership changes, {} messages, {} writes of logs. Faults: {faults}. \
             Situations met: {} of {}.",
            self.seeds,
            self.hours(),
            self.churned,
            s.operations,
            s.succeeded,
            s.starts,
            s.changes,
            s.messages,
            s.syncs,
            Mark::ALL.len() - self.marks.missing().len(),
            Mark::ALL.len(),
        )
    }
}
