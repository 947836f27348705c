//! The file layer over a [`Disk`] that writes down every change, in order.
//!
//! It can also run out of room, and fail one sync, as the world around a log does.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::disk::{Disk, Op};
use crate::vfs::{OpenMode, Vfs, VfsFile, VfsLock};

#[derive(Debug, Default)]
struct State {
    disk: Disk,
    ops: Vec<Op>,
    recording: bool,
    /// Bytes that all files together may take.
    capacity: Option<u64>,
    /// The next sync fails.
    failing_sync: bool,
    /// Changes of this kind are said to be done and are not.
    lie: Option<&'static str>,
    locks: BTreeSet<PathBuf>,
}

/// The layer. Clones share everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorder {
    state: Arc<Mutex<State>>,
}

impl Recorder {
    pub(super) fn new(disk: Disk, recording: bool) -> Self {
        let state = State { disk, recording, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as it is now.
    pub(super) fn disk(&self) -> Disk {
        self.state().disk.clone()
    }

    /// How many changes were written down.
    pub(super) fn recorded(&self) -> usize {
        self.state().ops.len()
    }

    pub(super) fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.state().ops)
    }

    /// Makes it lie about one kind of change, as [`Op::kind`] names it.
    pub(super) fn lie_about(&self, kind: Option<&'static str>) {
        self.state().lie = kind;
    }

    /// Leaves room for this many bytes more; None: endless.
    pub(super) fn leave_room(&self, bytes: Option<u64>) {
        let mut state = self.state();
        state.capacity = bytes.map(|bytes| state.disk.used() + bytes);
    }

    /// Whether a shortage or a fault was ordered.
    pub(super) fn is_hostile(&self) -> bool {
        let state = self.state();
        state.capacity.is_some() || state.failing_sync
    }

    pub(super) fn fail_next_sync(&self, fail: bool) {
        self.state().failing_sync = fail;
    }
}

impl State {
    fn run(&mut self, op: Op) {
        if self.lie == Some(op.kind()) {
            return;
        }
        self.disk.apply(&op);
        if self.recording {
            self.ops.push(op);
        }
    }

    fn create(&mut self, path: &Path) -> io::Result<()> {
        if path.parent().is_some_and(|dir| !self.disk.has_dir(dir)) {
            return Err(missing(path));
        }
        self.run(Op::Create(path.into()));
        Ok(())
    }

    fn write(&mut self, file: usize, buf: &[u8], offset: usize) -> io::Result<()> {
        let end = offset.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let grown = end.saturating_sub(self.disk.bytes(file).len()) as u64;
        let room = self.capacity.map(|capacity| capacity.saturating_sub(self.disk.used()));
        if let Some(room) = room.filter(|room| grown > *room) {
            // As much as fits is written; a hole before it counts too.
            let over = usize::try_from(grown - room).unwrap_or(usize::MAX);
            let fits = buf.len().saturating_sub(over);
            if fits > 0 {
                self.run(Op::Write(file, offset, Bytes::copy_from_slice(&buf[..fits])));
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.run(Op::Write(file, offset, Bytes::copy_from_slice(buf)));
        Ok(())
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        if std::mem::take(&mut self.failing_sync) {
            self.run(Op::FailedSync(file));
            return Err(io::Error::from_raw_os_error(5));
        }
        self.run(Op::Sync(file));
        Ok(())
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Vfs for Recorder {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.state().disk.make_dirs(dir);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.disk.has_dir(dir) {
            return Err(missing(dir));
        }
        let inside = state.disk.paths().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into()).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let mut state = self.state();
        let found = state.disk.find(path);
        match (mode, found) {
            (OpenMode::Create, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Create, None) => state.create(path)?,
            (OpenMode::Read | OpenMode::Write, _) => {}
        }
        let file = state.disk.find(path).ok_or_else(|| missing(path))?;
        let layer = self.clone();
        Ok(Box::new(RecordedFile { layer, file, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.disk.find(from).ok_or_else(|| missing(from))?;
        state.run(Op::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.disk.find(path).ok_or_else(|| missing(path))?;
        state.run(Op::Remove(path.into()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.disk.has_dir(dir) {
            return Err(missing(dir));
        }
        state.run(Op::SyncDir(dir.to_path_buf()));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut state = self.state();
        if state.disk.find(path).is_none() {
            state.create(path)?;
        }
        if !state.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        Ok(Some(Box::new(RecordedLock { layer: self.clone(), path: path.to_path_buf() })))
    }
}

#[derive(Debug)]
struct RecordedLock {
    layer: Recorder,
    path: PathBuf,
}

impl VfsLock for RecordedLock {}

impl Drop for RecordedLock {
    fn drop(&mut self) {
        self.layer.state().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct RecordedFile {
    layer: Recorder,
    file: usize,
    writable: bool,
}

impl RecordedFile {
    fn writable(&self) -> io::Result<MutexGuard<'_, State>> {
        if self.writable {
            Ok(self.layer.state())
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl VfsFile for RecordedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.layer.state();
        let rest = state.disk.bytes(self.file).get(position(offset)?..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (file, offset) = (self.file, position(offset)?);
        self.writable()?.write(file, buf, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.layer.state().sync(self.file)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.layer.state().disk.bytes(self.file).len() as u64)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let (file, len) = (self.file, position(len)?);
        self.writable()?.run(Op::SetLen(file, len));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_every_vfs() {
        crate::vfs::conformance::run(&Recorder::default(), Path::new("/a/b"));
    }
}
