//! A disk and a Store that keep what they were told, no more: models of `LogStorage` and of a
//! user's state machine.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::log::{LogBatch, SnapshotRecord};
use crate::types::{Entry, HardState, Identity, Index, Membership, Position, SnapshotMeta};

/// What survives a crash.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) identity: Identity,
    pub(super) hard_state: HardState,
    pub(super) compacted: Position,
    pub(super) entries: Vec<Entry>,
    pub(super) membership: Option<Bytes>,
    pub(super) snapshot: Option<SnapshotRecord>,
    pub(super) files: BTreeMap<Index, File>,
    /// Written, but not synced: lost in a crash.
    pub(super) queue: VecDeque<Write>,
}

/// A snapshot file.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) meta: SnapshotMeta,
    pub(super) body: Vec<String>,
    pub(super) damaged: bool,
}

#[derive(Debug)]
pub(super) enum Write {
    Batch { number: u64, batch: LogBatch },
    Compact { through: Position, keep_snapshot: Index },
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
            files: BTreeMap::new(),
            queue: VecDeque::new(),
        }
    }

    pub(super) fn last_index(&self) -> Index {
        self.compacted.index + self.entries.len() as u64
    }

    /// The newest snapshot file cannot be read any more.
    pub(super) fn rot(&mut self) {
        let newest = self.files.values_mut().next_back();
        newest.expect("a snapshot to damage").damaged = true;
    }

    /// Whether the entry is durable, and no write that is on its way replaces it (H16).
    pub(super) fn keeps(&self, index: Index) -> bool {
        let replaces = |w: &Write| match w {
            Write::Batch { batch, .. } => batch.entries.first().is_some_and(|e| e.index <= index),
            Write::Compact { .. } => false,
        };
        index <= self.last_index() && !self.queue.iter().any(replaces)
    }

    pub(super) fn members(&self) -> Option<Membership> {
        self.membership.clone().map(|m| Membership::decode(m).expect("own record"))
    }

    /// Makes up to `count` writes durable; the number of the last batch among them.
    pub(super) fn sync(&mut self, count: usize) -> Option<u64> {
        let mut last = None;
        for _ in 0..count {
            match self.queue.pop_front() {
                Some(Write::Batch { number, batch }) => {
                    self.append(batch);
                    last = Some(number);
                }
                Some(Write::Compact { through, keep_snapshot }) => {
                    self.compact(through, keep_snapshot);
                }
                None => break,
            }
        }
        last
    }

    fn append(&mut self, batch: LogBatch) {
        assert!(!batch.is_empty(), "an empty batch is no write");
        if let Some(to) = batch.reset {
            self.entries.clear();
            self.compacted = to;
        }
        if let Some(first) = batch.entries.first() {
            assert!(first.index > self.compacted.index, "R10: entry below the compaction point");
            assert!(first.index <= self.last_index() + 1, "entries leave a gap");
            self.entries.truncate((first.index - self.compacted.index - 1) as usize);
            self.entries.extend(batch.entries);
        }
        if let Some(hs) = batch.hard_state {
            let old = self.hard_state;
            assert!(hs.term >= old.term && hs.commit >= old.commit, "I7: {old:?} then {hs:?}");
            let voted = hs.term == old.term && old.vote != 0;
            assert!(!voted || hs.vote == old.vote, "I2: {old:?} then {hs:?}");
            self.hard_state = hs;
        }
        if let Some(m) = batch.membership {
            let before = self.members().map_or(0, |m| m.index);
            self.membership = Some(m);
            let now = self.members().map_or(0, |m| m.index);
            assert!(now >= before, "R7: membership of {now} recorded after that of {before}");
        }
        if let Some(s) = batch.snapshot {
            assert!(self.files.contains_key(&s.position.index), "R1: record of a missing file");
            self.snapshot = Some(s);
        }
    }

    fn compact(&mut self, through: Position, keep_snapshot: Index) {
        let record = self.snapshot.expect("R10: compaction without a snapshot record");
        assert!(through.index <= record.position.index, "R10: compaction above the snapshot");
        if let Some(count) = through.index.checked_sub(self.compacted.index) {
            self.entries.drain(..count as usize);
            self.compacted = through;
        }
        self.files.retain(|index, _| *index >= keep_snapshot);
        assert!(self.files.contains_key(&record.position.index), "R10: the file is needed");
    }
}

/// The state machine: the commands that it applied.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) state: Vec<String>,
    pub(super) applied: Index,
    /// Its own disk holds state and index.
    pub(super) durable: bool,
}

impl Store {
    pub(super) fn crash(&mut self) {
        if !self.durable {
            self.state.clear();
            self.applied = 0;
        }
    }
}
