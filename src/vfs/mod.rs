//! The file layer, injected: everything durable goes through it, so that tests can fail it.
//!
//! A [`Vfs`] names files by path and gives [`VfsFile`]s. Durability is explicit: the bytes of a
//! file survive after `sync_data`, its creation, rename or removal after `sync_dir`.

#[cfg(test)]
pub(crate) mod conformance;
mod memory;
mod real;

use std::fmt;
use std::io;
use std::path::Path;

pub use memory::MemVfs;
pub use real::RealVfs;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist.
    Create,
}

/// A file system. Object-safe and shared.
pub trait Vfs: fmt::Debug + Send + Sync + 'static {
    /// Creates a directory and its parents, for its owner only (0700); existing ones are fine.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Names of the files in a directory, unordered; directories are left out.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file; a created one is for its owner only (0600).
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>>;

    /// Renames a file over another, atomically.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of a directory, held until the guard is dropped or the process
    /// ends. None when somebody else holds it.
    ///
    /// # Errors
    /// Those of the file system.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>>;
}

/// Holds a directory lock until it is dropped.
pub trait VfsLock: fmt::Debug + Send + Sync {}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "an empty file is of no interest")]
pub trait VfsFile: fmt::Debug + Send {
    /// Reads at most `buf.len()` bytes at an offset; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of the file system.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at an offset.
    ///
    /// # Errors
    /// Those of the file system; any part of `buf` may have been written then.
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable (`fdatasync`).
    ///
    /// # Errors
    /// Those of the file system. What was written is lost or not; the file must not be used again.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends it (with zeros).
    ///
    /// # Errors
    /// Those of the file system.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// Reads from an offset until `buf` is full or the file ends; the number of bytes read.
///
/// # Errors
/// Those of the file system.
pub fn read_full(file: &dyn VfsFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
