//! What a node knows about itself and its cluster, for people and programs.

mod health;

use std::fmt;

use serde::Serialize;

use crate::types::{Index, NodeId, Term};
pub use health::{Health, Level, Problem};

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
    /// Asks for votes; or was elected, and its disk does not hold the term yet.
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

/// Whose majority a member counts for (Raft thesis, section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VotingRole {
    /// It votes.
    Voter,
    /// While members change by joint consensus: it votes among the new voters only.
    Incoming,
    /// While members change by joint consensus: it votes among the old voters only, and will go or
    /// be a learner.
    Outgoing,
    /// It receives the log and does not vote.
    #[default]
    Learner,
}

/// One member, as this node sees it. Times are measured in ticks of this node: a machine that was
/// suspended does not count the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its node id.
    pub id: NodeId,
    /// Its address.
    pub addr: String,
    /// The random name of its data directory, in hex; empty: it was added and has not joined yet.
    pub incarnation: String,
    /// Whose majority it counts for.
    pub role: VotingRole,
    /// Whether it votes, be it among the old voters or the new.
    pub voter: bool,
    /// The last entry that it is known to hold; on the leader only.
    pub matched: Option<Index>,
    /// Entries of the leader's log that it is not known to hold; on the leader only.
    pub lag: Option<u64>,
    /// How the leader replicates to it; on the leader only.
    pub replication: Option<Replication>,
    /// How much of the snapshot that it is being sent has left, 0 to 100; on the leader only, and
    /// only while it is in [`Replication::Snapshot`].
    pub snapshot_percent: Option<u8>,
    /// Milliseconds since the last message from it; None: none yet, or it is this node. Followers
    /// hear from each other in elections only.
    pub last_contact_ms: Option<u64>,
    /// Whether it can be reached: on the leader, whether it was heard within an election timeout;
    /// on a follower known of the leader only; without a leader, whether it answered in the last
    /// three election timeouts. None: this node cannot tell.
    pub reachable: Option<bool>,
    /// Whether it acknowledges what it is sent; on the leader only. One whose disk or Store hangs can
    /// be reached and does not. None there: it has not yet, and the leader is new.
    pub acknowledges: Option<bool>,
    /// What it, or whoever is at its address, said when it turned this node away a moment ago, and where;
    /// empty: it did not. It holds the remedy.
    pub refusal: String,
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
    /// For how long, in milliseconds, that leader or none has been known.
    pub leader_ms: u64,
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
    /// Whether the disk has not finished a write for longer than a heartbeat.
    pub disk_stalled: bool,
    /// The members that the first election waits for (`Config::min_members`); 0: for none.
    pub awaits_members: usize,
    /// The address of the list it was started with, or of its configuration, behind which another
    /// cluster was found than that of its data directory, and which; empty: none.
    pub elsewhere: String,
    /// For what it waits before it belongs to a cluster; empty: for nothing.
    pub waiting: String,
    /// [`Status::health()`] in words: what is wrong, or that nothing is, and what to do.
    pub health: String,
}

impl Status {
    /// How well the cluster is, as far as this node knows: who is unreachable and since when, how
    /// many more failures it stands, what to do. The leader knows most.
    pub fn health(&self) -> Health {
        health::judge(self)
    }

    /// The same with its health in words, which must follow every change of it.
    pub(crate) fn reword(&mut self) {
        self.health = self.health().to_string();
    }
}

/// Who leads, as a stream of `Mailbox::leader_changes` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeaderChange {
    /// The term. A fencing token where `is_self`; without a leader it may be that of an election
    /// which nobody has won.
    pub term: Term,
    /// The leader's node id; 0: none known.
    pub leader_id: NodeId,
    /// Its address; empty: unknown.
    pub leader_addr: String,
    /// Whether this node leads.
    pub is_self: bool,
}
