//! The directory of snapshot files: written whole or not at all, listed, kept, removed.
//!
//! A snapshot grows in a temporary file; its body first, then its head, then fdatasync, then the
//! rename to `snapshot-<index>-<term>.snap`, then the sync of the directory (R1). What is not
//! finished is removed: when its writer is dropped, or at the next open.
//!
//! Every call blocks on the disk: never call it from the event loop or a task of a runtime.
//! It never decides which snapshot is the right one: the log's record says so.
//!
//! Invariants:
//! - a file with the final name was complete and synced before it got that name;
//! - a damaged file is reported, never skipped silently and never repaired.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{SnapshotReader, encode_head, head_len, io_error};
use crate::error::StorageError;
use crate::types::{Index, Membership, Position, SnapshotMeta};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use crate::zoo::{self, Bug};

const SUFFIX: &str = ".snap";
const TEMP_SUFFIX: &str = ".snap.tmp";
const PREFIX: &str = "snapshot-";

/// Bytes written without a sync: one sync of everything at the end would hold up the log, which is
/// on the same disk, for as long as that takes.
const SYNC_EVERY: usize = 4 << 20;

const RECEIVED_REMEDY: &str = "nothing was kept; the sender will send it again";

/// The directory; cheap to clone, shared between threads.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotDir {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    /// Makes the names of temporary files differ.
    temps: AtomicU64,
}

fn file_name(position: Position) -> String {
    format!("{PREFIX}{:020}-{}{SUFFIX}", position.index, position.term)
}

fn parse_name(name: &str) -> Option<Position> {
    let (index, term) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let position = Position { index: index.parse().ok()?, term: term.parse().ok()? };
    // One spelling each, so that a position has one file.
    (file_name(position) == name).then_some(position)
}

impl SnapshotDir {
    /// Its name inside a data directory.
    pub(crate) const NAME: &str = "snapshots";

    /// The directory as it is: nothing is made or removed.
    pub(crate) fn peek(vfs: Arc<dyn Vfs>, dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { shared: Arc::new(Shared { vfs, dir, temps: AtomicU64::new(0) }) }
    }

    /// The file of the snapshot at this position.
    pub(crate) fn path(&self, position: Position) -> PathBuf {
        self.shared.dir.join(file_name(position))
    }

