//! Membership changes: one at a time, in the order in which they were asked for, checked before they
//! are proposed (`plan`), folded in when they are committed.
//!
//! Invariants:
//! - nothing is proposed that raft would replace by an empty entry or that would fail when it is
//!   applied (H5, R17);
//! - the replicated address book changes only by committed entries, alike on every node;
//! - a raft id is handed out once (correctness: an empty disk never speaks for a full one);
//! - a joint configuration is left by whoever leads, before anything else is changed;
//! - a change is answered when it is in force: applied, a joint configuration left, its record
//!   durable here and, as far as can be told, known to a majority of the new voters. What appends
//!   nothing is answered once it is known that this node still led (`answers`).

mod answers;
mod plan;
mod rounds;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::event::{Change, Changed};
use super::reads::RoundTimeout;
use super::{Node, conf_change, envelope, proposals};
use crate::error::{Error, Leader};
use crate::pb;
use crate::reply::Reply;
use crate::types::{
    Entry, Index, Member, MemberRole, Membership, NodeId, Position, RaftId, Term, eraftpb,
};
use crate::zoo::{self, Bug};
use eraftpb::MessageType;
use plan::{Plan, Verdict};

/// Changes that may wait for their turn.
const MAX_QUEUED: usize = 1024;
/// Times that a leader tries to hand over before a change that takes its own vote: then the change
/// is refused, or, in a joint configuration, made without.
const MAX_HANDOVERS: u32 = 3;
/// Election timeouts that a data directory has for its first sign, once it was let in: before, no
/// other one takes its place.
const START_PATIENCE: u64 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    queue: VecDeque<Queued>,
    /// The change that was proposed and is not decided yet.
    current: Option<Current>,
    /// Waits until the joint configuration is left that its change has entered.
    joint: Option<Reply<Changed>>,
    answers: answers::Answers,
    rounds: rounds::Rounds,
    /// Times that this leader tried to hand over before it leaves the present joint configuration.
    handovers: u32,
    /// The ticks at which data directories were let in, while this node leads.
    admitted: BTreeMap<RaftId, u64>,
}

/// A change that waits for its turn.
#[derive(Debug)]
struct Queued {
    change: Change,
    reply: Reply<Changed>,
    /// The tick at which it was asked for.
    since: u64,
    /// It was looked at, and is not to hold others up.
    waits: bool,
    handovers: u32,
}

impl Queued {
    fn new(change: Change, reply: Reply<Changed>, since: u64) -> Self {
        Self { change, reply, since, waits: false, handovers: 0 }
    }
}

#[derive(Debug)]
struct Current {
    term: Term,
    index: Index,
    reply: Option<Reply<Changed>>,
    /// Who is to vote in the end.
    voter: Option<NodeId>,
}

impl Current {
    /// Whether an entry that was applied at this position settles it: see the proposals' rule.
    fn is_decided(&self, at: Position) -> bool {
        self.index <= at.index || self.term < at.term
    }
}

impl Changes {
    pub(super) fn push(&mut self, change: Change, reply: Reply<Changed>, tick: u64) {
        if self.queue.len() >= MAX_QUEUED {
            let bound = MAX_QUEUED as u64;
            reply.send(Err(Error::Overloaded { what: "queued membership changes", bound }));
        } else {
            self.queue.push_back(Queued::new(change, reply, tick));
        }
    }

