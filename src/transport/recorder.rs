//! A handler for tests: judges hellos as a node would, and writes down what it is told.

use std::collections::BTreeSet;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Handler, PROTOCOL, Peer, Peers, Refusal, SnapshotStream};
use crate::pb;
use crate::types::{
    ClusterId, ConfState, Identity, Incarnation, Member, Membership, Message, Position, RaftId,
    SnapshotMeta, eraftpb,
};

pub(crate) const CLUSTER: ClusterId = ClusterId::from_u128(0xc1);

/// What a handler was told.
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    Admitted(RaftId),
    Messages(RaftId, Vec<Message>),
    Unreachable(RaftId),
    Refused(RaftId, Refusal),
    Snapshot { from: RaftId, index: u64, body: Result<Vec<u8>, std::io::ErrorKind> },
    Called(pb::Request),
}

#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) raft_id: RaftId,
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
    removed: Arc<Mutex<BTreeSet<RaftId>>>,
    /// Requests are never answered.
    pub(crate) hung: bool,
    /// Snapshots are turned away.
    pub(crate) busy: bool,
    told: UnboundedSender<Told>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({})", self.raft_id)
    }
}

pub(crate) fn incarnation(raft_id: RaftId) -> Incarnation {
    Incarnation::from_u128(0x100 + u128::from(raft_id))
}

/// A handler for the node with this raft id, and what it is told.
pub(crate) fn recorder(raft_id: RaftId) -> (Recorder, UnboundedReceiver<Told>) {
    let (told, events) = unbounded_channel();
    let recorder = Recorder {
        raft_id,
        cluster: CLUSTER,
        incarnation: incarnation(raft_id),
        removed: Arc::default(),
        hung: false,
        busy: false,
        told,
    };
    (recorder, events)
}

/// The peers as the node `me` knows them.
pub(crate) fn peers(me: RaftId, others: &[(RaftId, &str)]) -> Peers {
    let peer = |&(raft_id, addr): &(RaftId, &str)| Peer {
        raft_id,
        node_id: raft_id * 10,
        incarnation: incarnation(raft_id),
        addr: addr.to_owned(),
    };
    Peers {
        cluster_id: CLUSTER,
        raft_id: me,
        identity: Identity {
            node_id: me * 10,
            incarnation: incarnation(me),
            cluster: Some((CLUSTER, me)),
            boot: 1,
        },
        addr: format!("n{me}:1"),
        others: others.iter().map(peer).collect(),
    }
}

/// An append with one entry of this many bytes.
pub(crate) fn append(from: RaftId, to: RaftId, index: u64, bytes: usize) -> Message {
    let entry = eraftpb::Entry { data: vec![7; bytes].into(), ..eraftpb::Entry::default() };
    let mut inner = eraftpb::Message::default();
    inner.set_msg_type(eraftpb::MessageType::MsgAppend);
    (inner.from, inner.to, inner.term, inner.index) = (from, to, 1, index);
    inner.entries = vec![entry].into();
    Message::new(inner)
}

pub(crate) fn heartbeat(from: RaftId, to: RaftId, commit: u64) -> Message {
    let mut inner = eraftpb::Message::default();
    inner.set_msg_type(eraftpb::MessageType::MsgHeartbeat);
    (inner.from, inner.to, inner.term, inner.commit) = (from, to, 1, commit);
    Message::new(inner)
}

