//! The lives that a seed's Stores lead, each compared with the first.

use std::cell::Cell;
use std::rc::Rc;

use super::super::rng::Rng;
use super::super::text::{Answer, shown};
use super::super::watch::Calls;
use super::replica::{Fault, Progress, Replica, View};
use super::script::{Entry, Script, draw};
use super::{Broken, Law};
use crate::store::Store;
use crate::types::Index;

/// Points of the log at which snapshots are restored, per seed, beside the last.
const RESTORES: u64 = 3;

/// Checks a Store with every seed.
pub(super) fn run<S: Store>(
    mut open: impl FnMut(usize) -> S,
    durable: bool,
    mut command: impl FnMut(&mut Rng) -> Vec<u8>,
    mut query: impl FnMut(&mut Rng) -> Vec<u8>,
    seeds: impl IntoIterator<Item = u64>,
    calls: &Calls,
) -> Result<(), Broken> {
    // A clock that stands still unless the suite moves it: what sleeps costs no time, and a seed
    // means the same on every machine.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let total = |seed, detail| Broken { law: Law::Total, seed, step: 0, detail };
    let runtime = runtime.map_err(|e| total(0, format!("no runtime could be made: {e}")))?;
    let mut opened = 0;
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let script = {
            let _under = calls.enter((seed, 0), "drawing commands and queries", []);
            draw::<S>(&mut rng, seed, &mut command, &mut query)?
        };
        let progress = Rc::new(Progress { calls: calls.clone(), seed, step: Cell::new(0) });
        let open = &mut open;
        let mut suite = Suite { open, durable, opened, script, rng, progress };
        let done = runtime.block_on(suite.all());
        opened = suite.opened;
        let step = suite.progress.step.get();
        done.map_err(|(law, detail)| Broken { law, seed, step, detail })?;
    }
    Ok(())
}

/// The first life: what every other is compared with.
struct Trace {
    empty: View,
    /// Per entry.
    answers: Vec<Vec<Answer>>,
    /// Behind each entry.
    views: Vec<View>,
}

impl Trace {
    /// The state behind so many entries.
    fn view(&self, entries: usize) -> &View {
        entries.checked_sub(1).and_then(|n| self.views.get(n)).unwrap_or(&self.empty)
    }

    fn answers(&self, from: usize, to: usize) -> Vec<Answer> {
        self.answers.iter().take(to).skip(from).flatten().cloned().collect()
    }
}

struct Suite<'a, F> {
    open: &'a mut F,
    durable: bool,
    /// Replicas so far.
    opened: usize,
    script: Script,
    rng: Rng,
    progress: Rc<Progress>,
}

/// The first of two lists of answers that differ, by number: found, instead of expected.
fn difference(expected: &[Answer], found: &[Answer]) -> Option<(usize, String)> {
    let longest = expected.len().max(found.len());
    let at = (0..longest).find(|&n| expected.get(n) != found.get(n))?;
    let (expected, found) = match (expected.get(at), found.get(at)) {
        (Some(expected), Some(found)) => expected.pair(found),
        (expected, found) => {
            let shown =
                |a: Option<&Answer>| a.map_or_else(|| "nothing".to_owned(), Answer::to_string);
            (shown(expected), shown(found))
        }
    };
    Some((at, format!("gives {found} instead of {expected}")))
}

