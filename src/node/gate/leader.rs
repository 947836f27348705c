//! What a leader says: appends, heartbeats, snapshots, the order to campaign (rules 4, 5, 8, 9).

use super::{GateView, Limits, MAX_CONF_STATE, MAX_INDEX, MIN_ENTRY, Reject, ensure, position};
use crate::node::conf_change;
use crate::types::{ConfState, Index, Membership, RaftId, SnapshotMeta, Term};
use raft_rs::eraftpb::Message;

/// Rule 4: entries follow each other from `index + 1`, with terms that never fall, within bounds.
pub(super) fn append_well_formed(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    position(m.index, m.log_term)?;
    let Limits { entry: entry_limit, message: message_limit } = view.limits;
    let count_limit = message_limit / MIN_ENTRY;
    let count = m.entries.len();
    let too_large = |what, size, limit| Reject::TooLarge { what, size, limit };
    ensure(count <= count_limit, || too_large("number of entries", count, count_limit))?;
    ensure(m.log_term <= m.term, || Reject::FutureTerm { log_term: m.log_term, term: m.term })?;
    let (mut index, mut low, mut bytes) = (m.index, m.log_term.max(1), 0usize);
    for e in m.entries.iter() {
        index += 1;
        ensure(e.index == index, || Reject::Gap { found: e.index, expected: index })?;
        let (term, high) = (e.term, m.term);
        ensure((low..=high).contains(&term), || Reject::EntryTerm { index, term, low, high })?;
        low = term;
        let size = e.data.len().saturating_add(e.context.len());
        ensure(size <= entry_limit, || too_large("bytes of an entry", size, entry_limit))?;
        bytes = bytes.saturating_add(size);
    }
    ensure(index <= MAX_INDEX, || Reject::OutOfRange { field: "entry index", value: index })?;
    ensure(bytes <= message_limit, || too_large("bytes of entries", bytes, message_limit))
}

/// Rule 4: a leader holds every committed entry (Raft paper, 5.4), and never replaces an entry of
/// its own term (5.3). raft panics on some such messages and answers others with an
/// acknowledgement; both would hide that a log is wrong.
pub(super) fn append_agrees_with_log(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    if !view.heeds(m) {
        return Ok(());
    }
    let before = std::iter::once((m.index, m.log_term));
    for (index, term) in before.chain(m.entries.iter().map(|e| (e.index, e.term))) {
        if index > view.last_index {
            break;
        }
        match view.terms.term_at(index) {
            Some(ours) if ours == term => {}
            Some(ours) if index <= view.commit => {
                return Err(Reject::ContradictsCommitted { index, term, ours });
            }
            Some(ours) => {
                return ensure(!ends_in(m.term, view), || Reject::RewritesOwnTerm {
                    index,
                    term: ours,
                });
            }
            // Compacted, hence committed; its term is no longer known.
            None => {}
        }
    }
    Ok(())
}

/// Whether our last entry is of this term: then all of our log is that of its leader (log matching,
/// 5.3), acknowledged entries of older terms included, and it never replaces any of it.
fn ends_in(term: Term, view: &GateView<'_>) -> bool {
    view.terms.term_at(view.last_index) == Some(term)
}

/// Rule 5: raft elects one leader per term, and follows any other that says so.
pub(super) fn one_leader_per_term(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let rival = m.term == view.term && view.leader != 0 && view.leader != m.from;
    ensure(!rival, || Reject::SecondLeader { from: m.from, term: m.term, leader: view.leader })
}

/// Rule 5: a heartbeat commits at most what this node acknowledged; beyond the end of the log,
/// entries that the cluster counts on are lost here.
///
/// No healthy node meets this. The leader of term T sends `min(matched, committed)`, where
/// `matched` is 0 when T begins and grows only by our acknowledgements of T. An acknowledgement
/// of index i leaves when our log up to i is durable (R2) and equal to the leader's: by an append
/// that matched, by our commit index, or by a snapshot. From then on, within T, the log never ends
/// below i:
/// - an append truncates only where it conflicts, and the leader's entries up to i are ours;
/// - a snapshot replaces the log only if it conflicts at its index, which is then above i;
/// - compaction and a restart keep the end of the log; entries still being written count, too.
///
/// So delay, duplication and reordering within T are harmless. Truncation by a later leader means
/// a later term, and heartbeats of T are old then: raft does not heed them, nor does this rule. A
/// joiner has acknowledged nothing and gets commit 0; its raft id was never used before, so no
/// `matched` of an earlier disk speaks for it.
pub(super) fn heartbeat_within_log(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    ensure(!view.heeds(m) || m.commit <= view.last_index, || Reject::LostLog {
        from: m.from,
        commit: m.commit,
        last_index: view.last_index,
    })
}

