//! A log in memory, for `Durability::Volatile` and for tests. Nothing survives the process.
//!
//! Clones share what was appended: a clone is the same log, to be loaded again as after a restart.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{LogBatch, LogStorage, Recovered};
use crate::error::StorageError;
use crate::types::{Identity, Index, Position};

/// The log in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    held: Arc<Mutex<Recovered>>,
}

fn contract(what: &str) -> StorageError {
    StorageError::Contract(what.to_owned())
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    // A change is checked before it begins and cannot fail then: it is never left half made.
    fn held(&self) -> MutexGuard<'_, Recovered> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many entries stand above `compacted` up to and including `index`.
fn count(compacted: Position, index: Index) -> usize {
    usize::try_from(index.saturating_sub(compacted.index)).unwrap_or(usize::MAX)
}

fn check(held: &Recovered, batches: &[LogBatch]) -> Result<(), StorageError> {
    let mut floor = held.compacted.index;
    let mut last = floor + held.entries.len() as u64;
    for batch in batches {
        if let Some(position) = batch.reset {
            if position.index < floor {
                return Err(contract("it was reset to a place that is compacted"));
            }
            (floor, last) = (position.index, position.index);
        }
        let Some(first) = batch.entries.first() else { continue };
        if first.index <= floor || first.index - 1 > last {
            return Err(contract("entries leave a gap, or replace compacted ones"));
        }
        if batch.entries.iter().zip(first.index..).any(|(e, index)| e.index != index) {
            return Err(contract("the entries of a batch are not contiguous"));
        }
        last = first.index - 1 + batch.entries.len() as u64;
    }
    Ok(())
}

fn apply(held: &mut Recovered, batch: &LogBatch) {
    if let Some(position) = batch.reset {
        held.entries.clear();
        held.compacted = position;
    }
    if let Some(first) = batch.entries.first() {
        held.entries.truncate(count(held.compacted, first.index - 1));
        held.entries.extend(batch.entries.iter().cloned());
    }
    if let Some(hard_state) = batch.hard_state {
        held.hard_state = hard_state;
    }
    if let Some(membership) = &batch.membership {
        held.membership = Some(membership.clone());
    }
    if let Some(snapshot) = batch.snapshot {
        held.snapshot = Some(snapshot);
    }
}

impl LogStorage for MemoryLog {
    fn is_local(&self) -> bool {
        true
    }

    fn load(&mut self) -> Result<Recovered, StorageError> {
        Ok(self.held().clone())
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), StorageError> {
        self.held().identity = Some(*identity);
        Ok(())
    }

    fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError> {
        let mut held = self.held();
        check(&held, batches)?;
        for batch in batches {
            apply(&mut held, batch);
        }
        Ok(())
    }

    fn compact(&mut self, through: Position) -> Result<(), StorageError> {
        let mut held = self.held();
        if through.index <= held.compacted.index {
            return Ok(());
        }
        if held.snapshot.is_none_or(|s| through.index > s.position.index) {
            return Err(contract("it was to be compacted above the newest snapshot"));
        }
        let dropped = count(held.compacted, through.index);
        if dropped > held.entries.len() {
            return Err(contract("it was to be compacted above its last entry"));
        }
        held.entries.drain(..dropped);
        held.compacted = through;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::log_suite;

    #[test]
    fn conforms() {
        let log = MemoryLog::new();
        log_suite::run(|| Box::new(log.clone()));
    }
}
