//! A file system that fails and crashes as it is told.
//!
//! [`FaultyVfs`] keeps, beside what a process sees, what a disk would hold: bytes count as durable
//! after `sync_data` of their file, names after `sync_dir` of their directory. [`FaultyVfs::crash`]
//! gives the file system that a machine may find after a loss of power; what was written to each
//! sector of 512 bytes and not synced is kept, lost, zeroed, garbage or torn, and each name that
//! was not synced is there or not, as a seed decides. Any call can be made to fail.
//!
//! The bytes beside an unsynced write stay as they are, also in the same sector (what SQLite calls
//! power-safe overwrite): a log that appends within sectors relies on it, as disks promise it.

mod inode;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::inode::Inode;
use super::rng::Rng;
use crate::vfs::{OpenMode, Vfs, VfsFile, VfsLock};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An IO error; the call has no effect.
    Io,
    /// The disk is full; the call has no effect.
    Full,
    /// An IO error half-way: half of a write is done; a sync makes nothing durable, and a later
    /// one will not either; any other call does its work and still fails.
    Short,
    /// The power goes: this call takes effect without being durable, and every later one fails.
    PowerOff,
}

/// What may become of a sector that was written and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashStyle {
    /// All of it is on the disk.
    KeepAll,
    /// None of it is.
    LoseAll,
    /// Sectors and names each go their own way, as this seed decides.
    Seeded(u64),
}

/// A file system with faults. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct FaultyVfs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last sync of their directory, in order.
    unsynced: Vec<NameChange>,
    /// Always durable: directories are made once, long before anything matters.
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    calls: u64,
    fail: Option<(u64, Fault)>,
    off: bool,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path, _) => {
                path.parent() == Some(dir)
            }
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

/// EIO and ENOSPC, as Linux numbers them.
fn os_error(fault: Fault) -> io::Error {
    match fault {
        Fault::Io | Fault::Short | Fault::PowerOff => io::Error::from_raw_os_error(5),
        Fault::Full => io::Error::from_raw_os_error(28),
    }
}

/// How much of a call takes effect, and how it ends.
struct Verdict {
    effect: Effect,
    error: Option<io::Error>,
}

#[derive(PartialEq, Eq)]
enum Effect {
    Whole,
    Half,
    Undurable,
    None,
}

impl Disk {
    /// Counts a call and decides its fate.
    fn call(&mut self) -> Verdict {
        self.calls += 1;
        if self.off {
            return Verdict { effect: Effect::None, error: Some(os_error(Fault::Io)) };
        }
        let Some((_, fault)) = self.fail.filter(|(at, _)| *at == self.calls) else {
            return Verdict { effect: Effect::Whole, error: None };
        };
        let effect = match fault {
            Fault::Io | Fault::Full => Effect::None,
            Fault::Short => Effect::Half,
            Fault::PowerOff => {
                self.off = true;
                Effect::Undurable
            }
        };
        Verdict { effect, error: Some(os_error(fault)) }
    }

    fn require_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(dir) if !self.directories.contains(dir) => Err(missing(dir)),
            Some(_) | None => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }
}

impl FaultyVfs {
    /// An empty file system without faults.
    pub fn new() -> Self {
        Self::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.disk().calls
    }

    /// Makes the `nth` call from now on fail; 1 is the next.
    pub fn fail_at(&self, nth: u64, fault: Fault) {
        let mut disk = self.disk();
        disk.fail = Some((disk.calls + nth, fault));
    }

    /// Forgets a failure that was not met yet.
    pub fn disarm(&self) {
        self.disk().fail = None;
    }

    /// The file system after a loss of power now. This one goes on undisturbed.
    #[must_use]
    pub fn crash(&self, style: CrashStyle) -> Self {
        let disk = self.disk();
        let mut rng = Rng::new(match style {
            CrashStyle::Seeded(seed) => seed,
            CrashStyle::KeepAll | CrashStyle::LoseAll => 0,
        });
        let mut names = disk.durable_names.clone();
        for change in &disk.unsynced {
            let kept = match style {
                CrashStyle::KeepAll => true,
                CrashStyle::LoseAll => false,
                CrashStyle::Seeded(_) => rng.one_in(2),
            };
            if kept {
                change.apply(&mut names);
            }
        }
        let settle = |inode: &Inode| {
            let bytes = inode.crash(style, &mut rng);
            Inode { seen: bytes.clone(), durable: bytes, ..Inode::default() }
        };
        let after = Disk {
            inodes: disk.inodes.iter().map(settle).collect(),
            durable_names: names.clone(),
            names,
            directories: disk.directories.clone(),
            ..Disk::default()
        };
        Self { disk: Arc::new(Mutex::new(after)) }
    }

