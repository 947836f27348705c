//! One process on a data directory: runs steps on the real log and the real snapshot files, and
//! keeps count of what a crash may leave at each moment.

use std::path::Path;
use std::sync::Arc;

use super::recorder::Recorder;
use super::script::{Step, identity, record};
use crate::error::StorageError;
use crate::log::wal::{Wal, WalOptions};
use crate::log::{LogBatch, LogStorage, Recovered};
use crate::snapshot::dir::SnapshotDir;
use crate::testing::log_suite::{apply, apply_compaction};
use crate::types::{ConfState, Index, Membership, Position, SnapshotMeta};
use crate::vfs::Vfs;

pub(super) const LOG_DIR: &str = "/data/log";
pub(super) const SNAPSHOT_DIR: &str = "/data/snapshots";

/// What may be found after a crash.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    /// What the log may hold: what was acknowledged last, then what the call in flight passes
    /// through.
    pub(super) logs: Vec<Recovered>,
    /// The snapshots that must be there.
    pub(super) kept: Vec<Position>,
    /// Those that may be there, whole.
    pub(super) written: Vec<Position>,
}

impl Allowed {
    pub(super) fn nothing() -> Self {
        Self { logs: vec![Recovered::default()], kept: Vec::new(), written: Vec::new() }
    }

    /// What was acknowledged last.
    pub(super) fn log(&self) -> &Recovered {
        &self.logs[0]
    }

    /// Whether no call is in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.logs.len() == 1
    }

    /// The same, once this log was found.
    pub(super) fn settled(&self, found: Recovered) -> Self {
        Self { logs: vec![found], kept: self.kept.clone(), written: self.written.clone() }
    }

    /// Whether this is one of the logs that may be found; else what is wrong with it.
    pub(super) fn judge(&self, found: &Recovered) -> Result<(), String> {
        if self.logs.contains(found) {
            return Ok(());
        }
        let acknowledged = self.log();
        let reached = |r: &Recovered| r.compacted.index + r.entries.len() as u64;
        let newest = self.logs.iter().map(reached).max().unwrap_or(0);
        let vote = |r: &Recovered| (r.hard_state.term, r.hard_state.vote);
        let votes: Vec<_> = self.logs.iter().map(vote).collect();
        let verdict = if found.identity != acknowledged.identity && self.is_settled() {
            "the identity regressed"
        } else if found.hard_state.term < acknowledged.hard_state.term {
            "the term regressed"
        } else if !votes.contains(&vote(found)) {
            "the vote is another"
        } else if found.compacted.index < acknowledged.compacted.index {
            "what was compacted came back"
        } else if reached(found) > newest {
            "what was truncated came back"
        } else if self.is_settled() && reached(found) < reached(acknowledged) {
            "what was acknowledged is lost"
        } else {
            "it is no prefix of what was written"
        };
        Err(format!("{verdict}: found {found:?}, allowed {:?}", self.logs))
    }
}

/// The bytes of the snapshot at a position.
pub(super) fn body(position: Position) -> Vec<u8> {
    let length = 100 + position.index * 37 % 1400;
    (0..length).map(|i| (i * 7 + position.index + position.term) as u8).collect()
}

fn members() -> Membership {
    Membership {
        cluster_id: crate::types::ClusterId::from_u128(7),
        index: 1,
        conf_state: ConfState { voters: vec![1], ..ConfState::default() },
        members: Vec::new(),
        next_raft_id: 2,
    }
}

/// Why a life ended.
#[derive(Debug)]
pub(super) enum End {
    Failed(StorageError),
    Wrong(String),
}

impl From<StorageError> for End {
    fn from(error: StorageError) -> Self {
        Self::Failed(error)
    }
}

impl End {
    pub(super) fn describe(self) -> String {
        match self {
            Self::Failed(error) => format!("refused: {error}"),
            Self::Wrong(what) => what,
        }
    }
}

