//! A file system in memory: nothing survives the process, everything else is as on disk.
//!
//! Clones share their files, so that a test, or a node that was dropped, finds them again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{OpenMode, Vfs, VfsFile, VfsLock};

type Bytes = Arc<Mutex<Vec<u8>>>;

/// Files in memory.
#[derive(Clone, Debug, Default)]
pub struct MemVfs {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Bytes>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct MemFile {
    bytes: Bytes,
    writable: bool,
}

#[derive(Debug)]
struct MemLock {
    tree: Arc<Mutex<Tree>>,
    path: PathBuf,
}

// A panic elsewhere leaves plain bytes behind: nothing here can be half changed.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl Tree {
    fn require_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(dir) if !self.directories.contains(dir) && !dir.as_os_str().is_empty() => {
                Err(missing(dir))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl MemVfs {
    /// An independent copy of every file as it is now, without locks.
    #[must_use]
    pub fn fork(&self) -> Self {
        let tree = held(&self.tree);
        let files =
            tree.files.iter().map(|(p, b)| (p.clone(), Arc::new(Mutex::new(held(b).clone()))));
        let copy = Tree {
            files: files.collect(),
            directories: tree.directories.clone(),
            locks: BTreeSet::new(),
        };
        Self { tree: Arc::new(Mutex::new(copy)) }
    }
}

impl Vfs for MemVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut tree = held(&self.tree);
        for part in dir.ancestors() {
            if tree.files.contains_key(part) {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("{} is a file", part.display()),
                ));
            }
            tree.directories.insert(part.to_path_buf());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let tree = held(&self.tree);
        if !tree.directories.contains(dir) {
            return Err(missing(dir));
        }
        let inside = tree.files.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned())).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        let mut tree = held(&self.tree);
        let bytes = match (mode, tree.files.get(path)) {
            (OpenMode::Read | OpenMode::Write, Some(bytes)) => bytes.clone(),
            (OpenMode::Read | OpenMode::Write, None) => return Err(missing(path)),
            (OpenMode::Create, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Create, None) => {
                tree.require_parent(path)?;
                let bytes = Bytes::default();
                tree.files.insert(path.to_path_buf(), bytes.clone());
                bytes
            }
        };
        Ok(Box::new(MemFile { bytes, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = held(&self.tree);
        tree.require_parent(to)?;
        let bytes = tree.files.remove(from).ok_or_else(|| missing(from))?;
        tree.files.insert(to.to_path_buf(), bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        held(&self.tree).files.remove(path).map(drop).ok_or_else(|| missing(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if held(&self.tree).directories.contains(dir) { Ok(()) } else { Err(missing(dir)) }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut tree = held(&self.tree);
        tree.require_parent(path)?;
        tree.files.entry(path.to_path_buf()).or_default();
        if !tree.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        drop(tree);
        Ok(Some(Box::new(MemLock { tree: self.tree.clone(), path: path.to_path_buf() })))
    }
}

impl VfsLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        held(&self.tree).locks.remove(&self.path);
    }
}

/// Where a range of a file in memory begins, if this machine can address it.
fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl MemFile {
    fn require_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl VfsFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = held(&self.bytes);
        let rest = bytes.get(position(offset)?..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.require_writable()?;
        let start = position(offset)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let mut bytes = held(&self.bytes);
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(held(&self.bytes).len() as u64)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.require_writable()?;
        held(&self.bytes).resize(position(len)?, 0);
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::vfs::conformance;

    #[test]
    fn behaves_as_every_vfs() {
        conformance::run(&MemVfs::default(), Path::new("/a/b"));
    }

    #[test]
    fn clones_share_and_forks_do_not() {
        let vfs = MemVfs::default();
        let dir = Path::new("/d");
        vfs.create_dir_all(dir).unwrap();
        let (clone, fork) = (vfs.clone(), vfs.fork());
        vfs.open(&dir.join("f"), OpenMode::Create).unwrap();
        assert_eq!(clone.list(dir).unwrap(), ["f"]);
        assert!(fork.list(dir).unwrap().is_empty());
    }
}
