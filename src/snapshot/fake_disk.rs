//! A disk for tests, in memory, that can be full, fail, or be damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::vfs::{OpenMode, Vfs, VfsFile, VfsLock};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The operation of the file system that fails from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    Open,
    Write,
    Sync,
    Rename,
    SyncDir,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FakeDisk {
    state: Arc<Mutex<State>>,
    released: Arc<Condvar>,
}

#[derive(Debug, Default)]
struct State {
    files: Files,
    /// Bytes that fit; None: endless.
    capacity: Option<usize>,
    failing: Option<Failing>,
    /// Writers wait.
    held: bool,
    /// Bytes written since the last sync, and the most that these ever were.
    unsynced: usize,
    most_unsynced: usize,
}

impl State {
    fn check(&self, op: Failing) -> io::Result<()> {
        if self.failing == Some(op) {
            return Err(io::Error::other(format!("the test's disk fails at {op:?}")));
        }
        Ok(())
    }
}

impl FakeDisk {
    pub(crate) fn set_capacity(&self, bytes: Option<usize>) {
        self.lock().capacity = bytes;
    }

    pub(crate) fn fail(&self, op: Option<Failing>) {
        self.lock().failing = op;
    }

    /// Makes every write wait, or lets them all go on.
    pub(crate) fn hold(&self, held: bool) {
        self.lock().held = held;
        self.released.notify_all();
    }

    /// The most bytes that were ever written without a sync.
    pub(crate) fn most_unsynced(&self) -> usize {
        self.lock().most_unsynced
    }

    /// File names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.lock();
        let names = state.files.keys().filter_map(|p| p.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.lock();
        let found = state.files.iter().find(|(p, _)| p.ends_with(name));
        found.map(|(_, b)| b.clone()).unwrap_or_default()
    }

    pub(crate) fn put(&self, path: impl Into<PathBuf>, bytes: Vec<u8>) {
        self.lock().files.insert(path.into(), bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl Vfs for FakeDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let mut state = self.lock();
        state.check(Failing::Open)?;
        match (mode, state.files.contains_key(path)) {
            (OpenMode::Create, false) => {
                state.files.insert(path.to_owned(), Vec::new());
            }
            (OpenMode::Create, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Read | OpenMode::Write, true) => {}
            (OpenMode::Read | OpenMode::Write, false) => return Err(missing(path)),
        }
        Ok(Box::new(FakeFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check(Failing::Rename)?;
        let bytes = state.files.remove(from).ok_or_else(|| missing(from))?;
        state.files.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().files.remove(path).map(drop).ok_or_else(|| missing(path))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.lock().check(Failing::SyncDir)
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        Ok(None)
    }
}

#[derive(Debug)]
struct FakeFile {
    disk: FakeDisk,
    path: PathBuf,
}

impl VfsFile for FakeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        let bytes = state.files.get(&self.path).ok_or_else(|| missing(&self.path))?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        // Short reads, so that nobody relies on long ones.
        let n = rest.len().min(buf.len()).min(1000);
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let state = self.disk.lock();
        let waited = self.disk.released.wait_while(state, |s| s.held);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.check(Failing::Write)?;
        let end = offset as usize + buf.len();
        let used: usize = state.files.values().map(Vec::len).sum();
        let capacity = state.capacity;
        let bytes = state.files.get_mut(&self.path).ok_or_else(|| missing(&self.path))?;
        let grown = end.saturating_sub(bytes.len());
        if capacity.is_some_and(|c| used + grown > c) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        bytes.resize(bytes.len().max(end), 0);
        bytes[offset as usize..end].copy_from_slice(buf);
        state.unsynced += buf.len();
        state.most_unsynced = state.most_unsynced.max(state.unsynced);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check(Failing::Sync)?;
        state.unsynced = 0;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.files.get(&self.path).map(|b| b.len() as u64).ok_or_else(|| missing(&self.path))
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let bytes = state.files.get_mut(&self.path).ok_or_else(|| missing(&self.path))?;
        bytes.resize(len as usize, 0);
        Ok(())
    }
}
