//! The part of the log that raft-rs reads, in memory: every entry above the compaction point.
//!
//! raft-rs panics on any error of its storage but two (H12), so this one is infallible by
//! construction: it never touches a disk. Its size is bounded by the compaction policy and by
//! `max_apply_lag`. It changes only between calls of `RawNode` (R9).
//!
//! Invariants:
//! - `entries[i].index == compacted.index + 1 + i`, terms never decrease;
//! - `ends[i]` is the number of bytes of all entries up to and including `entries[i]`, counted
//!   since the node started: the size of any range is one subtraction.

use std::cell::Cell;
use std::collections::VecDeque;

use raft_rs::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::types::{
    ConfState, Entry, HardState, Index, Position, RaftId, SnapshotMeta, Term, eraftpb,
};
use crate::zoo::{self, Bug};

/// What raft-rs reads; see the module.
#[derive(Debug)]
pub(crate) struct LogCache {
    compacted: Position,
    entries: VecDeque<eraftpb::Entry>,
    ends: VecDeque<u64>,
    /// Bytes of everything that was appended and compacted so far.
    base: u64,
    initial: RaftState,
    snapshot: Option<SnapshotMeta>,
    /// Its file cannot be read: it serves nobody.
    snapshot_lost: bool,
    wanted: Cell<bool>,
}

impl LogCache {
    /// A cache of recovered entries, which are contiguous above `compacted`.
    pub(crate) fn new(
        compacted: Position,
        entries: Vec<Entry>,
        hard_state: HardState,
        conf_state: &ConfState,
        snapshot: Option<SnapshotMeta>,
    ) -> Self {
        let HardState { term, vote, commit } = hard_state;
        let hs = eraftpb::HardState { term, vote, commit, ..eraftpb::HardState::default() };
        let mut cache = Self {
            compacted,
            entries: VecDeque::new(),
            ends: VecDeque::new(),
            base: 0,
            initial: RaftState::new(hs, conf_state.into()),
            snapshot,
            snapshot_lost: false,
            wanted: Cell::new(false),
        };
        cache.append(entries.into_iter().map(Into::into).collect());
        cache
    }

    /// The compaction point.
    pub(crate) fn compacted(&self) -> Position {
        self.compacted
    }

    /// Index of the last entry.
    pub(crate) fn last(&self) -> Index {
        self.compacted.index + self.entries.len() as u64
    }

