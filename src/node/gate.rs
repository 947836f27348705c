//! The admission gate: every message of a peer passes here before `RawNode::step`.
//!
//! raft 0.7.0 trusts its messages: a dozen kinds of damaged ones panic it, others are accepted and
//! do harm (H9-H11). The gate judges a message against the state that it would meet, and changes
//! nothing but one thing: membership entries leave it in canonical form (rule 8).
//!
//! What it must never do: refuse what a correct member sends in a healthy cluster, unless raft
//! would ignore it too or its sender repeats it anyway (`Severity::Stale`).
//!
//! - Rules are checked in the order of their numbers, cheap ones first; one function each: 1 to 3
//!   here, 4, 5, 8 and 9 in `leader`, 6 and 7 in `member`.
//! - Messages of an old term are judged by their form only: raft ignores their contents, and what
//!   they say about the log was true of another log.
//! - Bytes of normal entries are not judged here. An envelope of a newer release must not be
//!   dropped in silence, which would stall this node; the applier refuses it in words.
//! - A member that lies consistently (acknowledges what it does not hold, votes twice) is beyond
//!   Raft and beyond the gate.

mod leader;
mod member;
mod reject;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod hazards;
#[cfg(test)]
mod honest;
#[cfg(test)]
mod tests;

use raft_rs::eraftpb::{Message, MessageType};
use raft_rs::{Raft, RaftLog, StateRole, Storage};

use crate::config::Config;
use crate::types::{Index, Membership, RaftId, Term};

#[cfg(test)]
pub(crate) use leader::check_conf_state;
pub(crate) use leader::membership_goes_on;
use leader::{
    append_agrees_with_log, append_well_formed, campaign_wanted, heartbeat_within_log,
    membership_entries_canonical, one_leader_per_term, snapshot_well_formed,
};
use member::{
    answer_within_log, append_answer_plausible, context_ours_or_empty, read_answer, read_request,
    vote_answer_expected, vote_well_formed,
};
pub(crate) use reject::{Reject, Severity};

/// The largest index and term; no sum of two of them overflows.
pub(crate) const MAX_INDEX: u64 = 1 << 62;
/// How far a term may run ahead: no honest cluster holds so many elections between two messages.
pub(crate) const MAX_TERM_AHEAD: u64 = 1 << 32;
/// Members in a configuration, all lists together.
pub(crate) const MAX_CONF_STATE: usize = 1 << 10;
/// Reads of all nodes that may wait for their index on a leader.
pub(crate) const MAX_PENDING_READS: usize = 1 << 16;
/// The least bytes of an entry on the wire: its term and its index.
const MIN_ENTRY: usize = 4;

/// Bounds on what a message carries, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// One entry.
    pub(crate) entry: usize,
    /// All entries of a message.
    pub(crate) message: usize,
}

impl Limits {
    /// The bounds of a configuration: what the transport lets through.
    pub(crate) fn new(config: &Config) -> Self {
        let message = usize::try_from(config.message_size()).unwrap_or(usize::MAX);
        Self { entry: message, message }
    }
}

/// The terms of the own log.
pub(crate) trait Terms {
    /// The term at an index; 0 at index 0 of a log that was never compacted. None when the index
    /// is compacted away or beyond the end.
    fn term_at(&self, index: Index) -> Option<Term>;
}

impl<S: Storage> Terms for RaftLog<S> {
    fn term_at(&self, index: Index) -> Option<Term> {
        let known = self.first_index() - 1..=self.last_index();
        if known.contains(&index) { self.term(index).ok() } else { None }
    }
}

