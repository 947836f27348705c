//! Everything that can happen to a node.

use bytes::Bytes;

use crate::reply::Reply;
use crate::status::Status;
use crate::types::{
    Incarnation, Index, MemberRole, Membership, Message, NodeId, Position, Progress, RaftId,
    SnapshotMeta,
};

/// What the world tells a [`super::Node`].
#[derive(Debug)]
pub(crate) enum Event {
    /// One `Config::heartbeat` has passed. At most one per wake-up (H15).
    Tick,
    /// A message of an authenticated peer.
    Message { from: RaftId, message: Message },
    /// Messages to a peer were lost.
    Unreachable { peer: RaftId },
    /// A command to replicate.
    Propose(Proposal),
    /// A read.
    Read(Read),
    /// A membership change.
    Change { change: Change, reply: Reply<Changed> },
    /// Hand leadership to this node, or to the best voter.
    Transfer { to: Option<NodeId>, reply: Reply<()> },
    /// Lead no more: hand leadership to the best voter. Nothing to do for a node that does not lead.
    Resign { reply: Reply<()> },
    /// Every batch up to this number is durable.
    Persisted { number: u64 },
    /// The Store has applied everything up to this index.
    Applied { index: Index },
    /// The Store has restored the snapshot at this index.
    Installed { index: Index },
    /// A snapshot of the own Store is durable.
    SnapshotBuilt { meta: SnapshotMeta },
    /// A snapshot of the own Store could not be taken; it is tried again later.
    SnapshotFailed,
    /// A transfer of a snapshot ended.
    SnapshotSent { to: RaftId, how: Transferred },
    /// So much of a snapshot that is being sent has left, in percent.
    SnapshotProgress { to: RaftId, percent: u8 },
    /// What the node knows, right now.
    Status { reply: Reply<Status> },
    /// The node is going to stop: no new requests.
    Stop,
}

/// How the transfer of a snapshot to a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transferred {
    /// The peer has it.
    Arrived,
    /// It broke off; another try may end otherwise.
    Broken,
    /// The own file of the snapshot at this position is damaged, gone or cannot be read: no try
    /// ends otherwise before there is another file.
    Unreadable(Position),
}

/// A command and its proposer.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) data: Bytes,
    pub(crate) reply: Reply<Applied>,
}

/// What came of an applied proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The log index that it shares with others of its entry.
    pub(crate) index: Index,
    /// The Store's answer.
    pub(crate) data: Vec<u8>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Sees every write acknowledged before it began.
    Linearizable,
    /// Sees at least this index.
    AtLeast(Index),
    /// Whatever is here.
    Stale,
}

/// A read and its reader.
#[derive(Debug)]
pub(crate) struct Read {
    /// The query; None asks for the barrier alone.
    pub(crate) query: Option<Vec<u8>>,
    pub(crate) freshness: Freshness,
    pub(crate) reply: Reply<Applied>,
}

/// A change of the membership. Members are named by node id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A data directory asks to become a learner, to be promoted once it has caught up if it is to
    /// be a voter.
    Join { node_id: NodeId, incarnation: Incarnation, addr: String, voter: bool },
    /// A member tells its new address.
    Update { node_id: NodeId, incarnation: Incarnation, addr: String },
    /// This one is to be a learner, and stay one.
    AddLearner { node_id: NodeId, addr: String },
    /// This one is to be a learner, and a voter once it has caught up. Asked again until it is, for
    /// what it was before the first time: `added` does not add it once more.
    AddVoter { node_id: NodeId, addr: String, added: bool },
    /// A learner that has caught up is to vote.
    Promote { node_id: NodeId },
    /// A voter is to be a learner, and stay one.
    Demote { node_id: NodeId },
    /// Remove a member.
    Remove { node_id: NodeId },
    /// A data directory asks to be removed; another one under the same node id stays.
    Leave { node_id: NodeId, incarnation: Incarnation },
    /// One member goes, another takes its role, at once. Asked again until that has caught up.
    Replace { old: NodeId, new: NodeId },
    /// These are to be all members.
    Set { voters: Vec<NodeId>, learners: Vec<NodeId> },
    /// What the record says of a member, as far as it is given.
    Describe { node_id: NodeId, addr: Option<String>, metadata: Option<Bytes> },
}

/// A membership change that took effect, or waits for its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The membership with it.
    pub(crate) membership: Membership,
    pub(crate) progress: Progress,
}

impl Changed {
    /// A change that is in force.
    pub(crate) fn done(membership: &Membership) -> Self {
        Self { membership: membership.clone(), progress: Progress::Done }
    }

    /// One that was applied; `voter` is to vote in the end.
    pub(crate) fn applied(membership: &Membership, voter: Option<NodeId>) -> Self {
        let learner = voter
            .and_then(|node| membership.by_node(node))
            .filter(|m| membership.role(m.raft_id) == Some(MemberRole::Learner));
        let progress = match learner {
            Some(m) if m.has_joined() => {
                Progress::CatchingUp { matched: 0, last: membership.index }
            }
            Some(_) => Progress::Expected,
            None => Progress::Done,
        };
        Self { membership: membership.clone(), progress }
    }
}
