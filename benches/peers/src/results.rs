//! Results, one JSON object per line: a run writes them, `plot` reads them.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::machine::Machine;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Puts a value under a key.
    Put,
    /// Reads a key, linearizably.
    Get,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Get => "get",
        })
    }
}

/// What came of one load: so many clients for so long.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Operations per second.
    pub ops_s: f64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 99 in 100 took no longer.
    pub p99_us: u64,
    /// 999 in 1000 took no longer.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// How late the window was noticed to end: much, when the machine stood still or was overfull.
    pub late_ms: u64,
    /// Operations that failed, or were not answered in time.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: String,
    /// Processor time in microseconds per operation, of each process: the leader's first, a client's
    /// own last, if there is one.
    pub cpu_us_per_op: Vec<f64>,
    /// Peak resident memory in MiB, of each process, in that order.
    pub peak_mib: Vec<f64>,
}

/// A variant under one load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Its name.
    pub variant: String,
    /// What it is, with its version.
    pub title: String,
    /// What the clients did.
    pub op: Op,
    /// How many of them.
    pub clients: usize,
    /// Bytes of a value.
    pub payload: usize,
    /// Measured seconds.
    pub seconds: f64,
    /// Whether leader or term changed meanwhile: the figures are those of an election then.
    pub elected: bool,
    /// What came of it.
    pub measured: Measured,
}

/// What the machine gives at best.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ceilings {
    /// Median of a write and fdatasync of 4 KiB, in microseconds, with one file.
    pub sync_alone_us: u64,
    /// The same while two other files are synced.
    pub sync_of_three_us: u64,
    /// One row per number of clients.
    pub rows: Vec<CeilingRow>,
}

/// The ceilings for a number of clients.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CeilingRow {
    /// How many.
    pub clients: usize,
    /// Messages there and back over one stream between two processes.
    pub echo: Measured,
    /// Entries per second of three bare engines in one thread, so many in flight.
    pub engine_ops_s: f64,
}

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A run begins.
    Machine(Machine),
    /// What its machine gave at best.
    Ceilings(Ceilings),
    /// A measurement.
    Cell(Cell),
}

/// Appends a line.
///
/// # Errors
/// When the file cannot be written.
pub fn append(path: &Path, line: &Line) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{}", serde_json::to_string(line)?)?;
    Ok(())
}

/// The lines of the newest run; what is before them may be of an older release.
///
/// # Errors
/// When the file cannot be read, or the run holds something else.
pub fn newest(path: &Path) -> Result<Vec<Line>> {
    let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let lines = BufReader::new(file).lines().collect::<std::io::Result<Vec<String>>>()?;
    let begins = |line: &String| matches!(serde_json::from_str(line), Ok(Line::Machine(_)));
    let begin = lines.iter().rposition(begins).unwrap_or(0);
    let newest = lines.into_iter().skip(begin);
    newest.map(|line| Ok(serde_json::from_str(&line)?)).collect()
}
