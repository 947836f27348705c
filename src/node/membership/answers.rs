//! When a membership change is answered.
//!
//! Invariants:
//! - an answer that appends nothing ("it holds already", "it may not be") is given only after a
//!   majority has confirmed, later than it was asked, that this node leads: a deposed leader would
//!   tell what has long been changed. When it does not lead any more, the next leader is asked;
//! - a change that was applied is answered when its record is durable here, and a majority of the
//!   voters knows that it is committed: whoever is told that a member is removed may switch that
//!   machine off at once, and the others must find a leader without it. Those who do not say so
//!   within an election timeout are not waited for.

use super::super::Node;
use super::super::context::ReadContext;
use super::super::event::{Change, Changed};
use super::super::reads::RoundTimeout;
use crate::error::Error;
use crate::reply::Reply;
use crate::types::RaftId;

/// Rounds in flight at most: each broadcasts a heartbeat.
const MAX_ROUNDS: usize = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    unconfirmed: Vec<Unconfirmed>,
    rounds: Vec<Round>,
    spreading: Vec<Spreading>,
}

#[derive(Debug)]
struct Unconfirmed {
    change: Change,
    reply: Reply<Changed>,
    answer: Result<Changed, Error>,
}

#[derive(Debug)]
struct Round {
    context: ReadContext,
    asked: u64,
    all: Vec<Unconfirmed>,
}

#[derive(Debug)]
struct Spreading {
    reply: Reply<Changed>,
    changed: Changed,
    /// The batch with its record.
    number: u64,
    /// The tick at which nobody is waited for any more.
    late: u64,
}

impl Answers {
    /// To be told once it is known that this node leads.
    pub(super) fn confirm(
        &mut self,
        change: Change,
        reply: Reply<Changed>,
        answer: Result<Changed, Error>,
    ) {
        self.unconfirmed.push(Unconfirmed { change, reply, answer });
    }

    /// To be told once enough know of it.
    pub(super) fn spread(
        &mut self,
        reply: Reply<Changed>,
        changed: Changed,
        number: u64,
        late: u64,
    ) {
        self.spreading.push(Spreading { reply, changed, number, late });
    }

    /// What was not confirmed, to be asked of the next leader.
    pub(super) fn take_back(&mut self) -> Vec<(Change, Reply<Changed>)> {
        let asked = self.rounds.drain(..).flat_map(|round| round.all);
        asked.chain(self.unconfirmed.drain(..)).map(|u| (u.change, u.reply)).collect()
    }

    /// Rounds whose answer is late are asked again, with fresh contexts; whether there were any.
    pub(super) fn retry_late(&mut self, now: u64, timeout: &RoundTimeout) -> bool {
        let (late, on_time): (Vec<Round>, Vec<Round>) =
            self.rounds.drain(..).partition(|r| timeout.is_over(r.asked, now));
        self.rounds = on_time;
        let any = !late.is_empty();
        self.unconfirmed.extend(late.into_iter().flat_map(|round: Round| round.all));
        self.unconfirmed.retain(|u| !u.reply.is_closed());
        any
    }
}

impl Node {
    /// Asks whether this node still leads, for all answers that wait for it.
    pub(in crate::node) fn ask_for_answers(&mut self) {
        let answers = &mut self.changes.answers;
        // H4: before its first commit the engine drops the question.
        let can = self.raw.raft.state == raft_rs::StateRole::Leader
            && self.raw.raft.commit_to_current_term();
        if !can || answers.unconfirmed.is_empty() || answers.rounds.len() >= MAX_ROUNDS {
            return;
        }
        let context = self.reads.fresh_context();
        let all = std::mem::take(&mut answers.unconfirmed);
        answers.rounds.push(Round { context, asked: self.tick, all });
        self.raw.read_index(context.encode().to_vec());
    }

    /// A majority has answered a round: this node led after it was asked.
    pub(in crate::node) fn answers_confirmed(&mut self, context: &ReadContext) {
        let rounds = &mut self.changes.answers.rounds;
        let Some(at) = rounds.iter().position(|r| r.context == *context) else { return };
        let round = rounds.remove(at);
        self.reads.timeout.took(self.tick.saturating_sub(round.asked));
        for u in round.all {
            u.reply.send(u.answer);
        }
    }

    /// Answers the changes that enough know of.
    pub(in crate::node) fn answer_spread(&mut self) {
        if self.changes.answers.spreading.is_empty() {
            return;
        }
        let spreading = std::mem::take(&mut self.changes.answers.spreading);
        if !self.is_leader() {
            // Who does not lead is told nothing of it: a majority may not know, and the caller may
            // switch off those that are gone. Whoever leads next knows.
            for s in spreading {
                s.reply
                    .send(Err(Error::unknown("the leader changed before a majority knew of it")));
            }
            return;
        }
        let (known, rest) = spreading.into_iter().partition(|s| self.is_spread(s));
        self.changes.answers.spreading = rest;
        known.into_iter().for_each(|s: Spreading| s.reply.send(Ok(s.changed)));
    }

    fn is_spread(&self, s: &Spreading) -> bool {
        if s.number > self.pipeline.durable() {
            return false;
        }
        let voters = &s.changed.membership.conf_state.voters;
        let index = s.changed.membership.index;
        let prs = self.raw.raft.prs();
        let knows = |id: &&RaftId| {
            **id == self.raft_id || prs.get(**id).is_some_and(|p| p.committed_index >= index)
        };
        self.tick >= s.late || voters.iter().filter(knows).count() > voters.len() / 2
    }
}
