//! Every single call of the file layer failing in turn (R5).
//!
//! The log stops at once, stays stopped, and touches no file any more; the next process, and one
//! after a loss of power on top of it, finds what was acknowledged.

use std::sync::Arc;

use super::life::{Allowed, End, LOG_DIR, Life, SNAPSHOT_DIR};
use super::report::{Counts, Outcome, run_cases};
use super::script::{Step, identity, scripts};
use super::{Options, Report, SEGMENTS};
use crate::error::StorageError;
use crate::log::{LogBatch, LogStorage};
use crate::testing::vfs::{CrashStyle, Fault, FaultyVfs};
use crate::types::{HardState, Position};

const FAULTS: [(Fault, &str); 4] = [
    (Fault::Io, "IO error"),
    (Fault::Full, "disk full"),
    (Fault::Short, "half-way"),
    (Fault::PowerOff, "power off"),
];
/// Fates of what was not synced, by call.
const FATES: u64 = 6;

/// The workloads: the scripts, each closed at its end.
fn workloads() -> Vec<(&'static str, Vec<Step>)> {
    let mut all = scripts();
    all.iter_mut().for_each(|(_, steps)| steps.push(Step::Close));
    all
}

struct Rig<'a> {
    steps: &'a [Step],
    segment: u64,
}

impl Rig<'_> {
    /// Runs the workload until a call fails. What may be found then; whether one failed.
    fn run(&self, vfs: &FaultyVfs) -> Result<(Allowed, bool), String> {
        let mut life = Life::new(Arc::new(vfs.clone()), self.segment, Allowed::nothing());
        if let Err(end) = life.open() {
            return self.stopped(life, end, vfs).map(|allowed| (allowed, true));
        }
        for step in self.steps {
            if let Err(end) = life.run(step) {
                return self.stopped(life, end, vfs).map(|allowed| (allowed, true));
            }
        }
        Ok((life.allowed.clone(), false))
    }

    /// After a failure: an error that names the file, and, if it was the log's, a log that is
    /// poisoned and leaves the files alone.
    fn stopped(&self, mut life: Life, end: End, vfs: &FaultyVfs) -> Result<Allowed, String> {
        let error = match end {
            End::Failed(error @ StorageError::Io { .. }) => error,
            end => return Err(format!("no IO error: {}", end.describe())),
        };
        let StorageError::Io { path, .. } = &error else { return Err(error.to_string()) };
        if path.starts_with(SNAPSHOT_DIR) {
            return Ok(life.allowed.clone());
        }
        if !path.starts_with(LOG_DIR) {
            return Err(format!("it names no file of the log: {error}"));
        }
        let Some(wal) = &mut life.wal else { return Ok(life.allowed.clone()) };
        let calls = vfs.calls();
        let hard_state = Some(HardState { term: 9, vote: 9, commit: 0 });
        let batch = LogBatch { hard_state, ..LogBatch::default() };
        let results = [
            wal.append(&[batch]),
            wal.compact(Position { index: 1, term: 1 }),
            wal.identify(&identity(9)),
            wal.close(),
            wal.load().map(drop),
        ];
        for result in results {
            if !matches!(result, Err(StorageError::Poisoned)) {
                return Err(format!("after {error}, not poisoned: {result:?}"));
            }
        }
        if vfs.calls() != calls {
            return Err(format!("after {error}, the files were touched again"));
        }
        Ok(life.allowed.clone())
    }

    /// The next process: finds what it may, goes on, and after a loss of power all of it is there.
    fn check(&self, vfs: &FaultyVfs, allowed: &Allowed) -> Result<(), String> {
        let mut life = Life::new(Arc::new(vfs.clone()), self.segment, allowed.clone());
        life.open().map_err(End::describe)?;
        let log = life.allowed.log();
        if log.identity.is_some() {
            let term = log.hard_state.term + 1;
            let hard_state = Some(HardState { term, vote: 3, commit: 0 });
            let batch = LogBatch { hard_state, ..LogBatch::default() };
            life.run(&Step::Append(vec![batch])).map_err(End::describe)?;
        }
        let found = life.allowed.clone();
        drop(life);
        let vfs = vfs.crash(CrashStyle::LoseAll);
        let mut life = Life::new(Arc::new(vfs), self.segment, found);
        life.open().map_err(|end| format!("after going on: {}", end.describe()))
    }

    /// One call fails. Whether the workload met it.
    fn fail(&self, call: u64, fault: Fault, counts: &mut Counts) -> Result<bool, String> {
        let vfs = FaultyVfs::new();
        vfs.fail_at(call, fault);
        let (allowed, failed) = self.run(&vfs)?;
        vfs.disarm();
        let mut states = 0;
        // The page cache survives a mere end of the process.
        if fault != Fault::PowerOff {
            self.check(&vfs.duplicate(), &allowed).map_err(|e| format!("after a kill: {e}"))?;
            states += 1;
        }
        let seeded = (0..FATES).map(|fate| CrashStyle::Seeded(call * FATES + fate));
        for style in [CrashStyle::KeepAll, CrashStyle::LoseAll].into_iter().chain(seeded) {
            self.check(&vfs.crash(style), &allowed).map_err(|e| format!("{style:?}: {e}"))?;
            states += 1;
        }
        counts.add("states recovered", states);
        Ok(failed)
    }
}

/// Fails every call, or one in `stride`, of each workload in each way. A case is one workload
/// with one size of segments and one way to fail.
pub fn io_faults(options: &Options) -> Report {
    let workloads = workloads();
    let total = workloads.len() * SEGMENTS.len() * FAULTS.len();
    run_cases(options.jobs, options.cases(total as u64), u64::MAX, |case| {
        let mut outcome = Outcome::default();
        let case = usize::try_from(case).unwrap_or(usize::MAX);
        let (fault, fault_name) = FAULTS[case % FAULTS.len()];
        let segment = SEGMENTS[case / FAULTS.len() % SEGMENTS.len()];
        let workload = workloads.get(case / FAULTS.len() / SEGMENTS.len());
        let Some((name, steps)) = workload else { return outcome };
        let rig = Rig { steps, segment };
        for call in (1u64..).step_by(options.stride.max(1)) {
            match rig.fail(call, fault, &mut outcome.counts) {
                Ok(true) => outcome.counts.add(fault_name, 1),
                Ok(false) => break,
                Err(e) => {
                    outcome.failure = Some(format!(
                        "{name}, segments of {segment} bytes, {fault_name} at call {call}: {e}"
                    ));
                    break;
                }
            }
        }
        outcome
    })
}