fn open_log(vfs: Arc<dyn Vfs>, segment_size: u64) -> Result<Wal, StorageError> {
    // Without the thread the order of calls is the same in each run.
    let options = WalOptions { segment_size, prepare_ahead: false };
    Wal::open(vfs, Path::new(LOG_DIR), options)
}

/// Recovers a log; what it holds, and what was dropped.
pub(super) fn load(
    vfs: Arc<dyn Vfs>,
    segment: u64,
) -> Result<(Recovered, Option<String>), StorageError> {
    let mut found = open_log(vfs, segment)?.load()?;
    let tail = found.dropped_tail.take();
    Ok((found, tail))
}

/// The process.
pub(super) struct Life {
    vfs: Arc<dyn Vfs>,
    /// The world that steps may change: there when it can run out of room.
    recorder: Option<Recorder>,
    segment: u64,
    pub(super) wal: Option<Wal>,
    pub(super) allowed: Allowed,
    /// From which recorded change on what was allowed.
    pub(super) marks: Vec<(usize, Arc<Allowed>)>,
    /// What the last start dropped.
    pub(super) tail: Option<String>,
}

impl Life {
    pub(super) fn new(vfs: Arc<dyn Vfs>, segment: u64, allowed: Allowed) -> Self {
        let marks = Vec::new();
        Self { vfs, recorder: None, segment, wal: None, allowed, marks, tail: None }
    }

    pub(super) fn recorded(recorder: &Recorder, segment: u64, allowed: Allowed) -> Self {
        let life = Self::new(Arc::new(recorder.clone()), segment, allowed);
        Self { recorder: Some(recorder.clone()), ..life }
    }

    fn mark(&mut self) {
        let Some(recorder) = &self.recorder else { return };
        self.marks.push((recorder.recorded(), Arc::new(self.allowed.clone())));
    }

    /// Starts: recovers the log, judges it and all snapshots.
    pub(super) fn open(&mut self) -> Result<(), End> {
        self.wal = None;
        self.mark();
        let wal = self.wal.insert(open_log(self.vfs.clone(), self.segment)?);
        let mut found = wal.load()?;
        self.tail = found.dropped_tail.take();
        self.allowed.judge(&found).map_err(End::Wrong)?;
        self.allowed = self.allowed.settled(found);
        self.mark();
        if !self.allowed.written.is_empty() {
            self.check_snapshots()?;
        }
        Ok(())
    }

    /// Seals the log.
    pub(super) fn close(&mut self) -> Result<(), End> {
        self.call(vec![self.allowed.log().clone()], LogStorage::close)
    }

    fn snapshots(&self) -> Result<SnapshotDir, StorageError> {
        SnapshotDir::open(self.vfs.clone(), SNAPSHOT_DIR)
    }

    fn check_snapshots(&self) -> Result<(), End> {
        let dir = self.snapshots()?;
        let mut names = self
            .vfs
            .list(Path::new(SNAPSHOT_DIR))
            .map_err(|source| StorageError::Io { op: "list", path: SNAPSHOT_DIR.into(), source })?;
        for position in &self.allowed.written {
            let name = format!("snapshot-{:020}-{}.snap", position.index, position.term);
            let Some(place) = names.iter().position(|n| *n == name) else {
                if self.allowed.kept.contains(position) {
                    return Err(End::Wrong(format!("{name} is lost")));
                }
                continue;
            };
            names.swap_remove(place);
            let bytes = dir.open_snapshot(*position)?.read_all()?;
            if bytes != body(*position) {
                return Err(End::Wrong(format!("{name} holds other bytes")));
            }
        }
        if names.is_empty() { Ok(()) } else { Err(End::Wrong(format!("left over: {names:?}"))) }
    }

    fn wal(&mut self) -> Result<&mut Wal, StorageError> {
        self.wal.as_mut().ok_or_else(|| StorageError::Contract("no log is open".to_owned()))
    }

