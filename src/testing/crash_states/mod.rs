//! Everything that a loss of power, a failing disk or a flipped bit can do to the files of a node:
//! enumerated, recovered by the real code, judged.
//!
//! - `crash_states`: workloads over a layer that records every change; for every prefix of the
//!   changes, what may be left of those that were not synced; recovery, again, and lives and
//!   crashes after it.
//! - `flips`: every single flipped bit of logs, identities and snapshots.
//! - `io_faults`: every single call of the file layer failing.
//!
//! What must hold: what was acknowledged is found; what is found is a consistent prefix of what was
//! written; no vote and no term regresses; nothing truncated or compacted comes back; no state that
//! can happen is refused; recovery twice equals once.
//!
//! Given the same options a case is the same: the number of a failed one runs it again.

mod choices;
mod disk;
mod explore;
mod flips;
mod io_faults;
mod life;
mod recorder;
mod report;
pub(crate) mod script;
#[cfg(test)]
mod tests;

pub use self::flips::flips;
pub use self::io_faults::io_faults;
pub use self::report::{Counts, Failure, Report};

use self::explore::{Effort, Explorer};
use self::report::{Outcome, run_cases};

/// How a check is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What everything random comes from.
    pub seed: u64,
    /// How many different disks to recover at least; of `crash_states` only.
    pub states: u64,
    /// Threads.
    pub jobs: usize,
    /// The number of the only case to run.
    pub only: Option<u64>,
    /// Of `flips`: one bit in so many; 1: all. Of `io_faults`: one call in so many.
    pub stride: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, states: 1_000_000, jobs: 1, only: None, stride: 1 }
    }
}

impl Options {
    fn cases(&self, total: u64) -> std::ops::Range<u64> {
        self.only.map_or(0..total, |case| case..case.saturating_add(1))
    }
}

/// Sizes of segments, so small that every workload changes them.
const SEGMENTS: [u64; 3] = [1024, 1536, 2048];

/// Crash states of the scripted workloads, each with each size of segments, then of random ones
/// until so many different disks were recovered. One random case in four has few states per moment, and
/// many lives and crashes in a row.
pub fn crash_states(options: &Options) -> Report {
    let broad = Effort { first: 96, later: 3, dig: 40, kill: 8, lives: 3, steps: 14 };
    let deep = Effort { first: 8, later: 2, dig: 30, kill: 30, lives: 7, steps: 14 };
    // The scripts come first.
    let scripted = (script::scripts().len() * SEGMENTS.len()) as u64;
    explore(options, |case| if case >= scripted && case % 4 == 3 { deep } else { broad })
}

fn explore(options: &Options, effort: impl Fn(u64) -> Effort + Sync) -> Report {
    let scripts = script::scripts();
    run_cases(options.jobs, options.cases(u64::MAX), options.states, |case| {
        let segment = SEGMENTS[(case % SEGMENTS.len() as u64) as usize];
        let number = usize::try_from(case / SEGMENTS.len() as u64).unwrap_or(usize::MAX);
        let script = scripts.get(number);
        let seed = options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(case);
        let mut explorer = Explorer::new(seed, segment, effort(case));
        let name = script.map_or("random steps", |(name, _)| name);
        let result = explorer.explore(script.map(|(_, steps)| steps.as_slice()));
        let failure = result.err().map(|e| format!("{name}, segments of {segment} bytes: {e}"));
        Outcome { counts: explorer.counts, images: explorer.images, failure }
    })
}
