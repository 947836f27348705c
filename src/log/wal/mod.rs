//! The durable log: segments of chained, checksummed frames.
//!
//! One call of `append` is one write and one fdatasync. A batch that changes term or vote is
//! followed by a sealing frame, synced too, so that damage to a vote is never mistaken for an
//! unsynced tail. The bytes are described in `docs/wal-format.md`.
//!
//! Invariants:
//! - a write begins only after the one before it is synced;
//! - the newest hard state, membership, snapshot record and compaction point stand at the head of
//!   every segment, so that any number of older segments can go;
//! - after an error of a write or a sync nothing is written any more (R5);
//! - it never decides what to append, truncate or compact.

pub(crate) mod examine;
mod frame;
mod identity;
mod record;
mod recovery;
mod replay;
mod scan;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::examine::SegmentFile;
use self::identity::Stored;
use self::writer::Writer;
use super::{LogBatch, LogStorage, Recovered};
use crate::error::StorageError;
use crate::types::{Identity, Position};
use crate::vfs::{Vfs, VfsLock};
use crate::zoo::{self, Bug};

/// What to do when acknowledged data is damaged.
const REMEDY: &str = "Nothing was changed. Restore the file if there is a good copy of its latest \
                      state; otherwise remove this node from the cluster, empty its data \
                      directory and let it join again";

fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_path_buf();
    move |source| {
        let lost = zoo::has(Bug::ErrorReworded);
        let source = if lost { io::Error::other(source.to_string()) } else { source };
        StorageError::Io { op, path, source }
    }
}

/// Adds what to do to the errors that a user meets at the first start.
fn explain(e: io::Error) -> io::Error {
    let advice = match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make the data directory writable for the user that runs this node, or choose another"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "the data directory must be a directory, and so must everything above it"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
        _ => return e,
    };
    io::Error::new(e.kind(), format!("{e}; {advice}"))
}

/// How a [`Wal`] lays out its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// Bytes of a segment, from 1 KiB. Default 16 MiB. A write that is larger gets a segment of
    /// its own. May differ from start to start.
    pub segment_size: u64,
    /// Whether a thread prepares the next segment, so that changing to it costs no more than any
    /// write. Default: it does.
    pub prepare_ahead: bool,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_size: 16 << 20, prepare_ahead: true }
    }
}

#[derive(Debug)]
enum Phase {
    Opened,
    Loaded(Option<Box<Writer>>),
    Poisoned,
    Closed,
}

/// The durable log of one data directory, which it locks while it lives.
#[derive(Debug)]
pub struct Wal {
    // First: its drop waits for the thread that prepares segments, and the lock must outlive that.
    phase: Phase,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: WalOptions,
    stored: Option<Stored>,
    _lock: Box<dyn VfsLock>,
}

