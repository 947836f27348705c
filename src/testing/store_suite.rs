//! The conformance suite of [`Store`]: what a replicated state machine owes, checked on yours.
//!
//! Each seed makes a random log of commands and random queries, and lets several Stores live
//! through it in every way that a node may treat them: command by command and in batches, asked
//! and left alone, snapshot at any point and restored into a fresh or a used Store, crashed between
//! any two calls. All must give the answers of the first. A failure names the [`Law`], the seed
//! and the step.
//!
//! A Store in memory is given by a closure that makes an empty one, and is checked by [`check`]:
//!
//! ```
//! use raftline::testing::store_suite;
//! use raftline::{Result, Store};
//!
//! #[derive(Default)]
//! struct Sum(u64);
//!
//! #[raftline::async_trait]
//! impl Store for Sum {
//!     async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
//!         let add = message.first().ok_or("an empty command")?;
//!         self.0 += u64::from(*add);
//!         Ok(self.0.to_be_bytes().to_vec())
//!     }
//!     async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
//!         Ok(self.0.to_be_bytes().to_vec())
//!     }
//!     async fn snapshot(&self) -> Result<Vec<u8>> {
//!         Ok(self.0.to_be_bytes().to_vec())
//!     }
//!     async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
//!         let bytes = snapshot.try_into().map_err(|_| "a snapshot of another length")?;
//!         self.0 = u64::from_be_bytes(bytes);
//!         Ok(())
//!     }
//! }
//!
//! store_suite::check(Sum::default, |rng| vec![rng.below(9) as u8], |_| Vec::new(), 0..5);
//! ```
//!
//! A durable Store, one whose [`Store::applied`] is Some, is given by a closure that opens the disk
//! of a numbered replica, and is checked by [`check_durable`]. A crash drops the Store and opens
//! its disk again; a loss of power is beyond this suite.
//!
//! It takes an answer that is `Ok` or a rejection for an answer; a random command that makes the
//! Store fail otherwise, or panic, would stop every replica, and breaks [`Law::Total`]. So does a
//! call that does not come back: it is given a minute (`RAFTLINE_PATIENCE=5` makes it five
//! seconds). The suite runs on a thread of its own for that reason, and what it is given must be
//! `Send`.
//!
//! Timers of tokio in a Store cost no time: their clock is the suite's, and moves a little before
//! each call, on every replica by another length, so that a Store that answers from it is caught.
//!
//! A failure prints the line that runs its seed alone, `RAFTLINE_SEED=7 cargo test my_test`:
//! [`check`] and [`check_durable`] take the seed of that variable instead of those they are given.

mod replica;
mod script;
mod suite;

use std::fmt;
use std::time::Duration;

use super::again;
use super::rng::Rng;
use super::watch::{Calls, Hang, patience, watched};
use crate::store::Store;

/// A rule that every Store has to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Law {
    /// No command and no call makes a Store fail, panic or hang; rejections are answers.
    Total,
    /// A new Store is empty, whatever others have done.
    StartsEmpty,
    /// The same commands give the same answers and the same state on every replica.
    Deterministic,
    /// `apply_batch` is `apply` of each, wherever the log is split, with an answer to each.
    BatchIsOneByOne,
    /// A query changes nothing: asked again it answers alike, and so does everything behind it.
    QueryIsPure,
    /// Queries that run at the same time answer as they do alone.
    QueriesRunTogether,
    /// `snapshot` changes nothing.
    SnapshotIsPure,
    /// A fresh Store that restored a snapshot answers as the one that gave it.
    RestoreIsExact,
    /// `restore` replaces everything that was there.
    RestoreReplaces,
    /// What is applied behind a `restore` does what it would have done without.
    RestoredGoesOn,
    /// A snapshot of a restored Store is as good as the one that it restored.
    SnapshotAgain,
    /// Behind a crash, snapshot and log, or what a durable Store holds and the log above it, give
    /// the same state.
    CrashRecovers,
    /// `applied` never regresses, within a run or over a crash, and never is above what was given.
    AppliedIsTrue,
    /// `check` depends on the bytes alone.
    CheckIsPure,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Total => "no call fails, panics or hangs",
            Self::StartsEmpty => "a new store is empty",
            Self::Deterministic => "the same commands give the same answers and state",
            Self::BatchIsOneByOne => "apply_batch is apply of each",
            Self::QueryIsPure => "a query changes nothing",
            Self::QueriesRunTogether => "queries that run together answer as they do alone",
            Self::SnapshotIsPure => "snapshot changes nothing",
            Self::RestoreIsExact => "restore gives the state that was snapshot",
            Self::RestoreReplaces => "restore replaces everything",
            Self::RestoredGoesOn => "a restored store goes on as the other would have",
            Self::SnapshotAgain => "a restored store gives a snapshot as good",
            Self::CrashRecovers => "a crash loses and repeats nothing",
            Self::AppliedIsTrue => "applied tells what the store holds, and never regresses",
            Self::CheckIsPure => "check depends on the bytes alone",
        })
    }
}

