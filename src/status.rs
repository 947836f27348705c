//! What a node knows about itself and its cluster, for people and programs.

use std::fmt;

use serde::Serialize;

use crate::types::{Index, NodeId, Term};

/// What this node is right now (raft-rs `StateRole`, and learners told apart).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Not started yet, or no member of a cluster yet.
    #[default]
    Starting,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would win an election (Raft thesis, section 9.6).
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log and does not vote.
    Learner,
    /// Stopped.
    Stopped,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        })
    }
}

/// How the leader replicates to a member (raft-rs `ProgressState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// Looking for the end of the member's log.
    Probe,
    /// Streaming entries.
    Replicate,
    /// Sending a snapshot.
    Snapshot,
}

/// One member, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its node id.
    pub id: NodeId,
    /// Its address.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry that it is known to hold; on the leader only.
    pub matched: Option<Index>,
    /// How the leader replicates to it; on the leader only.
    pub replication: Option<Replication>,
    /// Ticks since the last message from it; None: none yet.
    pub silent_ticks: Option<u64>,
}

/// A snapshot of a node's state; `Mailbox::status` and `Mailbox::watch` give it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// This node's id.
    pub id: NodeId,
    /// Its cluster, in hex; empty before it belongs to one.
    pub cluster_id: String,
    /// What it is.
    pub role: Role,
    /// The leader it knows; 0: none.
    pub leader_id: NodeId,
    /// That leader's address; empty: unknown.
    pub leader_addr: String,
    /// Its term.
    pub term: Term,
    /// The last index known to be committed.
    pub commit: Index,
    /// The last index that its Store has applied.
    pub applied: Index,
    /// The last index of its log.
    pub last_index: Index,
    /// The index of its newest snapshot; 0: none.
    pub snapshot: Index,
    /// The members, by node id.
    pub members: Vec<MemberStatus>,
    /// Messages from peers that were refused because they made no sense.
    pub refused_messages: u64,
    /// What the log dropped when it was opened: an unsynced tail after a crash. Empty: nothing.
    pub dropped_tail: String,
    /// In words: what is wrong, or that nothing is.
    pub health: String,
}

/// Who leads, as a stream of `Mailbox::leader_changes` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeaderChange {
    /// The term.
    pub term: Term,
    /// The leader's node id; 0: none known.
    pub leader_id: NodeId,
    /// Its address; empty: unknown.
    pub leader_addr: String,
    /// Whether this node leads.
    pub is_self: bool,
}
