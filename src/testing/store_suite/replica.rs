//! One Store under test: every call contained, every answer made comparable.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::join_all;

use super::Law;
use super::script::Entry;
use crate::error::Error;
use crate::store::{Committed, Store, panic_text};
use crate::types::Index;

/// A law that was broken, before it is known where.
pub(super) type Fault = (Law, String);

/// An answer, comparable.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Ok(Vec<u8>),
    Rejected(String),
    /// Of a query only.
    Failed(String),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Rejected(reason) => write!(f, "rejected: {reason}"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

impl From<Result<Vec<u8>, Error>> for Answer {
    fn from(answer: Result<Vec<u8>, Error>) -> Self {
        match answer {
            Ok(bytes) => Self::Ok(bytes),
            Err(Error::Rejected(reason)) => Self::Rejected(reason),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// The answers to all queries: the state, as clients see it.
pub(super) type View = Vec<Answer>;

/// A Store, and whether `applied` is to be believed.
pub(super) struct Replica<S> {
    pub(super) store: S,
    pub(super) durable: bool,
    /// What `applied` said last.
    pub(super) claimed: Index,
}

async fn contained<T>(what: &str, call: impl Future<Output = T>) -> Result<T, Fault> {
    let result = AssertUnwindSafe(call).catch_unwind().await;
    result.map_err(|panic| (Law::Total, format!("{what} panicked: {}", panic_text(&*panic))))
}

impl<S: Store> Replica<S> {
    /// A Store as it was just made or opened; `claimed` is what it said before.
    pub(super) fn new(
        store: S,
        durable: bool,
        claimed: Index,
        given: Index,
    ) -> Result<Self, Fault> {
        let mut replica = Self { store, durable, claimed };
        replica.watch_applied(given)?;
        Ok(replica)
    }

    /// `applied` never falls, and never is above what the Store was given.
    fn watch_applied(&mut self, given: Index) -> Result<(), Fault> {
        let applied = match (self.store.applied(), self.durable) {
            (None, false) => return Ok(()),
            (Some(_), false) => {
                let text = "applied is Some: this store is durable, use check_durable".to_owned();
                return Err((Law::AppliedIsTrue, text));
            }
            (applied, true) => applied.unwrap_or(0),
        };
        if applied < self.claimed {
            let text = format!("applied was {}, and then {applied}", self.claimed);
            return Err((Law::AppliedIsTrue, text));
        }
        if applied > given {
            let text = format!("applied is {applied}, but the store was given {given} at most");
            return Err((Law::AppliedIsTrue, text));
        }
        self.claimed = applied;
        Ok(())
    }

    /// Applies whole entries by one call of `apply_batch`.
    pub(super) async fn batch(&mut self, entries: &[Entry]) -> Result<Vec<Answer>, Fault> {
        let batch: Vec<Committed<'_>> = entries.iter().flat_map(Entry::committed).collect();
        let Some(last) = batch.last().map(|c| c.index) else { return Ok(Vec::new()) };
        let answers = contained("apply_batch", self.store.apply_batch(&batch)).await?;
        let (given, asked) = (answers.len(), batch.len());
        let answers = answers.into_iter().map(applied_answer).collect::<Result<Vec<_>, _>>()?;
        if given != asked {
            let text = format!("apply_batch gave {given} answers to {asked} commands");
            return Err((Law::BatchIsOneByOne, text));
        }
        self.watch_applied(last)?;
        Ok(answers)
    }

    /// Applies an entry command by command, as far as the Store can: one that is durable learns
    /// indices from batches only.
    pub(super) async fn one_by_one(&mut self, entry: &Entry) -> Result<Vec<Answer>, Fault> {
        if self.durable {
            return self.batch(std::slice::from_ref(entry)).await;
        }
        let mut answers = Vec::with_capacity(entry.commands.len());
        for command in &entry.commands {
            let answer = contained("apply", self.store.apply(command)).await?;
            answers.push(applied_answer(answer)?);
        }
        Ok(answers)
    }

    /// The answers to the queries, one after the other.
    pub(super) async fn view(&self, queries: &[Vec<u8>]) -> Result<View, Fault> {
        let mut view = Vec::with_capacity(queries.len());
        for query in queries {
            view.push(contained("query", self.store.query(query)).await?.into());
        }
        Ok(view)
    }

    /// The answers to the queries, asked at the same time.
    pub(super) async fn view_together(&self, queries: &[Vec<u8>]) -> Result<View, Fault> {
        let calls = queries.iter().map(|query| self.store.query(query));
        let answers = contained("query", join_all(calls)).await?;
        Ok(answers.into_iter().map(Answer::from).collect())
    }

    pub(super) async fn snapshot(&self) -> Result<Vec<u8>, Fault> {
        let snapshot = contained("snapshot", self.store.snapshot()).await?;
        snapshot.map_err(|e| (Law::Total, format!("snapshot failed: {e}")))
    }

    /// Restores a snapshot that was taken at an index.
    pub(super) async fn restore(&mut self, snapshot: &[u8], index: Index) -> Result<(), Fault> {
        let restored = contained("restore", self.store.restore(snapshot)).await?;
        restored.map_err(|e| (Law::Total, format!("restore failed: {e}")))?;
        self.watch_applied(index)
    }
}

/// A rejection is an answer, any other error would stop the node.
fn applied_answer(answer: Result<Vec<u8>, Error>) -> Result<Answer, Fault> {
    match Answer::from(answer) {
        Answer::Failed(reason) => Err((Law::Total, format!("a command failed: {reason}"))),
        answer @ (Answer::Ok(_) | Answer::Rejected(_)) => Ok(answer),
    }
}
