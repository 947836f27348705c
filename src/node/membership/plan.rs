//! What a membership change means right now: whether it holds already, has to wait, may not be, or
//! which one entry brings it about (R17). It looks, and changes nothing.
//!
//! - Members are named by node id. A node that was added before its data directory joined is a
//!   learner without an incarnation: its raft id is handed out already, and the first directory that
//!   joins under its node id gets it.
//! - A change of one member is a simple one; any other goes through a joint configuration (Raft
//!   thesis, section 4.3).
//! - A data directory that was lost is replaced in one change: its raft id goes, a fresh one comes
//!   as a learner. While the present one is heard it stays: a mistyped id must not evict it.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft_rs::Changer;

use super::super::event::Change;
use super::super::{Node, conf_change};
use crate::error::Error;
use crate::pb;
use crate::types::{
    ConfState, Incarnation, Member, MemberRole, Membership, NodeId, Progress, RaftId, eraftpb,
};
use crate::zoo::{self, Bug};
use eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType};

/// What to do about a change. An error is a refusal.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing: it is in force, or waits for its node.
    Holds(Progress),
    /// Append this.
    Append(Plan),
    /// This leader is to lose its vote: one of these leads first.
    HandOver(Vec<RaftId>),
    /// It cannot be told yet; the refusal, if it never can.
    Wait(Error),
    /// Not now, for as long as it is asked for; the reason, for the log.
    WaitOn(Error),
}

/// What to append.
#[derive(Debug)]
pub(super) enum Plan {
    /// Another configuration, and what it means for the address book.
    Conf { change: eraftpb::ConfChangeV2, context: pb::MembershipChange },
    /// Addresses, metadata and wishes alone.
    Record(pb::MembershipChange),
}

/// The members as they are to be.
#[derive(Clone, Debug)]
pub(super) struct Target {
    voters: BTreeSet<RaftId>,
    learners: BTreeSet<RaftId>,
    upsert: Vec<Member>,
    next_raft_id: RaftId,
}

impl Target {
    /// As they are.
    pub(super) fn of(m: &Membership) -> Self {
        Self {
            voters: m.conf_state.voters.iter().copied().collect(),
            learners: m.conf_state.learners.iter().copied().collect(),
            upsert: Vec::new(),
            next_raft_id: 0,
        }
    }

    pub(super) fn vote(&mut self, id: RaftId) {
        self.learners.remove(&id);
        self.voters.insert(id);
    }

    pub(super) fn learn(&mut self, id: RaftId) {
        self.voters.remove(&id);
        self.learners.insert(id);
    }

    pub(super) fn remove(&mut self, id: RaftId) {
        self.voters.remove(&id);
        self.learners.remove(&id);
    }

    /// A new member, as a learner.
    fn admit(&mut self, member: Member) {
        self.learn(member.raft_id);
        self.next_raft_id = member.raft_id + 1;
        self.upsert.push(member);
    }

    /// A member whose record says something else about promotion.
    fn wish(&mut self, member: &Member, learner_only: bool) {
        if member.learner_only != learner_only {
            self.upsert.push(Member { learner_only, ..member.clone() });
        }
    }

    /// What leads there from this configuration, which is not joint.
    fn steps(&self, conf: &ConfState) -> Vec<ConfChangeSingle> {
        let step = |kind, id: RaftId| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id;
            single
        };
        let voters = self.voters.iter().filter(|id| !conf.voters.contains(id));
        let learners = self.learners.iter().filter(|id| !conf.learners.contains(id));
        let stays = |id: &&RaftId| self.voters.contains(id) || self.learners.contains(id);
        let gone = conf.voters.iter().chain(&conf.learners).filter(|id| !stays(id));
        let voters = voters.map(|id| step(ConfChangeType::AddNode, *id));
        let learners = learners.map(|id| step(ConfChangeType::AddLearnerNode, *id));
        let gone = gone.map(|id| step(ConfChangeType::RemoveNode, *id));
        voters.chain(learners).chain(gone).collect()
    }

    fn context(&self) -> pb::MembershipChange {
        pb::MembershipChange {
            upsert: self.upsert.iter().map(Member::to_pb).collect(),
            next_raft_id: self.next_raft_id,
        }
    }
}

