//! A disk of one node, as far as a log goes: what it was told, and nothing that it should not be
//! told.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::log::{LogBatch, SnapshotRecord};
use crate::types::{
    Entry, HardState, Identity, Index, Membership, Position, RaftId, SnapshotMeta, Term,
};

/// Snapshot files by index and term, as their names are.
pub(super) type Files = BTreeMap<(Index, Term), SnapshotMeta>;

pub(super) fn name(p: Position) -> (Index, Term) {
    (p.index, p.term)
}

/// What is written, or what is durable: there is one of each.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) identity: Identity,
    pub(super) hard_state: HardState,
    pub(super) compacted: Position,
    pub(super) entries: Vec<Entry>,
    pub(super) membership: Option<Bytes>,
    pub(super) snapshot: Option<SnapshotRecord>,
    votes: BTreeMap<Term, RaftId>,
    /// The furthest that the log went in the present term, since the last crash.
    reached: Index,
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Batch { number: u64, batch: LogBatch },
    Compact { through: Position, keep_snapshot: Index },
}

impl Write {
    /// Whether it takes an entry away that may be there already.
    pub(super) fn replaces(&self, index: Index) -> bool {
        match self {
            Self::Batch { batch, .. } => batch.entries.first().is_some_and(|e| e.index <= index),
            Self::Compact { .. } => false,
        }
    }
}

impl Disk {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            hard_state: HardState::default(),
            compacted: Position::default(),
            entries: Vec::new(),
            membership: None,
            snapshot: None,
            votes: BTreeMap::new(),
            reached: 0,
        }
    }

    pub(super) fn last_index(&self) -> Index {
        self.compacted.index + self.entries.len() as u64
    }

    /// What may be acknowledged: what is, or was, durable in this term. No leader replaces what it
    /// has sent. One that does it all the same is a liar, and lies to itself: it is refused while
    /// the log ends in its term, where that can be told, and after that it is told truly that the
    /// disk had its entries; the acknowledgement may leave with that of the write that took them
    /// away.
    pub(super) fn reached(&self) -> Index {
        self.reached.max(self.last_index())
    }

    pub(super) fn crashes(&mut self) {
        self.reached = self.last_index();
    }

    pub(super) fn last(&self) -> Position {
        self.entries.last().map_or(self.compacted, |e| Position { index: e.index, term: e.term })
    }

    pub(super) fn entry(&self, index: Index) -> Option<&Entry> {
        let offset = index.checked_sub(self.compacted.index.checked_add(1)?)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.compacted.index {
            return Some(self.compacted.term);
        }
        self.entry(index).map(|e| e.term)
    }

    pub(super) fn members(&self) -> Option<Membership> {
        let record = self.membership.clone()?;
        Some(Membership::decode(record).unwrap_or_else(|e| panic!("R7: the own record: {e}")))
    }

    pub(super) fn write(&mut self, write: &Write, files: &Files) {
        match write {
            Write::Batch { batch, .. } => self.append(batch, files),
            Write::Compact { through, .. } => self.compact(*through),
        }
    }

    fn append(&mut self, batch: &LogBatch, files: &Files) {
        assert!(!batch.is_empty(), "an empty batch is no write");
        if let Some(to) = batch.reset {
            assert!(to.index > self.compacted.index, "I8: reset to {to:?}, compacted before it");
            self.entries.clear();
            self.compacted = to;
        }
        if let Some(first) = batch.entries.first() {
            assert!(first.index > self.compacted.index, "R10: entry below the compaction point");
            assert!(first.index <= self.last_index() + 1, "entries leave a gap");
            self.entries.truncate((first.index - self.compacted.index - 1) as usize);
            for entry in &batch.entries {
                assert_eq!(entry.index, self.last_index() + 1, "entries leave a gap");
                assert!(entry.term >= self.last().term, "terms fall at {}", entry.index);
                self.entries.push(entry.clone());
            }
        }
        if let Some(now) = batch.hard_state {
            if now.term > self.hard_state.term {
                self.reached = 0;
            }
            self.hard_state(now);
        }
        self.reached = self.reached();
        assert!(self.last().term <= self.hard_state.term, "H6: an entry of a term not yet durable");
        if let Some(record) = &batch.membership {
            let before = self.members().map_or(0, |m| m.index);
            self.membership = Some(record.clone());
            let now = self.members().map_or(0, |m| m.index);
            assert!(now >= before, "R7: membership of {now} recorded after that of {before}");
        }
        if let Some(record) = batch.snapshot {
            assert!(files.contains_key(&name(record.position)), "R1: record of a missing file");
            self.snapshot = Some(record);
        }
    }

    fn hard_state(&mut self, now: HardState) {
        let old = self.hard_state;
        assert!(now.term >= old.term && now.commit >= old.commit, "I7: {old:?} then {now:?}");
        assert!(now.commit <= self.last_index(), "H8: {now:?}, the log ends at {:?}", self.last());
        if now.vote != 0 {
            let vote = *self.votes.entry(now.term).or_insert(now.vote);
            assert_eq!(vote, now.vote, "I2: a second vote in term {}", now.term);
        }
        assert!(now.term > old.term || old.vote == 0 || now.vote == old.vote, "I2: vote withdrawn");
        self.hard_state = now;
    }

    fn compact(&mut self, through: Position) {
        let record = self.snapshot.unwrap_or_else(|| panic!("R10: no snapshot to compact to"));
        assert!(through.index <= record.position.index, "R10: compaction above the snapshot");
        if let Some(count) = through.index.checked_sub(self.compacted.index) {
            assert!(through.index <= self.last_index(), "R10: compaction above the log");
            assert_eq!(self.term_at(through.index), Some(through.term), "R10: another term");
            self.entries.drain(..count as usize);
            self.compacted = through;
        }
    }
}
