//! What any member says: votes, answers and reads (rules 6, 7).

use raft_rs::eraftpb::{EntryType, Message, MessageType};
use raft_rs::{CAMPAIGN_TRANSFER, StateRole};

use super::{GateView, MAX_PENDING_READS, Reject, ensure, position};
use crate::node::context::ReadContext;

/// Rule 6: a candidate's last entry is older than its campaign, its commit within its log. raft
/// commits by it.
pub(super) fn vote_well_formed(m: &Message) -> Result<(), Reject> {
    position(m.index, m.log_term)?;
    commit_position(m)?;
    let (log_term, term) = (m.log_term, m.term);
    ensure(log_term < term, || Reject::FutureTerm { log_term, term })?;
    ensure(m.commit <= m.index, || Reject::Beyond {
        field: "commit",
        value: m.commit,
        limit: m.index,
    })?;
    // Only a handed-over leadership may disturb a present leader, and never by a pre-vote, which
    // has no context (rule 7).
    let kind = m.get_msg_type();
    ensure(m.context.is_empty() || m.context == CAMPAIGN_TRANSFER, || Reject::Context { kind })
}

/// Rule 6: a commit index comes with its term, which is none of the future.
fn commit_position(m: &Message) -> Result<(), Reject> {
    position(m.commit, m.commit_term)?;
    let (log_term, term) = (m.commit_term, m.term);
    ensure(log_term <= term, || Reject::FutureTerm { log_term, term })
}

/// Rule 6: requests for votes leave when the log is durable (R2), so no answer can be due before;
/// raft asserts that when it becomes leader. Any answer makes it count, a refusal included. An
/// answer to an earlier campaign of the same term can come this late: stale, not hostile.
pub(super) fn vote_answer_expected(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    commit_position(m)?;
    let campaigns = matches!(view.role, StateRole::Candidate | StateRole::PreCandidate);
    let granted_early =
        m.get_msg_type() == MessageType::MsgRequestPreVoteResponse && m.term > view.term;
    let counts = campaigns && (m.term == view.term || granted_early && !m.reject);
    ensure(!counts || view.persisted == view.last_index, || Reject::VoteNotAsked)
}

/// Rule 6: a follower acknowledges or rejects what the leader of this term has sent. Beyond the
/// end of the log raft would commit what does not exist, or overflow.
pub(super) fn append_answer_plausible(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    answer_within_log(m, view)?;
    if m.reject {
        let (hint, index) = (m.reject_hint, m.index);
        ensure(hint <= index, || Reject::Beyond {
            field: "reject_hint",
            value: hint,
            limit: index,
        })?;
        let (log_term, term) = (m.log_term, m.term);
        ensure(log_term <= term, || Reject::FutureTerm { log_term, term })?;
    }
    if !view.led_by_us(m) {
        return Ok(());
    }
    let (index, limit) = (m.index, view.last_index);
    ensure(index <= limit, || Reject::Beyond { field: "index", value: index, limit })?;
    // What was acknowledged in this term stays: a rejection at or below it was overtaken, and
    // raft would go back to entries that may be compacted, hence to a needless snapshot.
    let matched = view.matched.unwrap_or(0);
    let stale = m.reject && (index <= matched || m.reject_hint < matched);
    ensure(!stale, || Reject::StaleRejection { index, matched })
}

/// Rule 6: whoever follows this leader has committed nothing that the leader does not hold.
pub(super) fn answer_within_log(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let (value, limit) = (m.commit, view.last_index);
    ensure(!view.led_by_us(m) || value <= limit, || Reject::Beyond {
        field: "commit",
        value,
        limit,
    })
}

/// Rule 7: heartbeats and their answers carry a read context of some member, or none.
pub(super) fn context_ours_or_empty(m: &Message) -> Result<(), Reject> {
    let ours = m.context.is_empty() || ReadContext::decode(&m.context).is_some();
    ensure(ours, || Reject::Context { kind: m.get_msg_type() })
}

/// Rule 7: the one read context that a ReadIndex or its answer carries.
fn read_context(m: &Message) -> Result<ReadContext, Reject> {
    let malformed = || Reject::ReadContext { kind: m.get_msg_type() };
    let [entry] = m.get_entries() else {
        return Err(malformed());
    };
    let bare = entry.get_entry_type() == EntryType::EntryNormal
        && entry.term == 0
        && entry.index == 0
        && entry.context.is_empty();
    ensure(bare, malformed)?;
    ReadContext::decode(&entry.data).ok_or_else(malformed)
}

/// Rule 7: a member asks for itself, and asks a leader. A follower would forward the request under
/// the asker's name, two of them in circles.
pub(super) fn read_request(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let named = read_context(m)?.raft_id;
    ensure(named == m.from, || Reject::ForeignRead { named, expected: m.from })?;
    ensure(view.role == StateRole::Leader, || Reject::ReadNotLeader)?;
    let pending = view.pending_reads;
    ensure(pending < MAX_PENDING_READS, || Reject::TooManyReads { pending })
}

/// Rule 7: an answer names us and this start of ours.
pub(super) fn read_answer(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let context = read_context(m)?;
    let named = context.raft_id;
    ensure(named == view.id, || Reject::ForeignRead { named, expected: view.id })?;
    ensure(context.nonce == view.read_nonce, || Reject::EarlierStart)
}
