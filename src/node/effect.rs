//! Everything that a node wants done. The order of the effects of one poll is their order of
//! execution; `Apply`, `Query`, `Capture` and `Install` are one FIFO.

use bytes::Bytes;

use super::event::{Applied, Change, Changed, Proposal, Read};
use crate::error::Leader;
use crate::log::LogBatch;
use crate::reply::Reply;
use crate::status::Status;
use crate::types::{Index, Membership, Message, NodeId, Position, RaftId, SnapshotMeta};

/// What a [`super::Node`] asks the world to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send these, each to its `to`.
    Send(Vec<Message>),
    /// Make this durable, after all earlier ones, then tell `Persisted` with the number.
    Persist { number: u64, batch: LogBatch },
    /// Give these to the Store, in order, answer their proposers, then tell `Applied`.
    Apply(Vec<Committed>),
    /// Answer these reads from the Store; all `Apply`s before have been done then.
    Query(Vec<Read>),
    /// Take a snapshot of the Store as it is after all `Apply`s before: exactly at this position
    /// and with this membership. Then tell `SnapshotBuilt` or `SnapshotFailed`.
    Capture { position: Position, membership: Membership },
    /// Restore the Store from this snapshot, which is durable here; then tell `Installed`.
    Install { meta: SnapshotMeta },
    /// Stream this `MsgSnapshot` and the file it names; then tell `SnapshotSent`.
    SendSnapshot { to: RaftId, message: Message },
    /// Drop the log up to here, and snapshots older than `keep_snapshot`.
    Compact { through: Position, keep_snapshot: Index },
    /// Another node leads: ask it.
    Forward { leader: Leader, work: Forward },
    /// The membership changed, and its record is durable: these are the members now.
    SetPeers(Membership),
    /// The status changed.
    Publish(Box<Status>),
    /// The node cannot go on.
    Fatal(crate::error::Error),
}

/// A committed entry of proposals.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) index: Index,
    /// The body of its [`super::envelope::Envelope::Commands`], which the node has opened and
    /// checked: decode it with [`super::envelope::commands`].
    pub(crate) data: Bytes,
    /// Their proposers, in order; empty when they are elsewhere.
    pub(crate) replies: Vec<Reply<Applied>>,
}

/// Work for the leader.
#[derive(Debug)]
pub(crate) enum Forward {
    Propose(Vec<Proposal>),
    Change { change: Change, reply: Reply<Changed> },
    Transfer { to: Option<NodeId>, reply: Reply<()> },
}
