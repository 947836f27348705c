//! Recovery: reads the segments back, and decides what an unclean end left behind.
//!
//! It only reads. The rule (see `docs/wal-format.md`): a write begins only after the one before
//! is synced, so damage in write N is an unsynced tail, to be dropped, exactly when no valid frame
//! of a write above N is anywhere; otherwise acknowledged data is damaged, and the log is refused.
//!
//! Invariants:
//! - the last write that is found has no later one to prove that it was synced: it is handed out
//!   as `pending`, to be written again elsewhere, and is not part of `state` and `entries`;
//! - the same files give the same result, however often they are read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::Salt;
use super::io_error;
use super::record::{Record, State};
use super::replay::Replay;
use super::scan::{Listed, Scan, Strays, strays};
use super::segment::{Link, SEGMENT_HEADER, SegmentHeader, Start};
use super::{REMEDY, identity};
use crate::error::StorageError;
use crate::log::LogBatch;
use crate::types::{Entry, Incarnation, Index};
use crate::vfs::{OpenMode, Vfs, read_full};
use crate::zoo::{self, Bug};

/// A segment that takes no more frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) generation: u64,
    pub(super) path: PathBuf,
    pub(super) length: u64,
    /// The highest index of an entry in it that is not overwritten since; 0: none.
    pub(super) max: Index,
}

/// What the segments hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The records, up to the last write that a later one proves.
    pub(super) state: State,
    /// The entries, likewise.
    pub(super) entries: Vec<Entry>,
    /// Batches of the last write.
    pub(super) pending: Vec<LogBatch>,
    /// The segments that are needed, oldest first.
    pub(super) closed: Vec<Closed>,
    /// What the next segment links to.
    pub(super) link: Link,
    /// The number of the last write, which the next segment repeats.
    pub(super) next_write: u64,
    pub(super) next_generation: u64,
    /// Files that are not needed once the next segment is durable.
    pub(super) surplus: Vec<(PathBuf, u64)>,
    /// Where the newest segment ends, if it stays.
    pub(super) cut: Option<(PathBuf, u64)>,
    pub(super) dropped_tail: Option<String>,
    /// Whether the last record is the seal of a clean shutdown.
    pub(super) sealed: bool,
}

/// The newest segment that had begun, and its bytes.
type Newest = (Scan, Bytes);

pub(super) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt {
        path: path.to_path_buf(),
        offset,
        reason: reason.into(),
        remedy: REMEDY,
    }
}

/// What recovery looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovery<'a> {
    pub(super) vfs: &'a dyn Vfs,
    pub(super) incarnation: Incarnation,
    pub(super) salt: Salt,
}

