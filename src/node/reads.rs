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

/// See the module.
#[derive(Debug)]
pub(super) struct Reads {
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
    /// `nonce` differs between the starts of a node.
    pub(super) fn new(raft_id: RaftId, nonce: u64) -> Self {
        Self {
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
    pub(super) fn answered(&mut self, context: &ReadContext, index: Index) {
        if (context.raft_id, context.nonce) != (self.raft_id, self.nonce) {
            return;
        }
        if let Some(i) = self.rounds.iter().position(|r| r.counter == context.counter) {
            let round = self.rounds.remove(i);
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

    /// Rounds asked before this tick are asked again, with fresh contexts.
    pub(super) fn retry_asked_before(&mut self, tick: u64) {
        if zoo::has(Bug::ReadAskedOnce) {
            return;
        }
        let (late, on_time) = self.rounds.drain(..).partition(|r: &Round| r.asked < tick);
        self.rounds = on_time;
        for round in late {
            self.queue.extend(round.reads);
        }
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
        let mut reads = Reads::new(1, 7);
        let (r, _w) = read(Freshness::Linearizable);
        assert!(reads.push(r, 0).is_none());
        let first = reads.ask(0).unwrap();
        reads.retry_asked_before(1);
        let second = reads.ask(1).unwrap();
        assert_ne!(first, second);
        reads.answered(&first, 3);
        assert!(reads.take_ready(9).is_empty(), "the answer to a withdrawn round counts nothing");
        reads.answered(&second, 3);
        assert!(reads.take_ready(2).is_empty());
        assert_eq!(reads.take_ready(3).len(), 1);
    }

    #[test]
    fn reads_share_a_round_and_rounds_are_bounded() {
        let mut reads = Reads::new(1, 7);
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
