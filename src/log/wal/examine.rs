//! Reading a log without changing anything: for a start, and for tools that only look.
//!
//! [`read`] gives the log as recovery judges it, or why it is refused. [`files`] looks at each file
//! by itself and judges nothing, so that there is something to tell of a log that is damaged.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::Salt;
use super::identity::{self, Stored};
use super::record::{Record, State};
use super::recovery::{self, Found, Recovery};
use super::scan::Scan;
use super::segment::{SegmentHeader, Start, slot_of};
use super::{REMEDY, StorageError, explain, frame, io_error};
use crate::log::{Recovered, SnapshotRecord};
use crate::types::{HardState, Identity, Index};
use crate::vfs::{OpenMode, Vfs, VfsLock, read_full};

/// A log that was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) recovered: Recovered,
    /// What the next segment continues from; its entries and its tail are in `recovered`.
    pub(super) found: Found,
    pub(super) next_slot: u64,
    pub(super) has_files: bool,
}

/// What a look at a log finds; the log is as it was.
#[derive(Debug)]
pub(crate) struct Examined {
    /// As a start would find it.
    pub(crate) recovered: Recovered,
    /// Whether it ends with the seal of a clean shutdown.
    pub(crate) sealed: bool,
}

/// One file of a log, as far as it can be read by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// Its place in the chain of segments; None: a file kept for later use, or one whose header
    /// is damaged.
    pub generation: Option<u64>,
    /// Where its valid records end.
    pub end: u64,
    /// How many valid records it holds.
    pub records: usize,
    /// The first and the last entry that its records hold, whatever later ones replace.
    pub entries: Option<(Index, Index)>,
}

/// The newest records that the files hold, whatever is damaged around them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Salvaged {
    pub(crate) files: Vec<SegmentFile>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) membership: Option<Bytes>,
    pub(crate) snapshot: Option<SnapshotRecord>,
}

/// Reads the segments of a directory back.
pub(super) fn read(vfs: &dyn Vfs, dir: &Path, stored: &Stored) -> Result<Read, StorageError> {
    let segments = identity::survey(vfs, dir, true)?;
    if stored.has_log && segments.is_empty() {
        return Err(StorageError::Corrupt {
            path: dir.to_path_buf(),
            offset: 0,
            reason: "the files of the log are missing".to_owned(),
            remedy: REMEDY,
        });
    }
    let next_slot = segments.last().map_or(1, |(slot, _)| slot.saturating_add(1));
    let paths: Vec<PathBuf> = segments.into_iter().map(|(_, path)| path).collect();
    let incarnation = stored.identity.incarnation;
    let mut found = Recovery { vfs, incarnation, salt: Salt::of(incarnation) }.run(&paths)?;
    let entries = std::mem::take(&mut found.entries);
    let (state, entries) = recovery::complete(&found.state, entries, &found.pending, dir)?;
    // What is written next counts on from here, and must be read again.
    if found.next_generation.max(found.next_write) > frame::MAX_NUMBER / 2 {
        let reason = "it counts its segments or its writes to where no log has ever come";
        return Err(recovery::corrupt(dir, 0, reason));
    }
    let recovered = Recovered {
        identity: Some(stored.identity),
        hard_state: state.hard_state,
        compacted: state.compacted,
        entries,
        membership: state.membership,
        snapshot: state.snapshot,
        dropped_tail: found.dropped_tail.take(),
    };
    Ok(Read { recovered, found, next_slot, has_files: !paths.is_empty() })
}

/// Locks a directory as a node does, but makes no file for it: None when no node has ever run
/// there, or none can, because the medium is read-only.
///
/// # Errors
/// `Locked` while a node runs there; `Io`.
pub(crate) fn lock(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Box<dyn VfsLock>>, StorageError> {
    let path = dir.join(identity::LOCK);
    match vfs.open(&path, OpenMode::Read) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", &path)(e)),
    }
    match vfs.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(StorageError::Locked(dir.to_path_buf())),
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let advice =
                format!("{e}; look as the user that runs the node, or at a copy of your own");
            Err(io_error("lock", &path)(io::Error::new(e.kind(), advice)))
        }
        Err(e) => Err(io_error("lock", &path)(e)),
    }
}

