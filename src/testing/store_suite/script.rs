//! The random log and queries of a seed.

use super::super::rng::Rng;
use super::super::text::shown;
use super::{Broken, Law};
use crate::store::{Committed, Store};
use crate::types::Index;

/// Log entries of a seed, at most.
const ENTRIES: u64 = 24;
/// Commands of an entry, at most.
const COMMANDS: u64 = 4;
/// Queries that the state is seen by.
const QUERIES: usize = 8;
/// Draws of a command until one passes `check`.
const DRAWS: usize = 1000;

/// A log entry: commands that are applied together or not at all.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) index: Index,
    pub(super) commands: Vec<Vec<u8>>,
}

impl Entry {
    pub(super) fn committed(&self) -> impl Iterator<Item = Committed<'_>> {
        self.commands.iter().map(|data| Committed { index: self.index, data })
    }
}

/// What all Stores of a seed live through.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) entries: Vec<Entry>,
    /// Entries of another history, to be replaced.
    pub(super) others: Vec<Entry>,
    pub(super) queries: Vec<Vec<u8>>,
}

/// Draws a script.
pub(super) fn draw<S: Store>(
    rng: &mut Rng,
    seed: u64,
    command: &mut impl FnMut(&mut Rng) -> Vec<u8>,
    query: &mut impl FnMut(&mut Rng) -> Vec<u8>,
) -> Result<Script, Broken> {
    let entries = draw_entries::<S>(rng, seed, command)?;
    let others = entries_below(draw_entries::<S>(rng, seed, command)?, &entries);
    let queries = (0..QUERIES).map(|_| query(rng)).collect();
    Ok(Script { entries, others, queries })
}

fn draw_entries<S: Store>(
    rng: &mut Rng,
    seed: u64,
    command: &mut impl FnMut(&mut Rng) -> Vec<u8>,
) -> Result<Vec<Entry>, Broken> {
    let mut entries = Vec::new();
    let mut index = 1;
    for _ in 0..2 + rng.below(ENTRIES - 1) {
        // The entries between are those of leaders and members.
        index += 1 + if rng.one_in(4) { rng.below(3) } else { 0 };
        let count = 1 + rng.below(COMMANDS);
        let commands =
            (0..count).map(|_| draw_command::<S>(rng, seed, command)).collect::<Result<_, _>>()?;
        entries.push(Entry { index, commands });
    }
    Ok(entries)
}

/// A used Store that is given a snapshot is never ahead of it.
fn entries_below(mut others: Vec<Entry>, entries: &[Entry]) -> Vec<Entry> {
    let last = entries.last().map_or(0, |entry| entry.index);
    others.retain(|entry| entry.index < last);
    others
}

fn draw_command<S: Store>(
    rng: &mut Rng,
    seed: u64,
    command: &mut impl FnMut(&mut Rng) -> Vec<u8>,
) -> Result<Vec<u8>, Broken> {
    for _ in 0..DRAWS {
        let bytes = command(rng);
        let (first, second) = (S::check(&bytes).is_ok(), S::check(&bytes).is_ok());
        if first != second {
            let detail = format!(
                "check, asked twice about {}, {} it",
                shown(&bytes),
                if first { "passes and then refuses" } else { "refuses and then passes" }
            );
            return Err(Broken { law: Law::CheckIsPure, seed, step: 0, detail });
        }
        if first {
            return Ok(bytes);
        }
    }
    let detail = format!("check refused {DRAWS} random commands in a row");
    Err(Broken { law: Law::Total, seed, step: 0, detail })
}
