//! How members keep up with the log: learners on their way to a vote, voters whose word counts. And
//! what a leader does with members by itself: promotes those that have caught up, and, if it is
//! configured to, removes voters that have been silent for long.

use std::collections::{BTreeMap, BTreeSet};

use raft_rs::ProgressState;

use super::super::Node;
use super::plan::{Target, Verdict};
use crate::error::Error;
use crate::types::{Index, Member, Progress, RaftId};
use crate::zoo::{self, Bug};

/// How far each member has come with the log (for learners: Raft thesis, section 4.2.1).
#[derive(Debug, Default)]
pub(super) struct Rounds(BTreeMap<RaftId, Round>);

#[derive(Clone, Copy, Debug)]
struct Round {
    /// The end of the log when the round began.
    target: Index,
    started: u64,
    /// The tick at which the last round ended, if it took less than an election timeout.
    caught_up: Option<u64>,
}

impl Rounds {
    /// What was reached before counts no more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Node {
    /// What a leader does about its members on a tick.
    pub(in crate::node) fn tend_members(&mut self) {
        if !self.is_leader() {
            return;
        }
        self.advance_rounds();
        self.promote_learner();
        self.remove_dead();
    }

    /// Ends the rounds of those who hold what the log held when they began.
    fn advance_rounds(&mut self) {
        let Some(membership) = &self.membership else { return };
        let (last, tick) = (self.last_index(), self.tick);
        let mut rounds = std::mem::take(&mut self.changes.rounds.0);
        rounds.retain(|id, _| membership.by_raft(*id).is_some());
        for id in membership.members.iter().map(|m| &m.raft_id).filter(|id| **id != self.raft_id) {
            let Some(progress) = self.raw.raft.prs().get(*id) else { continue };
            // What a voter has acknowledged stays true when a heartbeat is late.
            let longest = match membership.conf_state.learners.contains(id) {
                true => self.limits.heartbeat_tick * 2,
                false => self.limits.election_tick,
            };
            // NB: whoever holds everything stays in Probe until there is something to send.
            let follows = progress.state == ProgressState::Replicate || progress.matched >= last;
            let live = follows && self.silent_ticks(*id).is_some_and(|t| t <= longest);
            if !live {
                rounds.remove(id);
                continue;
            }
            let fresh = Round { target: last, started: tick, caught_up: None };
            let round = rounds.entry(*id).or_insert(fresh);
            if progress.matched >= round.target {
                let quick = tick - round.started < self.limits.election_tick;
                *round = Round { caught_up: quick.then_some(tick), ..fresh };
            }
        }
        self.changes.rounds.0 = rounds;
    }

    /// Whether a learner reached the end of the log, as it was when a round began that took less
    /// than an election timeout, and not long ago.
    pub(super) fn has_caught_up(&self, id: RaftId) -> bool {
        let round = self.changes.rounds.0.get(&id).and_then(|round| round.caught_up);
        round.is_some_and(|at| self.tick - at <= self.limits.election_tick)
            || zoo::has(Bug::PromoteUncaught)
    }

    /// Whether a member is heard and acknowledges what it is sent. One whose disk or Store hangs goes
    /// on answering heartbeats, and helps nobody to commit.
    pub(in crate::node) fn acknowledges(&self, id: RaftId) -> bool {
        let keeps_up = |p: &raft_rs::Progress| {
            let follows = p.state == ProgressState::Replicate && self.has_caught_up(id);
            follows || p.matched >= self.last_index()
        };
        id == self.raft_id
            || (self.is_heard(id) && self.raw.raft.prs().get(id).is_some_and(keeps_up))
    }

    /// Refuses a change that would leave a set of voters of whom no majority acknowledges.
    pub(super) fn lost_quorum(&self, voters: &BTreeSet<RaftId>) -> Option<Error> {
        let alive = voters.iter().filter(|v| self.acknowledges(**v)).count();
        let quorum = voters.len() / 2 + 1;
        if alive >= quorum || zoo::has(Bug::QuorumIgnored) {
            return None;
        }
        Some(Error::Membership(format!(
            "this would lose the quorum: of {} voters only {alive} would be reachable and keep up \
             with the log, and {quorum} are needed. Bring the others back first; the leader's \
             health names them",
            voters.len()
        )))
    }

    /// How far a member is that does not vote yet.
    pub(super) fn progress(&self, member: &Member) -> Progress {
        if !member.has_joined() {
            return Progress::Expected;
        }
        let matched = self.raw.raft.prs().get(member.raft_id).map_or(0, |p| p.matched);
        Progress::CatchingUp { matched, last: self.last_index() }
    }

    /// Promotes one learner that has caught up, if any (thesis 4.2.1, R17).
    fn promote_learner(&mut self) {
        if !self.may_change() || self.is_joint() || self.changes.queue.iter().any(|q| !q.waits) {
            return;
        }
        let Some(membership) = &self.membership else { return };
        let ready = |m: &&Member| {
            !m.learner_only
                && m.has_joined()
                && membership.conf_state.learners.contains(&m.raft_id)
                && self.has_caught_up(m.raft_id)
        };
        let Some(member) = membership.members.iter().find(ready) else { return };
        let mut target = Target::of(membership);
        target.vote(member.raft_id);
        // Refused as long as too few voters are heard.
        let Ok(Verdict::Append(plan)) = self.judge_target(membership, target) else { return };
        self.changes.rounds.0.remove(&member.raft_id.clone());
        if let Err(error) = self.append_own(plan) {
            slog::warn!(self.logger, "cannot promote a learner yet"; "reason" => %error);
        }
    }

    /// Removes one voter that has been silent for longer than `Config::remove_dead_after`, if the
    /// others can do without.
    fn remove_dead(&mut self) {
        let Some(patience) = self.limits.remove_dead_after else { return };
        if !self.may_change() || self.is_joint() || self.changes.queue.iter().any(|q| !q.waits) {
            return;
        }
        let Some(membership) = &self.membership else { return };
        let voters = &membership.conf_state.voters;
        let dead = |m: &&Member| {
            m.raft_id != self.raft_id
                && voters.contains(&m.raft_id)
                && self.tick - self.last_sign(m.raft_id) > patience
        };
        let Some(member) = membership.members.iter().find(dead).cloned() else { return };
        let mut target = Target::of(membership);
        target.remove(member.raft_id);
        let Ok(Verdict::Append(plan)) = self.judge_target(membership, target) else { return };
        match self.append_own(plan) {
            Ok(()) => slog::warn!(self.logger, "removes a voter that has been silent for too long";
                "node" => member.node_id, "addr" => member.addr,
                "ticks" => self.tick - self.last_sign(member.raft_id)),
            Err(error) => {
                slog::warn!(self.logger, "cannot remove a silent voter yet"; "reason" => %error);
            }
        }
    }
}