impl Recovery<'_> {
    /// Reads these files back.
    pub(super) fn run(&self, paths: &[PathBuf]) -> Result<Found, StorageError> {
        let mut listed = Vec::new();
        for path in paths {
            listed.push(self.inspect(path)?);
        }
        let mut generations: BTreeMap<u64, Listed> = BTreeMap::new();
        let mut off_chain = Vec::new();
        for file in listed {
            let Some((header, _)) = file.header else {
                off_chain.push(file);
                continue;
            };
            if let Some(twin) = generations.insert(header.generation, file.clone()) {
                let reason = format!("{} claims the same place in the log", twin.path.display());
                return Err(corrupt(&file.path, 32, reason));
            }
        }
        let (newest, torn) = self.newest(&mut generations)?;
        off_chain.extend(torn.iter().cloned());
        let chain = match &newest {
            Some((scan, _)) => self.chain(scan, &mut generations)?,
            None => Vec::new(),
        };
        off_chain.extend(generations.into_values());
        self.finish(newest, chain, off_chain, &torn)
    }

    fn inspect(&self, path: &Path) -> Result<Listed, StorageError> {
        let file = self.vfs.open(path, OpenMode::Read).map_err(io_error("open segment", path))?;
        let length = file.len().map_err(io_error("read segment", path))?;
        let mut head = [0u8; SEGMENT_HEADER];
        let n = read_full(&*file, &mut head, 0).map_err(io_error("read segment", path))?;
        let foreign = |reason| StorageError::Foreign { path: path.to_path_buf(), reason };
        let header = match SegmentHeader::parse(&head[..n]) {
            Start::Header(header) if header.incarnation != self.incarnation => {
                return Err(foreign(
                    "belongs to another data directory than the identity beside it: move it \
                     away, or restore the directory it came with"
                        .to_owned(),
                ));
            }
            Start::Header(header) => {
                let reason = "it says that it needs segments that are no older than itself";
                if header.oldest > header.generation {
                    return Err(corrupt(path, 48, reason));
                }
                if header.previous.generation >= header.generation {
                    return Err(corrupt(path, 56, reason));
                }
                Some((header, header.encode().1))
            }
            Start::Version(version) => return Err(foreign(identity::wrong_version(version))),
            Start::Nothing => None,
        };
        Ok(Listed { path: path.to_path_buf(), length, header })
    }

    fn read(&self, path: &Path) -> Result<Bytes, StorageError> {
        let file = self.vfs.open(path, OpenMode::Read).map_err(io_error("open segment", path))?;
        let length = file.len().map_err(io_error("read segment", path))?;
        let length = usize::try_from(length)
            .map_err(|_| corrupt(path, 0, "it is larger than this machine can address"))?;
        let mut bytes = vec![0u8; length];
        let n = read_full(&*file, &mut bytes, 0).map_err(io_error("read segment", path))?;
        bytes.truncate(n);
        Ok(bytes.into())
    }

    /// The newest segment that had begun, taken out of `generations`, and those above it whose
    /// first write was torn.
    fn newest(
        &self,
        generations: &mut BTreeMap<u64, Listed>,
    ) -> Result<(Option<Newest>, Vec<Listed>), StorageError> {
        let mut torn = Vec::new();
        while let Some((_, file)) = generations.pop_last() {
            let Some((header, checksum)) = file.header else { continue };
            let bytes = self.read(&file.path)?;
            let scan = Scan::read(file.path.clone(), &bytes, header, checksum, self.salt)?;
            if scan.has_begun() {
                return Ok((Some((scan, bytes)), torn));
            }
            self.require_no_later(&file.path, &bytes, scan.end, &scan, header.write)?;
            torn.push(file);
        }
        Ok((None, torn))
    }

    fn require_no_later(
        &self,
        path: &Path,
        bytes: &[u8],
        from: usize,
        scan: &Scan,
        write: u64,
    ) -> Result<Strays, StorageError> {
        let found = strays(bytes, from, self.salt, scan.header.generation, write);
        match found.later.filter(|_| !zoo::has(Bug::LaterIgnored)) {
            Some(later) => Err(corrupt(
                path,
                scan.end as u64,
                format!(
                    "a record is damaged that was acknowledged: at {later} a later one follows"
                ),
            )),
            None => Ok(found),
        }
    }

    /// The needed segments below the newest, oldest first, taken out of `generations`.
    fn chain(
        &self,
        newest: &Scan,
        generations: &mut BTreeMap<u64, Listed>,
    ) -> Result<Vec<(Listed, Link)>, StorageError> {
        let mut oldest = newest.header.oldest;
        for frame in &newest.frames {
            let Record::Compact(c) = &frame.record else { continue };
            if c.oldest > newest.header.generation {
                let reason = "it says that not even its own segment is needed";
                return Err(corrupt(&newest.path, frame.offset as u64, reason));
            }
            oldest = oldest.max(c.oldest);
        }
        let mut chain = Vec::new();
        let (mut link, mut above) = (newest.header.previous, newest.path.clone());
        while link.generation != 0 && link.generation >= oldest {
            let Some(file) = generations.remove(&link.generation) else {
                let reason = format!(
                    "the segment before it (generation {}) is missing or its header is damaged",
                    link.generation
                );
                return Err(corrupt(&above, 56, reason));
            };
            above.clone_from(&file.path);
            let next = file.header.map(|(header, _)| header.previous).unwrap_or_default();
            chain.push((file, link));
            link = next;
        }
        chain.reverse();
        Ok(chain)
    }

    /// Replays a segment below the newest: every byte up to its end must be right.
    fn replay_closed(
        &self,
        replay: &mut Replay,
        file: &Listed,
        link: Link,
    ) -> Result<(), StorageError> {
        let Some((header, checksum)) = file.header else { return Ok(()) };
        let mut bytes = self.read(&file.path)?;
        bytes.truncate(usize::try_from(link.end).unwrap_or(usize::MAX));
        let scan = Scan::read(file.path.clone(), &bytes, header, checksum, self.salt)?;
        if (scan.end as u64, scan.chain) != (link.end, link.chain) {
            let reason = "a record is damaged that was acknowledged: later segments follow";
            return Err(corrupt(&file.path, scan.end as u64, reason));
        }
        replay.closed.push(Closed {
            generation: header.generation,
            path: file.path.clone(),
            length: file.length,
            max: 0,
        });
        for frame in scan.frames {
            replay
                .record(frame.record)
                .map_err(|reason| corrupt(&file.path, frame.offset as u64, reason))?;
        }
        Ok(())
    }

    fn finish(
        &self,
        newest: Option<Newest>,
        chain: Vec<(Listed, Link)>,
        off_chain: Vec<Listed>,
        torn: &[Listed],
    ) -> Result<Found, StorageError> {
        let mut found = Found { next_write: 1, ..Found::default() };
        let mut replay = Replay::default();
        for (file, link) in &chain {
            self.replay_closed(&mut replay, file, *link)?;
        }
        // The number of the first write that is not whole.
        let mut damaged = 1;
        let mut above = 0;
        if let Some((scan, bytes)) = newest {
            above = scan.header.generation;
            damaged = scan.next_write();
            found.next_write = scan.frames.last().map_or(damaged, |last| last.frame.write);
            found.next_write += u64::from(zoo::has(Bug::TakeOverAnew));
            let rest = self.require_no_later(&scan.path, &bytes, scan.end, &scan, damaged)?;
            if scan.is_torn(&bytes) || rest.generation != 0 {
                found.drop_tail(&scan.path, scan.end as u64);
            }
            let end = scan.frames.last().map(|last| &last.record);
            found.sealed = matches!(end, Some(Record::Seal { clean: true }));
            replay_newest(&mut replay, scan, bytes.len() as u64, &chain, &mut found)?;
        }
        found.next_generation = above;
        for file in &off_chain {
            self.check_off_chain(file, above, damaged, &mut found)?;
        }
        for file in torn {
            found.drop_tail(&file.path, 0);
            if let Some((header, _)) = file.header.filter(|(h, _)| h.write > damaged) {
                let reason =
                    format!("write {} stands there, write {} is gone", header.write, damaged);
                return Err(corrupt(&file.path, SEGMENT_HEADER as u64, reason));
            }
        }
        found.next_generation = found.next_generation.saturating_add(1);
        found.surplus.extend(off_chain.into_iter().map(|f| (f.path, f.length)));
        found.state = replay.state;
        found.entries = replay.entries;
        found.closed = replay.closed;
        Ok(found)
    }

    /// A file outside the chain may hold nothing that is newer than the log's end.
    fn check_off_chain(
        &self,
        file: &Listed,
        newest: u64,
        damaged: u64,
        found: &mut Found,
    ) -> Result<(), StorageError> {
        let bytes = self.read(&file.path)?;
        let rest = strays(&bytes, 0, self.salt, newest, damaged);
        if let Some(later) = rest.later {
            let reason = format!(
                "the header of the segment, or the end of the one before it, is damaged: a record \
                 that was acknowledged later stands at {later}"
            );
            return Err(corrupt(&file.path, 0, reason));
        }
        if rest.generation != 0 {
            found.drop_tail(&file.path, 0);
        }
        let claimed = file.header.map_or(0, |(header, _)| header.generation);
        found.next_generation = found.next_generation.max(rest.generation).max(claimed);
        Ok(())
    }
}

