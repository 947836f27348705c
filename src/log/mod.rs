//! Where the log lives: the contract of durable storage, and what it recovers.
//!
//! A [`LogStorage`] belongs to the log writer, a thread of its own; every call may block. It holds the
//! entries above a compaction point, the newest hard state, the newest membership record, the
//! newest snapshot record, and the identity of the data directory. It never decides anything:
//! what is appended, truncated and compacted is told by the node.

pub(crate) mod cache;
pub mod memory;
pub mod wal;

use std::fmt;

use bytes::Bytes;

use crate::error::StorageError;
use crate::types::{Entry, HardState, Identity, Position};

/// Bytes of entries from which on a batch grows no more, and neither does what is written and synced
/// as one: what is behind it must not wait for a long write, and the disk shows that it works.
pub(crate) const MUCH_TO_WRITE: u64 = 4 << 20;

/// The state of the newest snapshot that the log knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The entry it covers up to.
    pub position: Position,
    /// True while the Store has not finished restoring it: a start must restore it again.
    pub installing: bool,
}

/// One atomic change of the log. Empty parts leave things as they are.
///
/// It takes effect in this order: `reset`, `entries`, then the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// Drops every entry; the log continues above this position (an incoming snapshot).
    pub reset: Option<Position>,
    /// Contiguous entries. The first one's index is at most one above the last entry; entries at
    /// and above it are replaced (Raft paper, section 5.3).
    pub entries: Vec<Entry>,
    /// Replaces the hard state.
    pub hard_state: Option<HardState>,
    /// Replaces the membership record; opaque to the log.
    pub membership: Option<Bytes>,
    /// Replaces the snapshot record.
    pub snapshot: Option<SnapshotRecord>,
}

impl LogBatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.reset.is_none()
            && self.entries.is_empty()
            && self.hard_state.is_none()
            && self.membership.is_none()
            && self.snapshot.is_none()
    }
}

/// What a log holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Who this directory is; None: it is empty.
    pub identity: Option<Identity>,
    /// The newest hard state.
    pub hard_state: HardState,
    /// The entry below the first one: index and term of the compaction point; zeros for none.
    pub compacted: Position,
    /// The entries above it, contiguous.
    pub entries: Vec<Entry>,
    /// The newest membership record.
    pub membership: Option<Bytes>,
    /// The newest snapshot record.
    pub snapshot: Option<SnapshotRecord>,
    /// In words, what an unclean end left behind and recovery dropped: a batch whose write was
    /// never acknowledged. None: nothing.
    pub dropped_tail: Option<String>,
}

/// Durable storage of one node's log. Object-safe; calls come one after the other, and once the
/// node runs, from one thread, unless [`LogStorage::is_local`] allows another.
///
/// Contract, checked by `raftline::testing::log_suite`:
/// 1. `append` is atomic and durable for all of its batches together when it returns: after a
///    crash during the call, a prefix of the batches is there, each whole or not at all.
/// 2. After any error of `append`, `identify` or `compact` the log is poisoned: every later call
///    fails with [`StorageError::Poisoned`], and a later `load` of the same directory gives a
///    state that holds everything acknowledged before.
/// 3. `load` after `close` gives back exactly what was appended, truncated and compacted.
/// 4. What was truncated or compacted never comes back.
pub trait LogStorage: fmt::Debug + Send + 'static {
    /// Reads everything back. Called once, before anything else.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when acknowledged data is damaged; nothing is changed then.
    fn load(&mut self) -> Result<Recovered, StorageError>;

    /// Makes the identity durable, replacing the one before.
    ///
    /// # Errors
    /// [`StorageError::Io`]; the log is poisoned.
    fn identify(&mut self, identity: &Identity) -> Result<(), StorageError>;

    /// Makes these batches durable, in order, with one write and one sync.
    ///
    /// # Errors
    /// [`StorageError::Io`]; the log is poisoned. [`StorageError::Contract`] for a gap between
    /// entries; nothing is written then.
    fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError>;

    /// Whether `append` may be called on the node's own thread, inside an async runtime, as long as
    /// it is quick: for logs that wait for nothing but memory or a local disk.
    fn is_local(&self) -> bool {
        false
    }

    /// Drops the entries up to and including this position, which must not be above the newest
    /// snapshot record. A position at or below an earlier one changes nothing. Space comes back
    /// once nothing needs it.
    ///
    /// # Errors
    /// [`StorageError::Io`]; the log is poisoned.
    fn compact(&mut self, through: Position) -> Result<(), StorageError>;

    /// Seals the log: after it nothing may be missing when it is opened again.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn close(&mut self) -> Result<(), StorageError>;
}
