//! How learners catch up, and what a leader does with members by itself: promotes those that have
//! caught up, and, if it is configured to, removes voters that have been silent for long.

use std::collections::BTreeMap;

use raft_rs::ProgressState;

use super::super::Node;
use super::plan::{Target, Verdict};
use crate::types::{Index, Member, Progress, RaftId};
use crate::zoo::{self, Bug};

/// How far each learner has come on its way to a vote (Raft thesis, section 4.2.1).
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
        rounds.retain(|id, _| membership.conf_state.learners.contains(id));
        for id in &membership.conf_state.learners {
            let Some(progress) = self.raw.raft.prs().get(*id) else { continue };
            let live = progress.state == ProgressState::Replicate
                && self.silent_ticks(*id).is_some_and(|t| t <= self.limits.heartbeat_tick * 2);
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
