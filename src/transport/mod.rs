//! Between nodes: what a transport does, and what a node offers to its peers.
//!
//! A [`Transport`] moves messages; it never looks into them and never decides. A [`Handler`] is
//! the node's side. Contracts:
//! - messages of one sender, receiver and lane arrive in the order they were sent, or not at all;
//! - a send never blocks: at its bound a queue drops, and tells the handler once;
//! - the receiver has verified the sender's hello before it hands over its first message.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::pb;
use crate::types::{ClusterId, Identity, Incarnation, Message, NodeId, RaftId};

pub(crate) mod convert;
pub mod grpc;
pub mod memory;
#[cfg(test)]
pub(crate) mod recorder;

/// Version of the wire protocol; peers with another one are refused.
pub const PROTOCOL: u32 = 1;

/// Another member, as the transport needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Raft id of its data directory.
    pub raft_id: RaftId,
    /// Its node id.
    pub node_id: NodeId,
    /// The random name of its data directory.
    pub incarnation: Incarnation,
    /// `host:port`.
    pub addr: String,
}

/// Who this node is, and whom it talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This node's raft id.
    pub raft_id: RaftId,
    /// This node's identity.
    pub identity: Identity,
    /// Where this node is reached, `host:port`.
    pub addr: String,
    /// Every other member.
    pub others: Vec<Peer>,
}

impl Peers {
    /// The hello that this node says to a peer.
    pub fn hello(&self, to: &Peer) -> pb::Hello {
        pb::Hello {
            protocol: PROTOCOL,
            cluster_id: Bytes::copy_from_slice(&self.cluster_id.to_bytes()),
            from: self.raft_id,
            to: to.raft_id,
            from_node: self.identity.node_id,
            from_incarnation: Bytes::copy_from_slice(&self.identity.incarnation.to_bytes()),
            to_incarnation: Bytes::copy_from_slice(&to.incarnation.to_bytes()),
            from_boot: self.identity.boot,
            from_addr: self.addr.clone(),
        }
    }
}

/// Whether `theirs` answers `ours`.
///
/// # Errors
/// What differs.
pub(crate) fn check_welcome(ours: &pb::Hello, theirs: &pb::Hello) -> Result<(), Refusal> {
    if theirs.protocol != ours.protocol {
        return Err(Refusal::Protocol { theirs: theirs.protocol });
    }
    if theirs.cluster_id != ours.cluster_id {
        let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
        return Err(Refusal::Cluster {
            ours: hex(&theirs.cluster_id),
            theirs: hex(&ours.cluster_id),
        });
    }
    if theirs.from != ours.to || theirs.from_incarnation != ours.to_incarnation {
        return Err(Refusal::Receiver(format!(
            "expected the data directory with raft id {}, found node {} with raft id {}",
            ours.to, theirs.from_node, theirs.from
        )));
    }
    Ok(())
}

/// The bytes of a snapshot on their way.
pub type SnapshotStream = BoxStream<'static, std::io::Result<Bytes>>;

/// Why a node turned a peer away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It speaks another version.
    #[error("protocol version {theirs} is not {PROTOCOL}; run the same release on every node")]
    Protocol {
        /// The peer's version.
        theirs: u32,
    },
    /// It belongs to another cluster.
    #[error("this is cluster {ours}, not {theirs}; correct the address or the data directory")]
    Cluster {
        /// The cluster of the node that refuses.
        ours: String,
        /// The cluster that the peer named.
        theirs: String,
    },
    /// It wanted to speak to another node or incarnation.
    #[error(
        "another node is at this address: {0}; correct the address, or, if it has lost its disk, \
         let it join again"
    )]
    Receiver(String),
    /// The sender was a member once and is none now.
    #[error("node {0} was removed from the cluster")]
    Removed(NodeId),
    /// The sender is not who the membership says, or its data directory is an older copy.
    #[error("sender refused: {0}")]
    Sender(String),
    /// The node is not ready, or already does as much as it may.
    #[error("not now: {0}")]
    Busy(String),
    /// The bytes make no sense.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// Why a transport could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nothing was sent.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// The address.
        addr: String,
        /// Why.
        reason: String,
    },
    /// Something was sent; whether it arrived is not known.
    #[error("connection to {addr} lost: {reason}")]
    Lost {
        /// The address.
        addr: String,
        /// Why.
        reason: String,
    },
    /// The peer turned it down.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Moves messages between nodes. All calls come from the node's own runtime.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Starts to serve peers; called once, inside the node's runtime, before anything else.
    ///
    /// # Errors
    /// When the listener cannot serve.
    fn start(&self, handler: Arc<dyn Handler>) -> std::io::Result<()>;

    /// Replaces the peers. Connections to those that are gone, or have another address or raft id
    /// now, are closed. Whoever was admitted before is judged again by [`Handler::admit`], at the
    /// latest when it sends the next message: a member that was removed learns it from the refusal,
    /// and from nothing else if the last it heard was older than its removal.
    fn set_peers(&self, peers: Peers);

    /// Queues messages, each for the peer of its `to`. Never blocks; what does not fit or has no
    /// peer is dropped, and the handler is told `unreachable` once.
    fn send(&self, messages: Vec<Message>);

    /// Sends one snapshot: the message first, then the body. Returns when the peer has it on disk.
    ///
    /// # Errors
    /// When the peer does not have it.
    async fn send_snapshot(
        &self,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), TransportError>;

    /// Asks any node by address.
    ///
    /// # Errors
    /// `Unreachable` only when nothing was sent.
    async fn call(
        &self,
        addr: &str,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, TransportError>;

    /// Stops serving and closes every connection.
    async fn close(&self);
}

/// What a node offers to its peers. Calls come from transport tasks, concurrently.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Judges a peer's hello before anything else of it is read; gives our own hello back.
    ///
    /// # Errors
    /// Why the peer is turned away.
    fn admit(&self, hello: &pb::Hello) -> Result<pb::Hello, Refusal>;

    /// Takes messages of an admitted peer, in order. Drops them when the node is behind.
    fn messages(&self, from: RaftId, messages: Vec<Message>);

    /// A peer cannot be reached, or messages to it were dropped.
    fn unreachable(&self, peer: RaftId);

    /// A peer turned our stream away: told each time, but once for [`Refusal::Removed`].
    fn refused(&self, peer: RaftId, refusal: Refusal);

    /// Takes a snapshot of an admitted peer; returns once it is durable here.
    ///
    /// # Errors
    /// Why it was not taken.
    async fn snapshot(
        &self,
        from: RaftId,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), Refusal>;

    /// Answers a request.
    async fn call(&self, request: pb::Request) -> pb::Response;
}