    /// Term of an entry; None below the compaction point and above the last entry.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.compacted.index {
            return Some(self.compacted.term);
        }
        Some(self.entries.get(self.offset(index)?)?.term)
    }

    /// Appends contiguous entries, replacing those at and above the first one's index.
    pub(crate) fn append(&mut self, entries: Vec<eraftpb::Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.compacted.index && first.index <= self.last() + 1,
            "invariant: entries join the log"
        );
        let keep = (first.index - self.compacted.index - 1) as usize;
        self.entries.truncate(keep);
        self.ends.truncate(keep);
        let mut end = self.end_of(self.last());
        for entry in entries {
            end += size_of(&entry);
            self.ends.push_back(end);
            self.entries.push_back(entry);
        }
    }

    /// Drops every entry; the log continues above `to`.
    pub(crate) fn reset(&mut self, to: Position) {
        self.base = self.end_of(self.last());
        self.entries.clear();
        self.ends.clear();
        self.compacted = to;
    }

    /// Drops entries up to and including `index`.
    pub(crate) fn compact(&mut self, index: Index) -> Position {
        let index = index.min(self.last());
        if let (Some(count), Some(term)) =
            (index.checked_sub(self.compacted.index), self.term_at(index))
        {
            self.base = self.end_of(index);
            self.entries.drain(..count as usize);
            self.ends.drain(..count as usize);
            self.compacted = Position { index, term };
            if self.entries.capacity() > 1024 && self.entries.len() * 4 < self.entries.capacity() {
                self.entries.shrink_to(self.entries.len() * 2);
                self.ends.shrink_to(self.ends.len() * 2);
            }
        }
        self.compacted
    }

    /// Bytes of the entries above `after` up to and including `through`.
    pub(crate) fn bytes_between(&self, after: Index, through: Index) -> u64 {
        self.end_of(through).saturating_sub(self.end_of(after))
    }

    /// The newest durable snapshot of the own Store.
    pub(crate) fn snapshot_meta(&self) -> Option<&SnapshotMeta> {
        self.snapshot.as_ref()
    }

    /// Replaces it, by one whose file is whole.
    pub(crate) fn set_snapshot(&mut self, meta: SnapshotMeta) {
        self.snapshot = Some(meta);
        self.snapshot_lost = false;
    }

    /// Its file cannot be read any more: it is not given out until another takes its place.
    pub(crate) fn lose_snapshot(&mut self) {
        self.snapshot_lost = true;
    }

    /// Nothing took its place: its file is tried again, because the disk may have failed for a
    /// moment only.
    pub(crate) fn try_snapshot_again(&mut self) {
        self.snapshot_lost = false;
    }

    /// Whether its file cannot be read.
    pub(crate) fn snapshot_is_lost(&self) -> bool {
        self.snapshot_lost
    }

    /// Whether raft asked for a snapshot that does not exist yet; asking clears it.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    fn offset(&self, index: Index) -> Option<usize> {
        Some(index.checked_sub(self.compacted.index + 1)? as usize)
    }

    fn end_of(&self, index: Index) -> u64 {
        let index = index.min(self.last());
        self.offset(index).and_then(|i| self.ends.get(i)).copied().unwrap_or(self.base)
    }
}

/// What an entry takes in memory besides its data, in bytes.
pub(crate) const ENTRY_OVERHEAD: u64 = 32;

fn size_of(e: &eraftpb::Entry) -> u64 {
    (e.data.len() + e.context.len()) as u64 + ENTRY_OVERHEAD
}

