//! Tests of the durable log over the faulty file layer.

#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod crash;
mod directory;
mod faults;
mod flips;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Wal, WalOptions};
use crate::error::StorageError;
use crate::log::{LogBatch, LogStorage, Recovered, SnapshotRecord};
use crate::testing::crash_states::script::{at, entries, identity, vote};
use crate::testing::log_suite::{apply, apply_compaction};
use crate::testing::vfs::FaultyVfs;
use crate::types::{HardState, Identity, Incarnation, Position};
use crate::vfs::Vfs;

const DIR: &str = "/data/log";
/// Small enough that every script changes segments.
const SEGMENT: u64 = 2048;

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn options(segment_size: u64) -> WalOptions {
    // Without the thread the order of calls is the same in each run.
    WalOptions { segment_size, prepare_ahead: false }
}

fn open(vfs: &FaultyVfs) -> Result<Wal, StorageError> {
    open_on(Arc::new(vfs.clone()))
}

fn open_on(vfs: Arc<dyn Vfs>) -> Result<Wal, StorageError> {
    Wal::open(vfs, dir(), options(SEGMENT))
}

/// Opens and loads; what was found without the note about a tail, and the note.
fn load(vfs: &FaultyVfs) -> Result<(Wal, Recovered, Option<String>), StorageError> {
    let mut wal = open(vfs)?;
    let mut recovered = wal.load()?;
    let tail = recovered.dropped_tail.take();
    Ok((wal, recovered, tail))
}

fn snapshot(position: Position, installing: bool) -> LogBatch {
    let snapshot = Some(SnapshotRecord { position, installing });
    LogBatch { snapshot, ..LogBatch::default() }
}

fn membership(bytes: &'static str) -> LogBatch {
    let membership = Some(Bytes::from_static(bytes.as_bytes()));
    LogBatch { membership, ..LogBatch::default() }
}

fn reset(position: Position) -> LogBatch {
    LogBatch { reset: Some(position), ..snapshot(position, true) }
}

/// One call.
#[derive(Clone, Debug)]
enum Step {
    Identify(u64),
    Append(Vec<LogBatch>),
    Compact(Position),
    Close,
}

impl Step {
    fn run(&self, wal: &mut Wal) -> Result<(), StorageError> {
        match self {
            Self::Identify(boot) => wal.identify(&identity(*boot)),
            Self::Append(batches) => wal.append(batches),
            Self::Compact(position) => wal.compact(*position),
            Self::Close => wal.close(),
        }
    }

    /// The states that it passes through; the last is the one it ends in.
    fn states(&self, before: &Recovered) -> Vec<Recovered> {
        let mut model = before.clone();
        match self {
            Self::Identify(boot) => model.identity = Some(identity(*boot)),
            Self::Append(batches) => {
                let step = |batch| {
                    apply(&mut model, batch);
                    model.clone()
                };
                let states: Vec<Recovered> = batches.iter().map(step).collect();
                return if states.is_empty() { vec![before.clone()] } else { states };
            }
            Self::Compact(position) => apply_compaction(&mut model, *position),
            Self::Close => {}
        }
        vec![model]
    }
}

/// The workloads: each kind of change, with changes of segments in between.
fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    let begin = || vec![Step::Identify(1), Step::Append(vec![vote(1, 1)])];
    let with = |more: Vec<Step>| begin().into_iter().chain(more).collect::<Vec<_>>();
    let one = |batch| Step::Append(vec![batch]);
    vec![
        (
            "append",
            with(vec![
                one(entries(1, 3, 1, 100)),
                Step::Append(vec![entries(4, 6, 1, 200), entries(7, 7, 1, 30), vote(2, 0)]),
                one(entries(8, 8, 2, 900)),
                one(entries(9, 9, 2, 10)),
            ]),
        ),
        (
            "overwrite",
            with(vec![
                one(entries(1, 9, 1, 60)),
                one(LogBatch { entries: entries(4, 5, 2, 500).entries, ..vote(2, 3) }),
                one(entries(5, 9, 2, 300)),
                one(entries(2, 2, 2, 40)),
                Step::Close,
            ]),
        ),
        (
            "compact",
            with(vec![
                one(entries(1, 4, 1, 300)),
                one(entries(5, 8, 1, 300)),
                one(snapshot(at(7, 1), false)),
                Step::Compact(at(6, 1)),
                one(entries(9, 12, 1, 300)),
                one(snapshot(at(12, 1), false)),
                Step::Compact(at(12, 1)),
                one(entries(13, 16, 1, 300)),
                one(entries(17, 20, 1, 300)),
            ]),
        ),
        (
            "records and reset",
            with(vec![
                one(membership("one")),
                one(entries(1, 5, 1, 300)),
                one(membership("two")),
                Step::Identify(2),
                Step::Append(vec![reset(at(40, 2)), entries(41, 44, 2, 300)]),
                one(snapshot(at(40, 2), false)),
                Step::Append(vec![vote(3, 2), entries(43, 46, 3, 300)]),
                Step::Close,
            ]),
        ),
        (
            "larger than a segment",
            with(vec![
                one(entries(1, 2, 1, 10)),
                one(entries(3, 5, 1, 1500)),
                one(entries(6, 6, 1, 10)),
                one(entries(5, 5, 1, 5000)),
            ]),
        ),
    ]
}