    /// Opens the directory, makes it if needed, and removes what an earlier run left unfinished.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let dir = dir.into();
        vfs.create_dir_all(&dir).map_err(|e| io_error("create directory", &dir, e))?;
        let opened = Self::peek(vfs, dir);
        // NB: not synced: one that comes back after a crash is removed again.
        for name in opened.names()?.iter().filter(|n| n.ends_with(TEMP_SUFFIX)) {
            opened.shared.remove(&opened.shared.dir.join(name))?;
        }
        Ok(opened)
    }

    /// Begins a snapshot of the own Store, whose length and checksum are known when it ends.
    ///
    /// # Errors
    /// `Io`; `Contract` when the membership is newer than the position.
    pub(crate) fn create(
        &self,
        position: Position,
        membership: Membership,
    ) -> Result<SnapshotWriter, StorageError> {
        let meta = SnapshotMeta { position, membership, size: 0, crc32: 0 };
        self.writer(meta, None)
    }

    /// Begins a snapshot that a peer sends: it must turn out to be what its meta says.
    ///
    /// # Errors
    /// `Io`; `Contract` when the membership is newer than the position.
    pub(crate) fn receive(&self, meta: SnapshotMeta) -> Result<SnapshotWriter, StorageError> {
        let expected = Expected { size: meta.size, crc32: meta.crc32 };
        self.writer(meta, Some(expected))
    }

    fn writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<Expected>,
    ) -> Result<SnapshotWriter, StorageError> {
        let head_len = head_len(meta.position, &meta.membership)?;
        let number = self.shared.temps.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{number}{TEMP_SUFFIX}", file_name(meta.position));
        let temp = self.shared.dir.join(name);
        let file = self.shared.open(&temp, OpenMode::Create, "create")?;
        let shared = self.shared.clone();
        let hasher = crc32fast::Hasher::new();
        Ok(SnapshotWriter {
            shared,
            file: Some(file),
            temp,
            meta,
            expected,
            head_len,
            size: 0,
            unsynced: 0,
            hasher,
        })
    }

    /// Opens the snapshot at this position. Its head is checked; its body is as it is read.
    ///
    /// # Errors
    /// `Io` (also when there is none), `Corrupt`, `Foreign`.
    pub(crate) fn open_snapshot(&self, position: Position) -> Result<SnapshotReader, StorageError> {
        let path = self.path(position);
        let file = self.shared.open(&path, OpenMode::Read, "open")?;
        let reader = SnapshotReader::new(file, path.clone())?;
        let found = reader.meta().position;
        if found != position {
            return Err(StorageError::Foreign {
                path,
                reason: format!(
                    "it holds the snapshot at index {} of term {}; give it back its own name",
                    found.index, found.term
                ),
            });
        }
        Ok(reader)
    }

    /// The meta of the snapshot at this position.
    ///
    /// # Errors
    /// `Io` (also when there is none), `Corrupt`, `Foreign`.
    pub(crate) fn meta(&self, position: Position) -> Result<SnapshotMeta, StorageError> {
        Ok(self.open_snapshot(position)?.meta().clone())
    }

    #[cfg(test)]
    /// Every snapshot, newest first, judged by its head and length; one that is damaged is an
    /// error in its place.
    ///
    /// # Errors
    /// `Io`, when the directory cannot be read.
    pub(crate) fn metas(&self) -> Result<Vec<Result<SnapshotMeta, StorageError>>, StorageError> {
        let mut metas = Vec::new();
        for position in self.positions()? {
            metas.push(self.meta(position));
        }
        for name in self.names()? {
            let ours = name.starts_with(PREFIX) && name.ends_with(SUFFIX);
            if ours && parse_name(&name).is_none() {
                metas.push(Err(StorageError::Foreign {
                    path: self.shared.dir.join(name),
                    reason: "its name is not that of a snapshot; move it away".to_owned(),
                }));
            }
        }
        Ok(metas)
    }

    #[cfg(test)]
    /// The newest snapshot whose head and length are right. The log's record decides whether it
    /// is the one to start from.
    ///
    /// # Errors
    /// `Io`, when the directory cannot be read.
    pub(crate) fn latest(&self) -> Result<Option<SnapshotMeta>, StorageError> {
        Ok(self.metas()?.into_iter().find_map(Result::ok))
    }

    /// Removes the snapshots below `keep_from`, but for those that `in_use` names; how many.
    ///
    /// # Errors
    /// `Io`; those that were removed before stay removed.
    pub(crate) fn retain(
        &self,
        keep_from: Index,
        in_use: impl Fn(Index) -> bool,
    ) -> Result<usize, StorageError> {
        let mut removed = 0;
        for position in self.positions()? {
            if position.index < keep_from && !in_use(position.index) {
                self.shared.remove(&self.shared.dir.join(file_name(position)))?;
                removed += 1;
            }
        }
        if removed > 0 {
            self.shared.sync_dir()?;
        }
        Ok(removed)
    }

    /// Positions of the files, newest first.
    ///
    /// # Errors
    /// `Io`, when the directory cannot be read.
    pub(crate) fn positions(&self) -> Result<Vec<Position>, StorageError> {
        let mut positions: Vec<_> = self.names()?.iter().filter_map(|n| parse_name(n)).collect();
        positions.sort_by_key(|p| std::cmp::Reverse((p.index, p.term)));
        Ok(positions)
    }

    fn names(&self) -> Result<Vec<String>, StorageError> {
        let dir = &self.shared.dir;
        self.shared.vfs.list(dir).map_err(|e| io_error("list", dir, e))
    }
}

impl Shared {
    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
        op: &'static str,
    ) -> Result<Box<dyn VfsFile>, StorageError> {
        self.vfs.open(path, mode).map_err(|e| io_error(op, path, e))
    }

    /// Removes a file; one that is gone already is fine: two may clean up at a time.
    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        match self.vfs.remove(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io_error("remove", path, e)),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        self.vfs.sync_dir(&self.dir).map_err(|e| io_error("sync directory", &self.dir, e))
    }
}