/// Reads a log; changes nothing, and takes no lock. None when there is no log and no identity.
///
/// # Errors
/// As a start would refuse it.
pub(crate) fn examine(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Examined>, StorageError> {
    let Some(stored) = identity::read(vfs, dir)? else {
        return identity::survey(vfs, dir, false).map(|_| None);
    };
    let Read { recovered, found, .. } = read(vfs, dir, &stored)?;
    Ok(Some(Examined { recovered, sealed: found.sealed }))
}

/// Who a directory is; None when it has no identity.
///
/// # Errors
/// As for a start.
pub(crate) fn identity(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Identity>, StorageError> {
    Ok(identity::read(vfs, dir)?.map(|stored| stored.identity))
}

/// Looks at every file of a log by itself, in the order in which they were written.
///
/// # Errors
/// Those of the file system.
pub(crate) fn files(vfs: &dyn Vfs, dir: &Path) -> Result<Salvaged, StorageError> {
    let names = vfs.list(dir).map_err(|e| io_error("list", dir)(explain(e)))?;
    let mut looked = Vec::new();
    for name in names.iter().filter(|name| slot_of(name).is_some()) {
        looked.push(look(vfs, dir.join(name))?);
    }
    looked.sort_by(|(a, _), (b, _)| (a.generation, &a.path).cmp(&(b.generation, &b.path)));
    let mut salvaged = Salvaged::default();
    let mut state = State::default();
    for (file, scan) in looked {
        for frame in scan.into_iter().flat_map(|scan| scan.frames) {
            match frame.record {
                Record::State(s) => {
                    salvaged.hard_state = Some(s.hard_state);
                    state.adopt(None, s.membership, s.snapshot);
                }
                Record::Batch(b) => {
                    salvaged.hard_state = b.hard_state.or(salvaged.hard_state);
                    state.adopt(None, b.membership, b.snapshot);
                }
                Record::Compact(_) | Record::Seal { .. } => {}
            }
        }
        salvaged.files.push(file);
    }
    salvaged.membership = state.membership;
    salvaged.snapshot = state.snapshot;
    Ok(salvaged)
}

/// One file, and the valid records that it begins with.
fn look(vfs: &dyn Vfs, path: PathBuf) -> Result<(SegmentFile, Option<Scan>), StorageError> {
    let file = vfs.open(&path, OpenMode::Read).map_err(io_error("open segment", &path))?;
    let length = file.len().map_err(io_error("read segment", &path))?;
    let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(0)];
    let n = read_full(&*file, &mut bytes, 0).map_err(io_error("read segment", &path))?;
    bytes.truncate(n);
    let mut seen =
        SegmentFile { path, length, generation: None, end: 0, records: 0, entries: None };
    let Start::Header(header) = SegmentHeader::parse(&bytes) else { return Ok((seen, None)) };
    seen.generation = Some(header.generation);
    let (checksum, salt) = (header.encode().1, Salt::of(header.incarnation));
    // A record that cannot be decoded is told of by `read`.
    let Ok(scan) = Scan::read(seen.path.clone(), &bytes.into(), header, checksum, salt) else {
        return Ok((seen, None));
    };
    seen.end = scan.end as u64;
    seen.records = scan.frames.len();
    for frame in &scan.frames {
        let Record::Batch(batch) = &frame.record else { continue };
        let (Some(first), Some(last)) = (batch.entries.first(), batch.entries.last()) else {
            continue;
        };
        let (low, high) = seen.entries.unwrap_or((first.index, last.index));
        seen.entries = Some((low.min(first.index), high.max(last.index)));
    }
    Ok((seen, Some(scan)))
}
