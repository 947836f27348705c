//! What clients saw: who called what, when, and how it ended.
//!
//! A history only records. Times are any monotonic `u64` that all clients share: microseconds of
//! a virtual clock, nanoseconds since a common `Instant`, or a mere counter. An operation that
//! returned at a *smaller* time than another was invoked at came before it; at equal times the two
//! count as concurrent, so a coarse clock can hide a violation but never invent one.

use std::fmt::{self, Debug};

use serde::{Deserialize, Serialize};

use crate::types::Index;

/// Names an operation of one [`History`]: its place in [`History::operations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub usize);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Call<W, R> {
    /// A command, through the log.
    Write(W),
    /// A query.
    Read(R),
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome<A> {
    /// It was answered.
    Ok {
        /// The answer.
        answer: A,
        /// A write: the log index that it was applied at. A read: the applied index of the state
        /// that it was served from. None: the client was not told.
        index: Option<Index>,
    },
    /// It did not take effect and never will.
    NotApplied,
    /// It may take effect at any time after its invocation, at most once, or never.
    Unknown,
}

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<W, R, A> {
    /// Who called. For people only: one client may have several calls under way.
    pub client: u64,
    /// What was asked.
    pub call: Call<W, R>,
    /// When the call was made.
    pub invoked: u64,
    /// When it came back; None: never, as far as was seen.
    pub returned: Option<u64>,
    /// How it ended; [`Outcome::Unknown`] while it is under way.
    pub outcome: Outcome<A>,
}

impl<W, R, A> Operation<W, R, A> {
    pub(crate) fn answer(&self) -> Option<&A> {
        match &self.outcome {
            Outcome::Ok { answer, .. } => Some(answer),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }

    pub(crate) fn index(&self) -> Option<Index> {
        match &self.outcome {
            Outcome::Ok { index, .. } => *index,
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }

    /// True when the order of operations has to have room for it: an answered call must be there,
    /// a write of unknown outcome may be.
    pub(crate) fn counts(&self) -> bool {
        match (&self.outcome, &self.call) {
            (Outcome::Ok { .. }, _) | (Outcome::Unknown, Call::Write(_)) => true,
            (Outcome::NotApplied, _) | (Outcome::Unknown, Call::Read(_)) => false,
        }
    }
}

impl<W: Debug, R: Debug, A: Debug> fmt::Display for Operation<W, R, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} [{}..", self.client, self.invoked)?;
        match self.returned {
            Some(returned) => write!(f, "{returned}] ")?,
            None => write!(f, "] ")?,
        }
        match &self.call {
            Call::Write(write) => write!(f, "write {write:?}")?,
            Call::Read(read) => write!(f, "read {read:?}")?,
        }
        match &self.outcome {
            Outcome::Ok { answer, index: Some(index) } => write!(f, " -> {answer:?} at {index}"),
            Outcome::Ok { answer, index: None } => write!(f, " -> {answer:?}"),
            Outcome::NotApplied => write!(f, " -> not applied"),
            Outcome::Unknown => write!(f, " -> unknown"),
        }
    }
}

/// The operations of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History<W, R, A> {
    operations: Vec<Operation<W, R, A>>,
}

impl<W, R, A> Default for History<W, R, A> {
    fn default() -> Self {
        Self { operations: Vec::new() }
    }
}

impl<W, R, A> History<W, R, A> {
    /// A history without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client calls. Until it is told otherwise, the outcome is unknown.
    pub fn invoke(&mut self, client: u64, call: Call<W, R>, time: u64) -> OpId {
        let outcome = Outcome::Unknown;
        self.operations.push(Operation { client, call, invoked: time, returned: None, outcome });
        OpId(self.operations.len() - 1)
    }

    /// The call was answered; nobody told an index.
    ///
    /// # Panics
    /// When the operation is not of this history, has ended before, or ends before it began.
    pub fn ok(&mut self, op: OpId, answer: A, time: u64) {
        self.end(op, Outcome::Ok { answer, index: None }, time);
    }

    /// The call was answered; a write was applied at `index`, a read was served from the state at
    /// `index`.
    ///
    /// # Panics
    /// As [`History::ok`].
    pub fn ok_at(&mut self, op: OpId, answer: A, index: Index, time: u64) {
        self.end(op, Outcome::Ok { answer, index: Some(index) }, time);
    }

    /// The call failed, and certainly without effect.
    ///
    /// # Panics
    /// As [`History::ok`].
    pub fn not_applied(&mut self, op: OpId, time: u64) {
        self.end(op, Outcome::NotApplied, time);
    }

    /// The call failed, and a write may take effect all the same, now or later.
    ///
    /// Also for a write that was *rejected* without being told an index, as `Mailbox::propose` does,
    /// where a check needs indices: its command is in the log, at a place that nobody knows.
    ///
    /// # Panics
    /// As [`History::ok`].
    pub fn unknown(&mut self, op: OpId, time: u64) {
        self.end(op, Outcome::Unknown, time);
    }

    /// Adds an operation that was recorded elsewhere, by one of several threads for example.
    pub fn push(&mut self, operation: Operation<W, R, A>) -> OpId {
        self.operations.push(operation);
        OpId(self.operations.len() - 1)
    }

    /// All operations; [`OpId`] is the place in it.
    pub fn operations(&self) -> &[Operation<W, R, A>] {
        &self.operations
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// True when nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    #[expect(clippy::panic, reason = "a test that records nonsense must fail where it does")]
    fn end(&mut self, op: OpId, outcome: Outcome<A>, time: u64) {
        let Some(operation) = self.operations.get_mut(op.0) else {
            panic!("{op} is no operation of this history");
        };
        assert!(operation.returned.is_none(), "{op} has ended before");
        assert!(operation.invoked <= time, "{op} ends at {time}, before it was invoked");
        operation.returned = Some(time);
        operation.outcome = outcome;
    }

    /// Why this cannot be the record of a run; histories that come from a file are not trusted.
    pub(crate) fn fault(&self, needs_index: bool) -> Option<String> {
        self.operations.iter().enumerate().find_map(|(n, op)| {
            let id = OpId(n);
            if op.returned.is_some_and(|returned| returned < op.invoked) {
                return Some(format!("{id} returned before it was invoked"));
            }
            if op.answer().is_some() && op.returned.is_none() {
                return Some(format!("{id} was answered but has no time of return"));
            }
            if needs_index && op.answer().is_some() && op.index().is_none() {
                return Some(format!(
                    "{id} was answered without an index; record it with ok_at, or with unknown \
                     when it was rejected and nobody told its index"
                ));
            }
            None
        })
    }
}
