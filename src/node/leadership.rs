//! Elections and transfers: our own seeded election timeout, who was heard when, handing over.

use std::collections::BTreeMap;

use raft_rs::StateRole;

use super::Node;
use crate::error::Error;
use crate::reply::Reply;
use crate::status::Role;
use crate::types::{MemberRole, NodeId, RaftId, Term};
use crate::zoo::{self, Bug};

/// The term of a founding: it is nobody's election.
const FOUNDING_TERM: Term = 1;

/// Why leadership cannot be handed over.
const NOBODY: &str = "no other voter is reachable to lead; start one, or add one with add_voter";

/// A small generator (SplitMix64): the only source of chance in a node, so that a seed repeats a
/// run.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Leadership {
    rng: Rng,
    timeout: usize,
    seen: (Term, StateRole, RaftId),
    heard: BTreeMap<RaftId, u64>,
    /// The tick at which this node began to lead, when it leads.
    led_since: u64,
    /// The tick since which the present leader, or none, has been known.
    known_since: u64,
    transfer: Option<Transfer>,
}

#[derive(Debug)]
struct Transfer {
    to: RaftId,
    deadline: u64,
    replies: Vec<Reply<()>>,
    /// Of those who ask that this node leads no more: any other leader will do.
    resigns: Vec<Reply<()>>,
}

impl Leadership {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            timeout: 0,
            seen: (0, StateRole::Follower, 0),
            heard: BTreeMap::new(),
            led_since: 0,
            known_since: 0,
            transfer: None,
        }
    }
}

impl Node {
    /// After every call of RawNode: the election timeout is ours, not raft's own random one, and
    /// a change of term, role or leader is noticed.
    pub(super) fn settle(&mut self) {
        let raft = &self.raw.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        let changed = now != self.leadership.seen;
        if changed || raft.election_elapsed == 0 || self.leadership.timeout == 0 {
            let base = self.limits.election_tick;
            self.leadership.timeout = (base + self.leadership.rng.next() % base) as usize;
        }
        self.raw.raft.set_randomized_election_timeout(self.leadership.timeout);
        if changed {
            self.leader_changed(now);
        }
    }

    fn leader_changed(&mut self, now: (Term, StateRole, RaftId)) {
        let before = std::mem::replace(&mut self.leadership.seen, now);
        // H4: rounds of another term or leader are never answered.
        self.reads.retry_all();
        self.status_changed = true;
        self.changes.leader_changed(self.tick);
        if (before.1, before.2) != (now.1, now.2) {
            slog::info!(self.logger, "leadership"; "term" => now.0, "role" => %self.role(),
                "leader" => self.node_of(now.2));
        }
        if before.2 != now.2 {
            self.leadership.known_since = self.tick;
        }
        if now.1 == StateRole::Leader {
            self.leadership.led_since = self.tick;
            // The engine has forgotten it when it stepped down.
            if let Some(t) = self.leadership.transfer.take() {
                fail(t, "this node was elected again");
            }
        } else {
            if zoo::has(Bug::DeposedMeansDropped) {
                self.proposals.decide(0, u64::MAX);
            }
            self.end_transfer(now.2);
        }
    }

    /// A message of this peer arrived.
    pub(super) fn hear(&mut self, from: RaftId) {
        self.leadership.heard.insert(from, self.tick);
    }

    /// Ticks since the last message of a peer.
    pub(super) fn silent_ticks(&self, id: RaftId) -> Option<u64> {
        self.leadership.heard.get(&id).map(|at| self.tick - at)
    }

    /// The tick of the last message of a peer.
    pub(super) fn heard_at(&self, id: RaftId) -> Option<u64> {
        self.leadership.heard.get(&id).copied()
    }

    /// The tick of the last message of a peer, or that at which this node began to lead: before, it
    /// had no reason to hear of it.
    pub(super) fn last_sign(&self, id: RaftId) -> u64 {
        self.heard_at(id).unwrap_or(0).max(self.leadership.led_since)
    }

    /// The tick at which this node began to lead, when it leads.
    pub(super) fn led_since(&self) -> u64 {
        self.leadership.led_since
    }