impl Node {
    /// What a change means that was asked for at the tick `since`.
    pub(super) fn judge(&self, change: &Change, since: u64) -> Result<Verdict, Error> {
        let Some(m) = &self.membership else { return Err(Error::NoLeader) };
        match change {
            Change::Join { node_id, incarnation, addr, voter } => {
                let joiner = joiner(*node_id, *incarnation, addr, !voter);
                self.judge_join(m, joiner, since)
            }
            Change::Update { node_id, incarnation, addr } => {
                let Some(known) = m.by_incarnation(*node_id, *incarnation) else {
                    return refuse(format!(
                        "node {node_id} with this data directory is no member of the cluster"
                    ));
                };
                Ok(record(known, Member { addr: addr.clone(), ..known.clone() }))
            }
            Change::AddLearner { node_id, addr } => self.judge_add(m, *node_id, addr, true),
            Change::AddVoter { node_id, added: true, .. } => self.judge_added(m, *node_id),
            Change::AddVoter { node_id, addr, .. } => self.judge_add(m, *node_id, addr, false),
            Change::Promote { node_id } => self.judge_promote(m, *node_id),
            Change::Demote { node_id } => self.judge_demote(m, *node_id),
            Change::Remove { node_id } => self.judge_remove(m, m.by_node(*node_id)),
            Change::Leave { node_id, incarnation } => {
                self.judge_remove(m, m.by_incarnation(*node_id, *incarnation))
            }
            Change::Replace { old, new } => self.judge_replace(m, *old, *new),
            Change::Set { voters, learners } => self.judge_set(m, voters, learners),
            Change::Describe { node_id, addr, metadata } => {
                let known = member(m, *node_id)?;
                let addr = addr.clone().unwrap_or_else(|| known.addr.clone());
                let metadata = metadata.clone().unwrap_or_else(|| known.metadata.clone());
                Ok(record(known, Member { addr, metadata, ..known.clone() }))
            }
        }
    }

    /// A data directory asks to enter; `joiner` has no raft id yet.
    fn judge_join(&self, m: &Membership, joiner: Member, since: u64) -> Result<Verdict, Error> {
        if let Some(known) = m.by_incarnation(joiner.node_id, joiner.incarnation) {
            return Ok(record(known, Member { addr: joiner.addr, ..known.clone() }));
        }
        check_new(&joiner)?;
        let Some(known) = m.by_node(joiner.node_id) else {
            let mut target = Target::of(m);
            target.admit(Member { raft_id: next_raft_id(m), ..joiner });
            return self.judge_target(m, target);
        };
        let Member { incarnation, addr, .. } = joiner;
        if !known.has_joined() {
            return Ok(record(known, Member { incarnation, addr, ..known.clone() }));
        }
        let alive = Error::Membership(format!(
            "node {} is a member already, at {}, and its present data directory has just been \
             let in or heard of. If the id is a mistake, choose another. If that machine is to go on with \
             an empty directory, stop its old process first: it is replaced once it has been \
             silent for an election timeout",
            known.node_id, known.addr
        ));
        let sign = self.last_sign(known.raft_id);
        // What was on its way when the old process ended may have come after the request.
        let after = self.heard_at(known.raft_id) >= Some(since + 2 * self.limits.heartbeat_tick);
        if known.raft_id == self.raft_id || after {
            return Err(alive);
        }
        if self.tick - sign <= self.limits.election_tick || self.is_awaited(known.raft_id) {
            return Ok(Verdict::Wait(alive));
        }
        let learner_only = known.learner_only || joiner.learner_only;
        let anew =
            Member { raft_id: next_raft_id(m), incarnation, addr, learner_only, ..known.clone() };
        if zoo::has(Bug::ReadmitUnderOldId) {
            return Ok(record(known, Member { raft_id: known.raft_id, ..anew }));
        }
        let mut target = Target::of(m);
        target.remove(known.raft_id);
        target.admit(anew);
        // Without the old one there may be no majority: it waits for the others to be back.
        match self.lost_quorum(&target.voters) {
            Some(reason) if !target.voters.is_empty() => Ok(Verdict::WaitOn(reason)),
            _ => self.judge_target(m, target),
        }
    }

    fn judge_remove(&self, m: &Membership, known: Option<&Member>) -> Result<Verdict, Error> {
        let Some(known) = known else { return Ok(DONE) };
        let mut target = Target::of(m);
        target.remove(known.raft_id);
        self.judge_target(m, target)
    }

    /// What was added when this was asked for before votes by now, or waits, or was taken back.
    fn judge_added(&self, m: &Membership, node_id: NodeId) -> Result<Verdict, Error> {
        let what = match m.by_node(node_id) {
            Some(known) if m.role(known.raft_id) == Some(MemberRole::Voter) => return Ok(DONE),
            Some(known) if !known.learner_only => return self.judge_vote(m, known),
            Some(_) => "is to stay a learner: it was demoted",
            None => "is no member any more: it was removed",
        };
        refuse(format!("node {node_id} {what} meanwhile; ask again to add it"))
    }

