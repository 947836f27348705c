//! What the clients did and saw.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Failure;

/// What a client asked for. Every value is written once only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    Put { value: String },
    Delete,
    Append { value: String },
    CompareAndSet { expected: Option<String>, value: String },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A write took effect at this log index; `changed` is false where a comparison failed.
    Written { index: u64, existed: bool, changed: bool },
    /// A read saw this value, and every write up to this index.
    Read { index: u64, value: Option<String> },
    /// It did not take effect and never will.
    NotApplied,
    /// It may have taken effect, or may yet. Of a read: there was no answer.
    Unknown,
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) client: usize,
    pub(crate) node: u64,
    pub(crate) key: String,
    pub(crate) op: Op,
    /// Since the start of the run.
    pub(crate) invoked: Duration,
    pub(crate) returned: Duration,
    pub(crate) outcome: Outcome,
}

/// All operations of a run, shared by the clients.
#[derive(Debug)]
pub(crate) struct History {
    started: Instant,
    records: Mutex<Vec<Record>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), records: Mutex::default() }
    }

    /// The time of this run.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn push(&self, record: Record) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// The records so far, in the order of their ends.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes a history down, one operation a line.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save(records: &[Record], path: &Path) -> Result<(), Failure> {
    let mut file = BufWriter::new(File::create(path)?);
    for r in records {
        let (op, argument, expected) = match &r.op {
            Op::Get => ("get", None, None),
            Op::Put { value } => ("put", Some(value), None),
            Op::Delete => ("delete", None, None),
            Op::Append { value } => ("append", Some(value), None),
            Op::CompareAndSet { expected, value } => ("cas", Some(value), expected.as_ref()),
        };
        let outcome = match &r.outcome {
            Outcome::Written { index, existed, changed } => {
                json!({ "ok": index, "existed": existed, "changed": changed })
            }
            Outcome::Read { index, value } => json!({ "ok": index, "value": value }),
            Outcome::NotApplied => json!("not-applied"),
            Outcome::Unknown => json!("unknown"),
        };
        let line = json!({
            "client": r.client, "node": r.node, "key": r.key, "op": op, "argument": argument,
            "expected": expected, "invoked_us": micros(r.invoked),
            "returned_us": micros(r.returned), "outcome": outcome,
        });
        writeln!(file, "{line}")?;
    }
    Ok(file.flush()?)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The longest time in which no write was acknowledged, between the first and the last.
pub(crate) fn longest_gap(records: &[Record]) -> Duration {
    let written = |r: &&Record| matches!(r.outcome, Outcome::Written { .. });
    let mut ends: Vec<_> = records.iter().filter(written).map(|r| r.returned).collect();
    ends.sort_unstable();
    ends.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or_default()
}