    /// Ticks since which the present leader, or none, has been known.
    pub(super) fn leader_ticks(&self) -> u64 {
        self.tick - self.leadership.known_since
    }

    /// Whether a member can be reached, where this node can tell. A leader hears of all, a follower of
    /// its leader; a voter without one of those who answer its campaigns, which takes a while.
    pub(super) fn is_reachable(&self, id: RaftId) -> Option<bool> {
        if id == self.raft_id {
            return Some(true);
        }
        let (timeout, leader) = (self.limits.election_tick, self.raw.raft.leader_id);
        let heard = self.heard_at(id);
        let silent = self.tick - heard.unwrap_or(0).max(self.leadership.known_since);
        if leader == self.raft_id || leader == id {
            return Some(silent <= timeout);
        }
        if leader != 0 || self.own_role() != Some(MemberRole::Voter) {
            return None;
        }
        let campaigns = 3 * timeout;
        match heard {
            Some(at) if self.tick - at <= campaigns => Some(true),
            Some(_) | None if silent > campaigns => Some(false),
            Some(_) | None => None,
        }
    }

    /// Whether a member was heard within an election timeout; oneself always.
    pub(super) fn is_heard(&self, id: RaftId) -> bool {
        id == self.raft_id || self.silent_ticks(id).is_some_and(|t| t <= self.limits.election_tick)
    }

    /// Hands leadership over and answers when it is done. The node leads.
    pub(super) fn transfer(&mut self, to: Option<NodeId>, reply: Reply<()>) {
        match self.begin_transfer(to) {
            Ok(()) => match &mut self.leadership.transfer {
                Some(t) => t.replies.push(reply),
                None => reply.send(Ok(())),
            },
            Err(error) => reply.send(Err(error)),
        }
    }

    /// Leads no more, and answers when another node leads. Of several transfers at a time the one that
    /// was asked for goes on: whoever takes over, this node has resigned.
    pub(super) fn resign(&mut self, reply: Reply<()>) {
        if !self.is_leader() {
            reply.send(Ok(()));
            return;
        }
        let begun = match self.leadership.transfer {
            Some(_) => Ok(()),
            None => self.begin_transfer(None),
        };
        match (begun, &mut self.leadership.transfer) {
            (Ok(()), Some(t)) => t.resigns.push(reply),
            (Ok(()), None) => reply.send(Err(Error::Membership(NOBODY.to_owned()))),
            (Err(error), _) => reply.send(Err(error)),
        }
    }

    /// Starts a transfer to this node, or to the most advanced voter that is heard.
    fn begin_transfer(&mut self, to: Option<NodeId>) -> Result<(), Error> {
        let target = match to {
            Some(node) => self.transfer_target(node)?,
            None => {
                let conf = self.membership.as_ref().map(|m| m.conf_state.voters.clone());
                self.best_voter(conf.unwrap_or_default())?
            }
        };
        self.begin_transfer_to(target);
        Ok(())
    }

    /// Starts a transfer to the most advanced of these that is heard.
    pub(super) fn begin_transfer_among(&mut self, voters: Vec<RaftId>) -> Result<(), Error> {
        let target = self.best_voter(voters)?;
        self.begin_transfer_to(target);
        Ok(())
    }

    fn begin_transfer_to(&mut self, target: RaftId) {
        if target == self.raft_id
            || self.leadership.transfer.as_ref().is_some_and(|t| t.to == target)
        {
            return;
        }
        self.raw.transfer_leader(target);
        let deadline = self.tick + self.limits.election_tick;
        let mut new = Transfer { to: target, deadline, replies: Vec::new(), resigns: Vec::new() };
        if let Some(mut old) = self.leadership.transfer.take() {
            new.resigns.append(&mut old.resigns);
            unknown(old, "another transfer was asked for; the first may still happen");
        }
        self.leadership.transfer = Some(new);
    }

    /// Whether this leader is on its way out.
    pub(super) fn hands_over(&self) -> bool {
        self.leadership.transfer.is_some()
    }