/// A Store that breaks a law.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub law: Law,
    /// The seed that showed it: give it alone to see it again.
    pub seed: u64,
    /// How far in the log: entries that were applied, of those that the seed makes.
    pub step: usize,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { law, seed, step, detail } = self;
        write!(
            f,
            "the store breaks the law {law:?} ({law}): {detail}\n  with {step} entries of the log \
             that seed {seed} makes\n  again: {}",
            again::by_seed(*seed)
        )
    }
}

impl std::error::Error for Broken {}

/// Checks a Store that lives in memory, once for each seed. `new` makes an empty one; `command`
/// and `query` make the bytes that its clients would send.
///
/// Runs on a runtime of its own; call it from a plain `#[test]`.
///
/// # Panics
/// When the Store breaks a law; the message says which, with which seed, at which step.
#[expect(clippy::panic, reason = "a suite tells what failed by panicking")]
pub fn check<S: Store>(
    new: impl FnMut() -> S + Send + 'static,
    command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    seeds: impl IntoIterator<Item = u64, IntoIter: Send + 'static>,
) {
    let found = match again::seed() {
        Some(seed) => find(new, command, query, [seed]),
        None => find(new, command, query, seeds),
    };
    if let Err(broken) = found {
        panic!("{broken}");
    }
}

/// As [`check`], and gives back what is broken; of the seeds that it is given, whatever the
/// environment says.
///
/// # Errors
/// The first law that a seed breaks.
pub fn find<S: Store>(
    mut new: impl FnMut() -> S + Send + 'static,
    command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    seeds: impl IntoIterator<Item = u64, IntoIter: Send + 'static>,
) -> Result<(), Broken> {
    let seeds = seeds.into_iter();
    bounded(patience(), move |calls| suite::run(|_| new(), false, command, query, seeds, calls))
}

/// Checks a durable Store, once for each seed. `open` opens the disk of the replica of that
/// number, an empty one for a number it has not seen; a Store is always dropped before its disk is
/// opened again.
///
/// Runs on a runtime of its own; call it from a plain `#[test]`.
///
/// # Panics
/// When the Store breaks a law; the message says which, with which seed, at which step.
#[expect(clippy::panic, reason = "a suite tells what failed by panicking")]
pub fn check_durable<S: Store>(
    open: impl FnMut(usize) -> S + Send + 'static,
    command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    seeds: impl IntoIterator<Item = u64, IntoIter: Send + 'static>,
) {
    let found = match again::seed() {
        Some(seed) => find_durable(open, command, query, [seed]),
        None => find_durable(open, command, query, seeds),
    };
    if let Err(broken) = found {
        panic!("{broken}");
    }
}

/// As [`check_durable`], and gives back what is broken; of the seeds that it is given, whatever the
/// environment says.
///
/// # Errors
/// The first law that a seed breaks.
pub fn find_durable<S: Store>(
    open: impl FnMut(usize) -> S + Send + 'static,
    command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    seeds: impl IntoIterator<Item = u64, IntoIter: Send + 'static>,
) -> Result<(), Broken> {
    let seeds = seeds.into_iter();
    bounded(patience(), move |calls| suite::run(open, true, command, query, seeds, calls))
}

/// A call that does not come back breaks a law, too.
fn bounded(
    patience: Duration,
    suite: impl FnOnce(&Calls) -> Result<(), Broken> + Send + 'static,
) -> Result<(), Broken> {
    watched(patience, suite).unwrap_or_else(|Hang { place: (seed, step), text }| {
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        Err(Broken { law: Law::Total, seed, step, detail: text })
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
