//! Why the gate turned a message away, in words, with the rule and what it says about the sender.

use crate::types::{Index, RaftId, Term, eraftpb::MessageType};

/// What a refusal says about the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    /// A healthy cluster does this: the message came late, or too early. Drop it.
    Stale,
    /// No correct member sends this: damage, a bug, or an attacker. Drop it, count it, log it.
    Hostile,
    /// This node must not go on.
    Fatal,
}

/// Why a message must not be stepped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reject {
    /// Rule 1.
    #[error("{kind:?} never comes from a peer")]
    LocalType { kind: MessageType },
    /// Rule 1.
    #[error("{kind:?} carries {field}, which it never has")]
    ForeignField { kind: MessageType, field: &'static str },
    /// Rule 2.
    #[error("addressed to raft id {to}, this is {id}")]
    NotForUs { to: RaftId, id: RaftId },
    /// Rule 2.
    #[error("signed by raft id {from} but sent by {sender}")]
    NotFromSender { from: RaftId, sender: RaftId },
    /// Rule 2.
    #[error("sent by raft id 0 or by this node's own id")]
    ImpossibleSender,
    /// Rule 2.
    #[error("sent by raft id {from}, which was removed from the cluster")]
    RemovedSender { from: RaftId },
    /// Rule 3.
    #[error("term {term} is no possible term while this node is at {current}")]
    Term { term: Term, current: Term },
    /// Rule 3.
    #[error("{field} {value} is out of range")]
    OutOfRange { field: &'static str, value: u64 },
    /// Rules 4 and 6.
    #[error("index {index} with term {log_term}: only index 0 has term 0")]
    Position { index: Index, log_term: Term },
    /// Rule 4.
    #[error("entry at index {found} where {expected} must follow")]
    Gap { found: Index, expected: Index },
    /// Rule 4.
    #[error("entry {index} has term {term}, outside {low}..={high}")]
    EntryTerm { index: Index, term: Term, low: Term, high: Term },
    /// Rule 4.
    #[error("{what} of {size}, above {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    /// Rule 4: the sender's log contradicts an entry that is committed here.
    #[error("entry {index} has term {term}, but term {ours} is committed there")]
    ContradictsCommitted { index: Index, term: Term, ours: Term },
    /// Rule 4: a leader replaces an entry of its own term.
    #[error("entry {index} of term {term} is replaced in the same term")]
    RewritesOwnTerm { index: Index, term: Term },
    /// Rule 5.
    #[error(
        "the leader (raft id {from}) has seen this node acknowledge index {commit}, but its log \
         ends at {last_index}: acknowledged entries are lost, as after putting an older copy of a \
         data directory back; empty the directory and start this node again"
    )]
    LostLog { from: RaftId, commit: Index, last_index: Index },
    /// Rule 5.
    #[error("raft id {from} acts as leader of term {term}, whose leader is {leader}")]
    SecondLeader { from: RaftId, term: Term, leader: RaftId },
    /// Rule 5.
    #[error("asked to campaign by raft id {from} in term {term}, which does not lead now")]
    CampaignNotWanted { from: RaftId, term: Term },
    /// Rule 5.
    #[error("asked to campaign while the log is still being written")]
    CampaignTooEarly,
    /// Rule 6.
    #[error("granted a vote that was not asked for yet")]
    VoteNotAsked,
    /// Rule 6.
    #[error("last entry or commit of term {log_term} in a message of term {term}")]
    FutureTerm { log_term: Term, term: Term },
    /// Rule 6.
    #[error("{field} {value}, above {limit}")]
    Beyond { field: &'static str, value: u64, limit: u64 },
    /// Rule 6.
    #[error("rejects index {index}, although {matched} was acknowledged since")]
    StaleRejection { index: Index, matched: Index },
    /// Rule 7.
    #[error("the context of {kind:?} is none of this protocol")]
    Context { kind: MessageType },
    /// Rule 7.
    #[error("{kind:?} must carry exactly one read context")]
    ReadContext { kind: MessageType },
    /// Rule 7.
    #[error("read context of raft id {named}, expected {expected}")]
    ForeignRead { named: RaftId, expected: RaftId },
    /// Rule 7.
    #[error("answer to a read of an earlier start of this node")]
    EarlierStart,
    /// Rule 7.
    #[error("read index asked of a node that does not lead")]
    ReadNotLeader,
    /// Rule 7.
    #[error("{pending} reads are waiting for their index already")]
    TooManyReads { pending: usize },
    /// Rule 7.
    #[error("asks for a snapshot by request_snapshot, which this protocol does not use")]
    RequestsSnapshot,
    /// Rule 7.
    #[error("carries an election priority, which this protocol does not use")]
    Priority,
    /// Rule 8.
    #[error("{reason}")]
    Membership { reason: String },
    /// Rule 9.
    #[error("snapshot at index {index}, term {term}, from a leader of term {leader_term}")]
    SnapshotPosition { index: Index, term: Term, leader_term: Term },
    /// Rule 9.
    #[error("snapshot with {size} bytes of data in its header; they travel as a file")]
    SnapshotData { size: usize },
    /// Rule 9.
    #[error(
        "snapshot with the membership of index {theirs}, which does not continue ours of index {ours}"
    )]
    OlderMembership { theirs: Index, ours: Index },
    /// Rule 9.
    #[error("snapshot with a malformed configuration: {reason}")]
    ConfState { reason: String },
}

