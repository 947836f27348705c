//! What the log of one machine must hold: the acknowledged batches, and those under way.
//!
//! It is told of every batch before the log is, and compares what a recovery finds: everything
//! that was acknowledged, then a prefix of what was under way, each batch whole or not at all.

use std::collections::VecDeque;

use bytes::Bytes;

use super::subject::{DIGEST, mix};
use crate::log::{LogBatch, Recovered, SnapshotRecord};
use crate::types::{Entry, HardState, Index, Position, Term};

/// The contents of a log, in the measure that its contract is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) hard_state: HardState,
    pub(super) compacted: Position,
    /// Term and digest of each entry above `compacted`.
    entries: VecDeque<(Term, u64)>,
    pub(super) membership: Option<Bytes>,
    pub(super) snapshot: Option<SnapshotRecord>,
}

/// Everything of an entry but its place.
pub(super) fn digest(entry: &Entry) -> u64 {
    mix(mix(DIGEST ^ entry.kind as u64, &entry.data), &entry.context)
}

impl Contents {
    pub(super) fn of(recovered: &Recovered) -> Self {
        Self {
            hard_state: recovered.hard_state,
            compacted: recovered.compacted,
            entries: recovered.entries.iter().map(|e| (e.term, digest(e))).collect(),
            membership: recovered.membership.clone(),
            snapshot: recovered.snapshot,
        }
    }

    pub(super) fn last_index(&self) -> Index {
        self.compacted.index + self.entries.len() as u64
    }

    fn entry(&self, index: Index) -> Option<(Term, u64)> {
        self.entries.get(index.checked_sub(self.compacted.index + 1)? as usize).copied()
    }

    /// Whether this entry is in it, or below its beginning and hence in a snapshot.
    pub(super) fn holds(&self, index: Index, term: Term) -> bool {
        let Some(above) = index.checked_sub(self.compacted.index + 1) else { return true };
        self.entries.get(above as usize).is_some_and(|(t, _)| *t == term)
    }

    /// Takes a batch in; true when it replaced entries.
    pub(super) fn append(&mut self, batch: &LogBatch) -> bool {
        let mut truncated = false;
        if let Some(to) = batch.reset {
            self.entries.clear();
            self.compacted = to;
        }
        if let Some(first) = batch.entries.first() {
            assert!(first.index > self.compacted.index, "R10: entry below the compaction point");
            assert!(first.index <= self.last_index() + 1, "entries leave a gap");
            truncated = first.index <= self.last_index();
            self.entries.truncate((first.index - self.compacted.index - 1) as usize);
            self.entries.extend(batch.entries.iter().map(|e| (e.term, digest(e))));
        }
        if let Some(hs) = batch.hard_state {
            let old = self.hard_state;
            assert!(hs.term >= old.term && hs.commit >= old.commit, "I7: {old:?} then {hs:?}");
            let voted = hs.term == old.term && old.vote != 0;
            assert!(!voted || hs.vote == old.vote, "I2: {old:?} then {hs:?}");
            self.hard_state = hs;
        }
        self.membership = batch.membership.clone().or(self.membership.take());
        self.snapshot = batch.snapshot.or(self.snapshot);
        truncated
    }

    pub(super) fn compact(&mut self, through: Position) {
        let record = self.snapshot.expect("R10: compaction without a snapshot record");
        assert!(through.index <= record.position.index, "R10: compaction above the snapshot");
        if let Some(count) = through.index.checked_sub(self.compacted.index) {
            self.entries.drain(..count as usize);
            self.compacted = through;
        }
    }
}

/// Work under way in the log.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Batch(LogBatch),
    Compact(Position),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct DiskModel {
    pub(super) durable: Contents,
    under_way: Vec<Write>,
    /// What was written last, as one.
    last: Vec<Write>,
}

impl DiskModel {
    pub(super) fn holding(contents: Contents) -> Self {
        Self { durable: contents, ..Self::default() }
    }

