//! One Store under test: every call contained, every answer made comparable.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;

use super::super::contain::{contained_future, last_place};
use super::super::text::{Answer, shown, shown_all};
use super::super::watch::Calls;
use super::Law;
use super::script::Entry;
use crate::store::{Committed, Store};
use crate::types::Index;

/// A law that was broken, before it is known where.
pub(super) type Fault = (Law, String);

/// How far a seed has come, and where its calls are told of.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) calls: Calls,
    pub(super) seed: u64,
    /// Entries applied in the life at hand.
    pub(super) step: Cell<usize>,
}

/// The answers to all queries: the state, as clients see it.
pub(super) type View = Vec<Answer>;

/// A Store, and whether `applied` is to be believed.
pub(super) struct Replica<S> {
    pub(super) store: S,
    pub(super) durable: bool,
    /// What `applied` said last.
    pub(super) claimed: Index,
    progress: Rc<Progress>,
    /// What its clock goes on before each call, differently on each replica.
    pace: Duration,
}

impl<S: Store> Replica<S> {
    /// A Store as it was just made or opened; `claimed` is what it said before.
    pub(super) fn new(
        store: S,
        durable: bool,
        claimed: Index,
        given: Index,
        progress: &Rc<Progress>,
        number: usize,
    ) -> Result<Self, Fault> {
        let pace = Duration::from_micros(number as u64 * 1700);
        let mut replica = Self { store, durable, claimed, progress: progress.clone(), pace };
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
        let commands = || batch.iter().map(|c| c.data);
        let call = self.store.apply_batch(&batch);
        let answers = contained(&self.progress, self.pace, "apply_batch", commands(), call).await?;
        let (given, asked) = (answers.len(), batch.len());
        let answers: Vec<Answer> = answers.iter().map(Answer::from).collect();
        for (answer, c) in answers.iter().zip(&batch) {
            judged(answer, c.data)?;
        }
        if given != asked {
            let batch = shown_all(commands());
            let text = format!("apply_batch gave {given} answers to {asked} commands: {batch}");
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
            let call = self.store.apply(command);
            let answer =
                contained(&self.progress, self.pace, "apply", [command.as_slice()], call).await?;
            let answer = Answer::from(&answer);
            judged(&answer, command)?;
            answers.push(answer);
        }
        Ok(answers)
    }

    /// The answers to the queries, one after the other.
    pub(super) async fn view(&self, queries: &[Vec<u8>]) -> Result<View, Fault> {
        let mut view = Vec::with_capacity(queries.len());
        for query in queries {
            let call = self.store.query(query);
            let answer =
                contained(&self.progress, self.pace, "query", [query.as_slice()], call).await?;
            view.push(Answer::from(&answer));
        }
        Ok(view)
    }

    /// The answers to the queries, asked at the same time.
    pub(super) async fn view_together(&self, queries: &[Vec<u8>]) -> Result<View, Fault> {
        let calls = join_all(queries.iter().map(|query| self.store.query(query)));
        let all = queries.iter().map(Vec::as_slice);
        let name = "query (several at once)";
        let answers = contained(&self.progress, self.pace, name, all, calls).await?;
        Ok(answers.iter().map(Answer::from).collect())
    }

    pub(super) async fn snapshot(&self) -> Result<Vec<u8>, Fault> {
        let call = self.store.snapshot();
        let snapshot = contained(&self.progress, self.pace, "snapshot", [], call).await?;
        snapshot.map_err(|e| (Law::Total, format!("snapshot failed: {e}")))
    }

    /// Restores a snapshot that was taken at an index.
    pub(super) async fn restore(&mut self, snapshot: &[u8], index: Index) -> Result<(), Fault> {
        let call = self.store.restore(snapshot);
        let restored = contained(&self.progress, self.pace, "restore", [snapshot], call).await?;
        restored
            .map_err(|e| (Law::Total, format!("restore of {} failed: {e}", shown(snapshot))))?;
        self.watch_applied(index)
    }
}

/// Makes a call: watched, its panic caught, the clock a little later than at the one before.
async fn contained<'a, T>(
    progress: &Progress,
    pace: Duration,
    name: &'static str,
    arguments: impl IntoIterator<Item = &'a [u8]> + Clone,
    call: impl Future<Output = T>,
) -> Result<T, Fault> {
    tokio::time::advance(pace).await;
    let place = (progress.seed, progress.step.get() as u64);
    let _under = progress.calls.enter(place, name, arguments.clone());
    contained_future(call).await.map_err(|panicked| {
        let of = shown_all(arguments);
        let of = if of.is_empty() { of } else { format!(" of {of}") };
        (Law::Total, format!("{name}{of} panicked: {panicked}"))
    })
}

/// A rejection is an answer, any other error would stop the node.
fn judged(answer: &Answer, command: &[u8]) -> Result<(), Fault> {
    let Answer::Failed(reason) = answer else { return Ok(()) };
    // The default `apply_batch` has caught it.
    let place = last_place().map(|place| format!(" (at {place})")).unwrap_or_default();
    let command = shown(command);
    Err((Law::Total, format!("the command {command} makes the store fail: {reason}{place}")))
}