    /// Another term or leader: what learners reached before counts no more, and what was to be
    /// confirmed is asked of the next leader.
    pub(super) fn leader_changed(&mut self, tick: u64) {
        self.rounds.clear();
        self.admitted.clear();
        self.handovers = 0;
        for (change, reply) in self.answers.take_back() {
            self.queue.push_back(Queued::new(change, reply, tick));
        }
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes everything that waits for a leader.
    pub(super) fn take_queued(&mut self) -> Vec<(Change, Reply<Changed>)> {
        self.queue.drain(..).map(|q| (q.change, q.reply)).collect()
    }

    /// Forgets those whose callers gave up, and asks again what was not confirmed in time.
    /// Whether there was any.
    pub(super) fn sweep(&mut self, now: u64, timeout: &RoundTimeout) -> bool {
        self.queue.retain(|q| !q.reply.is_closed());
        self.answers.retry_late(now, timeout)
    }

    /// The node stops: nothing new is begun.
    pub(super) fn stop(&mut self) {
        self.queue.clear();
        drop(self.answers.take_back());
    }

    /// A snapshot with this membership covers this position: a change up to there is not known to
    /// have happened, one above of an earlier term has not.
    pub(super) fn covered(&mut self, at: Position, membership: &Membership) {
        if !membership.is_joint()
            && let Some(reply) = self.joint.take()
        {
            // It was applied here before; the snapshot tells that it was completed.
            reply.send(Ok(Changed::done(membership)));
        }
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
    /// an earlier term. `changed` is the membership that it brought about, whose record is in the
    /// batch `number`; it is to be known by the others at `late`, or else is answered without.
    pub(super) fn decide(
        &mut self,
        at: Position,
        changed: Option<&Membership>,
        number: u64,
        late: u64,
    ) {
        if let Some(m) = changed.filter(|m| !m.is_joint())
            && let Some(reply) = self.joint.take()
        {
            self.answers.spread(reply, Changed::done(m), number, late);
        }
        let Some(current) = self.current.take_if(|c| c.is_decided(at)) else { return };
        let Some(reply) = current.reply else { return };
        let ours = (current.term, current.index) == (at.term, at.index);
        match changed {
            Some(m) if ours && m.is_joint() && !zoo::has(Bug::AnswerInJoint) => {
                self.joint = Some(reply)
            }
            Some(m) if ours => {
                self.answers.spread(reply, Changed::applied(m, current.voter), number, late);
            }
            None if ours => {
                let reason = "the engine refused the change".to_owned();
                reply.send(Err(Error::Membership(reason)));
            }
            Some(_) | None => reply.send(Err(Error::Dropped)),
        }
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
        let mut queue = std::mem::take(&mut self.changes.queue);
        let mut rest = VecDeque::new();
        while let Some(q) = queue.pop_front() {
            // What cannot be told yet is found out by whoever leads now.
            let late = self.tick > q.since.max(self.led_since()) + self.patience();
            match self.judge(&q.change, q.since) {
                Ok(Verdict::Wait(_)) if !late => rest.push_back(Queued { waits: true, ..q }),
                Ok(Verdict::WaitOn(reason)) => {
                    if !q.waits {
                        slog::info!(self.logger, "a data directory waits to be let in";
                            "reason" => %reason);
                    }
                    rest.push_back(Queued { waits: true, ..q });
                }
                Ok(Verdict::Append(plan)) => {
                    if q.reply.begin() && self.append(plan, &q.change, q.reply) {
                        break;
                    }
                }
                Ok(Verdict::HandOver(to)) => {
                    rest.extend(self.hand_over_first(q, &to));
                    break;
                }
                Ok(Verdict::Holds(progress)) => {
                    let membership = self.membership.clone();
                    let answer = membership.map(|membership| Changed { membership, progress });
                    self.changes.answers.confirm(q.change, q.reply, answer.ok_or(Error::NoLeader));
                }
                Ok(Verdict::Wait(error)) | Err(error) => {
                    self.changes.answers.confirm(q.change, q.reply, Err(error));
                }
            }
        }
        rest.extend(queue);
        self.changes.queue = rest;
    }

    /// Ticks that a change may wait for what can only be told after a while: who is silent.
    fn patience(&self) -> u64 {
        2 * self.limits.election_tick + 4 * self.limits.heartbeat_tick
    }

    fn may_change(&self) -> bool {
        self.is_leader()
            && self.changes.current.is_none()
            && self.raw.raft.commit_to_current_term()
            && !self.raw.raft.has_pending_conf()
            && self.raw.raft.lead_transferee.is_none()
            && !self.hands_over()
    }

    fn is_joint(&self) -> bool {
        self.membership.as_ref().is_some_and(Membership::is_joint)
    }

    /// Our leaders leave a joint configuration themselves: raft's auto-leave forgets it when the
    /// leader changes. One that will not vote afterwards hands over first, if it can.
    fn leave_joint(&mut self) {
        let orphan = zoo::has(Bug::JointOrphaned) && self.changes.joint.is_none();
        if orphan || zoo::has(Bug::JointForEver) {
            return;
        }
        let voters =
            self.membership.as_ref().map_or_else(Vec::new, |m| m.conf_state.voters.clone());
        if !voters.contains(&self.raft_id)
            && self.changes.handovers < MAX_HANDOVERS
            && self.begin_transfer_among(voters).is_ok()
        {
            self.changes.handovers += 1;
            return;
        }
        if let Err(error) = self.propose_conf(Bytes::new(), Bytes::new()) {
            slog::warn!(self.logger, "cannot leave the joint configuration yet";
                "reason" => %error);
        }
    }

    /// A leader that is to lose its vote hands over; the next one makes the change (H1). Gives it
    /// back to wait for that.
    fn hand_over_first(&mut self, q: Queued, to: &[RaftId]) -> Option<Queued> {
        let begun = if q.handovers < MAX_HANDOVERS {
            self.begin_transfer_among(to.to_vec())
        } else {
            let reason = "this node leads, and none of the voters that stay takes over; see \
                          whether they are healthy, then try again";
            Err(Error::Membership(reason.to_owned()))
        };
        match begun {
            Ok(()) => Some(Queued { handovers: q.handovers + 1, ..q }),
            Err(error) => {
                self.changes.answers.confirm(q.change, q.reply, Err(error));
                None
            }
        }
    }

    /// Proposes a plan, whose outcome answers. False when it could not be proposed.
    fn append(&mut self, plan: Plan, change: &Change, reply: Reply<Changed>) -> bool {
        let voter =
            if let Change::AddVoter { node_id, .. } = change { Some(*node_id) } else { None };
        match self.propose_plan(plan) {
            Ok((term, index)) => {
                self.changes.current = Some(Current { term, index, reply: Some(reply), voter });
                true
            }
            Err(error) => {
                reply.send(Err(error));
                false
            }
        }
    }

    /// Proposes a change that nobody has asked for.
    fn append_own(&mut self, plan: Plan) -> Result<(), Error> {
        let (term, index) = self.propose_plan(plan)?;
        self.changes.current = Some(Current { term, index, reply: None, voter: None });
        Ok(())
    }

    fn propose_plan(&mut self, plan: Plan) -> Result<(Term, Index), Error> {
        self.check_size(&plan)?;
        match plan {
            Plan::Record(change) => {
                let data = envelope::membership(&prost::Message::encode_to_vec(&change));
                self.propose_entries(vec![proposals::entry(data)])?;
                Ok((self.raw.raft.term, self.last_index()))
            }
            Plan::Conf { change, context } => {
                let context = prost::Message::encode_to_vec(&context).into();
                self.propose_conf(conf_change::encode(&change), context)
            }
        }
    }

    /// A membership travels whole, with snapshots and answers: it must fit, with what it grows by.
    /// What makes it smaller, or puts a directory in the place of another, goes through.
    fn check_size(&self, plan: &Plan) -> Result<(), Error> {
        let (Plan::Record(change) | Plan::Conf { context: change, .. }) = plan;
        let Some(m) = self.membership.as_ref() else { return Ok(()) };
        let before = |new: &pb::Member| {
            let same = |m: &&Member| m.raft_id == new.raft_id || m.node_id == new.node_id;
            m.members.iter().find(same)
        };
        let grows = |new: &pb::Member| {
            before(new).is_none_or(|old| new.metadata.len() > old.metadata.len())
        };
        let size = m.encode().len() + prost::Message::encoded_len(change);
        let most = self.limits.gate.message / 2;
        if size > most && change.upsert.iter().any(grows) {
            return Err(Error::Membership(format!(
                "the members and their metadata would take {size} bytes, above {most}; shorten the \
                 metadata, or raise Config::grpc_message_size on every node to more than twice that"
            )));
        }
        Ok(())
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
            for new in change.upsert.iter().filter(|new| m.by_raft(new.raft_id).is_none()) {
                if let Some(old) = m.by_node(new.node_id) {
                    slog::warn!(self.logger, "a data directory is silent; another one has asked for \
                        its place and gets it, as a learner until it has caught up";
                        "node" => new.node_id, "addr" => &new.addr, "raft_id" => new.raft_id,
                        "old_addr" => &old.addr, "old_raft_id" => old.raft_id);
                }
            }
            m.conf_state = (&conf).into();
            let news = fold(m, change, entry.index);
            self.note_admitted(news);
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
                let news = fold(m, change, index);
                self.note_admitted(news);
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

    /// Data directories that were not members before: they have had no time to be heard of.
    fn note_admitted(&mut self, news: Vec<RaftId>) {
        let tick = self.tick;
        self.changes.admitted.extend(news.into_iter().map(|id| (id, tick)));
        if let Some(m) = &self.membership {
            self.changes.admitted.retain(|id, _| m.by_raft(*id).is_some());
        }
    }

    /// Whether a data directory was let in lately and has not been heard of yet.
    fn is_awaited(&self, id: RaftId) -> bool {
        let admitted = self.changes.admitted.get(&id).copied();
        let heard = self.heard_at(id);
        admitted.is_some_and(|at| {
            heard.is_none_or(|heard| heard < at)
                && self.tick - at <= START_PATIENCE * self.limits.election_tick
        })
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

/// Folds a change into the address book; members that raft does not count any more go. Gives the
/// raft ids whose data directory is a new one.
fn fold(m: &mut Membership, change: pb::MembershipChange, index: Index) -> Vec<RaftId> {
    m.index = index;
    m.next_raft_id = m.next_raft_id.max(change.next_raft_id);
    let mut news = Vec::new();
    for member in change.upsert.into_iter().filter_map(|p| Member::from_pb(p).ok()) {
        let before = m.by_raft(member.raft_id).map(|old| old.incarnation);
        if member.has_joined() && before != Some(member.incarnation) {
            news.push(member.raft_id);
        }
        m.members.retain(|old| old.raft_id != member.raft_id);
        m.members.push(member);
    }
    let conf = m.conf_state.clone();
    m.members.retain(|member| conf.contains(member.raft_id));
    m.members.sort_by_key(|member| (member.node_id, member.raft_id));
    news
}
