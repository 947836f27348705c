//! Membership changes: one at a time, checked before they are proposed, folded when committed.
//!
//! Invariants:
//! - nothing is proposed that raft would replace by an empty entry or that would fail when it is
//!   applied (H5, R17);
//! - the replicated address book changes only by committed entries, alike on every node;
//! - a raft id is handed out once (correctness: an empty disk never speaks for a full one).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_rs::{Changer, ProgressState};

use super::event::{Change, Changed};
use super::{Node, conf_change, envelope, proposals};
use crate::error::{Error, Leader};
use crate::pb;
use crate::reply::Reply;
use crate::types::{
    Entry, Incarnation, Index, Member, MemberRole, Membership, NodeId, Position, RaftId, Term,
    eraftpb,
};
use crate::zoo::{self, Bug};
use eraftpb::{ConfChangeType, MessageType};

/// Changes that may wait for their turn.
const MAX_QUEUED: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    queue: VecDeque<(Change, Reply<Changed>)>,
    /// The change that was proposed and is not decided yet.
    current: Option<Current>,
    /// How far each learner has come on its way to a vote.
    rounds: BTreeMap<RaftId, Round>,
}

#[derive(Debug)]
struct Current {
    term: Term,
    index: Index,
    reply: Option<Reply<Changed>>,
}

impl Current {
    /// Whether an entry that was applied at this position settles it: see the proposals' rule.
    fn is_decided(&self, at: Position) -> bool {
        self.index <= at.index || self.term < at.term
    }
}

/// A learner's catch-up round (Raft thesis, section 4.2.1).
#[derive(Clone, Copy, Debug)]
struct Round {
    target: Index,
    started: u64,
}

/// What to append for a change.
enum Plan {
    /// It holds already.
    Done,
    /// One configuration change and what it means for the address book.
    Conf { kind: ConfChangeType, raft_id: RaftId, upsert: Option<Member> },
    /// A new address.
    Address(Member),
}

impl Changes {
    pub(super) fn push(&mut self, change: Change, reply: Reply<Changed>) {
        if self.queue.len() >= MAX_QUEUED {
            let bound = MAX_QUEUED as u64;
            reply.send(Err(Error::Overloaded { what: "queued membership changes", bound }));
        } else {
            self.queue.push_back((change, reply));
        }
    }

    /// Another term or leader: what learners reached before counts no more.
    pub(super) fn forget_rounds(&mut self) {
        self.rounds.clear();
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes everything that waits for a leader.
    pub(super) fn take_queued(&mut self) -> Vec<(Change, Reply<Changed>)> {
        self.queue.drain(..).collect()
    }

    pub(super) fn sweep(&mut self) {
        self.queue.retain(|(_, reply)| !reply.is_closed());
    }

    /// A snapshot covers this position: a change up to there is not known to have happened, one
    /// above of an earlier term has not.
    pub(super) fn covered(&mut self, at: Position) {
        let Some(current) = self.current.take_if(|c| c.is_decided(at)) else { return };
        let error = if current.index <= at.index {
            Error::unknown("a snapshot covers the membership change")
        } else {
            Error::Dropped
        };
        if let Some(reply) = current.reply {
            reply.send(Err(error));
        }
    }

    /// The entry at this position was applied: a change at its index is decided, and one above of
    /// an earlier term. `changed` is the membership that it brought about.
    pub(super) fn decide(&mut self, at: Position, changed: Option<&Membership>) {
        let Some(current) = self.current.take_if(|c| c.is_decided(at)) else { return };
        let Some(reply) = current.reply else { return };
        let ours = (current.term, current.index) == (at.term, at.index);
        reply.send(match changed {
            Some(m) if ours => Ok(Changed { membership: m.clone() }),
            None if ours => Err(Error::Membership("the engine refused the change".to_owned())),
            Some(_) | None => Err(Error::Dropped),
        });
    }
}

impl Node {
    /// Starts the next membership change if the leader may (R17).
    pub(super) fn start_change(&mut self) {
        if !self.may_change() {
            return;
        }
        if self.is_joint() {
            self.leave_joint();
            return;
        }
        while let Some((change, reply)) = self.changes.queue.pop_front() {
            if !reply.begin() {
                continue;
            }
            match self.plan(&change).and_then(|plan| self.propose_plan(plan)) {
                Ok(None) => match &self.membership {
                    Some(m) => reply.send(Ok(Changed { membership: m.clone() })),
                    None => drop(reply),
                },
                Ok(Some((term, index))) => {
                    self.changes.current = Some(Current { term, index, reply: Some(reply) });
                    return;
                }
                Err(error) => reply.send(Err(error)),
            }
        }
    }

