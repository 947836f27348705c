//! Looking into one data directory: reads everything, verifies every checksum, changes nothing.
//!
//! What cannot be read goes into the report, and the look goes on with what can.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::report::{LogReport, Report, SnapshotFile, TermRange};
use super::{addresses, refuse};
use crate::error::{Result, StorageError};
use crate::log::wal::examine::{self, Examined, Salvaged};
use crate::snapshot::dir::SnapshotDir;
use crate::types::{Entry, EntryKind, Index, Membership, Position};
use crate::vfs::Vfs;

const SNAPSHOT_REMEDY: &str = "Put back an intact copy of the file, or move the data directory \
                               away and let this node join again with an empty one";
const LOG_REMEDY: &str = "Restore the whole data directory from one moment, or remove this node \
                          from the cluster and let it join again empty";

/// See [`super::inspect`].
pub(super) fn inspect(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<Report> {
    match vfs.list(dir) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(refuse(dir, "there is no such directory"));
        }
        Err(source) => {
            return Err(StorageError::Io { op: "list", path: dir.into(), source }.into());
        }
    }
    let _lock = examine::lock(&**vfs, dir)?;
    let mut report = Report::of(dir);
    look_at_log(&**vfs, &mut report);
    look_at_snapshots(vfs, &mut report);
    match addresses::read(&**vfs, dir) {
        Ok(moved) => report.moved = moved,
        Err(e) => report.damage.push(e),
    }
    let empty = report.log.segments.is_empty() && report.snapshots.is_empty();
    if report.identity.is_none() && empty {
        let why = report.damage.first().map_or_else(String::new, |e| format!(" ({e})"));
        return Err(refuse(dir, format!("it holds nothing of a node; check the path{why}")));
    }
    Ok(report)
}

fn look_at_log(vfs: &dyn Vfs, report: &mut Report) {
    let dir = report.dir.clone();
    let salvaged = examine::files(vfs, &dir).unwrap_or_else(|e| {
        report.damage.push(e);
        Salvaged::default()
    });
    let mut record = salvaged.membership.clone();
    match examine::identity(vfs, &dir) {
        Ok(identity) => report.identity = identity,
        // NB: the log cannot be judged then; `examine` says the same.
        Err(_) => report.identity = None,
    }
    match examine::examine(vfs, &dir) {
        Ok(Some(examined)) => {
            record.clone_from(&examined.recovered.membership);
            report.log = whole(examined, salvaged);
        }
        Ok(None) => report.log.segments = salvaged.files,
        Err(e) => {
            report.damage.push(e);
            report.log = partial(salvaged);
        }
    }
    // An empty record is an agreement that was taken back.
    match record.filter(|r| !r.is_empty()).map(Membership::decode) {
        None => {}
        Some(Ok(agreed)) if agreed.index == 0 => report.agreed = Some(agreed),
        Some(Ok(membership)) => report.membership = Some(membership),
        Some(Err(reason)) => report.damage.push(StorageError::Foreign {
            path: dir.clone(),
            reason: format!(
                "its membership record does not decode ({reason}); it was written by a newer \
                 release: use that one"
            ),
        }),
    }
    let known = report.membership.as_ref().map_or(0, |m| m.index);
    report.log.pending_changes.retain(|index| *index > known);
    let (commit, last) = (report.log.hard_state.commit, report.log.last.index);
    if report.log.whole && commit > last {
        report.damage.push(StorageError::Corrupt {
            path: dir,
            offset: 0,
            reason: format!("the log ends at index {last}, but {commit} is known to be committed"),
            remedy: LOG_REMEDY,
        });
    }
}

/// A log as a start would find it.
fn whole(examined: Examined, salvaged: Salvaged) -> LogReport {
    let Examined { recovered, sealed } = examined;
    let entries = &recovered.entries;
    LogReport {
        whole: true,
        hard_state: recovered.hard_state,
        compacted: recovered.compacted,
        last: entries.last().map_or(recovered.compacted, position),
        terms: terms(entries),
        bytes: entries.iter().map(|e| e.size() as u64).sum(),
        pending_changes: changes(entries),
        snapshot: recovered.snapshot,
        sealed,
        dropped_tail: recovered.dropped_tail,
        segments: salvaged.files,
    }
}

/// What the files of a damaged log say, each by itself.
fn partial(salvaged: Salvaged) -> LogReport {
    let last = salvaged.files.iter().filter_map(|f| f.entries).map(|(_, last)| last).max();
    LogReport {
        hard_state: salvaged.hard_state.unwrap_or_default(),
        last: Position { index: last.unwrap_or(0), term: 0 },
        snapshot: salvaged.snapshot,
        segments: salvaged.files,
        ..LogReport::default()
    }
}

fn position(entry: &Entry) -> Position {
    Position { index: entry.index, term: entry.term }
}

fn terms(entries: &[Entry]) -> Vec<TermRange> {
    let mut ranges: Vec<TermRange> = Vec::new();
    for entry in entries {
        match ranges.last_mut().filter(|range| range.term == entry.term) {
            Some(range) => range.last = entry.index,
            None => {
                ranges.push(TermRange { term: entry.term, first: entry.index, last: entry.index })
            }
        }
    }
    ranges
}

fn changes(entries: &[Entry]) -> Vec<Index> {
    let changes = entries.iter().filter(|e| e.kind != EntryKind::Normal);
    changes.map(|e| e.index).collect()
}

fn look_at_snapshots(vfs: &Arc<dyn Vfs>, report: &mut Report) {
    let snapshots = SnapshotDir::peek(vfs.clone(), report.dir.join(SnapshotDir::NAME));
    let positions = match snapshots.positions() {
        Ok(positions) => positions,
        Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            report.damage.push(e);
            return;
        }
    };
    let relied = report.log.snapshot.map(|record| record.position);
    for position in &positions {
        let verified = snapshots.open_snapshot(*position).and_then(|mut reader| {
            reader.verify()?;
            Ok(reader.meta().clone())
        });
        match verified {
            Ok(meta) => report.snapshots.push(SnapshotFile {
                path: snapshots.path(*position),
                meta,
                relied: relied == Some(*position),
            }),
            Err(e) => report.damage.push(e),
        }
    }
    if let Some(missing) = relied.filter(|relied| !positions.contains(relied)) {
        report.damage.push(StorageError::Corrupt {
            path: snapshots.path(missing),
            offset: 0,
            reason: "the log relies on this snapshot, and it is missing".to_owned(),
            remedy: SNAPSHOT_REMEDY,
        });
    }
}
