//! Is a history of calls linearizable: does *one* order of the operations, which respects real
//! time, explain every answer?
//!
//! Usable on the history of any system, not only of this crate; it knows nothing of nodes. Never
//! gives a false verdict: what it cannot decide within its bound is [`Verdict::Undecided`].
//!
//! Three checks, from strong and fast to weak and slow; run as many as the history has data for:
//!
//! | check | needs | assumes | cost |
//! | --- | --- | --- | --- |
//! | [`check_log`] | an index with every answer, the log of committed commands | nothing | O(n log n) |
//! | [`check_indices`] | an index with every answer | what was not acknowledged is placed where the answers need it | near O(n log n) |
//! | [`check_values`] | answers alone | nothing, it does not believe the indices | exponential in the concurrency within a key; right for about 100 operations per key |
//!
//! Rules of an index, as a replicated log gives it: a write's index is where its command was
//! applied, several commands may share one; a read's index is that of the last entry which its
//! state held, and it held that entry whole. So a write that was acknowledged before another call
//! was made has a place in the log before it, and a read's index is at least that of every write
//! acknowledged, and of every read answered, before it began.
//!
//! A rejected write (`Error::Rejected`) is in the log, and its caller is not told where. For
//! [`check_values`] it is an answer like any other ([`History::ok`] with what the model answers then).
//! [`check_log`] and [`check_indices`] refuse an answer without an index, because one that was
//! forgotten would make them blind: record it by [`History::unknown`] for them. No verdict becomes
//! wrong by that; only the rejection itself is left to `check_values`.
//!
//! Completeness is the caller's part: every command that reached the system must be in the
//! history, those of unknown outcome included; otherwise a correct answer may seem inexplicable.
//!
//! ```
//! use raftline::testing::linearizability::models::{Kv, KvAnswer, KvRead, KvWrite};
//! use raftline::testing::linearizability::{Call, Limits, Verdict, check_values, HistoryOf};
//!
//! let put = |value: &str| Call::Write(KvWrite::Put { key: "k".into(), value: value.into() });
//! let get = || Call::Read(KvRead::Get { key: "k".into() });
//!
//! let mut history = HistoryOf::<Kv>::new();
//! let write = history.invoke(1, put("a"), 10);
//! history.ok(write, KvAnswer::Done, 20);
//! let lost = history.invoke(2, put("b"), 30); // a timeout: it may take effect, even later
//! history.unknown(lost, 40);
//! let read = history.invoke(1, get(), 50);
//! history.ok(read, KvAnswer::Value(Some("a".into())), 60);
//! assert_eq!(check_values(&Kv, &history, Limits::default()), Verdict::Linearizable);
//!
//! let stale = history.invoke(1, get(), 70);
//! history.ok(stale, KvAnswer::Value(None), 80);
//! let verdict = check_values(&Kv, &history, Limits::default());
//! assert!(verdict.to_string().contains("key k"), "{verdict}");
//! ```

mod explain;
mod history;
mod indices;
mod log;
pub mod models;
mod order;
mod search;
mod values;

use std::fmt::{self, Debug};
use std::hash::Hash;

pub use history::{Call, History, OpId, Operation, Outcome};
pub use indices::check_indices;
pub use log::{LogEntry, check_log};
pub use values::check_values;

/// The history of a [`Model`]'s calls.
pub type HistoryOf<M> = History<<M as Model>::Write, <M as Model>::Read, <M as Model>::Answer>;
/// One operation on a [`Model`].
pub type OperationOf<M> = Operation<<M as Model>::Write, <M as Model>::Read, <M as Model>::Answer>;

/// What the system is meant to do, one call at a time.
///
/// Deterministic; ready-made ones are in [`models`].
pub trait Model {
    /// The state; cheap to clone when [`Model::partition`] divides it.
    type State: Clone + Eq + Hash + Debug;
    /// A command.
    type Write: Clone + Eq + Hash + Debug;
    /// A query.
    type Read: Clone + Debug;
    /// What either is answered with.
    type Answer: Clone + Debug;

    /// The state before the first command.
    fn initial(&self) -> Self::State;

    /// Applies a command.
    fn apply(&self, state: &mut Self::State, write: &Self::Write) -> Self::Answer;

    /// Answers a query.
    fn query(&self, state: &Self::State, read: &Self::Read) -> Self::Answer;

    /// True when a client may have seen `seen` where the model answers `answer`: equality, unless
    /// clients see less than the model tells.
    fn agrees(&self, seen: &Self::Answer, answer: &Self::Answer) -> bool;

    /// The part of the state that a call reads and writes, when it is independent of all other
    /// parts; each part is checked alone, and starts from [`Model::initial`]. None, the default,
    /// for a single call puts the whole history into one part.
    fn partition(&self, call: &Call<Self::Write, Self::Read>) -> Option<String> {
        let _ = call;
        None
    }
}

/// How much work a search may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps per part; each remembers at most one state. Behind them the verdict is
    /// [`Verdict::Undecided`].
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 2_000_000 }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// An order that explains everything exists.
    Linearizable,
    /// No such order exists.
    Illegal(Violation),
    /// Neither was shown within the limits, in any part; no part was found illegal.
    Undecided {
        /// The first part that was given up.
        key: Option<String>,
        /// The steps that were done in it.
        steps: u64,
    },
    /// This is not a history of calls: why.
    Malformed(String),
}

impl Verdict {
    /// True when an order was found.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }

    /// True when it was shown that there is no order.
    pub fn is_illegal(&self) -> bool {
        matches!(self, Self::Illegal(_))
    }

    /// For tests.
    ///
    /// # Panics
    /// With the explanation, unless the history was found linearizable.
    #[expect(clippy::panic, reason = "this is an assertion")]
    pub fn assert_linearizable(&self) {
        if !self.is_linearizable() {
            panic!("{self}");
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable => write!(f, "linearizable"),
            Self::Illegal(violation) => write!(f, "{violation}"),
            Self::Undecided { key: Some(key), steps } => {
                write!(f, "undecided: key {key} was given up after {steps} steps")
            }
            Self::Undecided { key: None, steps } => {
                write!(f, "undecided: given up after {steps} steps")
            }
            Self::Malformed(reason) => write!(f, "not a history: {reason}"),
        }
    }
}

/// The rule that a history breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// An acknowledged write is not in the log where its index says.
    LostWrite,
    /// The log holds a command that was not called, was not to be applied, or was applied twice.
    UnexplainedCommand,
    /// An answer differs from that of the model at the same place of the log.
    WrongAnswer,
    /// What came first in time comes later in the log.
    RealTime,
    /// No order of the operations gives these answers.
    NoOrder,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LostWrite => "an acknowledged write is lost",
            Self::UnexplainedCommand => "the log holds a command that it should not hold",
            Self::WrongAnswer => "an answer is not that of the log",
            Self::RealTime => "the log is against real time",
            Self::NoOrder => "no order explains the answers",
        })
    }
}

/// Why a history is not linearizable; its `Display` is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule that was broken.
    pub rule: Rule,
    /// The part of the state, where the check knows it.
    pub key: Option<String>,
    /// The operations that break it: a smallest such set, as far as it was worth finding.
    pub operations: Vec<OpId>,
    /// What is wrong, in words, and the operations one a line.
    pub explanation: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not linearizable: {}", self.rule)?;
        if let Some(key) = &self.key {
            write!(f, " (key {key})")?;
        }
        write!(f, ": {}", self.explanation)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
