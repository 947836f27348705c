//! The records of the segments, applied one after the other to the state that they build.
//!
//! It knows nothing of files: recovery reads and judges those. A record that does not continue what
//! came before is refused in words, and changes nothing that would be used afterwards.

use super::record::{Compaction, Record, State};
use super::recovery::Closed;
use crate::log::LogBatch;
use crate::types::{Entry, Index, Position};
use crate::zoo::{self, Bug};

/// The log as it is replayed.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) state: State,
    /// Contiguous, from `floor + 1`.
    pub(super) entries: Vec<Entry>,
    /// Entries up to here are compacted, or stood in segments that are gone.
    pub(super) floor: Index,
    pub(super) closed: Vec<Closed>,
    pub(super) begun: bool,
}

impl Replay {
    pub(super) fn record(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::State(state) => self.start(state),
            Record::Batch(batch) => self.batch(batch),
            Record::Compact(Compaction { through, .. }) => self.compact(through),
            Record::Seal { .. } => Ok(()),
        }
    }

    /// The state at the head of a segment: the base of the oldest, a confirmation later.
    pub(super) fn start(&mut self, state: State) -> Result<(), &'static str> {
        if !self.begun {
            self.begun = true;
            self.floor = state.last;
        } else if state.last != self.state.last {
            return Err("its entries do not continue those of the segment before it");
        }
        self.state.last = state.last;
        self.compact(state.compacted)?;
        self.state = state;
        Ok(())
    }

    pub(super) fn compact(&mut self, through: Position) -> Result<(), &'static str> {
        if !(self.state.compacted.index..=self.state.last).contains(&through.index) {
            return Err("it is compacted to a place that is not in the log");
        }
        if zoo::has(Bug::ReplayUncompacted) {
            return Ok(());
        }
        let dropped =
            usize::try_from(through.index.saturating_sub(self.floor)).unwrap_or(usize::MAX);
        self.entries.drain(..dropped.min(self.entries.len()));
        self.floor = self.floor.max(through.index);
        self.state.compacted = through;
        Ok(())
    }

    pub(super) fn batch(&mut self, batch: LogBatch) -> Result<(), &'static str> {
        if let Some(position) = batch.reset {
            self.entries.clear();
            self.floor = position.index;
            self.state.compacted = position;
            self.truncate(position.index);
        }
        if let Some(first) = batch.entries.first() {
            let above = first.index.checked_sub(1).ok_or("it holds an entry at index 0")?;
            if above > self.state.last || above < self.state.compacted.index {
                return Err("its entries do not continue those before them");
            }
            let kept = above.saturating_sub(self.floor);
            if !zoo::has(Bug::ReplayUntruncated) {
                self.entries.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            }
            self.floor = self.floor.min(above);
            self.truncate(above);
            self.state.last = above + batch.entries.len() as u64;
            if let Some(current) = self.closed.last_mut() {
                current.max = self.state.last;
            }
            self.entries.extend(batch.entries);
        }
        self.state.adopt(batch.hard_state, batch.membership, batch.snapshot);
        Ok(())
    }

    pub(super) fn truncate(&mut self, last: Index) {
        self.state.last = last;
        for segment in &mut self.closed {
            segment.max = segment.max.min(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It would be loaded, and then refuse every append.
    #[test]
    fn a_compaction_that_is_not_in_the_log_is_damage() {
        let at = |index| Position { index, term: 1 };
        let state = |to, last| Record::State(State { compacted: at(to), last, ..State::default() });
        let compact = |index| Record::Compact(Compaction { through: at(index), oldest: 0 });
        let mut replay = Replay::default();
        for (record, right) in [
            (state(2, 9), true),
            (compact(10), false),
            (compact(9), true),
            (compact(8), false),
            (state(10, 9), false),
            (state(9, 9), true),
        ] {
            assert_eq!(replay.record(record.clone()).is_ok(), right, "{record:?}");
        }
    }
}
