//! Carries requests to the leader over the node's own connections.
//!
//! Invariants:
//! - a request is sent at most once: it is claimed before, and given back to the node only when
//!   it surely did nothing (never sent, or refused) (R14);
//! - what was lost after it was sent is answered as unknown;
//! - nothing here is awaited by the loop: each request is a task of its own, bounded by the
//!   permits that the requests carry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::changes;
use super::shared::Shared;
use super::wire;
use crate::error::{Error, Leader, Result};
use crate::node::effect::Forward;
use crate::node::event::{Change, Changed, Event, Proposal};
use crate::pb;
use crate::pb::request::Kind;
use crate::reply::Reply;
use crate::transport::{Transport, TransportError};
use crate::types::{Membership, NodeId};

/// Bytes of one request beside its commands, generously.
const REQUEST_OVERHEAD: u64 = 1 << 10;
/// Bytes of one command in a request beside its data.
const COMMAND_OVERHEAD: u64 = 16;

/// Sends requests to the leader.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
}

impl Forwarder {
    pub(crate) fn new(shared: Arc<Shared>, transport: Arc<dyn Transport>) -> Self {
        Self { shared, transport }
    }

    /// Takes work for the leader; called inside the node's runtime, returns at once.
    pub(crate) fn forward(&self, leader: Leader, work: Forward) {
        let this = self.clone();
        match work {
            Forward::Propose(proposals) => {
                let most = self.shared.config.message_size().saturating_sub(REQUEST_OVERHEAD);
                for chunk in split(proposals, most) {
                    tokio::spawn(this.clone().propose(leader.clone(), chunk));
                }
            }
            Forward::Change { change, reply } => {
                tokio::spawn(this.change(leader, change, reply));
            }
            Forward::Transfer { to, reply } => {
                tokio::spawn(this.transfer(leader, to, reply));
            }
        }
    }

    async fn propose(self, leader: Leader, mut chunk: Vec<Proposal>) {
        // Who gave up before has been answered by that.
        chunk.retain(|p| p.reply.begin());
        if chunk.is_empty() {
            return;
        }
        let limit = self.shared.config.max_entry_size;
        let commands: Vec<Bytes> = chunk.iter().map(|p| p.data.clone()).collect();
        let answer = self.call(&leader, Kind::Propose(pb::Propose { commands })).await;
        let outcomes = match answer {
            Ok(pb::response::Kind::Proposed(p)) if p.outcomes.len() == chunk.len() => {
                Ok(p.outcomes)
            }
            Ok(other) => Err(unexpected(other, limit)),
            Err(e) => Err(e),
        };
        let mut again = Vec::new();
        match outcomes {
            Ok(outcomes) => {
                for (proposal, outcome) in chunk.into_iter().zip(outcomes) {
                    let size = proposal.data.len() as u64;
                    match wire::applied(outcome, size, limit) {
                        Err(e) if wire::may_retry(&e) => again.push(proposal),
                        answer => proposal.reply.send(answer),
                    }
                }
            }
            Err(e) if wire::may_retry(&e) => again = chunk,
            Err(e) => {
                for proposal in chunk {
                    proposal.reply.send(Err(copy(&e)));
                }
            }
        }
        self.give_back(again, |p| &p.reply, Event::Propose).await;
    }

    async fn change(self, leader: Leader, change: Change, reply: Reply<Changed>) {
        if !reply.begin() {
            return;
        }
        let kind = changes::to_request(&change);
        let answer = match self.call(&leader, kind).await {
            Ok(pb::response::Kind::Done(done)) => self.changed(done),
            Ok(pb::response::Kind::Joined(joined)) => joined
                .membership
                .ok_or_else(|| "the answer holds no membership".to_owned())
                .and_then(Membership::from_pb)
                .map(|membership| Changed::done(&membership))
                .map_err(Error::unknown),
            Ok(other) => Err(unexpected(other, 0)),
            Err(e) => Err(e),
        };
        match answer {
            Err(e) if wire::may_retry(&e) => {
                let wrap = |(change, reply)| Event::Change { change, reply };
                self.give_back(vec![(change, reply)], |w| &w.1, wrap).await;
            }
            answer => reply.send(answer),
        }
    }