impl<S: Store, F: FnMut(usize) -> S> Suite<'_, F> {
    async fn all(&mut self) -> Result<(), Fault> {
        let trace = self.first_life().await?;
        self.twin(&trace).await?;
        self.left_alone(&trace).await?;
        self.asked_much(&trace).await?;
        self.in_batches(&trace).await?;
        let snapshots = self.snapshots(&trace).await?;
        let last = self.script.entries.len();
        for n in 0..=RESTORES {
            let cut = match n {
                RESTORES => last,
                _ => self.rng.below(last as u64 + 1) as usize,
            };
            let Some(snapshot) = snapshots.get(cut) else { continue };
            self.restored(&trace, snapshot, cut).await?;
            self.replaced(&trace, snapshot, cut).await?;
        }
        match self.durable {
            true => self.crashes_durable(&trace).await,
            false => self.crashes_in_memory(&trace, &snapshots).await,
        }
    }

    fn fresh(&mut self) -> Result<Replica<S>, Fault> {
        self.opened += 1;
        self.at(0);
        self.open_store(0, 0)
    }

    fn open_store(&mut self, claimed: Index, given: Index) -> Result<Replica<S>, Fault> {
        let Self { opened, progress, .. } = self;
        let place = (progress.seed, progress.step.get() as u64);
        let store = {
            let _under = progress.calls.enter(place, "the closure that makes the store", []);
            (self.open)(*opened)
        };
        Replica::new(store, self.durable, claimed, given, progress, *opened)
    }

    /// So many entries are applied.
    fn at(&self, step: usize) {
        self.progress.step.set(step);
    }

    fn step(&self) -> usize {
        self.progress.step.get()
    }

    /// The answers to the queries are these.
    fn same_view(&self, law: Law, expected: &[Answer], found: &[Answer]) -> Result<(), Fault> {
        let Some((at, text)) = difference(expected, found) else { return Ok(()) };
        let query = self.script.queries.get(at).map_or_else(String::new, |q| shown(q));
        Err((law, format!("the query {query} {text}")))
    }

    /// The answers to the entries from here to there are those of the first life.
    fn same_answers(
        &self,
        law: Law,
        trace: &Trace,
        (from, to): (usize, usize),
        found: &[Answer],
    ) -> Result<(), Fault> {
        let Some((at, text)) = difference(&trace.answers(from, to), found) else { return Ok(()) };
        let command = self.slice(from, to).iter().flat_map(Entry::committed).nth(at);
        let command =
            command.map_or_else(String::new, |c| format!("{} at {}", shown(c.data), c.index));
        Err((law, format!("the command {command} {text}")))
    }

    /// The index that a state behind so many entries has.
    fn index(&self, entries: usize) -> Index {
        let entry = entries.checked_sub(1).and_then(|n| self.script.entries.get(n));
        entry.map_or(0, |entry| entry.index)
    }

    fn slice(&self, from: usize, to: usize) -> &[Entry] {
        self.script.entries.get(from..to).unwrap_or_default()
    }

    async fn first_life(&mut self) -> Result<Trace, Fault> {
        let mut store = self.fresh()?;
        let empty = store.view(&self.script.queries).await?;
        let mut trace = Trace { empty, answers: Vec::new(), views: Vec::new() };
        for (n, entry) in self.script.entries.iter().enumerate() {
            self.at(n + 1);
            trace.answers.push(store.one_by_one(entry).await?);
            trace.views.push(store.view(&self.script.queries).await?);
        }
        Ok(trace)
    }

    /// Leads the very same life again.
    async fn twin(&mut self, trace: &Trace) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        let empty = store.view(&self.script.queries).await?;
        self.same_view(Law::StartsEmpty, &trace.empty, &empty)?;
        for (n, entry) in self.script.entries.iter().enumerate() {
            self.at(n + 1);
            let answers = store.one_by_one(entry).await?;
            self.same_answers(Law::Deterministic, trace, (n, n + 1), &answers)?;
            let view = store.view(&self.script.queries).await?;
            self.same_view(Law::Deterministic, trace.view(n + 1), &view)?;
        }
        Ok(())
    }

    /// Is asked nothing before the end.
    async fn left_alone(&mut self, trace: &Trace) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        for (n, entry) in self.script.entries.iter().enumerate() {
            self.at(n + 1);
            let answers = store.one_by_one(entry).await?;
            self.same_answers(Law::QueryIsPure, trace, (n, n + 1), &answers)?;
        }
        let view = store.view(&self.script.queries).await?;
        self.same_view(Law::QueryIsPure, trace.view(self.step()), &view)
    }

    /// Is asked again, and everything at once.
    async fn asked_much(&mut self, trace: &Trace) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        let queries = &self.script.queries;
        for (n, entry) in self.script.entries.iter().enumerate() {
            self.at(n + 1);
            let answers = store.one_by_one(entry).await?;
            self.same_answers(Law::QueryIsPure, trace, (n, n + 1), &answers)?;
            for _ in 0..2 {
                let view = store.view(queries).await?;
                self.same_view(Law::QueryIsPure, trace.view(n + 1), &view)?;
            }
            let view = store.view_together(queries).await?;
            self.same_view(Law::QueriesRunTogether, trace.view(n + 1), &view)?;
        }
        Ok(())
    }

    /// Takes entries by the batch, however the log is split.
    async fn in_batches(&mut self, trace: &Trace) -> Result<(), Fault> {
        for longest in [1, 5, self.script.entries.len() as u64] {
            let mut store = self.fresh()?;
            while self.step() < self.script.entries.len() {
                let from = self.step();
                let to = from + 1 + self.rng.below(longest) as usize;
                self.at(to.min(self.script.entries.len()));
                let answers = store.batch(self.slice(from, self.step())).await?;
                self.same_answers(Law::BatchIsOneByOne, trace, (from, self.step()), &answers)?;
                let view = store.view(&self.script.queries).await?;
                self.same_view(Law::BatchIsOneByOne, trace.view(self.step()), &view)?;
            }
        }
        Ok(())
    }

    /// Takes a snapshot behind every entry, and one of nothing; gives them.
    async fn snapshots(&mut self, trace: &Trace) -> Result<Vec<Vec<u8>>, Fault> {
        let mut store = self.fresh()?;
        let mut snapshots = vec![store.snapshot().await?];
        for (n, entry) in self.script.entries.iter().enumerate() {
            self.at(n + 1);
            let answers = store.one_by_one(entry).await?;
            self.same_answers(Law::SnapshotIsPure, trace, (n, n + 1), &answers)?;
            snapshots.push(store.snapshot().await?);
            let view = store.view(&self.script.queries).await?;
            self.same_view(Law::SnapshotIsPure, trace.view(n + 1), &view)?;
        }
        Ok(snapshots)
    }

    /// A fresh Store takes a snapshot, gives one to another, and both go on.
    async fn restored(&mut self, trace: &Trace, snapshot: &[u8], cut: usize) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        self.at(cut);
        store.restore(snapshot, self.index(cut)).await?;
        let view = store.view(&self.script.queries).await?;
        self.same_view(Law::RestoreIsExact, trace.view(cut), &view)?;
        let again = store.snapshot().await?;
        let mut second = self.fresh()?;
        self.at(cut);
        second.restore(&again, self.index(cut)).await?;
        let view = second.view(&self.script.queries).await?;
        self.same_view(Law::SnapshotAgain, trace.view(cut), &view)?;
        self.go_on(trace, &mut store, cut, Law::RestoredGoesOn).await?;
        self.go_on(trace, &mut second, cut, Law::SnapshotAgain).await
    }

    /// A Store with another history takes a snapshot.
    async fn replaced(&mut self, trace: &Trace, snapshot: &[u8], cut: usize) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        let index = self.index(cut);
        for entry in self.script.others.iter().filter(|entry| entry.index < index || !self.durable)
        {
            store.one_by_one(entry).await?;
        }
        self.at(cut);
        store.restore(snapshot, index).await?;
        let view = store.view(&self.script.queries).await?;
        self.same_view(Law::RestoreReplaces, trace.view(cut), &view)?;
        if self.durable {
            // The disk holds it as well, or says that it does not.
            store = self.crash(store, index)?;
            if store.claimed < index {
                store.restore(snapshot, index).await?;
            }
            let view = store.view(&self.script.queries).await?;
            self.same_view(Law::CrashRecovers, trace.view(cut), &view)?;
        }
        self.go_on(trace, &mut store, cut, Law::RestoreReplaces).await
    }

    /// Applies the rest.
    async fn go_on(
        &mut self,
        trace: &Trace,
        store: &mut Replica<S>,
        cut: usize,
        law: Law,
    ) -> Result<(), Fault> {
        let last = self.script.entries.len();
        for n in cut..last {
            self.at(n + 1);
            let answers = store.batch(self.slice(n, n + 1)).await?;
            self.same_answers(law, trace, (n, n + 1), &answers)?;
        }
        self.at(last);
        let view = store.view(&self.script.queries).await?;
        self.same_view(law, trace.view(last), &view)
    }

    /// Crashes behind random calls, and comes back from the newest snapshot and the log.
    async fn crashes_in_memory(
        &mut self,
        trace: &Trace,
        snapshots: &[Vec<u8>],
    ) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        let mut kept: Option<usize> = None;
        for n in 0..self.script.entries.len() {
            let answers = store.batch(self.slice(n, n + 1)).await?;
            self.at(n + 1);
            self.same_answers(Law::CrashRecovers, trace, (n, n + 1), &answers)?;
            if self.rng.one_in(3) {
                kept = Some(n + 1);
            }
            if self.rng.one_in(3) {
                continue;
            }
            drop(store);
            store = self.fresh()?;
            let from = kept.unwrap_or(0);
            if let Some(snapshot) = kept.and_then(|n| snapshots.get(n)) {
                store.restore(snapshot, self.index(from)).await?;
            }
            self.at(n + 1);
            let answers = store.batch(self.slice(from, n + 1)).await?;
            self.same_answers(Law::CrashRecovers, trace, (from, n + 1), &answers)?;
            let view = store.view(&self.script.queries).await?;
            self.same_view(Law::CrashRecovers, trace.view(n + 1), &view)?;
        }
        Ok(())
    }

    /// Drops a durable Store and opens its disk again.
    fn crash(&mut self, store: Replica<S>, given: Index) -> Result<Replica<S>, Fault> {
        let claimed = store.claimed;
        drop(store);
        self.open_store(claimed, given)
    }

    /// Crashes behind every call, and takes the log above what it says it holds.
    async fn crashes_durable(&mut self, trace: &Trace) -> Result<(), Fault> {
        let mut store = self.fresh()?;
        store = self.crash(store, 0)?;
        let mut held = 0;
        while self.step() < self.script.entries.len() {
            let to = self.step() + 1 + self.rng.below(3) as usize;
            self.at(to.min(self.script.entries.len()));
            let given = self.index(self.step());
            let answers = store.batch(self.slice(held, self.step())).await?;
            self.same_answers(Law::CrashRecovers, trace, (held, self.step()), &answers)?;
            store = self.crash(store, given)?;
            let entries = &self.script.entries;
            held = entries.partition_point(|entry| entry.index <= store.claimed);
            let view = store.view(&self.script.queries).await?;
            self.same_view(Law::CrashRecovers, trace.view(held), &view)?;
        }
        store.batch(self.slice(held, self.step())).await?;
        let view = store.view(&self.script.queries).await?;
        self.same_view(Law::CrashRecovers, trace.view(self.step()), &view)?;
        if store.store.applied().is_none() {
            let text = "applied is None: this store is not durable, use check".to_owned();
            return Err((Law::AppliedIsTrue, text));
        }
        Ok(())
    }
}
