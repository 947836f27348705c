//! The users of the cluster: what they ask, and what came of it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::cluster::Cluster;
use crate::error::Result;
use crate::node::event::{Applied, Change, Event, Freshness, Proposal, Read};
use crate::reply::{Waiter, reply};
use crate::types::{Incarnation, Membership, NodeId, Progress};

/// What a call came to.
#[derive(Debug)]
pub(super) enum Answer {
    Applied(Applied),
    Members(Membership, Progress),
    Done,
}

/// A call of a user, not answered yet.
pub(super) struct Call {
    pub(super) name: String,
    pub(super) joins: Option<(NodeId, Incarnation)>,
    /// Writes acknowledged when it began; a linearizable read sees them.
    pub(super) sees: usize,
    future: Pin<Box<dyn Future<Output = Result<Answer>>>>,
}

impl Cluster {
    /// Puts proposals into a node, without polling it.
    pub(super) fn propose(&mut self, id: NodeId, command: &str) {
        let (reply, waiter) = reply(None);
        let data = Bytes::copy_from_slice(command.as_bytes());
        self.call(format!("propose {command}"), waiter, Answer::Applied);
        self.tell(id, Event::Propose(Proposal { data, reply }));
    }

    pub(super) fn read(&mut self, id: NodeId, freshness: Freshness, name: String) {
        let (reply, waiter) = reply(None);
        self.call(name, waiter, Answer::Applied);
        self.tell(id, Event::Read(Read { query: Some(Vec::new()), freshness, reply }));
    }

    pub(super) fn change(&mut self, id: NodeId, change: Change, name: String) {
        let (reply, waiter) = reply(None);
        let joins = if let Change::Join { node_id, incarnation, .. } = &change {
            Some((*node_id, *incarnation))
        } else {
            None
        };
        self.call(name, waiter, |c: crate::node::event::Changed| {
            Answer::Members(c.membership, c.progress)
        });
        self.calls.last_mut().expect("just made").joins = joins;
        self.tell(id, Event::Change { change, reply });
    }

    pub(super) fn transfer(&mut self, id: NodeId, to: Option<NodeId>, name: String) {
        let (reply, waiter) = reply(None);
        self.call(name, waiter, |()| Answer::Done);
        self.tell(id, Event::Transfer { to, reply });
    }

    pub(super) fn resign(&mut self, id: NodeId, name: String) {
        let (reply, waiter) = reply(None);
        self.call(name, waiter, |()| Answer::Done);
        self.tell(id, Event::Resign { reply });
    }

    fn call<T: 'static>(
        &mut self,
        name: String,
        waiter: Waiter<T>,
        f: impl Fn(T) -> Answer + 'static,
    ) {
        let future = async move { waiter.wait(Duration::from_secs(86_400)).await.map(f) };
        let sees = self.acknowledged.len();
        self.calls.push(Call { name, joins: None, sees, future: Box::pin(future) });
    }

    /// The calls that were answered since the last time.
    pub(super) fn answers(&mut self) -> Vec<(Call, Result<Answer>)> {
        let _guard = self.runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Vec::new();
        let mut rest = Vec::new();
        for mut call in std::mem::take(&mut self.calls) {
            match call.future.as_mut().poll(&mut cx) {
                std::task::Poll::Ready(answer) => out.push((call, answer)),
                std::task::Poll::Pending => rest.push(call),
            }
        }
        self.calls = rest;
        out
    }
}