    /// The log is about to be told.
    pub(super) fn begin(&mut self, write: Write) {
        self.under_way.push(write);
    }

    /// Whether an entry is durable and stays so: no write under way replaces it.
    pub(super) fn keeps(&self, index: Index, term: Term) -> bool {
        let replaces = |write: &Write| match write {
            Write::Batch(batch) => batch.entries.first().is_some_and(|e| e.index <= index),
            Write::Compact(_) => false,
        };
        self.durable.holds(index, term) && !self.under_way.iter().any(replaces)
    }

    /// The batches among the first `count` writes under way.
    pub(super) fn batches(&self, count: usize) -> impl Iterator<Item = &LogBatch> {
        self.under_way.iter().take(count).filter_map(|write| match write {
            Write::Batch(batch) => Some(batch),
            Write::Compact(_) => None,
        })
    }

    /// The log has said that the first `count` are durable; true when entries were replaced.
    pub(super) fn done(&mut self, count: usize) -> bool {
        let mut truncated = false;
        self.last = self.under_way.drain(..count).collect();
        for write in &self.last {
            truncated |= take(&mut self.durable, write);
        }
        truncated
    }

    /// A recovery found this: judges it, and goes on from there. How many writes that were under
    /// way have survived.
    pub(super) fn recovered(&mut self, found: &Contents) -> Result<usize, String> {
        let mut writes = std::mem::take(&mut self.under_way);
        let mut candidate = self.durable.clone();
        for count in 0..=writes.len() {
            if let Some(write) = count.checked_sub(1).and_then(|i| writes.get(i)) {
                take(&mut candidate, write);
            }
            if candidate == *found {
                self.durable = found.clone();
                if count > 0 {
                    writes.truncate(count);
                    self.last = writes;
                }
                return Ok(count);
            }
        }
        Err(format!(
            "the log came back as {} after {} writes under way; acknowledged: {}",
            brief(found),
            writes.len(),
            brief(&self.durable)
        ))
    }
}

impl DiskModel {
    /// Whether a damaged log lacks at most what was written last: damage there cannot be told from
    /// a write that power tore.
    pub(super) fn lacks_the_last_only(&self, found: &Contents) -> bool {
        let mut whole = self.durable.clone();
        let mut from = Index::MAX;
        for write in &self.last {
            let Write::Batch(batch) = write else {
                whole.compacted = found.compacted;
                continue;
            };
            if batch.reset.is_some() {
                // It began anew: nothing that was there before is known any more.
                return true;
            }
            from = batch.entries.first().map_or(from, |e| from.min(e.index));
            whole.hard_state = batch.hard_state.map_or(whole.hard_state, |_| found.hard_state);
            if batch.membership.is_some() {
                whole.membership.clone_from(&found.membership);
            }
            whole.snapshot = batch.snapshot.map_or(whole.snapshot, |_| found.snapshot);
        }
        let known = self.durable.compacted.index.max(found.compacted.index) + 1;
        let end = from.min(self.durable.last_index() + 1);
        (known..end).all(|index| self.durable.entry(index) == found.entry(index))
            && (whole.hard_state, whole.compacted, &whole.membership, whole.snapshot)
                == (found.hard_state, found.compacted, &found.membership, found.snapshot)
    }
}

fn take(contents: &mut Contents, write: &Write) -> bool {
    match write {
        Write::Batch(batch) => contents.append(batch),
        Write::Compact(through) => {
            contents.compact(*through);
            false
        }
    }
}

fn brief(c: &Contents) -> String {
    format!(
        "{:?}, entries {}..={} (last term {:?}), snapshot {:?}, membership record of {} bytes",
        c.hard_state,
        c.compacted.index + 1,
        c.last_index(),
        c.entries.back().map(|e| e.0),
        c.snapshot,
        c.membership.as_ref().map_or(0, Bytes::len)
    )
}