impl Reject {
    #[cfg(test)]
    /// The number of the broken rule.
    pub(crate) fn rule(&self) -> u8 {
        match self {
            Self::LocalType { .. } | Self::ForeignField { .. } => 1,
            Self::NotForUs { .. }
            | Self::NotFromSender { .. }
            | Self::ImpossibleSender
            | Self::RemovedSender { .. } => 2,
            Self::Term { .. } | Self::OutOfRange { .. } => 3,
            Self::Position { .. }
            | Self::Gap { .. }
            | Self::EntryTerm { .. }
            | Self::TooLarge { .. }
            | Self::ContradictsCommitted { .. }
            | Self::RewritesOwnTerm { .. } => 4,
            Self::LostLog { .. }
            | Self::SecondLeader { .. }
            | Self::CampaignNotWanted { .. }
            | Self::CampaignTooEarly => 5,
            Self::VoteNotAsked
            | Self::FutureTerm { .. }
            | Self::Beyond { .. }
            | Self::StaleRejection { .. } => 6,
            Self::Context { .. }
            | Self::ReadContext { .. }
            | Self::ForeignRead { .. }
            | Self::EarlierStart
            | Self::ReadNotLeader
            | Self::TooManyReads { .. }
            | Self::RequestsSnapshot
            | Self::Priority => 7,
            Self::Membership { .. } => 8,
            Self::SnapshotPosition { .. }
            | Self::SnapshotData { .. }
            | Self::OlderMembership { .. }
            | Self::ConfState { .. } => 9,
        }
    }

    /// What it says about the cluster.
    pub(crate) fn severity(&self) -> Severity {
        match self {
            Self::LostLog { .. } => Severity::Fatal,
            Self::NotForUs { .. }
            | Self::RemovedSender { .. }
            | Self::CampaignNotWanted { .. }
            | Self::CampaignTooEarly
            | Self::VoteNotAsked
            | Self::StaleRejection { .. }
            | Self::EarlierStart
            | Self::ReadNotLeader
            | Self::TooManyReads { .. } => Severity::Stale,
            Self::LocalType { .. }
            | Self::ForeignField { .. }
            | Self::NotFromSender { .. }
            | Self::ImpossibleSender
            | Self::Term { .. }
            | Self::OutOfRange { .. }
            | Self::Position { .. }
            | Self::Gap { .. }
            | Self::EntryTerm { .. }
            | Self::TooLarge { .. }
            | Self::ContradictsCommitted { .. }
            | Self::RewritesOwnTerm { .. }
            | Self::SecondLeader { .. }
            | Self::FutureTerm { .. }
            | Self::Beyond { .. }
            | Self::Context { .. }
            | Self::ReadContext { .. }
            | Self::ForeignRead { .. }
            | Self::RequestsSnapshot
            | Self::Priority
            | Self::Membership { .. }
            | Self::SnapshotPosition { .. }
            | Self::SnapshotData { .. }
            | Self::OlderMembership { .. }
            | Self::ConfState { .. } => Severity::Hostile,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_for_an_earlier_campaign_is_late_not_hostile() {
        assert_eq!(Reject::VoteNotAsked.severity(), Severity::Stale);
    }
}
