//! The trait that users implement: their state machine.
//!
//! Who calls what, where and in which order:
//! - one task, spawned on the runtime that `lead` or `join` was called in, owns the Store;
//! - `apply_batch` (and through it `apply`) and `restore` run alone, in the order of the log;
//! - `query` runs between applies, concurrently with other queries;
//! - `snapshot` runs between two entries of the log;
//! - nothing is ever called twice for the same entry within one run. After a restart, entries
//!   above the newest snapshot are applied again, unless [`Store::applied`] says that the Store
//!   holds them already.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures::FutureExt;

use crate::error::{Error, Result};
use crate::types::Index;

/// A proposal that a majority has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed<'a> {
    /// Index of the log entry that it is part of. Several proposals can share one; a batch always
    /// ends with the last proposal of an entry.
    pub index: Index,
    /// The bytes given to `Mailbox::propose`.
    pub data: &'a [u8],
}

/// A replicated state machine.
///
/// `apply` must be deterministic: every replica applies the same proposals in the same order and
/// must come to the same state and the same replies.
///
/// Errors are of two kinds. A *rejection* ([`Error::rejected`], or `?` on a `String`, `&str` or
/// `bincode::Error`) is a normal answer to the proposer; the proposal counts as applied. A *fatal*
/// error ([`Error::fatal`], or `?` on a `std::io::Error` or boxed error) says that this replica is
/// broken: the node stops. A panic is the same, contained.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies one proposal; the bytes go back to its proposer. Never cancelled, never timed out,
    /// never skipped.
    ///
    /// # Errors
    /// A rejection answers the proposer. Anything else stops this node.
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>>;

    /// Answers a query from the present state. Runs concurrently with other queries; it is
    /// cancelled when `Config::request_timeout` has passed.
    ///
    /// # Errors
    /// Go to the caller of the query.
    async fn query(&self, query: &[u8]) -> Result<Vec<u8>>;

    /// The whole state, as of the last applied proposal.
    ///
    /// # Errors
    /// Are logged; it is asked again later.
    async fn snapshot(&self) -> Result<Vec<u8>>;

    /// Replaces the whole state by that of a snapshot.
    ///
    /// # Errors
    /// Stop this node; the snapshot is restored again on its next start.
    async fn restore(&mut self, snapshot: &[u8]) -> Result<()>;

    /// Applies many proposals, in order, with one reply each. The default calls [`Store::apply`]
    /// for each. The answers may end early only behind a fatal error.
    async fn apply_batch(&mut self, batch: &[Committed<'_>]) -> Vec<Result<Vec<u8>>> {
        let mut replies = Vec::with_capacity(batch.len());
        for proposal in batch {
            let reply = AssertUnwindSafe(self.apply(proposal.data)).catch_unwind().await;
            let reply = reply.unwrap_or_else(|panic| {
                Err(Error::StoreFailed {
                    index: proposal.index,
                    reason: format!("apply panicked: {}", panic_text(&*panic)),
                    remedy: SKIP_REMEDY,
                })
            });
            let stop = !matches!(reply, Ok(_) | Err(Error::Rejected(_)));
            replies.push(reply);
            if stop {
                break;
            }
        }
        replies
    }

    /// For a Store that is durable by itself: the index up to which its own disk already holds
    /// the effects; nothing at or below it is applied again. Such a Store must implement
    /// [`Store::apply_batch`] and commit a batch and its last index in one atomic write. Default:
    /// None, the state lives in memory and is rebuilt from snapshot and log.
    fn applied(&self) -> Option<Index> {
        None
    }

    /// Refuses malformed bytes before they are appended, on the node that proposes them. It runs
    /// in the caller's task and sees the bytes alone: what depends on the state is for
    /// [`Store::apply`] to reject, alike on every replica.
    ///
    /// # Errors
    /// A rejection goes to the caller; nothing is appended.
    fn check(message: &[u8]) -> Result<()>
    where
        Self: Sized,
    {
        let _ = message;
        Ok(())
    }
}

/// What to do about a command that makes the Store panic or fail.
pub(crate) const SKIP_REMEDY: &str = "Mend the Store and restart; if every replica fails at this \
    index, list it in Config::skip_apply alike on every node";

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// No state machine: [`Raft::election`](crate::Raft::election). It takes no commands and answers no
/// queries; both are refused before anything is appended. A snapshot of it is empty.
#[async_trait]
impl Store for () {
    async fn apply(&mut self, _message: &[u8]) -> Result<Vec<u8>> {
        Err(Error::rejected(NO_STORE))
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Err(Error::rejected(NO_STORE))
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }

    fn check(_message: &[u8]) -> Result<()> {
        Err(Error::rejected(NO_STORE))
    }
}

const NO_STORE: &str = "this node elects a leader and has no Store for commands and queries; give \
    Raft::new a Store of your own";
