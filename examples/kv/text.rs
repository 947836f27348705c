//! A text of any length that is the same on every machine, and keys for its lines.

use std::path::Path;
use std::sync::Arc;

use crate::Failure;

const WORDS: &[&str] = &[
    "amber", "anchor", "basin", "beacon", "birch", "canal", "cedar", "cliff", "copper", "delta",
    "ember", "fern", "field", "flint", "gale", "granite", "harbour", "hollow", "island", "ivory",
    "juniper", "kettle", "lantern", "ledger", "maple", "meadow", "mill", "north", "ochre",
    "orchard", "pebble", "pine", "quarry", "quiet", "reed", "ridge", "river", "saddle", "signal",
    "silver", "slate", "spring", "stone", "summer", "thistle", "timber", "valley", "willow",
    "winter", "yarrow",
];

/// The lines of a text, shared between clients.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    lines: Arc<[String]>,
}

impl Text {
    /// This many lines, each with its own number and a few words.
    pub(crate) fn generate(lines: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let line = |n: usize| {
            let words = 4 + next() % 9;
            let words = (0..words).map(|_| WORDS[(next() % WORDS.len() as u64) as usize]);
            format!("{n}: {}", words.collect::<Vec<_>>().join(" "))
        };
        Self { lines: (1..=lines).map(line).collect() }
    }

    /// The lines of a file.
    ///
    /// # Errors
    /// When it cannot be read or holds nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let lines: Arc<[String]> = text.lines().map(str::to_owned).collect();
        if lines.is_empty() {
            return Err(format!("{}: no lines", path.display()).into());
        }
        Ok(Self { lines })
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The `n`th line, from 0, and the HTTP path of its key.
    pub(crate) fn line(&self, n: usize) -> Option<(String, &str)> {
        self.lines.get(n).map(|line| (format!("/kv/line-{:07}", n + 1), line.as_str()))
    }

    /// The whole text.
    pub(crate) fn join(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}