/// The state that a message would meet.
#[derive(Clone, Copy)]
pub(crate) struct GateView<'a> {
    /// This node.
    pub(crate) id: RaftId,
    pub(crate) term: Term,
    pub(crate) role: StateRole,
    /// The leader of `term`; 0: unknown.
    pub(crate) leader: RaftId,
    pub(crate) commit: Index,
    pub(crate) last_index: Index,
    /// The end of the log that is durable.
    pub(crate) persisted: Index,
    /// Whether a snapshot was taken in and raft has not counted it as applied yet.
    pub(crate) installing: bool,
    pub(crate) terms: &'a dyn Terms,
    /// As a leader: what the sender has acknowledged; None if it is no member.
    pub(crate) matched: Option<Index>,
    /// As a leader: reads that wait for their index.
    pub(crate) pending_reads: usize,
    pub(crate) membership: Option<&'a Membership>,
    /// The nonce of this start, which is in the context of every read of ours.
    pub(crate) read_nonce: u64,
    pub(crate) limits: Limits,
}

impl<'a> GateView<'a> {
    /// The state of this engine, for a message of `sender`.
    pub(crate) fn new<S: Storage>(
        raft: &'a Raft<S>,
        sender: RaftId,
        membership: Option<&'a Membership>,
        read_nonce: u64,
        limits: Limits,
    ) -> Self {
        let log = &raft.raft_log;
        Self {
            id: raft.id,
            term: raft.term,
            role: raft.state,
            leader: raft.leader_id,
            commit: log.committed,
            last_index: log.last_index(),
            persisted: log.persisted,
            installing: log.applied + 1 < log.first_index(),
            terms: log,
            matched: raft.prs().get(sender).map(|p| p.matched),
            pending_reads: raft.pending_read_count(),
            membership,
            read_nonce,
            limits,
        }
    }

    /// Whether raft looks into a message of this term. Contents of older ones are ignored.
    fn heeds(&self, message: &Message) -> bool {
        message.term >= self.term
    }

    /// Whether this is an answer to what this node does as leader of the present term.
    fn led_by_us(&self, message: &Message) -> bool {
        self.role == StateRole::Leader && message.term == self.term
    }
}

/// Judges a message of an authenticated sender. Only when this is Ok may it be stepped.
///
/// # Errors
/// The first broken rule. `Severity` says what it means; the message must not be stepped.
pub(crate) fn admit(
    message: &mut Message,
    sender: RaftId,
    view: &GateView<'_>,
) -> Result<(), Reject> {
    known_type(message)?;
    own_fields_only(message)?;
    right_address(message, sender, view)?;
    numbers_in_range(message, view)?;
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            append_well_formed(message, view)?;
            one_leader_per_term(message, view)?;
            append_agrees_with_log(message, view)?;
            membership_entries_canonical(message)
        }
        MessageType::MsgHeartbeat => {
            one_leader_per_term(message, view)?;
            context_ours_or_empty(message)?;
            heartbeat_within_log(message, view)
        }
        MessageType::MsgSnapshot => {
            one_leader_per_term(message, view)?;
            snapshot_well_formed(message, view)
        }
        MessageType::MsgTimeoutNow => campaign_wanted(message, view),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => vote_well_formed(message),
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            vote_answer_expected(message, view)
        }
        MessageType::MsgAppendResponse => append_answer_plausible(message, view),
        MessageType::MsgHeartbeatResponse => {
            context_ours_or_empty(message)?;
            answer_within_log(message, view)
        }
        MessageType::MsgReadIndex => read_request(message, view),
        MessageType::MsgReadIndexResp => {
            one_leader_per_term(message, view)?;
            read_answer(message, view)
        }
        // Refused by `known_type`; listed so that a new type cannot slip through.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => local_type(message),
    }
}

fn ensure(ok: bool, reject: impl FnOnce() -> Reject) -> Result<(), Reject> {
    if ok { Ok(()) } else { Err(reject()) }
}

fn local_type(message: &Message) -> Result<(), Reject> {
    Err(Reject::LocalType { kind: message.get_msg_type() })
}

/// Rule 1: only types that peers send. The others are local orders: a forwarded proposal lacks
/// its bounds, a transfer or a report obeys whoever sends it.
fn known_type(message: &Message) -> Result<(), Reject> {
    match message.get_msg_type() {
        MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgSnapshot
        | MessageType::MsgTimeoutNow
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => Ok(()),
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => local_type(message),
    }
}

