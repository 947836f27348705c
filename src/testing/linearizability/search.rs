//! The search for an order that explains every answer (Wing and Gong 1993, Lowe 2017): depth
//! first over the operations that nothing must precede, remembering every pair of (operations
//! taken, state) that led nowhere.
//!
//! Invariants:
//! - an operation is taken only when every operation that ended before it began was taken;
//! - an operation without an end may be taken at any time behind its beginning, or never;
//! - a read that agrees is taken at once and never taken back: whatever order exists without it
//!   there, exists with it there. NB: not so a write that changes nothing there; it may be needed
//!   later, where it does;
//! - an operation without an end that changes nothing is not taken: it may as well never happen.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;

use super::history::OpId;
use super::{Call, Model};

/// An instant: compared lexically. The first number is 0, or a place in the log.
pub(super) type Instant = (u64, u64);
/// Different answers of the model that are kept for people.
const ANSWERS_KEPT: usize = 5;

/// An operation to be ordered.
pub(super) struct Task<'a, M: Model> {
    pub(super) op: OpId,
    pub(super) call: &'a Call<M::Write, M::Read>,
    /// None: any answer will do.
    pub(super) answer: Option<&'a M::Answer>,
    pub(super) begin: Instant,
    /// None: it may be ordered anywhere behind its beginning, or nowhere.
    pub(super) end: Option<Instant>,
}

impl<M: Model> Clone for Task<'_, M> {
    fn clone(&self) -> Self {
        Self { op: self.op, call: self.call, answer: self.answer, ..*self }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Order,
    /// None exists; what the model answered to the watched operation instead.
    NoOrder(BTreeSet<String>),
    GaveUp(u64),
}

/// Where a configuration stands in trying its candidates.
#[derive(Clone, Copy)]
enum Cursor {
    /// Reads that agree come first.
    Fresh,
    /// Writes that must be ordered; a node of the list.
    Due(usize),
    /// Writes that may be ordered.
    Open(usize),
}

/// The operations that were taken, as they are remembered: all due ones below a mark, and bits
/// for those above it and for the open ones.
#[derive(PartialEq, Eq, Hash)]
struct Taken<S> {
    below: usize,
    above: Box<[u64]>,
    open: Box<[u64]>,
    state: S,
}

struct Frame<S> {
    state: S,
    cursor: Cursor,
    /// Taking it was no choice, so there is no other one.
    forced: bool,
    highest: usize,
}

struct Search<'a, 's, M: Model> {
    model: &'s M,
    due: Vec<&'s Task<'a, M>>,
    open: Vec<&'s Task<'a, M>>,
    /// A list of beginnings and ends in order; node 0 is its head, and follows the last.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each node: the due task, and whether it is its beginning.
    nodes: Vec<(usize, bool)>,
    /// Of each due task: the nodes of its beginning and its end.
    ends: Vec<(usize, usize)>,
    taken: Vec<u64>,
    taken_open: Vec<u64>,
    lowest_left: usize,
    highest: usize,
    left: usize,
    tried: HashSet<Taken<M::State>>,
    steps: u64,
    watched: Option<OpId>,
    answers: BTreeSet<String>,
}

/// A state, and the tasks without an end that took effect on the way to it.
pub(super) struct Reached<S> {
    pub(super) state: S,
    pub(super) open: Vec<OpId>,
}

