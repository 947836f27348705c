//! Proposals: those that wait for a leader, and those that wait for their entry to be decided.
//!
//! Invariants (R14):
//! - a proposal is known by the (term, index) that it got; only an entry *applied* at its index
//!   decides it: the same term answers it, another one means that it never happened;
//! - so does an applied entry of a later term below its index: terms never go down along a log, so
//!   no log that holds the one can hold the other (Raft paper, section 5.4);
//! - an overwritten entry of the local log decides nothing (Raft paper, figure 8);
//! - a snapshot over it leaves it unknown.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::envelope::Packer;
use super::event::{Applied, Proposal};
use crate::error::Error;
use crate::reply::Reply;
use crate::types::{Index, Position, Term, eraftpb};
use crate::zoo::{self, Bug};

/// Commands are packed into one entry up to this many bytes.
const PACK_BYTES: usize = 64 << 10;
/// Bytes of an entry beyond its commands, at most.
const OVERHEAD: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    queue: VecDeque<Proposal>,
    waiting: BTreeMap<(Index, Term), Vec<Reply<Applied>>>,
    /// The term of the last applied entry: nobody waits for one of an earlier term.
    decided: Term,
}

/// One entry's payload and its proposers.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) data: Bytes,
    pub(super) replies: Vec<Reply<Applied>>,
}

impl Proposals {
    pub(super) fn push(&mut self, proposal: Proposal) {
        self.queue.push_back(proposal);
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes everything that waits for a leader.
    pub(super) fn take_queued(&mut self) -> Vec<Proposal> {
        self.queue.drain(..).collect()
    }

    /// Forgets those whose callers gave up.
    pub(super) fn sweep(&mut self) {
        self.queue.retain(|p| !p.reply.is_closed());
    }

    /// Packs queued proposals into entries: one, or as many as a message of `max_bytes` takes. Those
    /// whose callers gave up are left out, for good.
    pub(super) fn pack(&mut self, max_bytes: usize) -> Vec<Packed> {
        let mut out = Vec::new();
        let mut total = 0;
        while let Some(next) = self.queue.front() {
            let size = PACK_BYTES.max(next.data.len()) + OVERHEAD;
            if total > 0 && total + size > max_bytes {
                break;
            }
            let packed = self.pack_one();
            total += packed.data.len() + OVERHEAD;
            if !packed.replies.is_empty() {
                out.push(packed);
            }
        }
        out
    }

    fn pack_one(&mut self) -> Packed {
        let first = self.queue.front().map_or(0, |p| p.data.len());
        let mut packer = Packer::new(PACK_BYTES.min(self.queue.len() * (first + 4)).max(first + 4));
        let mut replies = Vec::new();
        while let Some(next) = self.queue.front() {
            let fits = packer.len() + next.data.len() + 4 <= PACK_BYTES;
            if !fits && !replies.is_empty() {
                break;
            }
            let Some(p) = self.queue.pop_front() else { break };
            if p.reply.begin() || zoo::has(Bug::ProposeAbandoned) {
                packer.push(&p.data);
                replies.push(p.reply);
            }
        }
        Packed { data: packer.finish(), replies }
    }

    /// Remembers who waits for the entry at (term, index).
    pub(super) fn register(&mut self, term: Term, index: Index, replies: Vec<Reply<Applied>>) {
        self.waiting.insert((index, term), replies);
    }

    /// The entry at (term, index) is being applied: its proposers, and everybody else at that
    /// index never happened.
    pub(super) fn decide(&mut self, term: Term, index: Index) -> Vec<Reply<Applied>> {
        if zoo::has(Bug::LoserUntold) {
            return self.waiting.remove(&(index, term)).unwrap_or_default();
        }
        let mut replies = Vec::new();
        while let Some(slot) = self.waiting.first_entry().filter(|s| s.key().0 <= index) {
            let (key, waiting) = slot.remove_entry();
            if key == (index, term) || zoo::has(Bug::AnswerByIndex) && key.0 == index {
                replies = waiting;
            } else {
                waiting.into_iter().for_each(|r| r.send(Err(Error::Dropped)));
            }
        }
        self.outdate(term);
        replies
    }

    /// An entry of this term is committed below all that wait.
    fn outdate(&mut self, term: Term) {
        if term <= self.decided || zoo::has(Bug::AnswerByIndex) {
            return;
        }
        self.decided = term;
        self.waiting.retain(|(_, theirs), replies| {
            let lives = *theirs >= term;
            if !lives {
                replies.drain(..).for_each(|r| r.send(Err(Error::Dropped)));
            }
            lives
        });
    }

    /// How many wait although everything up to `index` is decided.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn overdue(&self, index: Index) -> usize {
        self.waiting.range(..=(index, Term::MAX)).map(|(_, replies)| replies.len()).sum()
    }