    /// An independent copy with the same files, durable and not, without locks and faults.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let disk = self.disk();
        let copy = Disk {
            inodes: disk.inodes.clone(),
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            unsynced: disk.unsynced.clone(),
            directories: disk.directories.clone(),
            ..Disk::default()
        };
        Self { disk: Arc::new(Mutex::new(copy)) }
    }

    /// The same files, all durable, without locks and faults: as after the end of the process.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.crash(CrashStyle::KeepAll)
    }

    /// The bytes of a file, as a process sees them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(path).and_then(|i| disk.inodes.get(*i)).map(|i| i.seen.clone())
    }

    /// Replaces the bytes of a file, durably; makes it if need be.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.disk();
        let inode = Inode { seen: bytes.clone(), durable: bytes, ..Inode::default() };
        disk.inodes.push(inode);
        let number = disk.inodes.len() - 1;
        disk.names.insert(path.to_path_buf(), number);
        disk.durable_names.insert(path.to_path_buf(), number);
    }

    fn run<T>(&self, effect: impl FnOnce(&mut Disk, &Effect) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk();
        let verdict = disk.call();
        if verdict.effect == Effect::None {
            return Err(verdict.error.unwrap_or_else(|| os_error(Fault::Io)));
        }
        let done = effect(&mut disk, &verdict.effect);
        verdict.error.map_or(done, Err)
    }
}

impl Vfs for FaultyVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.run(|disk, _| {
            disk.directories.extend(dir.ancestors().map(Path::to_path_buf));
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.run(|disk, _| {
            if !disk.directories.contains(dir) {
                return Err(missing(dir));
            }
            let inside = disk.names.keys().filter(|p| p.parent() == Some(dir));
            let names = inside.filter_map(|p| p.file_name());
            Ok(names.map(|n| n.to_string_lossy().into_owned()).collect())
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let inode = self.run(|disk, _| match (mode, disk.names.get(path)) {
            (OpenMode::Read | OpenMode::Write, Some(inode)) => Ok(*inode),
            (OpenMode::Read | OpenMode::Write, None) => Err(missing(path)),
            (OpenMode::Create, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Create, None) => {
                disk.require_parent(path)?;
                disk.inodes.push(Inode::default());
                let inode = disk.inodes.len() - 1;
                disk.change(NameChange::Link(path.to_path_buf(), inode));
                Ok(inode)
            }
        })?;
        let writable = mode != OpenMode::Read;
        Ok(Box::new(FaultyFile { vfs: self.clone(), inode, writable }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|disk, _| {
            disk.require_parent(to)?;
            let inode = *disk.names.get(from).ok_or_else(|| missing(from))?;
            disk.change(NameChange::Rename(from.to_path_buf(), to.to_path_buf(), inode));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(|disk, _| {
            if !disk.names.contains_key(path) {
                return Err(missing(path));
            }
            disk.change(NameChange::Unlink(path.to_path_buf()));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.run(|disk, effect| {
            if !disk.directories.contains(dir) {
                return Err(missing(dir));
            }
            if *effect == Effect::Whole {
                let (synced, rest) =
                    std::mem::take(&mut disk.unsynced).into_iter().partition(|c| c.is_in(dir));
                disk.unsynced = rest;
                let synced: Vec<NameChange> = synced;
                synced.iter().for_each(|change| change.apply(&mut disk.durable_names));
            }
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let locked = self.run(|disk, effect| {
            disk.require_parent(path)?;
            if !disk.names.contains_key(path) {
                disk.inodes.push(Inode::default());
                let inode = disk.inodes.len() - 1;
                disk.change(NameChange::Link(path.to_path_buf(), inode));
            }
            // The caller of a failed call gets no guard that could release it.
            Ok(*effect == Effect::Whole && disk.locks.insert(path.to_path_buf()))
        })?;
        let path = path.to_path_buf();
        Ok(locked.then(|| Box::new(FaultyLock { vfs: self.clone(), path }) as Box<dyn VfsLock>))
    }
}

#[derive(Debug)]
struct FaultyLock {
    vfs: FaultyVfs,
    path: PathBuf,
}

impl VfsLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        self.vfs.disk().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct FaultyFile {
    vfs: FaultyVfs,
    inode: usize,
    writable: bool,
}

impl FaultyFile {
    fn run<T>(&self, effect: impl FnOnce(&mut Inode, &Effect) -> io::Result<T>) -> io::Result<T> {
        self.vfs.run(|disk, verdict| match disk.inodes.get_mut(self.inode) {
            Some(inode) => effect(inode, verdict),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn require_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl VfsFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.run(|inode, _| {
            let rest = inode.seen.get(position(offset)?..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.require_writable()?;
        self.run(|inode, effect| {
            let buf = if *effect == Effect::Half { &buf[..buf.len() / 2] } else { buf };
            let start = position(offset)?;
            let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
            if inode.seen.len() < end {
                inode.seen.resize(end, 0);
            }
            inode.seen[start..end].copy_from_slice(buf);
            inode.touch(start, end);
            Ok(())
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.run(|inode, effect| {
            if *effect == Effect::Whole {
                inode.sync();
            } else {
                inode.forsake();
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.run(|inode, _| Ok(inode.seen.len() as u64))
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.require_writable()?;
        self.run(|inode, _| {
            let (old, len) = (inode.seen.len(), position(len)?);
            inode.seen.resize(len, 0);
            inode.touch(old.min(len), old.max(len));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
