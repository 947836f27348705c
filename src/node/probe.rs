//! What a simulator and its oracle see of a node: looked at after every event, changes nothing.

use raft_rs::{GetEntriesContext, ProgressState};

use super::Node;
use crate::types::{ConfState, Index, Membership, RaftId, Term};

/// The scalars of a node that its invariants are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) raft_id: RaftId,
    pub(crate) term: Term,
    pub(crate) leads: bool,
    pub(crate) candidate: bool,
    pub(crate) leader: RaftId,
    pub(crate) commit: Index,
    pub(crate) last: Index,
    /// The log begins above it.
    pub(crate) compacted: Index,
    pub(crate) emitted: Index,
    pub(crate) store_applied: Index,
    pub(crate) installing: bool,
    pub(crate) refused: u64,
}

impl Node {
    pub(crate) fn probe(&self) -> Probe {
        let raft = &self.raw.raft;
        Probe {
            raft_id: self.raft_id,
            term: raft.term,
            leads: self.is_leader(),
            candidate: raft.state == raft_rs::StateRole::Candidate,
            leader: raft.leader_id,
            commit: raft.raft_log.committed,
            last: self.last_index(),
            compacted: self.cache().compacted().index,
            emitted: self.emitted,
            store_applied: self.store_applied,
            installing: self.installing.is_some(),
            refused: self.refused_messages,
        }
    }

    /// Whether it leads and has committed an entry of its own term.
    pub(crate) fn is_settled_leader(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    /// The term of an entry of its log; None outside of it.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        self.raw.raft.raft_log.term(index).ok().filter(|term| *term > 0)
    }

    /// Type and bytes of an entry of its log; None outside of it.
    pub(crate) fn entry_at(&self, index: Index) -> Option<(u8, bytes::Bytes)> {
        let context = GetEntriesContext::empty(false);
        let mut found = self.raw.raft.raft_log.slice(index, index + 1, None, context).ok()?;
        let entry = found.pop().filter(|e| e.index == index)?;
        Some((entry.get_entry_type() as u8, entry.data))
    }

    pub(crate) fn members(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// The configuration that the engine counts votes by.
    pub(crate) fn conf(&self) -> ConfState {
        (&self.raw.raft.prs().conf().to_conf_state()).into()
    }

    /// Peers that a leader waits for with a snapshot under way (I16).
    pub(crate) fn peers_in_snapshot(&self) -> Vec<RaftId> {
        let waiting = |(id, p): (&RaftId, &raft_rs::Progress)| {
            (p.state == ProgressState::Snapshot).then_some(*id)
        };
        if self.is_leader() {
            self.raw.raft.prs().iter().filter_map(waiting).collect()
        } else {
            Vec::new()
        }
    }

    /// Proposals that wait although their entry is decided (I14).
    pub(crate) fn overdue_proposals(&self) -> usize {
        self.proposals.overdue(self.emitted)
    }
}