impl Wal {
    /// Opens a data directory, or makes it, and locks it.
    ///
    /// # Errors
    /// [`StorageError::Locked`]; [`StorageError::Foreign`] when something else wrote there or
    /// another format version did; [`StorageError::Corrupt`] for a damaged identity;
    /// [`StorageError::Io`].
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: WalOptions) -> Result<Self, StorageError> {
        let options = WalOptions { segment_size: options.segment_size.max(1 << 10), ..options };
        vfs.create_dir_all(dir).map_err(|e| io_error("create data directory", dir)(explain(e)))?;
        // Before the lock, so that no file of ours appears in a foreign directory.
        let before = identity::read(&*vfs, dir)?;
        identity::survey(&*vfs, dir, before.is_some())?;
        let path = dir.join(identity::LOCK);
        let lock = vfs.lock(&path).map_err(|e| io_error("lock", &path)(explain(e)))?;
        let Some(lock) = lock else { return Err(StorageError::Locked(dir.to_path_buf())) };
        // Again: the one who held the lock may have changed it.
        let stored = identity::read(&*vfs, dir)?;
        let dir = dir.to_path_buf();
        Ok(Self { phase: Phase::Opened, vfs, dir, options, stored, _lock: lock })
    }

    /// Reads who a directory is without opening or locking it; None when it is empty or missing.
    ///
    /// # Errors
    /// [`StorageError::Foreign`], [`StorageError::Corrupt`], [`StorageError::Io`].
    pub fn peek(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Identity>, StorageError> {
        Ok(identity::read(vfs, dir)?.map(|stored| stored.identity))
    }

    /// Who this directory is; None: it is empty.
    pub fn identity(&self) -> Option<Identity> {
        self.stored.map(|stored| stored.identity)
    }

    /// Reads the segments and starts a new one, which takes the last write over.
    fn recover(&self, stored: Stored) -> Result<(Writer, Recovered), StorageError> {
        // An identity that was renamed but not synced must not vanish after it was acted upon.
        self.vfs.sync_dir(&self.dir).map_err(io_error("sync directory", &self.dir))?;
        let examine::Read { recovered, found, next_slot, has_files } =
            examine::read(&*self.vfs, &self.dir, &stored)?;
        let writer = Writer::resume(
            self.vfs.clone(),
            &self.dir,
            self.options,
            stored.identity.incarnation,
            next_slot,
            found,
            has_files,
        )?;
        Ok((writer, recovered))
    }

    /// The writer, if a change may be made now.
    fn writer(&mut self) -> Result<&mut Writer, StorageError> {
        let slot = match &mut self.phase {
            Phase::Loaded(slot) => slot,
            Phase::Poisoned => return Err(StorageError::Poisoned),
            Phase::Opened => return Err(contract("it was not loaded")),
            Phase::Closed => return Err(contract("it is closed")),
        };
        slot.as_deref_mut().ok_or_else(|| contract("the directory has no identity yet"))
    }

    /// Runs a change; after an error of the file system nothing may be tried again (R5).
    fn change(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let result = run(self);
        if matches!(result, Err(StorageError::Io { .. })) && !zoo::has(Bug::GoOnAfterError) {
            self.phase = Phase::Poisoned;
        }
        result
    }

    /// Notes in the identity that there is a log from now on, so that it cannot vanish unnoticed.
    fn note_log(&mut self) -> Result<(), StorageError> {
        let Some(stored) = self.stored.filter(|stored| !stored.has_log) else { return Ok(()) };
        self.writer()?.ready_file()?;
        let stored = Stored { has_log: true, ..stored };
        identity::write(&*self.vfs, &self.dir, &stored)?;
        self.stored = Some(stored);
        Ok(())
    }
}

fn contract(what: &str) -> StorageError {
    StorageError::Contract(what.to_owned())
}

impl LogStorage for Wal {
    fn is_local(&self) -> bool {
        true
    }

    fn load(&mut self) -> Result<Recovered, StorageError> {
        match self.phase {
            Phase::Opened => {}
            Phase::Poisoned => return Err(StorageError::Poisoned),
            Phase::Loaded(_) | Phase::Closed => return Err(contract("it was loaded before")),
        }
        let Some(stored) = self.stored else {
            self.phase = Phase::Loaded(None);
            return Ok(Recovered::default());
        };
        let mut recovered = Recovered::default();
        self.change(|wal| {
            let (writer, found) = wal.recover(stored)?;
            recovered = found;
            wal.phase = Phase::Loaded(Some(Box::new(writer)));
            Ok(())
        })?;
        Ok(recovered)
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), StorageError> {
        match &self.phase {
            Phase::Loaded(_) => {}
            Phase::Poisoned => return Err(StorageError::Poisoned),
            Phase::Opened => return Err(contract("it was not loaded")),
            Phase::Closed => return Err(contract("it is closed")),
        }
        let has_log = self.stored.is_some_and(|stored| stored.has_log);
        let known = self.identity().map(|known| known.incarnation);
        if known.is_some_and(|known| known != identity.incarnation) {
            return Err(contract("the incarnation of a directory never changes"));
        }
        let stored = Stored { identity: *identity, has_log };
        self.change(|wal| {
            identity::write(&*wal.vfs, &wal.dir, &stored)?;
            wal.stored = Some(stored);
            if known.is_none() {
                let writer =
                    Writer::new(wal.vfs.clone(), &wal.dir, wal.options, identity.incarnation);
                wal.phase = Phase::Loaded(Some(Box::new(writer)));
            }
            Ok(())
        })
    }

    fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError> {
        self.writer()?;
        self.change(|wal| {
            wal.note_log()?;
            wal.writer()?.append(batches)
        })
    }

    fn compact(&mut self, through: Position) -> Result<(), StorageError> {
        self.change(|wal| wal.writer()?.compact(through))
    }

    fn close(&mut self) -> Result<(), StorageError> {
        match &mut self.phase {
            Phase::Poisoned => return Err(StorageError::Poisoned),
            Phase::Opened | Phase::Loaded(None) | Phase::Closed => {}
            Phase::Loaded(Some(writer)) => {
                let result = writer.close();
                if result.is_err() {
                    self.phase = Phase::Poisoned;
                    return result;
                }
            }
        }
        self.phase = Phase::Closed;
        Ok(())
    }
}
