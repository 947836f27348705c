//! The handle of a running node: proposals, reads, membership, status.
//!
//! A [`Mailbox`] posts events and waits for answers; it decides nothing and touches no network.
//! Invariants:
//! - a call is refused before it is queued when it is too large, malformed, or over the bounds;
//! - a call always ends by its deadline;
//! - dropping the future of a call abandons its answer, never the node.

mod members;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::sync::watch;

use crate::config::LONGEST_TIMEOUT;
use crate::driver::shared::{Phase, Shared};
use crate::error::{Error, Result};
use crate::node::event::{Applied, Event, Freshness, Proposal, Read};
use crate::reply::{Reply, Waiter};
use crate::status::{LeaderChange, Role, Status};
use crate::types::{Index, NodeId};

/// How fresh the answer of a query must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was acknowledged, by any node, before the call began. Costs one
    /// round of heartbeats, shared by all reads of the moment. The default.
    #[default]
    Linearizable,
    /// It sees at least this log index, such as that of one's own write. Waits until the local
    /// Store is there; asks nobody.
    AtLeast(Index),
    /// Whatever the local Store holds. Asks nobody and waits for nothing.
    Stale,
}

/// An answer of the Store, and the log index that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The bytes.
    pub data: Vec<u8>,
    /// Of a proposal: the index of its entry; many proposals can share one. Of a query: every
    /// write up to this index is in the answer.
    pub index: Index,
}

impl From<Applied> for Answer {
    fn from(a: Applied) -> Self {
        Self { data: a.data, index: a.index }
    }
}

/// The handle of a node; cheap to clone, usable from any thread and runtime.
///
/// It works before the node starts: calls wait then, until their deadline. After the node has
/// ended, they fail with [`Error::ShuttingDown`].
#[derive(Clone, Debug)]
pub struct Mailbox {
    shared: Arc<Shared>,
    timeout: Duration,
}

