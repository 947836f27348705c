//! Linearizable reads by ReadIndex (Raft thesis, section 6.4): many reads share one round.
//!
//! Invariants:
//! - every round has a context of its own that is never used again, retries included (H3);
//! - nothing is asked before a leader can answer (H4); a round that is not answered, or whose
//!   term or leader changed, is asked again;
//! - a read is served after everything up to its index has been *emitted* to the Store, whose
//!   queue is first-in, first-out (R15).

use std::collections::BTreeMap;

use super::context::ReadContext;
use super::event::{Freshness, Read};
use crate::types::{Index, RaftId};
use crate::zoo::{self, Bug};

/// Rounds in flight at most: each broadcasts a heartbeat.
const MAX_ROUNDS: usize = 4;

/// How many ticks an answer to a round is waited for: longer after each that did not come, and no
/// shorter than the last that came took, or a cluster across oceans would never see one.
#[derive(Debug)]
pub(super) struct RoundTimeout {
    least: u64,
    most: u64,
    ticks: u64,
}

impl RoundTimeout {
    fn new(least: u64, most: u64) -> Self {
        Self { least, most: most.max(least), ticks: least }
    }

    /// Whether an answer to what was asked then is late.
    pub(super) fn is_over(&self, asked: u64, now: u64) -> bool {
        asked.saturating_add(self.ticks) < now
    }

    pub(super) fn grow(&mut self) {
        self.ticks = self.most.min(2 * self.ticks);
    }

    pub(super) fn took(&mut self, ticks: u64) {
        self.ticks = (ticks + self.least).min(self.most);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) timeout: RoundTimeout,
    raft_id: RaftId,
    nonce: u64,
    counter: u64,
    queue: Vec<Read>,
    rounds: Vec<Round>,
    ready: BTreeMap<Index, Vec<Read>>,
}

#[derive(Debug)]
struct Round {
    counter: u64,
    asked: u64,
    reads: Vec<Read>,
}

impl Reads {
    /// `nonce` differs between the starts of a node; `timeout` of a round is the least and
    /// the most, in ticks.
    pub(super) fn new(raft_id: RaftId, nonce: u64, timeout: (u64, u64)) -> Self {
        Self {
            timeout: RoundTimeout::new(timeout.0, timeout.1),
            raft_id,
            nonce,
            counter: 0,
            queue: Vec::new(),
            rounds: Vec::new(),
            ready: BTreeMap::new(),
        }
    }

    /// What tells the contexts of this start from those of earlier ones.
    pub(super) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Takes a read in. Gives it back when it can be served at once.
    pub(super) fn push(&mut self, read: Read, emitted: Index) -> Option<Read> {
        match read.freshness {
            Freshness::Stale => return Some(read),
            Freshness::AtLeast(index) if index <= emitted || zoo::has(Bug::ReadTooEarly) => {
                return Some(read);
            }
            Freshness::AtLeast(index) => self.ready.entry(index).or_default().push(read),
            Freshness::Linearizable => self.queue.push(read),
        }
        None
    }

    /// The context of a new round with all queued reads; None when there are none, or enough
    /// rounds are in flight.
    pub(super) fn ask(&mut self, tick: u64) -> Option<ReadContext> {
        if self.queue.is_empty() || self.rounds.len() >= MAX_ROUNDS {
            return None;
        }
        let context = self.fresh_context();
        let reads = std::mem::take(&mut self.queue);
        self.rounds.push(Round { counter: context.counter, asked: tick, reads });
        Some(context)
    }

    /// The context of a round that is asked for something else than reads.
    pub(super) fn fresh_context(&mut self) -> ReadContext {
        if !zoo::has(Bug::ReadContextReused) {
            self.counter += 1;
        }
        ReadContext { raft_id: self.raft_id, nonce: self.nonce, counter: self.counter }
    }

    /// A round is answered: its reads are good at `index`.
    pub(super) fn answered(&mut self, context: &ReadContext, index: Index, tick: u64) {
        if (context.raft_id, context.nonce) != (self.raft_id, self.nonce) {
            return;
        }
        if let Some(i) = self.rounds.iter().position(|r| r.counter == context.counter) {
            let round = self.rounds.remove(i);
            self.timeout.took(tick.saturating_sub(round.asked));
            self.ready.entry(index).or_default().extend(round.reads);
        }
    }

