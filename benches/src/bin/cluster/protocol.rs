//! What the driver says to a node and hears from it: one JSON value per line, in turn.

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    /// Runs closed-loop clients.
    Load(Load),
    /// Writes values under fresh keys.
    Fill {
        count: u64,
        size: usize,
        batch: usize,
    },
    /// Writes until one write is acknowledged.
    Probe,
    /// Makes one proposal of this size.
    Propose {
        size: usize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) payload: usize,
    /// Of a hundred operations, how many are reads.
    pub(crate) percent_reads: u64,
    /// Proposals in one call.
    pub(crate) batch: usize,
    pub(crate) seconds: u64,
    /// Whose processor time is read at both ends of the measured time.
    pub(crate) pids: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Ready,
    Status {
        leader: u64,
        commit: u64,
        applied: u64,
        voters: usize,
        role: String,
    },
    Loaded(Loaded),
    Done,
    /// The proposal's error; None: it was applied.
    Proposed {
        error: Option<String>,
        outcome: String,
    },
    Failed(String),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) operations: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_seconds: Vec<f64>,
}