pub(crate) fn snapshot(from: RaftId, to: RaftId, size: u64) -> Message {
    let conf_state = ConfState { voters: vec![from, to], ..ConfState::default() };
    let meta = SnapshotMeta {
        position: Position { index: 9, term: 1 },
        membership: Membership {
            cluster_id: CLUSTER,
            index: 5,
            conf_state,
            members: vec![Member {
                node_id: 10,
                raft_id: 1,
                incarnation: incarnation(1),
                addr: "h:1".to_owned(),
                metadata: Bytes::new(),
                learner_only: false,
            }],
            next_raft_id: 3,
        },
        size,
        crc32: 1,
    };
    let mut inner = eraftpb::Message::default();
    inner.set_msg_type(eraftpb::MessageType::MsgSnapshot);
    (inner.from, inner.to, inner.term) = (from, to, 1);
    Message { inner, snapshot: Some(Box::new(meta)) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next news of the kind that `pick` takes; others are dropped.
pub(crate) async fn until<T>(
    events: &mut UnboundedReceiver<Told>,
    mut pick: impl FnMut(Told) -> Option<T>,
) -> T {
    loop {
        let told = events.recv().await.expect("the handler is alive");
        if let Some(found) = pick(told) {
            return found;
        }
    }
}

/// Waits until `count` messages have arrived, and gives their `index` or `commit`.
pub(crate) async fn arrived(events: &mut UnboundedReceiver<Told>, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let more = until(events, |told| match told {
            Told::Messages(_, messages) => Some(messages),
            _ => None,
        });
        seen.extend(more.await.iter().map(|m| m.inner.index.max(m.inner.commit)));
    }
    seen
}

impl Recorder {
    fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }

    /// From now on this one is no member any more.
    pub(crate) fn remove(&self, raft_id: RaftId) {
        lock(&self.removed).insert(raft_id);
    }

    pub(crate) fn arc(self) -> Arc<dyn Handler> {
        Arc::new(self)
    }
}

#[async_trait]
impl Handler for Recorder {
    fn admit(&self, hello: &pb::Hello) -> Result<pb::Hello, Refusal> {
        if hello.protocol != PROTOCOL {
            return Err(Refusal::Protocol { theirs: hello.protocol });
        }
        if hello.cluster_id[..] != self.cluster.to_bytes() {
            let theirs = ClusterId::from_slice(&hello.cluster_id)
                .map_or_else(String::new, |c| c.to_string());
            return Err(Refusal::Cluster { ours: self.cluster.to_string(), theirs });
        }
        if hello.to != self.raft_id || hello.to_incarnation[..] != self.incarnation.to_bytes() {
            return Err(Refusal::Receiver("another data directory".to_owned()));
        }
        if lock(&self.removed).contains(&hello.from) {
            return Err(Refusal::Removed(hello.from_node));
        }
        if hello.from_incarnation[..] != incarnation(hello.from).to_bytes() {
            return Err(Refusal::Sender("an unknown data directory".to_owned()));
        }
        self.tell(Told::Admitted(hello.from));
        Ok(pb::Hello {
            protocol: PROTOCOL,
            cluster_id: Bytes::copy_from_slice(&self.cluster.to_bytes()),
            from: self.raft_id,
            to: hello.from,
            from_node: self.raft_id * 10,
            from_incarnation: Bytes::copy_from_slice(&self.incarnation.to_bytes()),
            to_incarnation: hello.from_incarnation.clone(),
            from_boot: 1,
            from_addr: String::new(),
        })
    }

    fn messages(&self, from: RaftId, messages: Vec<Message>) {
        self.tell(Told::Messages(from, messages));
    }

    fn unreachable(&self, peer: RaftId) {
        self.tell(Told::Unreachable(peer));
    }

    fn refused(&self, peer: RaftId, refusal: Refusal) {
        self.tell(Told::Refused(peer, refusal));
    }

    async fn snapshot(
        &self,
        from: RaftId,
        message: Message,
        mut body: SnapshotStream,
    ) -> Result<(), Refusal> {
        if self.busy {
            return Err(Refusal::Busy("no room".to_owned()));
        }
        let index = message.snapshot.map_or(0, |meta| meta.position.index);
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => {
                    self.tell(Told::Snapshot { from, index, body: Err(error.kind()) });
                    return Err(Refusal::Malformed(error.to_string()));
                }
            }
        }
        self.tell(Told::Snapshot { from, index, body: Ok(bytes) });
        Ok(())
    }

    async fn call(&self, request: pb::Request) -> pb::Response {
        self.tell(Told::Called(request));
        if self.hung {
            pending::<()>().await;
        }
        let done = pb::Done { index: self.raft_id, waits: None };
        pb::Response { kind: Some(pb::response::Kind::Done(done)) }
    }
}