    /// A snapshot covers everything up to its position: what was decided there is not known here.
    pub(super) fn covered(&mut self, at: Position) {
        let Position { index, term } = at;
        while let Some(slot) = self.waiting.first_entry().filter(|s| s.key().0 <= index) {
            for reply in slot.remove() {
                if zoo::has(Bug::CoveredMeansDropped) {
                    reply.send(Err(Error::Dropped));
                    continue;
                }
                reply.send(Err(Error::unknown("a snapshot covers the entry")));
            }
        }
        self.outdate(term);
    }
}

/// An entry to propose.
pub(super) fn entry(data: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { data, ..eraftpb::Entry::default() }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::node::envelope::{Envelope, commands, open};
    use crate::reply::{Waiter, reply};
    use futures::FutureExt;
    use std::time::Duration;

    fn propose(p: &mut Proposals, data: &[u8]) -> Waiter<Applied> {
        let (r, w) = reply(None);
        p.push(Proposal { data: Bytes::copy_from_slice(data), reply: r });
        w
    }

    fn answer(w: Waiter<Applied>) -> Result<Applied, Error> {
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        rt.block_on(async { w.wait(Duration::from_secs(5)).now_or_never() }).unwrap()
    }

    #[test]
    fn many_commands_share_an_entry_and_a_large_one_has_its_own() {
        let mut p = Proposals::default();
        let _waiters: Vec<_> =
            [&[0u8; 10][..], &[], &[1; PACK_BYTES], &[2; 5]].map(|d| propose(&mut p, d)).into();
        let packed = p.pack(usize::MAX);
        let sizes: Vec<Vec<usize>> = packed
            .iter()
            .map(|e| {
                let Ok(Envelope::Commands(body)) = open(&e.data) else { panic!("not commands") };
                commands(&body).map(<[u8]>::len).collect()
            })
            .collect();
        assert_eq!(sizes, [vec![10, 0], vec![PACK_BYTES], vec![5]]);
    }

    /// The engine sends one message for what is proposed at once: the rest would wait for its answer.
    #[test]
    fn what_is_proposed_at_once_fits_into_one_message() {
        let mut p = Proposals::default();
        let _waiters: Vec<_> = (0..9).map(|_| propose(&mut p, &[0; 90_000])).collect();
        let mut packs = || p.pack(200_000).len();
        assert_eq!([packs(), packs(), packs(), packs(), packs(), packs()], [2, 2, 2, 2, 1, 0]);
        let _waiter = propose(&mut p, &[0; 300_000]);
        assert_eq!(p.pack(200_000).len(), 1, "alone, however large");
    }

    #[test]
    fn an_abandoned_proposal_is_never_packed() {
        let mut p = Proposals::default();
        let gone = propose(&mut p, b"gone");
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        assert!(rt.block_on(gone.wait(Duration::from_secs(1))).is_err());
        assert!(p.pack(usize::MAX).is_empty());
    }

    #[test]
    fn r14_only_an_applied_entry_decides() {
        let mut p = Proposals::default();
        let (a, wa) = reply(None);
        let (b, wb) = reply(None);
        let (c, wc) = reply(None);
        [&a, &b, &c].iter().for_each(|r| assert!(r.begin()));
        p.register(2, 7, vec![a]);
        p.register(4, 7, vec![b]);
        p.register(4, 9, vec![c]);
        let mine = p.decide(4, 7);
        assert_eq!(mine.len(), 1);
        assert!(matches!(answer(wa), Err(Error::Dropped)));
        mine.into_iter().for_each(|r| r.send(Ok(Applied { index: 7, data: vec![1] })));
        assert_eq!(answer(wb).unwrap().data, [1]);
        p.covered(Position { index: 9, term: 4 });
        assert!(answer(wc).unwrap_err().outcome_unknown());
    }

    /// A deposed leader in an idle cluster: nothing may ever be applied at the index that it got.
    #[test]
    fn r14_an_applied_entry_of_a_later_term_decides_what_is_above_it() {
        let mut p = Proposals::default();
        let (replies, mut waiters): (Vec<_>, Vec<_>) = (0..4).map(|_| reply(None)).unzip();
        replies.iter().for_each(|r| assert!(r.begin()));
        for (reply, (term, index)) in replies.into_iter().zip([(4, 9), (5, 9), (6, 20), (5, 30)]) {
            p.register(term, index, vec![reply]);
        }
        assert!(p.decide(5, 7).is_empty());
        assert!(matches!(answer(waiters.remove(0)), Err(Error::Dropped)), "of an earlier term");
        assert_eq!(p.overdue(Index::MAX), 3, "what may still be committed waits");
        p.covered(Position { index: 8, term: 6 });
        assert!(matches!(answer(waiters.remove(0)), Err(Error::Dropped)));
        assert!(matches!(answer(waiters.remove(1)), Err(Error::Dropped)));
        assert_eq!(p.decide(6, 20).len(), 1);
    }
}
