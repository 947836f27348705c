//! What every file layer must do alike; the tests of each run it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::ErrorKind;
use std::path::Path;

use super::{OpenMode, Vfs, read_full};

pub(crate) fn run(vfs: &dyn Vfs, dir: &Path) {
    directories(vfs, dir);
    contents(vfs, &dir.join("one"));
    names(vfs, dir);
    locks(vfs, &dir.join("LOCK"));
}

fn directories(vfs: &dyn Vfs, dir: &Path) {
    assert_eq!(vfs.list(dir).unwrap_err().kind(), ErrorKind::NotFound);
    let orphan = vfs.open(&dir.join("f"), OpenMode::Create).unwrap_err();
    assert_eq!(orphan.kind(), ErrorKind::NotFound);
    vfs.create_dir_all(dir).unwrap();
    vfs.create_dir_all(dir).unwrap();
    assert!(vfs.list(dir).unwrap().is_empty());
    vfs.sync_dir(dir).unwrap();
}

fn contents(vfs: &dyn Vfs, path: &Path) {
    assert_eq!(vfs.open(path, OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(vfs.open(path, OpenMode::Write).unwrap_err().kind(), ErrorKind::NotFound);
    let mut file = vfs.open(path, OpenMode::Create).unwrap();
    assert_eq!(vfs.open(path, OpenMode::Create).unwrap_err().kind(), ErrorKind::AlreadyExists);
    file.write_all_at(b"world", 3).unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.len().unwrap(), 8);
    let mut buf = [9; 10];
    assert_eq!(read_full(&*file, &mut buf, 0).unwrap(), 8);
    assert_eq!(&buf, b"\0\0\0world\x09\x09");
    assert_eq!(read_full(&*file, &mut buf, 100).unwrap(), 0);
    file.set_len(4).unwrap();
    file.set_len(6).unwrap();
    let mut reader = vfs.open(path, OpenMode::Read).unwrap();
    assert_eq!(read_full(&*reader, &mut buf, 2).unwrap(), 4);
    assert_eq!(&buf[..4], b"\0w\0\0");
    assert!(reader.write_all_at(b"x", 0).is_err());
}

fn names(vfs: &dyn Vfs, dir: &Path) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    vfs.open(&two, OpenMode::Create).unwrap();
    vfs.create_dir_all(&dir.join("inner")).unwrap();
    let mut names = vfs.list(dir).unwrap();
    names.sort();
    assert_eq!(names, ["one", "two"]);
    vfs.rename(&one, &two).unwrap();
    assert_eq!(vfs.list(dir).unwrap(), ["two"]);
    assert_eq!(vfs.open(&two, OpenMode::Read).unwrap().len().unwrap(), 6);
    vfs.remove(&two).unwrap();
    assert_eq!(vfs.remove(&two).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(vfs.list(dir).unwrap().is_empty());
}

fn locks(vfs: &dyn Vfs, path: &Path) {
    let held = vfs.lock(path).unwrap().unwrap();
    assert!(vfs.lock(path).unwrap().is_none());
    drop(held);
    assert!(vfs.lock(path).unwrap().is_some());
}