impl Mailbox {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let timeout = shared.config.request_timeout;
        Self { shared, timeout }
    }

    /// The same handle with another deadline than `Config::request_timeout` for its calls: 30 days
    /// at most, longer ones count as that.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { shared: self.shared.clone(), timeout: timeout.min(LONGEST_TIMEOUT) }
    }

    /// Replicates a command and returns the Store's reply, once it was applied here, or on the
    /// leader when this node follows.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether the command took effect.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the answer; the command may still be applied.
    pub async fn propose(&self, message: impl Into<Bytes>) -> Result<Vec<u8>> {
        Ok(self.propose_indexed(message).await?.data)
    }

    /// As [`Mailbox::propose`], and tells the index of the log entry.
    ///
    /// # Errors
    /// As [`Mailbox::propose`].
    pub async fn propose_indexed(&self, message: impl Into<Bytes>) -> Result<Answer> {
        let waiter = self.submit(message.into())?;
        Ok(self.explain(waiter.wait(self.timeout).await)?.into())
    }

    /// Replicates many commands at once, in order; each has an outcome of its own.
    pub async fn propose_many<M: Into<Bytes>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Vec<Result<Vec<u8>>> {
        let waiters: Vec<_> = messages.into_iter().map(|m| self.submit(m.into())).collect();
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut outcomes = Vec::with_capacity(waiters.len());
        for waiter in waiters {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            outcomes.push(match waiter {
                Ok(waiter) => self.explain(waiter.wait(left).await).map(|a| a.data),
                Err(e) => Err(e),
            });
        }
        outcomes
    }

    /// [`Mailbox::propose`] under its older name.
    ///
    /// # Errors
    /// As [`Mailbox::propose`].
    pub async fn send(&self, message: Vec<u8>) -> Result<Vec<u8>> {
        self.propose(message).await
    }

    /// [`Mailbox::propose`] under its older name.
    ///
    /// # Errors
    /// As [`Mailbox::propose`].
    pub async fn send_proposal(&self, message: Vec<u8>) -> Result<Vec<u8>> {
        self.propose(message).await
    }

    /// Asks the local Store, linearizably: the answer sees every write acknowledged before.
    ///
    /// # Errors
    /// The Store's own, or why no fresh answer could be had.
    pub async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.query_with(query, Consistency::Linearizable).await?.data)
    }

    /// Asks the local Store, as fresh as it must be.
    ///
    /// # Errors
    /// As [`Mailbox::query`].
    pub async fn query_with(&self, query: Vec<u8>, consistency: Consistency) -> Result<Answer> {
        let freshness = match consistency {
            Consistency::Linearizable => Freshness::Linearizable,
            Consistency::AtLeast(index) => Freshness::AtLeast(index),
            Consistency::Stale => Freshness::Stale,
        };
        Ok(self.read(Some(query), freshness).await?.into())
    }

    /// The barrier of a linearizable read alone: once it returns, the local Store holds every
    /// write acknowledged before the call, for callers that read their own shared state.
    ///
    /// # Errors
    /// Why no barrier could be had.
    pub async fn read_index(&self) -> Result<Index> {
        Ok(self.read(None, Freshness::Linearizable).await?.index)
    }

    /// What this node knows, right now.
    ///
    /// # Errors
    /// `ShuttingDown` or `Timeout`; before the node starts, its status is that of
    /// [`Role::Starting`].
    pub async fn status(&self) -> Result<Status> {
        // An idle or joining node has no loop yet that could answer.
        if self.shared.status.borrow().role == Role::Starting {
            return Ok(self.shared.status.borrow().clone());
        }
        let mut status = self.ask(|reply| Event::Status { reply }).await?;
        self.shared.complete(&mut status);
        Ok(status)
    }

    /// The status as it changes; the newest is always there.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Who leads, whenever that changes, from what is known now on. Changes that follow each
    /// other faster than they are read are merged; the newest is never lost. Ends with the node.
    pub fn leader_changes(&self) -> impl Stream<Item = LeaderChange> + Send + Unpin + use<> {
        let state = (self.watch(), None);
        Box::pin(stream::unfold(state, |(mut watch, last)| async move {
            loop {
                let (change, stopped) = {
                    let status = watch.borrow_and_update();
                    (change_of(&status), status.role == Role::Stopped)
                };
                let news = match &last {
                    Some(last) => *last != change,
                    None => change.leader_id != 0,
                };
                if stopped {
                    return None;
                }
                if news {
                    return Some((change.clone(), (watch, Some(change))));
                }
                if watch.changed().await.is_err() {
                    return None;
                }
            }
        }))
    }

    /// Waits until the status is as wanted; gives it back.
    ///
    /// # Errors
    /// `Timeout`, or `ShuttingDown` when the node ended first.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&Status) -> bool) -> Result<Status> {
        let mut watch = self.watch();
        let found = watch.wait_for(|s| wanted(s) || s.role == Role::Stopped);
        let status = match tokio::time::timeout(self.timeout, found).await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => return Err(Error::ShuttingDown),
            Err(_) => return Err(Error::Timeout),
        };
        if wanted(&status) { Ok(status) } else { Err(Error::ShuttingDown) }
    }

    /// Hands leadership to this voter, or to the one that is furthest (None).
    ///
    /// # Errors
    /// `Membership` when it is no voter, or another node was elected; `Unknown` when it did not take
    /// over within an election timeout: it still may.
    pub async fn transfer_leadership(&self, to: impl Into<Option<NodeId>>) -> Result<()> {
        let to = to.into();
        self.ask(|reply| Event::Transfer { to, reply }).await
    }

    /// Gives leadership up, if this node has it: hands it to the voter that is furthest, and returns
    /// when another node leads. Where this node does not lead, that is so already, and nothing is
    /// done. Unlike [`Mailbox::transfer_leadership`] it is about this node alone, whoever leads.
    ///
    /// It stays a voter and may be elected again later: to keep it from that, `demote` it, `remove`
    /// it or shut it down.
    ///
    /// # Errors
    /// `Membership` when there is no other voter that is reachable: this node leads on. `Unknown` when
    /// none took over within an election timeout: it leads on, unless one still does. `Timeout` when
    /// neither was known by the deadline.
    pub async fn resign(&self) -> Result<()> {
        self.ask(|reply| Event::Resign { reply }).await
    }

    /// Stops the node: refuses new requests, hands leadership over, finishes what is in flight,
    /// seals the log. Returns when everything of it is gone: threads, listener, lock.
    ///
    /// # Errors
    /// None so far; what stopped a node otherwise is returned by `start`, `lead` or `join`.
    pub async fn shutdown(&self) -> Result<()> {
        let idle = self.shared.phase() == Phase::Idle;
        self.shared.enter(Phase::Stopping);
        if idle {
            self.shared.inbox.close();
            return Ok(());
        }
        self.shared.reached(Phase::Ended).await;
        Ok(())
    }

    fn submit(&self, data: Bytes) -> Result<Waiter<Applied>> {
        let size = data.len() as u64;
        let limit = self.shared.config.max_entry_size;
        if size > limit {
            return Err(Error::TooLarge { size, limit });
        }
        (self.shared.check)(&data).map_err(|e| match e {
            // Nothing was appended: not the rejection of an applied command.
            Error::Rejected(reason) => Error::Invalid(reason),
            other => other,
        })?;
        self.shared.post(size, |reply| Event::Propose(Proposal { data, reply }))
    }

    async fn read(&self, query: Option<Vec<u8>>, freshness: Freshness) -> Result<Applied> {
        let size = query.as_ref().map_or(0, Vec::len) as u64;
        let needs_leader = freshness == Freshness::Linearizable;
        let read = self.shared.post(size, |reply| Event::Read(Read { query, freshness, reply }))?;
        let read = read.wait(self.timeout).await;
        if needs_leader { self.explain(read) } else { read }
    }

    /// Where the deadline passed and nobody leads, that is what the caller can act upon.
    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let Err(Error::Timeout) = result else { return result };
        let status = self.shared.status.borrow();
        Err(match status.role {
            Role::Starting if status.waiting.is_empty() => {
                Error::NotReady { reason: status.health.clone() }
            }
            Role::Starting => Error::NotReady { reason: status.waiting.clone() },
            Role::Stopped => Error::Timeout,
            _ if status.leader_id == 0 => Error::NoLeader,
            _ => Error::Timeout,
        })
    }

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> Event) -> Result<T> {
        self.shared.ask(self.timeout, event).await
    }
}

fn change_of(status: &Status) -> LeaderChange {
    LeaderChange {
        term: status.term,
        leader_id: status.leader_id,
        leader_addr: status.leader_addr.clone(),
        is_self: status.leader_id != 0 && status.leader_id == status.id,
    }
}