/// Rule 5: only the present leader hands over leadership; raft obeys anyone. Not while the log is
/// being written: with one voter left raft would lead at once and asserts a durable log (H6b), and
/// with a snapshot that it has not counted as applied it looks for entries that are gone.
pub(super) fn campaign_wanted(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let wanted = m.term == view.term && view.leader == m.from;
    ensure(wanted, || Reject::CampaignNotWanted { from: m.from, term: m.term })?;
    let ready = view.persisted == view.last_index && !view.installing;
    ensure(ready, || Reject::CampaignTooEarly)
}

/// Rule 8: the engine and the log get membership entries in canonical form only.
pub(super) fn membership_entries_canonical(m: &mut Message) -> Result<(), Reject> {
    for entry in m.entries.iter_mut() {
        conf_change::canonicalize(entry).map_err(|reason| Reject::Membership { reason })?;
    }
    Ok(())
}

/// Rule 9: a snapshot of a real position, whose configuration raft can restore and that contains
/// this node. That the body is whole was verified before the message came here (R11). One below
/// our commit is let through: raft ignores it and tells the leader how far we are.
pub(super) fn snapshot_well_formed(m: &Message, view: &GateView<'_>) -> Result<(), Reject> {
    let snapshot = m.get_snapshot();
    let size = snapshot.data.len();
    ensure(size == 0, || Reject::SnapshotData { size })?;
    let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
    let real = index > 0 && (1..=m.term).contains(&term);
    ensure(real, || Reject::SnapshotPosition { index, term, leader_term: m.term })?;
    check_conf_state(&ConfState::from(snapshot.get_metadata().get_conf_state()), view.id)
        .map_err(|reason| Reject::ConfState { reason })?;
    if !view.heeds(m) {
        return Ok(());
    }
    match view.terms.term_at(index) {
        Some(ours) if ours != term && index <= view.commit => {
            Err(Reject::ContradictsCommitted { index, term, ours })
        }
        Some(ours) if ours != term => {
            ensure(!ends_in(m.term, view), || Reject::RewritesOwnTerm { index, term: ours })
        }
        Some(_) | None => Ok(()),
    }
}

/// Rule 9: a snapshot above our commit holds every change of the membership that we have applied,
/// of this cluster; one that takes changes back would hand out raft ids a second time (R7). For the
/// meta of the verified file, which the message itself does not carry.
pub(crate) fn membership_goes_on(
    meta: &SnapshotMeta,
    ours: Option<&Membership>,
    commit: Index,
) -> Result<(), Reject> {
    let Some(ours) = ours.filter(|_| meta.position.index > commit) else { return Ok(()) };
    let theirs = &meta.membership;
    let goes_on = theirs.cluster_id == ours.cluster_id
        && theirs.index >= ours.index
        && theirs.next_raft_id >= ours.next_raft_id;
    ensure(goes_on, || Reject::OlderMembership { theirs: theirs.index, ours: ours.index })
}

/// Rule 9: whether raft can restore a configuration on the node `id`. It panics on any other.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn check_conf_state(conf: &ConfState, id: RaftId) -> Result<(), String> {
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave } = conf;
    let lists = [
        ("voters", voters),
        ("learners", learners),
        ("voters_outgoing", voters_outgoing),
        ("learners_next", learners_next),
    ];
    let total: usize = lists.iter().map(|(_, list)| list.len()).sum();
    if total > MAX_CONF_STATE {
        return Err(format!("{total} members, above {MAX_CONF_STATE}"));
    }
    for (name, list) in lists {
        let mut sorted = list.clone();
        sorted.sort_unstable();
        if let Some(id) = sorted.iter().find(|id| !(1..=conf_change::MAX_RAFT_ID).contains(*id)) {
            return Err(format!("raft id {id} in {name} is out of range"));
        }
        if sorted.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(format!("{name} names a member twice"));
        }
    }
    if voters.is_empty() {
        return Err("no voters".into());
    }
    if *auto_leave {
        return Err("a joint configuration that leaves itself, which no release writes".into());
    }
    let both = |a: &[RaftId], b: &[RaftId]| a.iter().find(|id| b.contains(id)).copied();
    if let Some(id) = both(learners, voters).or(both(learners, voters_outgoing)) {
        return Err(format!("raft id {id} is voter and learner"));
    }
    if let Some(id) = both(learners_next, voters) {
        return Err(format!("raft id {id} is voter and to become a learner"));
    }
    if let Some(id) = learners_next.iter().find(|id| !voters_outgoing.contains(id)) {
        return Err(format!("raft id {id} is to become a learner, but was no voter"));
    }
    if !(voters.contains(&id) || learners.contains(&id) || voters_outgoing.contains(&id)) {
        return Err(format!("this node, raft id {id}, is not in it"));
    }
    Ok(())
}