    fn may_change(&self) -> bool {
        self.is_leader()
            && self.changes.current.is_none()
            && self.raw.raft.commit_to_current_term()
            && !self.raw.raft.has_pending_conf()
            && self.raw.raft.lead_transferee.is_none()
    }

    fn is_joint(&self) -> bool {
        self.membership.as_ref().is_some_and(|m| !m.conf_state.voters_outgoing.is_empty())
    }

    /// Our leaders leave a joint configuration themselves: raft's auto-leave forgets it when the
    /// leader changes.
    fn leave_joint(&mut self) {
        if let Err(error) = self.propose_conf(Bytes::new(), Bytes::new()) {
            slog::warn!(self.logger, "cannot leave the joint configuration yet";
                "reason" => %error);
        }
    }

    fn plan(&mut self, change: &Change) -> Result<Plan, Error> {
        let Some(membership) = &self.membership else { return Err(Error::NoLeader) };
        match change {
            Change::Join { node_id, incarnation, addr } => {
                plan_join(membership, *node_id, *incarnation, addr)
            }
            Change::Update { node_id, incarnation, addr } => {
                plan_update(membership, *node_id, *incarnation, addr)
            }
            Change::Remove { node_id } => {
                let Some(raft_id) = membership.by_node(*node_id).map(|m| m.raft_id) else {
                    return Ok(Plan::Done);
                };
                self.plan_remove(raft_id, *node_id)
            }
        }
    }

    fn plan_remove(&mut self, raft_id: RaftId, node_id: NodeId) -> Result<Plan, Error> {
        let voters = self.voters();
        if voters.contains(&raft_id) {
            let rest: Vec<RaftId> = voters.into_iter().filter(|v| *v != raft_id).collect();
            if rest.is_empty() {
                return Err(Error::Membership(format!(
                    "node {node_id} is the last voter; a cluster without voters could never be \
                     used again. Shut it down instead"
                )));
            }
            self.require_quorum(&rest, "removing this voter")?;
            if raft_id == self.raft_id {
                self.begin_transfer(None)?;
                return Err(Error::NotLeader { leader: None });
            }
        }
        Ok(Plan::Conf { kind: ConfChangeType::RemoveNode, raft_id, upsert: None })
    }

    /// Refuses a change that would leave a set of voters of whom no majority is heard.
    fn require_quorum(&self, voters: &[RaftId], what: &str) -> Result<(), Error> {
        let alive = voters.iter().filter(|v| self.is_heard(**v)).count();
        let quorum = voters.len() / 2 + 1;
        if alive < quorum {
            return Err(Error::Membership(format!(
                "{what} would leave {} voters of whom only {alive} are reachable; {quorum} are \
                 needed. Bring the others back first",
                voters.len()
            )));
        }
        Ok(())
    }

    /// Proposes a plan; None when nothing is to do.
    fn propose_plan(&mut self, plan: Plan) -> Result<Option<(Term, Index)>, Error> {
        match plan {
            Plan::Done => Ok(None),
            Plan::Address(member) => {
                let change = pb::MembershipChange { upsert: vec![member.to_pb()], next_raft_id: 0 };
                let data = envelope::membership(&prost::Message::encode_to_vec(&change));
                self.propose_entries(vec![proposals::entry(data)])?;
                Ok(Some((self.raw.raft.term, self.last_index())))
            }
            Plan::Conf { kind, raft_id, upsert } => {
                let mut single = eraftpb::ConfChangeSingle::default();
                single.set_change_type(kind);
                single.node_id = raft_id;
                Changer::new(self.raw.raft.prs())
                    .simple(std::slice::from_ref(&single))
                    .map_err(|e| Error::Membership(e.to_string()))?;
                let mut cc = eraftpb::ConfChangeV2::default();
                cc.set_changes(vec![single].into());
                let next_raft_id = upsert.as_ref().map_or(0, |m| m.raft_id + 1);
                let change = pb::MembershipChange {
                    upsert: upsert.iter().map(Member::to_pb).collect(),
                    next_raft_id,
                };
                let context = prost::Message::encode_to_vec(&change).into();
                self.propose_conf(conf_change::encode(&cc), context).map(Some)
            }
        }
    }