impl Storage for LogCache {
    fn initial_state(&self) -> raft_rs::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft_rs::Result<Vec<eraftpb::Entry>> {
        let Some(from) = self.offset(low) else {
            return Err(StorageError::Compacted.into());
        };
        if high > self.last() + 1 || low > high {
            return Err(StorageError::Unavailable.into());
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let start = self.end_of(low - 1);
        let to = (high - self.compacted.index - 1) as usize;
        // At least one entry, then as many as fit: what raft-rs' own limit_size does.
        let fit = self.ends.range(from..to).take_while(|&&end| end - start <= max).count();
        let count = fit.max(1).min(to - from);
        Ok(self.entries.range(from..from + count).cloned().collect())
    }

    fn term(&self, index: u64) -> raft_rs::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.compacted.index => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft_rs::Result<u64> {
        Ok(self.compacted.index + 1)
    }

    fn last_index(&self) -> raft_rs::Result<u64> {
        Ok(self.last())
    }

    /// A snapshot serves only if its file can be read, its members include the receiver (H13) and
    /// the log goes on above it; otherwise a new one is asked for.
    fn snapshot(&self, request_index: u64, to: RaftId) -> raft_rs::Result<eraftpb::Snapshot> {
        let fits = |m: &&SnapshotMeta| {
            (m.membership.conf_state.contains(to) || zoo::has(Bug::SnapshotWithoutReceiver))
                && m.position.index >= request_index
                && m.position.index >= self.compacted.index
        };
        match self.snapshot.as_ref().filter(|_| !self.snapshot_lost).filter(fits) {
            Some(meta) => Ok(header(meta)),
            None => {
                self.wanted.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

/// A snapshot as raft-rs handles it: position and members, without the data.
pub(crate) fn header(meta: &SnapshotMeta) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let m = snapshot.mut_metadata();
    m.index = meta.position.index;
    m.term = meta.position.term;
    m.set_conf_state((&meta.membership.conf_state).into());
    snapshot
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::types::EntryKind;
    use bytes::Bytes;

    fn entry(index: Index, term: Term, len: usize) -> Entry {
        Entry {
            term,
            index,
            kind: EntryKind::Normal,
            data: Bytes::from(vec![0; len]),
            context: Bytes::new(),
        }
    }

    fn cache(n: u64) -> LogCache {
        let entries = (6..6 + n).map(|i| entry(i, 2, 68)).collect();
        let at = Position { index: 5, term: 2 };
        LogCache::new(at, entries, HardState::default(), &ConfState::default(), None)
    }

    fn indices(c: &LogCache, low: u64, high: u64, max: u64) -> Vec<u64> {
        let got = c.entries(low, high, max, GetEntriesContext::empty(false)).unwrap();
        got.iter().map(|e| e.index).collect()
    }

    #[test]
    fn reads_at_least_one_entry_and_no_more_than_fit() {
        let c = cache(4);
        assert_eq!(indices(&c, 6, 10, 1), [6]);
        assert_eq!(indices(&c, 6, 10, 200), [6, 7]);
        assert_eq!(indices(&c, 7, 9, u64::MAX), [7, 8]);
        assert!(indices(&c, 7, 7, 100).is_empty());
        assert!(c.entries(5, 7, None, GetEntriesContext::empty(false)).is_err());
        assert!(c.entries(9, 11, None, GetEntriesContext::empty(false)).is_err());
    }

    #[test]
    fn append_replaces_the_conflicting_tail() {
        let mut c = cache(4);
        c.append(vec![entry(8, 3, 10).into()]);
        assert_eq!((c.last(), c.term_at(8), c.term_at(9)), (8, Some(3), None));
        assert_eq!(c.bytes_between(5, 8), 100 + 100 + 42);
    }

    #[test]
    fn compaction_keeps_terms_and_sizes() {
        let mut c = cache(4);
        assert_eq!(c.compact(7), Position { index: 7, term: 2 });
        assert_eq!((c.term_at(6), c.term_at(7), c.last()), (None, Some(2), 9));
        assert_eq!(c.bytes_between(7, 9), 200);
        assert_eq!(c.compact(3).index, 7, "never goes back");
        c.append(vec![entry(10, 2, 68).into()]);
        assert_eq!(c.bytes_between(8, 10), 200);
        c.reset(Position { index: 50, term: 9 });
        assert_eq!((c.last(), c.bytes_between(0, 50)), (50, 0));
    }

    #[test]
    fn h13_snapshot_without_the_receiver_is_not_sent() {
        let mut c = cache(4);
        let mut meta = SnapshotMeta {
            position: Position { index: 7, term: 2 },
            membership: crate::types::Membership {
                cluster_id: crate::ClusterId::from_u128(1),
                index: 6,
                conf_state: ConfState { voters: vec![1, 2], ..ConfState::default() },
                members: Vec::new(),
                next_raft_id: 3,
            },
            size: 0,
            crc32: 0,
        };
        c.set_snapshot(meta.clone());
        assert!(c.snapshot(0, 2).is_ok() && !c.take_wanted());
        assert!(c.snapshot(0, 3).is_err() && c.take_wanted(), "3 is no member of it");
        assert!(c.snapshot(8, 2).is_err() && c.take_wanted(), "older than requested");
        meta.membership.conf_state.learners = vec![3];
        c.set_snapshot(meta.clone());
        assert!(c.snapshot(0, 3).is_ok());
        c.lose_snapshot();
        assert!(c.snapshot(0, 3).is_err() && c.take_wanted(), "its file cannot be read");
        c.set_snapshot(meta);
        assert!(c.snapshot(0, 3).is_ok(), "it was taken anew");
        c.lose_snapshot();
        c.try_snapshot_again();
        assert!(c.snapshot(0, 3).is_ok(), "no other could be taken");
    }
}