/// Searches an order for the tasks, at most so many steps.
pub(super) fn search<M: Model>(model: &M, tasks: &[Task<'_, M>], steps: u64) -> Found {
    search_from(model, model.initial(), tasks, steps, None)
}

/// As [`search`], from another state; keeps what the watched operation could have answered.
pub(super) fn search_from<M: Model>(
    model: &M,
    start: M::State,
    tasks: &[Task<'_, M>],
    steps: u64,
    watched: Option<OpId>,
) -> Found {
    Search::new(model, tasks, watched).run(start, steps, |_, _| true)
}

/// Every state that an order of the tasks can end in; None when there are more than so many, or
/// when it takes too many steps.
pub(super) fn all_ends<M: Model>(
    model: &M,
    tasks: &[Task<'_, M>],
    steps: u64,
    most: usize,
) -> Option<Vec<Reached<M::State>>> {
    let mut ends = Vec::new();
    let found = Search::new(model, tasks, None).run(model.initial(), steps, |search, state| {
        let open = search.open.iter().enumerate().filter(|(n, _)| is_set(&search.taken_open, *n));
        let open = open.map(|(_, task)| task.op).collect();
        ends.push(Reached { state: state.clone(), open });
        ends.len() > most
    });
    match found {
        Found::NoOrder(_) => Some(ends),
        Found::Order | Found::GaveUp(_) => None,
    }
}

fn is_set(bits: &[u64], n: usize) -> bool {
    bits.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
}

impl<'a, 's, M: Model> Search<'a, 's, M> {
    fn new(model: &'s M, tasks: &'s [Task<'a, M>], watched: Option<OpId>) -> Self {
        let (mut due, mut open): (Vec<_>, Vec<_>) = tasks.iter().partition(|t| t.end.is_some());
        open.retain(|task| matches!(task.call, Call::Write(_)));
        due.sort_by_key(|task| (task.begin, task.op));
        open.sort_by_key(|task| (task.begin, task.op));
        // Beginnings sort before ends of the same instant: those two operations are concurrent.
        let mut events: Vec<(Instant, bool, usize)> = Vec::with_capacity(due.len() * 2);
        for (n, task) in due.iter().enumerate() {
            events.push((task.begin, false, n));
            events.push((task.end.unwrap_or(task.begin), true, n));
        }
        events.sort_unstable();
        let count = events.len() + 1;
        let mut nodes = vec![(0, false)];
        let mut ends = vec![(0, 0); due.len()];
        for (node, (_, is_end, task)) in (1..).zip(events) {
            nodes.push((task, !is_end));
            match is_end {
                false => ends[task].0 = node,
                true => ends[task].1 = node,
            }
        }
        Self {
            model,
            next: (0..count).map(|n| (n + 1) % count).collect(),
            previous: (0..count).map(|n| (n + count - 1) % count).collect(),
            nodes,
            ends,
            taken: vec![0; due.len().div_ceil(64)],
            taken_open: vec![0; open.len().div_ceil(64)],
            lowest_left: 0,
            highest: 0,
            left: due.len(),
            tried: HashSet::new(),
            steps: 0,
            watched,
            answers: BTreeSet::new(),
            due,
            open,
        }
    }

    /// Runs until an order is found at which `enough` says so.
    fn run(
        &mut self,
        start: M::State,
        limit: u64,
        mut enough: impl FnMut(&Self, &M::State) -> bool,
    ) -> Found {
        let mut stack: Vec<Frame<M::State>> = Vec::new();
        let mut state = start;
        let mut cursor = Cursor::Fresh;
        loop {
            if self.left == 0 {
                if enough(self, &state) {
                    return Found::Order;
                }
            } else if self.steps > limit {
                return Found::GaveUp(self.steps);
            } else {
                let highest = self.highest;
                if let Some((taken, after, forced)) = self.advance(cursor, &state) {
                    let before = std::mem::replace(&mut state, after);
                    stack.push(Frame { state: before, cursor: taken, forced, highest });
                    cursor = Cursor::Fresh;
                    continue;
                }
            }
            loop {
                let Some(frame) = stack.pop() else {
                    return Found::NoOrder(std::mem::take(&mut self.answers));
                };
                self.give_back(frame.cursor);
                self.highest = frame.highest;
                if !frame.forced {
                    state = frame.state;
                    cursor = self.behind(frame.cursor);
                    break;
                }
            }
        }
    }

    fn behind(&self, cursor: Cursor) -> Cursor {
        match cursor {
            Cursor::Fresh => Cursor::Due(self.next[0]),
            Cursor::Due(node) => Cursor::Due(self.next[node]),
            Cursor::Open(n) => Cursor::Open(n + 1),
        }
    }

    /// Takes the next candidate from the cursor on; gives the state behind it, and whether taking
    /// it was no choice.
    fn advance(&mut self, cursor: Cursor, state: &M::State) -> Option<(Cursor, M::State, bool)> {
        let (mut node, mut open) = (self.next[0], 0);
        match cursor {
            Cursor::Fresh => {
                if let Some(read) = self.agreeing_read(state) {
                    self.take(Cursor::Due(read));
                    return Some((Cursor::Due(read), state.clone(), true));
                }
            }
            Cursor::Due(from) => node = from,
            Cursor::Open(from) => (node, open) = (self.first_end(), from),
        }
        while self.nodes[node].1 {
            if let Some(after) = self.try_due(node, state) {
                return Some((Cursor::Due(node), after, false));
            }
            node = self.next[node];
        }
        let until = self.due[self.nodes[self.first_end()].0].end;
        while self.open.get(open).is_some_and(|task| Some(task.begin) <= until) {
            if let Some(after) = self.try_open(open, state) {
                return Some((Cursor::Open(open), after, false));
            }
            open += 1;
        }
        None
    }

    /// The first end in the list: nothing that begins behind it may be taken yet.
    fn first_end(&self) -> usize {
        let mut node = self.next[0];
        while self.nodes[node].1 {
            node = self.next[node];
        }
        node
    }

    fn agreeing_read(&mut self, state: &M::State) -> Option<usize> {
        let mut node = self.next[0];
        while self.nodes[node].1 {
            let task = self.due[self.nodes[node].0];
            if let Call::Read(read) = task.call {
                self.steps += 1;
                let answer = self.model.query(state, read);
                if self.agrees(task, &answer) {
                    return Some(node);
                }
            }
            node = self.next[node];
        }
        None
    }

    fn try_due(&mut self, node: usize, state: &M::State) -> Option<M::State> {
        let task = self.due[self.nodes[node].0];
        let Call::Write(write) = task.call else { return None };
        self.steps += 1;
        let mut after = state.clone();
        let answer = self.model.apply(&mut after, write);
        if !self.agrees(task, &answer) {
            return None;
        }
        self.take(Cursor::Due(node));
        if self.is_new(&after) {
            return Some(after);
        }
        self.give_back(Cursor::Due(node));
        None
    }

    fn try_open(&mut self, n: usize, state: &M::State) -> Option<M::State> {
        let Call::Write(write) = self.open[n].call else { return None };
        if is_set(&self.taken_open, n) {
            return None;
        }
        self.steps += 1;
        let mut after = state.clone();
        self.model.apply(&mut after, write);
        if after == *state {
            return None;
        }
        self.take(Cursor::Open(n));
        if self.is_new(&after) {
            return Some(after);
        }
        self.give_back(Cursor::Open(n));
        None
    }

    fn agrees(&mut self, task: &Task<'a, M>, answer: &M::Answer) -> bool {
        let agrees = task.answer.is_none_or(|seen| self.model.agrees(seen, answer));
        if !agrees && self.watched == Some(task.op) && self.answers.len() < ANSWERS_KEPT {
            self.answers.insert(format!("{answer:?}"));
        }
        agrees
    }

    /// Remembers what is taken now, with this state; false when it was here before.
    fn is_new(&mut self, state: &M::State) -> bool {
        let words = self.lowest_left / 64..(self.highest / 64 + 1).min(self.taken.len());
        let mut above = self.taken.get(words).unwrap_or_default();
        while let Some((0, rest)) = above.split_last() {
            above = rest;
        }
        self.tried.insert(Taken {
            below: self.lowest_left,
            above: above.into(),
            open: self.taken_open.clone().into(),
            state: state.clone(),
        })
    }

    fn take(&mut self, cursor: Cursor) {
        match cursor {
            Cursor::Fresh => {}
            Cursor::Open(n) => self.taken_open[n / 64] |= 1 << (n % 64),
            Cursor::Due(node) => {
                let task = self.nodes[node].0;
                self.taken[task / 64] |= 1 << (task % 64);
                self.highest = self.highest.max(task);
                self.left -= 1;
                while is_set(&self.taken, self.lowest_left) {
                    self.lowest_left += 1;
                }
                let (begin, end) = self.ends[task];
                for node in [begin, end] {
                    let (previous, next) = (self.previous[node], self.next[node]);
                    self.next[previous] = next;
                    self.previous[next] = previous;
                }
            }
        }
    }

    /// Undoes the latest [`Self::take`].
    fn give_back(&mut self, cursor: Cursor) {
        match cursor {
            Cursor::Fresh => {}
            Cursor::Open(n) => self.taken_open[n / 64] &= !(1 << (n % 64)),
            Cursor::Due(node) => {
                let task = self.nodes[node].0;
                self.taken[task / 64] &= !(1 << (task % 64));
                self.left += 1;
                self.lowest_left = self.lowest_left.min(task);
                let (begin, end) = self.ends[task];
                for node in [end, begin] {
                    let (previous, next) = (self.previous[node], self.next[node]);
                    self.next[previous] = node;
                    self.previous[next] = node;
                }
            }
        }
    }
}