    /// A call of the log: until it returns, each of these states may be found.
    fn call(
        &mut self,
        states: Vec<Recovered>,
        run: impl FnOnce(&mut Wal) -> Result<(), StorageError>,
    ) -> Result<(), End> {
        let Some(after) = states.last().cloned() else { return Ok(()) };
        self.allowed.logs.extend(states);
        self.mark();
        run(self.wal()?)?;
        self.allowed = self.allowed.settled(after);
        self.mark();
        Ok(())
    }

    fn append(&mut self, batches: &[LogBatch]) -> Result<(), End> {
        let mut model = self.allowed.log().clone();
        let states = batches.iter().map(|batch| {
            apply(&mut model, batch);
            model.clone()
        });
        let states = states.collect();
        self.call(states, |wal| wal.append(batches))
    }

    pub(super) fn run(&mut self, step: &Step) -> Result<(), End> {
        let mut after = self.allowed.log().clone();
        match step {
            Step::Identify(boot) => {
                let known = identity(*boot);
                after.identity = Some(known);
                self.call(vec![after], |wal| wal.identify(&known))
            }
            Step::Append(batches) => self.append(batches),
            Step::Compact(through) => {
                apply_compaction(&mut after, *through);
                self.call(vec![after], |wal| wal.compact(*through))
            }
            Step::Snapshot(position) => {
                self.snapshot(*position, false)?;
                self.append(&[record(*position, false)])
            }
            Step::Receive(position) => {
                self.snapshot(*position, true)?;
                self.append(&[record(*position, true)])
            }
            Step::Retain(from) => self.retain(*from),
            Step::Close => {
                self.close()?;
                self.open()
            }
            Step::Reopen => self.open(),
            Step::LeaveRoom(bytes) => {
                self.recorder.iter().for_each(|r| r.leave_room(Some(*bytes)));
                Ok(())
            }
            Step::FailSync => {
                self.recorder.iter().for_each(|r| r.fail_next_sync(true));
                Ok(())
            }
        }
    }

    fn snapshot(&mut self, position: Position, received: bool) -> Result<(), End> {
        let body = body(position);
        let (size, crc32) = (body.len() as u64, crc32fast::hash(&body));
        if !self.allowed.written.contains(&position) {
            self.allowed.written.push(position);
            self.mark();
        }
        let dir = self.snapshots()?;
        let mut writer = match received {
            true => dir.receive(SnapshotMeta { position, membership: members(), size, crc32 })?,
            false => dir.create(position, members())?,
        };
        for piece in body.chunks(500) {
            writer.write(piece)?;
        }
        writer.finish()?;
        if !self.allowed.kept.contains(&position) {
            self.allowed.kept.push(position);
        }
        self.mark();
        Ok(())
    }

    fn retain(&mut self, from: Index) -> Result<(), End> {
        self.allowed.kept.retain(|p| p.index >= from);
        self.mark();
        self.snapshots()?.retain(from, |_| false)?;
        Ok(())
    }

    /// A step in a world that may be hostile: after a failure the process ends, and the next one
    /// finds the page cache as it is.
    pub(super) fn live_through(&mut self, step: &Step) -> Result<(), String> {
        let hostile = self.recorder.as_ref().is_some_and(Recorder::is_hostile);
        let error = match self.run(step) {
            Ok(()) => return Ok(()),
            Err(End::Failed(error @ StorageError::Io { .. })) if hostile => error,
            Err(end) => return Err(format!("{step:?}: {}", end.describe())),
        };
        // First with the trouble as it is, then without.
        let first = self.open();
        if let Some(recorder) = &self.recorder {
            recorder.leave_room(None);
            recorder.fail_next_sync(false);
        }
        match first {
            Ok(()) => Ok(()),
            Err(End::Failed(StorageError::Io { .. })) => {
                self.open().map_err(|end| format!("after {error}: {}", end.describe()))
            }
            Err(end) => Err(format!("after {error}: {}", end.describe())),
        }
    }
}