/// Rules 1 and 7: a field that raft never sets in this type is damage.
fn own_fields_only(m: &Message) -> Result<(), Reject> {
    use MessageType as T;
    ensure(m.request_snapshot == 0, || Reject::RequestsSnapshot)?;
    ensure(m.priority == 0 && m.deprecated_priority == 0, || Reject::Priority)?;
    let kind = m.get_msg_type();
    let vote = matches!(kind, T::MsgRequestVote | T::MsgRequestPreVote);
    let vote_answer = matches!(kind, T::MsgRequestVoteResponse | T::MsgRequestPreVoteResponse);
    let heartbeat = matches!(kind, T::MsgHeartbeat | T::MsgHeartbeatResponse);
    let append = matches!(kind, T::MsgAppend | T::MsgAppendResponse);
    let entries = matches!(kind, T::MsgAppend | T::MsgReadIndex | T::MsgReadIndexResp);
    let answer = kind == T::MsgAppendResponse;
    let table = [
        ("log_term", m.log_term != 0, append && (!answer || m.reject) || vote),
        ("index", m.index != 0, append || vote || kind == T::MsgReadIndexResp),
        ("entries", !m.entries.is_empty(), entries),
        ("commit", m.commit != 0, append || heartbeat || vote || vote_answer),
        ("commit_term", m.commit_term != 0, vote || vote_answer),
        ("snapshot", !m.get_snapshot().is_empty(), kind == T::MsgSnapshot),
        ("reject", m.reject, answer || vote_answer),
        ("reject_hint", m.reject_hint != 0, answer && m.reject),
        ("context", !m.context.is_empty(), heartbeat || kind == T::MsgRequestVote),
    ];
    for (field, set, allowed) in table {
        ensure(!set || allowed, || Reject::ForeignField { kind, field })?;
    }
    Ok(())
}

/// Rule 2: to us, from the one who sent it, who is a member or may be one that we do not know
/// yet. raft itself would follow a leader that the cluster removed.
fn right_address(m: &Message, sender: RaftId, view: &GateView<'_>) -> Result<(), Reject> {
    ensure(m.to == view.id, || Reject::NotForUs { to: m.to, id: view.id })?;
    ensure(m.from == sender, || Reject::NotFromSender { from: m.from, sender })?;
    ensure(m.from != 0 && m.from != view.id, || Reject::ImpossibleSender)?;
    let removed = view.membership.is_some_and(|members| members.was_removed(m.from));
    ensure(!removed, || Reject::RemovedSender { from: m.from })
}

/// Rule 3: terms and indices that no arithmetic of raft overflows. Term 0 means "local" to raft,
/// which then skips its term checks; only ReadIndex travels so.
fn numbers_in_range(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let highest = view.term.saturating_add(MAX_TERM_AHEAD).min(MAX_INDEX);
    let possible = if m.get_msg_type() == MessageType::MsgReadIndex {
        m.term == 0
    } else {
        (1..=highest).contains(&m.term)
    };
    ensure(possible, || Reject::Term { term: m.term, current: view.term })?;
    let meta = m.get_snapshot().get_metadata();
    let numbers = [
        ("log_term", m.log_term),
        ("index", m.index),
        ("commit", m.commit),
        ("commit_term", m.commit_term),
        ("reject_hint", m.reject_hint),
        ("snapshot index", meta.index),
        ("snapshot term", meta.term),
    ];
    for (field, value) in numbers {
        ensure(value <= MAX_INDEX, || Reject::OutOfRange { field, value })?;
    }
    Ok(())
}

/// Rules 4 and 6: index 0 has term 0, and nothing else has. raft takes term 0 beyond the end of
/// its log for a match, and acknowledges what it does not hold.
fn position(index: Index, log_term: Term) -> Result<(), Reject> {
    ensure((index == 0) == (log_term == 0), || Reject::Position { index, log_term })
}