impl Found {
    fn drop_tail(&mut self, path: &Path, offset: u64) {
        if self.dropped_tail.is_none() {
            self.dropped_tail = Some(format!(
                "{} at offset {offset}: the rest of a write that was never acknowledged",
                path.display()
            ));
        }
    }
}

/// Replays the newest segment up to its last write, and hands that one out.
fn replay_newest(
    replay: &mut Replay,
    scan: Scan,
    length: u64,
    chain: &[(Listed, Link)],
    found: &mut Found,
) -> Result<(), StorageError> {
    let Some(last) = scan.frames.last().map(|f| f.frame.write) else { return Ok(()) };
    replay.closed.push(Closed {
        generation: scan.header.generation,
        path: scan.path.clone(),
        length,
        max: 0,
    });
    let mut proven_end = Link::default();
    let mut has_entries = false;
    for frame in scan.frames {
        let at = frame.offset as u64;
        let unproven = frame.frame.write == last;
        if unproven && proven_end.generation == 0 {
            proven_end =
                Link { generation: scan.header.generation, end: at, chain: frame.frame.previous };
        }
        let changes = matches!(&frame.record,
            Record::Batch(b) if b.reset.is_some() || !b.entries.is_empty());
        match frame.record {
            Record::Batch(batch) if unproven => found.pending.push(batch),
            record => {
                has_entries |= changes;
                replay.record(record).map_err(|reason| corrupt(&scan.path, at, reason))?;
            }
        }
    }
    if has_entries {
        found.link = proven_end;
        found.cut = Some((scan.path, proven_end.end));
    } else {
        // What it holds beside the last write is its state, which the next segment repeats.
        replay.closed.pop();
        found.link = chain.last().map(|(_, link)| *link).unwrap_or_default();
        found.surplus.push((scan.path, length));
    }
    Ok(())
}

/// Adds the last write to what was proven, and checks that nothing is missing in between.
pub(super) fn complete(
    found_state: &State,
    entries: Vec<Entry>,
    pending: &[LogBatch],
    dir: &Path,
) -> Result<(State, Vec<Entry>), StorageError> {
    let floor = entries.first().map_or(found_state.last, |e| e.index.saturating_sub(1));
    let mut replay =
        Replay { state: found_state.clone(), entries, floor, closed: Vec::new(), begun: true };
    for batch in pending {
        replay.batch(batch.clone()).map_err(|reason| corrupt(dir, 0, reason))?;
    }
    if replay.floor > replay.state.compacted.index {
        let reason = format!(
            "entries {} to {} are missing",
            replay.state.compacted.index.saturating_add(1),
            replay.floor
        );
        return Err(corrupt(dir, 0, reason));
    }
    Ok((replay.state, replay.entries))
}
