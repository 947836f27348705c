//! Everything that can happen to a node.

use bytes::Bytes;

use crate::reply::Reply;
use crate::status::Status;
use crate::types::{
    Incarnation, Index, Membership, Message, NodeId, Position, RaftId, SnapshotMeta,
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

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A data directory asks to become a learner, to be promoted once it has caught up.
    Join { node_id: NodeId, incarnation: Incarnation, addr: String },
    /// Remove a member.
    Remove { node_id: NodeId },
    /// A member tells its new address.
    Update { node_id: NodeId, incarnation: Incarnation, addr: String },
}

/// A membership change that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The membership with it.
    pub(crate) membership: Membership,
}