    async fn transfer(self, leader: Leader, to: Option<NodeId>, reply: Reply<()>) {
        if !reply.begin() {
            return;
        }
        let kind = Kind::Transfer(pb::Transfer { to: to.unwrap_or(0) });
        let answer = match self.call(&leader, kind).await {
            Ok(pb::response::Kind::Done(_)) => Ok(()),
            Ok(other) => Err(unexpected(other, 0)),
            Err(e) => Err(e),
        };
        match answer {
            Err(e) if wire::may_retry(&e) => {
                let wrap = |(to, reply)| Event::Transfer { to, reply };
                self.give_back(vec![(to, reply)], |w| &w.1, wrap).await;
            }
            answer => reply.send(answer),
        }
    }

    async fn call(&self, leader: &Leader, kind: Kind) -> Result<pb::response::Kind> {
        let Some((cluster, _)) = self.shared.view().cluster() else { return Err(Error::NoLeader) };
        let request = pb::Request {
            cluster_id: Bytes::copy_from_slice(&cluster.to_bytes()),
            kind: Some(kind),
        };
        let timeout = self.shared.config.request_timeout;
        match self.transport.call(&leader.addr, request, timeout).await {
            Ok(pb::Response { kind: Some(kind) }) => Ok(kind),
            Ok(pb::Response { kind: None }) => Err(Error::unknown("the leader's answer is empty")),
            Err(TransportError::Unreachable { addr, reason }) => {
                Err(Error::Unreachable { addr, reason })
            }
            Err(e @ TransportError::Lost { .. }) => Err(Error::unknown(e.to_string())),
            // A refusal comes before anything of the request is looked at.
            Err(TransportError::Refused(r)) => {
                Err(Error::Unreachable { addr: leader.addr.clone(), reason: r.to_string() })
            }
        }
    }

    /// Hands what surely did nothing back to the node, which asks whoever leads then. A short
    /// pause keeps a leader that is gone from being asked in a tight circle.
    async fn give_back<W>(
        &self,
        work: Vec<W>,
        reply: impl Fn(&W) -> &dyn Claim,
        event: impl Fn(W) -> Event,
    ) {
        if work.is_empty() {
            return;
        }
        for w in &work {
            reply(w).retract();
        }
        tokio::time::sleep(self.pause()).await;
        for w in work {
            self.shared.inbox.request(event(w));
        }
    }

    fn pause(&self) -> Duration {
        self.shared.config.heartbeat
    }

    fn changed(&self, done: pb::Done) -> Result<Changed> {
        // The answer names the index only; what we know of the membership may lag behind it.
        let Some(mut membership) = self.shared.view().membership.clone() else {
            return Err(Error::unknown("the change took effect, but this node has no membership"));
        };
        membership.index = membership.index.max(done.index);
        Ok(Changed { membership, progress: changes::progress(&done) })
    }
}

/// What a [`Reply`] of any kind can take back.
trait Claim {
    fn retract(&self);
}

impl<T> Claim for Reply<T> {
    fn retract(&self) {
        Reply::retract(self);
    }
}

/// An answer of the wrong kind: a refusal, or one that says nothing about what happened.
fn unexpected(kind: pb::response::Kind, limit: u64) -> Error {
    match kind {
        pb::response::Kind::Refused(r) => wire::error(&r, limit.saturating_add(1), limit),
        pb::response::Kind::Info(_)
        | pb::response::Kind::Joined(_)
        | pb::response::Kind::Proposed(_)
        | pb::response::Kind::Done(_) => Error::unknown("the leader's answer does not fit"),
    }
}

/// The same error for another of a batch.
fn copy(e: &Error) -> Error {
    wire::error(&wire::refuse(e, None), 0, 0)
}

/// Splits proposals into requests of at most this size; one that is alone always passes.
fn split(proposals: Vec<Proposal>, most: u64) -> Vec<Vec<Proposal>> {
    let mut chunks: Vec<Vec<Proposal>> = Vec::new();
    let mut bytes = 0;
    for proposal in proposals {
        let size = proposal.data.len() as u64 + COMMAND_OVERHEAD;
        match chunks.last_mut() {
            Some(chunk) if bytes + size <= most => chunk.push(proposal),
            _ => {
                bytes = 0;
                chunks.push(vec![proposal]);
            }
        }
        bytes += size;
    }
    chunks
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