    /// The reads that may be served now that everything up to `emitted` has been emitted.
    pub(super) fn take_ready(&mut self, emitted: Index) -> Vec<Read> {
        let mut out = Vec::new();
        while let Some(slot) = self.ready.first_entry().filter(|s| *s.key() <= emitted) {
            out.extend(slot.remove());
        }
        out
    }

    /// Rounds whose answer is late are asked again, with fresh contexts; whether there were any.
    pub(super) fn retry_late(&mut self, now: u64) -> bool {
        let timeout = &self.timeout;
        let (late, on_time) = self.rounds.drain(..).partition(|r| timeout.is_over(r.asked, now));
        self.rounds = on_time;
        self.ask_again(late)
    }

    /// Every round is asked again.
    pub(super) fn retry_all(&mut self) {
        let all = std::mem::take(&mut self.rounds);
        self.ask_again(all);
    }

    fn ask_again(&mut self, rounds: Vec<Round>) -> bool {
        let any = !rounds.is_empty();
        if zoo::has(Bug::ReadAskedOnce) {
            self.rounds.extend(rounds);
            return false;
        }
        self.queue.extend(rounds.into_iter().flat_map(|round| round.reads));
        any
    }

    /// Forgets those whose callers gave up.
    pub(super) fn sweep(&mut self) {
        let alive = |r: &Read| !r.reply.is_closed();
        self.queue.retain(alive);
        self.rounds.iter_mut().for_each(|round| round.reads.retain(alive));
        self.ready.retain(|_, reads| {
            reads.retain(alive);
            !reads.is_empty()
        });
    }

    /// Drops every read, which answers its caller.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.rounds.clear();
        self.ready.clear();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::reply::{Waiter, reply};

    fn read(freshness: Freshness) -> (Read, Waiter<super::super::event::Applied>) {
        let (r, w) = reply(None);
        (Read { query: None, freshness, reply: r }, w)
    }

    #[test]
    fn h3_every_attempt_has_a_fresh_context() {
        let mut reads = Reads::new(1, 7, (2, 10));
        let (r, _w) = read(Freshness::Linearizable);
        assert!(reads.push(r, 0).is_none());
        let first = reads.ask(0).unwrap();
        reads.retry_all();
        let second = reads.ask(1).unwrap();
        assert_ne!(first, second);
        reads.answered(&first, 3, 1);
        assert!(reads.take_ready(9).is_empty(), "the answer to a withdrawn round counts nothing");
        reads.answered(&second, 3, 1);
        assert!(reads.take_ready(2).is_empty());
        assert_eq!(reads.take_ready(3).len(), 1);
    }

    /// An answer that takes longer than anybody waits at first comes in time in the end, and those
    /// after it are waited for from the start.
    #[test]
    fn a_slow_answer_is_waited_for_longer() {
        let mut reads = Reads::new(1, 7, (2, 10));
        let takes = 7;
        let mut asked = Vec::new();
        let mut tick = 0;
        for needed in [3, 1] {
            let (r, _w) = read(Freshness::Linearizable);
            assert!(reads.push(r, 0).is_none());
            let mut tries = 0;
            while reads.take_ready(9).is_empty() {
                if let Some(context) = reads.ask(tick) {
                    asked.push((tick + takes, context));
                    tries += 1;
                }
                tick += 1;
                for (_, context) in asked.extract_if(.., |(at, _)| *at == tick) {
                    reads.answered(&context, 3, tick);
                }
                if reads.retry_late(tick) {
                    reads.timeout.grow();
                }
                assert!(tick < 100, "it never comes");
            }
            assert_eq!(tries, needed);
        }
        reads.timeout.took(0);
        assert_eq!(reads.timeout.ticks, 2, "and no longer than needed");
    }

    #[test]
    fn reads_share_a_round_and_rounds_are_bounded() {
        let mut reads = Reads::new(1, 7, (2, 10));
        let mut waiters = Vec::new();
        for round in 0..=MAX_ROUNDS {
            for _ in 0..10 {
                let (r, w) = read(Freshness::Linearizable);
                assert!(reads.push(r, 0).is_none());
                waiters.push(w);
            }
            assert_eq!(reads.ask(0).is_some(), round < MAX_ROUNDS);
        }
        let early = reads.push(read(Freshness::AtLeast(5)).0, 5);
        assert!(early.is_some());
    }
}