    fn transfer_target(&self, node: NodeId) -> Result<RaftId, Error> {
        let m = self.membership.as_ref().ok_or(Error::NoLeader)?;
        let member = m
            .by_node(node)
            .ok_or_else(|| Error::Membership(format!("node {node} is no member")))?;
        if !m.conf_state.voters.contains(&member.raft_id) {
            return Err(Error::Membership(format!("node {node} is a learner and cannot lead")));
        }
        Ok(member.raft_id)
    }

    fn best_voter(&self, voters: Vec<RaftId>) -> Result<RaftId, Error> {
        let prs = self.raw.raft.prs();
        let others = voters.into_iter().filter(|id| *id != self.raft_id);
        others
            .filter(|id| self.is_heard(*id))
            .max_by_key(|id| prs.get(*id).map_or(0, |p| p.matched))
            .ok_or_else(|| Error::Membership(NOBODY.to_owned()))
    }

    /// The leader changed: a transfer that was asked for is over.
    fn end_transfer(&mut self, leader: RaftId) {
        if leader == 0 {
            return;
        }
        if let Some(mut t) = self.leadership.transfer.take() {
            t.resigns.drain(..).for_each(|r| r.send(Ok(())));
            if leader == t.to {
                t.replies.into_iter().for_each(|r| r.send(Ok(())));
            } else {
                fail(t, "another node was elected");
            }
        }
    }

    /// A transfer takes an election timeout at most; raft gives it up then, too.
    pub(super) fn expire_transfer(&mut self) {
        let tick = self.tick;
        if let Some(mut t) = self.leadership.transfer.take_if(|t| tick > t.deadline) {
            if !self.is_leader() {
                // Nobody leads yet, but neither does this node.
                t.resigns.drain(..).for_each(|r| r.send(Ok(())));
            }
            self.raw.raft.abort_leader_transfer();
            // NB: it may have been told, and take over yet.
            unknown(t, "the other node did not take over within an election timeout; it may still");
        }
    }

    /// The members that the first election waits for (`Config::min_members`), while they are fewer;
    /// None when nothing is waited for. A leader's first act is an entry of its term: a log that holds
    /// one of a term after the founding has seen an election, whoever has left since. The log tells
    /// it to a restarted node, too.
    pub(super) fn awaits_members(&self) -> Option<usize> {
        let min = self.limits.min_members;
        let voters = self.membership.as_ref()?.conf_state.voters.len();
        let elected = self.raw.raft.raft_log.last_term() > FOUNDING_TERM;
        (voters < min && !elected).then_some(min)
    }

    /// Whether this node leads and may say so: its term is durable. A lone voter is elected before its
    /// disk knows; told at once, the term could come again after a crash, and terms are what users
    /// fence with.
    pub(super) fn leads_openly(&self) -> bool {
        let now = self.hard_state();
        let handed_over = (now.term, now.vote) == (self.logged.term, self.logged.vote);
        self.is_leader() && handed_over && !self.pipeline.holds_vote()
    }

    /// Whether voters wait for what this node sends while its own disk works.
    pub(crate) fn leads_others(&self) -> bool {
        self.is_leader() && !self.raw.raft.prs().is_singleton()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn role(&self) -> Role {
        match (self.raw.raft.state, self.own_role()) {
            (_, None) => Role::Starting,
            (StateRole::Follower, Some(MemberRole::Learner)) => Role::Learner,
            (StateRole::Follower, Some(MemberRole::Voter)) => Role::Follower,
            (StateRole::PreCandidate, _) => Role::PreCandidate,
            (StateRole::Candidate, _) => Role::Candidate,
            (StateRole::Leader, _) => Role::Leader,
        }
    }
}

fn unknown(t: Transfer, why: &str) {
    for reply in t.replies.into_iter().chain(t.resigns) {
        reply.send(Err(Error::unknown(why)));
    }
}

fn fail(t: Transfer, why: &str) {
    for reply in t.replies.into_iter().chain(t.resigns) {
        reply.send(Err(Error::Membership(format!("leadership was not transferred: {why}"))));
    }
}