/// What a received body must be.
#[derive(Clone, Copy, Debug)]
struct Expected {
    size: u64,
    crc32: u32,
}

/// A snapshot that is being written. Dropped before [`SnapshotWriter::finish`], it leaves nothing
/// behind.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    shared: Arc<Shared>,
    /// None after a failure: a file that failed is not touched again.
    file: Option<Box<dyn VfsFile>>,
    temp: PathBuf,
    meta: SnapshotMeta,
    expected: Option<Expected>,
    head_len: usize,
    size: u64,
    /// Bytes of the body since the last sync.
    unsynced: usize,
    hasher: crc32fast::Hasher,
}

impl SnapshotWriter {
    /// Appends to the body.
    ///
    /// # Errors
    /// `Io`; `Corrupt` when a received body is longer than its meta says. Nothing can be written
    /// after it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let size = self.size + bytes.len() as u64;
        if self.expected.is_some_and(|e| size > e.size) {
            self.file = None;
            return Err(
                self.mismatch(format!("it is longer than the {} announced", self.meta.size))
            );
        }
        for part in bytes.chunks(SYNC_EVERY) {
            if self.unsynced + part.len() > SYNC_EVERY {
                self.sync()?;
            }
            self.write_at(part, self.head_len as u64 + self.size)?;
            self.hasher.update(part);
            self.size += part.len() as u64;
            self.unsynced += part.len();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let synced = self.live()?.sync_data();
        self.unsynced = 0;
        self.check("sync", synced)
    }

    /// Makes the snapshot durable under its name, and gives its meta.
    ///
    /// # Errors
    /// `Io`; `Corrupt` when a received body is not what its meta says. No file with the final name
    /// has come into being then, unless the last sync of the directory failed: that file is whole.
    pub(crate) fn finish(mut self) -> Result<SnapshotMeta, StorageError> {
        let crc32 = self.hasher.clone().finalize();
        if let Some(expected) = self.expected {
            if self.size != expected.size {
                let reason = format!("it ends after {} of {} bytes", self.size, expected.size);
                return Err(self.mismatch(reason));
            }
            if crc32 != expected.crc32 {
                let reason = format!("its checksum is {crc32:08x}, not {:08x}", expected.crc32);
                return Err(self.mismatch(reason));
            }
        }
        self.meta.size = self.size;
        self.meta.crc32 = crc32;
        let head = encode_head(&self.meta, self.head_len);
        self.write_at(&head, 0)?;
        if !zoo::has(Bug::SnapshotUnsynced) {
            self.sync()?;
        }
        // Closed before the rename: no handle outlives the temporary name.
        self.file = None;
        let path = self.shared.dir.join(file_name(self.meta.position));
        self.shared.vfs.rename(&self.temp, &path).map_err(|e| io_error("rename to", &path, e))?;
        self.temp = PathBuf::new();
        self.shared.sync_dir()?;
        Ok(self.meta.clone())
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        let written = self.live()?.write_all_at(bytes, offset);
        self.check("write", written)
    }

    fn live(&mut self) -> Result<&mut Box<dyn VfsFile>, StorageError> {
        self.file.as_mut().ok_or_else(|| {
            StorageError::Contract("a snapshot is written on after it failed".to_owned())
        })
    }

    fn check(&mut self, op: &'static str, result: std::io::Result<()>) -> Result<(), StorageError> {
        result.map_err(|e| {
            self.file = None;
            io_error(op, &self.temp, e)
        })
    }

    fn mismatch(&self, reason: String) -> StorageError {
        StorageError::Corrupt {
            path: self.temp.clone(),
            offset: self.head_len as u64 + self.size,
            reason: format!("a received snapshot is not what was announced: {reason}"),
            remedy: RECEIVED_REMEDY,
        }
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.temp.as_os_str().is_empty() {
            return;
        }
        self.file = None;
        // Best effort: what stays is removed at the next open.
        let _ = self.shared.vfs.remove(&self.temp);
    }
}