    /// A member is to be there, as a learner for good or until it has caught up.
    fn judge_add(
        &self,
        m: &Membership,
        node_id: NodeId,
        addr: &str,
        learner_only: bool,
    ) -> Result<Verdict, Error> {
        let Some(known) = m.by_node(node_id) else {
            let nobody = Incarnation::from_u128(0);
            let mut expected = joiner(node_id, nobody, addr, learner_only);
            check_new(&expected)?;
            expected.raft_id = next_raft_id(m);
            let mut target = Target::of(m);
            target.admit(expected);
            return self.judge_target(m, target);
        };
        let votes = m.role(known.raft_id) == Some(MemberRole::Voter);
        if known.addr != addr && known.has_joined() {
            return refuse(format!(
                "node {node_id} is a member already, at {}; update_member gives it another address",
                known.addr
            ));
        }
        if learner_only && votes {
            return refuse(format!("node {node_id} is a voter already; demote makes it a learner"));
        }
        if votes {
            return Ok(DONE);
        }
        let wanted = Member { addr: addr.to_owned(), learner_only, ..known.clone() };
        if wanted != *known {
            return Ok(record(known, wanted));
        }
        if learner_only { Ok(DONE) } else { self.judge_vote(m, known) }
    }

    /// A learner is to vote: now, or once it has caught up.
    fn judge_vote(&self, m: &Membership, known: &Member) -> Result<Verdict, Error> {
        if !self.may_vote(known) {
            return Ok(Verdict::Holds(self.progress(known)));
        }
        let mut target = Target::of(m);
        target.vote(known.raft_id);
        target.wish(known, false);
        self.judge_target(m, target)
    }

    /// Whether a learner is ready to vote.
    fn may_vote(&self, learner: &Member) -> bool {
        learner.has_joined() && self.has_caught_up(learner.raft_id)
    }

    fn judge_promote(&self, m: &Membership, node_id: NodeId) -> Result<Verdict, Error> {
        let known = member(m, node_id)?;
        if m.role(known.raft_id) == Some(MemberRole::Voter) {
            return Ok(DONE);
        }
        match self.judge_vote(m, known)? {
            Verdict::Holds(progress) => self.at_first(not_caught_up(node_id, progress)),
            other => Ok(other),
        }
    }

    fn judge_demote(&self, m: &Membership, node_id: NodeId) -> Result<Verdict, Error> {
        let known = member(m, node_id)?;
        if m.role(known.raft_id) == Some(MemberRole::Learner) {
            return Ok(record(known, Member { learner_only: true, ..known.clone() }));
        }
        let mut target = Target::of(m);
        target.learn(known.raft_id);
        target.wish(known, true);
        self.judge_target(m, target)
    }

    /// One change: the old one goes, the new one has its role.
    fn judge_replace(&self, m: &Membership, old: NodeId, new: NodeId) -> Result<Verdict, Error> {
        if old == new {
            return refuse(format!(
                "node {old} cannot replace itself. If its data directory is lost, start it with \
                 an empty one: it is let in again"
            ));
        }
        let new = member(m, new)?;
        let votes = m.role(new.raft_id) == Some(MemberRole::Voter);
        let Some(old) = m.by_node(old) else {
            // Done before, as far as can be told; nobody gets a vote that way.
            return if votes {
                Ok(DONE)
            } else {
                refuse(format!(
                    "node {old} is no member, and node {} does not vote; promote makes it a voter",
                    new.node_id
                ))
            };
        };
        let mut target = Target::of(m);
        target.remove(old.raft_id);
        if m.role(old.raft_id) == Some(MemberRole::Voter) && !votes {
            if !self.may_vote(new) {
                return Ok(Verdict::Holds(self.progress(new)));
            }
            target.vote(new.raft_id);
            target.wish(new, false);
        }
        self.judge_target(m, target)
    }

    fn judge_set(
        &self,
        m: &Membership,
        voters: &[NodeId],
        learners: &[NodeId],
    ) -> Result<Verdict, Error> {
        let mut target =
            Target { voters: BTreeSet::new(), learners: BTreeSet::new(), ..Target::of(m) };
        for node_id in learners {
            if voters.contains(node_id) {
                return refuse(format!("node {node_id} is to be voter and learner; choose one"));
            }
            let known = member(m, *node_id)?;
            target.learn(known.raft_id);
            target.wish(known, true);
        }
        for node_id in voters {
            let known = member(m, *node_id)?;
            let votes = m.role(known.raft_id) == Some(MemberRole::Voter);
            if !votes && !self.may_vote(known) {
                return self.at_first(not_caught_up(*node_id, self.progress(known)));
            }
            target.vote(known.raft_id);
            target.wish(known, false);
        }
        target.upsert.sort_by_key(|known| known.raft_id);
        target.upsert.dedup();
        self.judge_target(m, target)
    }

