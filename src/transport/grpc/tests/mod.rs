//! The gRPC transport over real sockets on the loopback.

mod hostile;
mod requests;
mod streams;

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{GrpcOptions, GrpcTransport};
use crate::transport::Transport;
use crate::transport::recorder::{Recorder, Told, peers, recorder};
use crate::types::RaftId;

/// A node of a test.
struct Node {
    transport: GrpcTransport,
    addr: String,
    events: UnboundedReceiver<Told>,
}

fn node(raft_id: RaftId) -> Node {
    node_with(raft_id, GrpcOptions::default(), |_| {})
}

fn node_with(raft_id: RaftId, options: GrpcOptions, adjust: impl FnOnce(&mut Recorder)) -> Node {
    node_at("127.0.0.1:0", raft_id, options, adjust)
}

fn node_at(
    addr: &str,
    raft_id: RaftId,
    options: GrpcOptions,
    adjust: impl FnOnce(&mut Recorder),
) -> Node {
    let addr = addr.parse().expect("an address");
    let transport = GrpcTransport::bind(addr, options).expect("a free port");
    let addr = transport.local_addr().expect("a listener").to_string();
    let (mut handler, events) = recorder(raft_id);
    adjust(&mut handler);
    transport.start(Arc::new(handler)).expect("serves");
    Node { transport, addr, events }
}

impl Node {
    /// Makes `others` the peers of this node `me`.
    fn knows(&self, me: RaftId, others: &[&Node]) {
        let others: Vec<(RaftId, &str)> =
            (me + 1..).zip(others.iter().map(|o| o.addr.as_str())).collect();
        self.transport.set_peers(peers(me, &others));
    }
}

/// Node 1, which sends, and node 2, which receives.
fn pair() -> (Node, Node) {
    let (one, two) = (node(1), node(2));
    one.knows(1, &[&two]);
    (one, two)
}