    /// Appends a configuration change and makes sure that raft did not replace it (H5).
    fn propose_conf(&mut self, data: Bytes, context: Bytes) -> Result<(Term, Index), Error> {
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
        entry.data = data;
        entry.context = context;
        self.propose_entries(vec![entry])?;
        let index = self.last_index();
        if self.raw.raft.pending_conf_index != index {
            return Err(Error::Membership("another change is pending; try again".to_owned()));
        }
        Ok((self.raw.raft.term, index))
    }

    /// One MsgPropose with these entries.
    pub(super) fn propose_entries(&mut self, entries: Vec<eraftpb::Entry>) -> Result<(), Error> {
        let mut m = eraftpb::Message::default();
        m.set_msg_type(MessageType::MsgPropose);
        m.from = self.raft_id;
        m.set_entries(entries.into());
        self.raw.step(m).map_err(|_| Error::NotLeader { leader: None })
    }

    /// Folds a committed configuration change in (R6). True when the membership changed.
    pub(super) fn apply_conf_change(&mut self, entry: &Entry) -> bool {
        let decoded = conf_change::decode(&entry.data)
            .and_then(|cc| Ok((cc, conf_change::decode_context(&entry.context)?)));
        let applied = decoded.and_then(|(cc, change)| {
            let conf = self.raw.apply_conf_change(&cc).map_err(|e| e.to_string())?;
            Ok((conf, change))
        });
        let (conf, change) = match applied {
            Ok(applied) => applied,
            Err(reason) => {
                // Deterministic: every replica refuses the same entry for the same reason.
                slog::warn!(self.logger, "membership change refused";
                    "index" => entry.index, "reason" => &reason);
                return false;
            }
        };
        if let Some(m) = &mut self.membership {
            m.conf_state = (&conf).into();
            fold(m, change, entry.index);
        }
        let ousted = self.is_leader() && !self.voters().contains(&self.raft_id);
        if ousted && !zoo::has(Bug::LeadWithoutVote) {
            // H1, H2: a leader that is no voter any more must not count itself.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        true
    }

    /// Folds a committed change of addresses in. True when the membership changed.
    pub(super) fn apply_address_change(&mut self, body: &Bytes, index: Index) -> bool {
        match (conf_change::decode_context(body), &mut self.membership) {
            (Ok(change), Some(m)) => {
                fold(m, change, index);
                true
            }
            (Err(reason), _) => {
                slog::warn!(self.logger, "address change refused";
                    "index" => index, "reason" => reason);
                false
            }
            (Ok(_), None) => false,
        }
    }

    /// Promotes one learner that has caught up, if any (thesis 4.2.1, R17).
    pub(super) fn promote_learner(&mut self) {
        if !self.may_change() || self.is_joint() || self.changes.has_queued() {
            return;
        }
        let Some(membership) = &self.membership else { return };
        let learners = membership.conf_state.learners.clone();
        self.changes.rounds.retain(|id, _| learners.contains(id));
        let Some(raft_id) = learners.into_iter().find(|id| self.has_caught_up(*id)) else { return };
        let mut voters = self.voters();
        voters.push(raft_id);
        if self.require_quorum(&voters, "promoting a learner").is_err() {
            return;
        }
        self.changes.rounds.remove(&raft_id);
        let plan = Plan::Conf { kind: ConfChangeType::AddNode, raft_id, upsert: None };
        match self.propose_plan(plan) {
            Ok(Some((term, index))) => {
                self.changes.current = Some(Current { term, index, reply: None });
            }
            Ok(None) => {}
            Err(error) => {
                slog::warn!(self.logger, "cannot promote a learner yet"; "reason" => %error);
            }
        }
    }

    /// Whether a learner reached the end of the log, as it was when a round began that took less
    /// than an election timeout.
    fn has_caught_up(&mut self, id: RaftId) -> bool {
        let last = self.last_index();
        let tick = self.tick;
        let Some(progress) = self.raw.raft.prs().get(id) else { return false };
        let live = progress.state == ProgressState::Replicate
            && self.silent_ticks(id).is_some_and(|t| t <= self.limits.heartbeat_tick * 2);
        if !live {
            self.changes.rounds.remove(&id);
            return false;
        }
        let round = *self.changes.rounds.entry(id).or_insert(Round { target: last, started: tick });
        if progress.matched < round.target {
            return false;
        }
        let quick = tick - round.started < self.limits.election_tick;
        if !quick {
            self.changes.rounds.insert(id, Round { target: last, started: tick });
        }
        quick
    }

    /// The voters in force, joint ones included.
    pub(super) fn voters(&self) -> Vec<RaftId> {
        let mut all: Vec<RaftId> = self.raw.raft.prs().conf().voters().ids().iter().collect();
        all.sort_unstable();
        all
    }

    /// The leader, as others can reach it.
    pub(super) fn leader(&self) -> Option<Leader> {
        let member = self.membership.as_ref()?.by_raft(self.raw.raft.leader_id)?;
        Some(Leader { id: member.node_id, addr: member.addr.clone() })
    }

    pub(super) fn own_role(&self) -> Option<MemberRole> {
        self.membership.as_ref()?.role(self.raft_id)
    }
}

fn plan_join(
    m: &Membership,
    node_id: NodeId,
    incarnation: Incarnation,
    addr: &str,
) -> Result<Plan, Error> {
    match m.by_node(node_id) {
        Some(known) if known.incarnation == incarnation && known.addr == addr => Ok(Plan::Done),
        Some(known) if known.incarnation == incarnation => {
            Ok(Plan::Address(Member { addr: addr.to_owned(), ..known.clone() }))
        }
        Some(known) => Err(Error::Membership(format!(
            "node {node_id} is a member already, at {}, with another data directory. If that \
             directory is lost, remove node {node_id} from the cluster first, then join again; \
             if it is not, start the node with it; if the id is a mistake, choose another",
            known.addr
        ))),
        None => {
            if node_id == 0 || addr.is_empty() {
                return Err(Error::Membership(
                    "a member needs an id above 0 and an address".into(),
                ));
            }
            let mut raft_id = m.next_raft_id;
            if zoo::has(Bug::RaftIdReused) {
                raft_id = 1 + m.members.iter().map(|known| known.raft_id).max().unwrap_or(0);
            }
            let member = Member {
                node_id,
                raft_id,
                incarnation,
                addr: addr.to_owned(),
                metadata: Bytes::new(),
            };
            Ok(Plan::Conf { kind: ConfChangeType::AddLearnerNode, raft_id, upsert: Some(member) })
        }
    }
}

fn plan_update(
    m: &Membership,
    node_id: NodeId,
    incarnation: Incarnation,
    addr: &str,
) -> Result<Plan, Error> {
    match m.by_node(node_id).filter(|known| known.incarnation == incarnation) {
        Some(known) if known.addr == addr => Ok(Plan::Done),
        Some(known) => Ok(Plan::Address(Member { addr: addr.to_owned(), ..known.clone() })),
        None => Err(Error::Membership(format!(
            "node {node_id} with this data directory is no member of the cluster"
        ))),
    }
}

/// Folds a change into the address book; members that raft does not count any more go.
fn fold(m: &mut Membership, change: pb::MembershipChange, index: Index) {
    m.index = index;
    m.next_raft_id = m.next_raft_id.max(change.next_raft_id);
    for member in change.upsert.into_iter().filter_map(|p| Member::from_pb(p).ok()) {
        m.members.retain(|old| old.raft_id != member.raft_id);
        m.members.push(member);
    }
    let conf = m.conf_state.clone();
    m.members.retain(|member| conf.contains(member.raft_id));
    m.members.sort_by_key(|member| member.node_id);
}