    /// Whether the members may be these, and which entry brings it about. The configuration in force
    /// is not joint.
    pub(super) fn judge_target(&self, m: &Membership, target: Target) -> Result<Verdict, Error> {
        let conf = &m.conf_state;
        if target.voters.is_empty() {
            let last: Vec<NodeId> = conf.voters.iter().map(|id| self.node_of(*id)).collect();
            return refuse(match last[..] {
                [node] => format!(
                    "node {node} is the last voter; a cluster without voters could never be used \
                     again. Shut it down instead"
                ),
                _ => "no voters would be left; name at least one".to_owned(),
            });
        }
        let before: BTreeSet<RaftId> = conf.voters.iter().copied().collect();
        if target.voters != before
            && let Some(error) = self.lost_quorum(&target.voters)
        {
            return self.at_first(error);
        }
        let stay: Vec<RaftId> = target.voters.intersection(&before).copied().collect();
        let leads_out = before.contains(&self.raft_id) && !stay.contains(&self.raft_id);
        if leads_out && !stay.is_empty() {
            return Ok(Verdict::HandOver(stay));
        }
        self.plan_target(conf, &target)
    }

    fn plan_target(&self, conf: &ConfState, target: &Target) -> Result<Verdict, Error> {
        let (steps, context) = (target.steps(conf), target.context());
        let most = conf_change::MAX_CHANGES.min(conf_change::MAX_MEMBERS);
        if steps.len().max(context.upsert.len()) > most {
            return refuse(format!(
                "{} members would change at once, more than {most}; go in several steps",
                steps.len().max(context.upsert.len())
            ));
        }
        if steps.is_empty() {
            let same = context.upsert.is_empty();
            return Ok(if same { DONE } else { Verdict::Append(Plan::Record(context)) });
        }
        let mut changer = Changer::new(self.raw.raft.prs());
        let mut change = eraftpb::ConfChangeV2::default();
        let tried = if steps.len() == 1 {
            changer.simple(&steps)
        } else {
            change.set_transition(ConfChangeTransition::Explicit);
            changer.enter_joint(false, &steps)
        };
        tried.map_err(|e| Error::Membership(e.to_string()))?;
        change.set_changes(steps.into());
        Ok(Verdict::Append(Plan::Conf { change, context }))
    }

    /// A refusal, unless this leader is new: it has not heard of everybody yet, and waits.
    fn at_first(&self, error: Error) -> Result<Verdict, Error> {
        let early = self.tick < self.led_since() + self.limits.election_tick;
        if early { Ok(Verdict::Wait(error)) } else { Err(error) }
    }
}

const DONE: Verdict = Verdict::Holds(Progress::Done);

fn refuse(reason: String) -> Result<Verdict, Error> {
    Err(Error::Membership(reason))
}

/// A record that is to read so.
fn record(known: &Member, wanted: Member) -> Verdict {
    if *known == wanted {
        return DONE;
    }
    let change = pb::MembershipChange { upsert: vec![wanted.to_pb()], next_raft_id: 0 };
    Verdict::Append(Plan::Record(change))
}

fn member(m: &Membership, node_id: NodeId) -> Result<&Member, Error> {
    m.by_node(node_id).ok_or_else(|| {
        Error::Membership(format!("node {node_id} is no member; add it first, or start it"))
    })
}

fn not_caught_up(node_id: NodeId, progress: Progress) -> Error {
    Error::Membership(match progress {
        Progress::Expected => format!(
            "node {node_id} cannot vote yet: its data directory has not joined. Start it, \
             then try again"
        ),
        Progress::CatchingUp { matched, last } => format!(
            "node {node_id} has not caught up: it holds the log up to index {matched} of \
             {last}, or has not kept up for long enough. Try again later; add_voter waits"
        ),
        Progress::Done => format!("node {node_id} votes already"),
    })
}

fn joiner(node_id: NodeId, incarnation: Incarnation, addr: &str, learner_only: bool) -> Member {
    let addr = addr.to_owned();
    Member { node_id, raft_id: 0, incarnation, addr, metadata: Bytes::new(), learner_only }
}

fn check_new(joiner: &Member) -> Result<(), Error> {
    if joiner.node_id == 0 || joiner.addr.is_empty() {
        return Err(Error::Membership("a member needs an id above 0 and an address".to_owned()));
    }
    Ok(())
}

fn next_raft_id(m: &Membership) -> RaftId {
    if zoo::has(Bug::RaftIdReused) {
        return 1 + m.members.iter().map(|known| known.raft_id).max().unwrap_or(0);
    }
    m.next_raft_id
}
