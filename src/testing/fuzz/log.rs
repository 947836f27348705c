//! The files of a log directory: damaged, made up, or changed behind right checksums.
//!
//! Checked: opening never panics; the same files give the same result; a directory that is refused
//! is left as it was; what is recovered is contiguous, is recovered again, and takes an append
//! that is there the next time.

mod image;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::input::Input;
use crate::error::StorageError;
use crate::log::wal::{Wal, WalOptions};
use crate::log::{LogBatch, LogStorage, Recovered};
use crate::types::{Entry, Identity};
use crate::vfs::{MemVfs, OpenMode, Vfs, read_full};
use image::Image;

const DIR: &str = "/log";
/// Small, so that a few writes change segments.
const SEGMENT: u64 = 1024;

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn options() -> WalOptions {
    WalOptions { segment_size: SEGMENT, prepare_ahead: false }
}

fn open(vfs: &MemVfs) -> Result<Wal, StorageError> {
    Wal::open(Arc::new(vfs.clone()), dir(), options())
}

/// Opens and loads.
fn load(vfs: &MemVfs) -> Result<(Wal, Recovered), StorageError> {
    let mut wal = open(vfs)?;
    let recovered = wal.load()?;
    Ok((wal, recovered))
}

/// Every file but the lock.
fn files(vfs: &MemVfs) -> BTreeMap<String, Vec<u8>> {
    let names = vfs.list(dir()).unwrap_or_default();
    let read = |name: String| {
        let file = vfs.open(&path(&name), OpenMode::Read).unwrap_or_else(|e| panic!("{e}"));
        let mut bytes = vec![0; file.len().unwrap_or(0) as usize];
        read_full(&*file, &mut bytes, 0).unwrap_or_else(|e| panic!("{e}"));
        (name, bytes)
    };
    names.into_iter().filter(|n| n != "LOCK").map(read).collect()
}

fn path(name: &str) -> PathBuf {
    dir().join(name)
}

fn write(vfs: &MemVfs, files: &BTreeMap<String, Vec<u8>>) {
    vfs.create_dir_all(dir()).unwrap_or_else(|e| panic!("{e}"));
    for (name, bytes) in files {
        let mut file = vfs.open(&path(name), OpenMode::Create).unwrap_or_else(|e| panic!("{e}"));
        file.write_all_at(bytes, 0).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// See the module. The first byte chooses the files to begin with, the rest changes them.
pub fn log_open(data: &[u8]) {
    let mut input = Input::new(data);
    let mut image = Image::choose(&mut input);
    image.change(&mut input);
    let vfs = MemVfs::default();
    write(&vfs, image.files());
    check(&vfs);
}

fn check(vfs: &MemVfs) {
    let before = files(vfs);
    let first = load(&vfs.fork());
    let found = |r: &Result<(Wal, Recovered), StorageError>| match r {
        Ok((_, recovered)) => Ok(recovered.clone()),
        Err(e) => Err(e.to_string()),
    };
    let second = load(vfs);
    assert_eq!(found(&first), found(&second), "the same files gave two results");
    let recovered = match second {
        Ok((wal, recovered)) => {
            drop(wal);
            recovered
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(files(vfs), before, "files were changed and then refused: {error}");
            return;
        }
    };
    consistent(&recovered);
    let recovered = Recovered { dropped_tail: None, ..recovered };
    reopen(vfs, &recovered, "recovered twice");
    if recovered.identity.is_some() {
        extend(vfs, recovered);
    }
}

fn consistent(r: &Recovered) {
    let above = r.compacted.index;
    for (i, entry) in r.entries.iter().enumerate() {
        let expected = above.checked_add(1 + i as u64);
        assert_eq!(Some(entry.index), expected, "a gap above {above}");
    }
}

fn reopen(vfs: &MemVfs, expected: &Recovered, what: &str) {
    let found = match load(vfs) {
        Ok((_, found)) => found,
        // The numbers were one step below what no log reaches: nothing is lost, and that is said.
        Err(e) if e.to_string().contains("no log has ever come") => return,
        Err(e) => panic!("{what}: refused: {e}"),
    };
    let found = Recovered { dropped_tail: None, ..found };
    assert_eq!(&found, expected, "{what}");
}

/// The log goes on where it was recovered.
fn extend(vfs: &MemVfs, mut expected: Recovered) {
    let last = expected.entries.last().map_or(expected.compacted.index, |e| e.index);
    let Some(index) = last.checked_add(1).filter(|i| *i < u64::MAX) else { return };
    let entry = Entry { index, term: 9, data: Bytes::from_static(b"more"), ..Entry::default() };
    let batch = LogBatch { entries: vec![entry.clone()], ..LogBatch::default() };
    let (mut wal, _) = load(vfs).unwrap_or_else(|e| panic!("refused before an append: {e}"));
    wal.append(&[batch]).unwrap_or_else(|e| panic!("an append above {last}: {e}"));
    drop(wal);
    expected.entries.push(entry);
    reopen(vfs, &expected, "after an append");
}

/// Bytes as the identity file of a directory; signed when the first byte is odd.
///
/// Checked: reading never panics and is the same by every door; what was read is read again after
/// it was written.
pub fn identity(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if kind & 1 == 1 {
        image::sign_identity(&mut bytes);
    }
    let vfs = MemVfs::default();
    write(&vfs, &BTreeMap::from([("identity".to_owned(), bytes)]));
    let peeked = Wal::peek(&vfs, dir());
    let opened = open(&vfs);
    match (&peeked, &opened) {
        (Ok(peeked), Ok(wal)) => assert_eq!(*peeked, wal.identity(), "two identities"),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string(), "two reasons"),
        (Ok(_), Err(e)) => panic!("a directory with only an identity is refused: {e}"),
        (Err(e), Ok(_)) => panic!("opened in spite of {e}"),
    }
    let (Ok(Some(found)), Ok(mut wal)) = (peeked, opened) else { return };
    // One that says that there was a log is refused: there is none.
    if wal.load().is_err() {
        return;
    }
    let next = Identity { boot: found.boot.wrapping_add(1), ..found };
    wal.identify(&next).unwrap_or_else(|e| panic!("not written again: {e}"));
    drop(wal);
    let again = Wal::peek(&vfs, dir()).unwrap_or_else(|e| panic!("not read again: {e}"));
    assert_eq!(again, Some(next), "changed on its way");
}
