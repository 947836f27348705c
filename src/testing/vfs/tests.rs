//! The faulty file system fails as it says.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

const DIR: &str = "/d";

fn with_file(bytes: &[u8]) -> (FaultyVfs, PathBuf) {
    let vfs = FaultyVfs::new();
    let path = Path::new(DIR).join("f");
    vfs.create_dir_all(Path::new(DIR)).unwrap();
    let mut file = vfs.open(&path, OpenMode::Create).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    (vfs, path)
}

#[test]
fn behaves_as_every_vfs() {
    crate::vfs::conformance::run(&FaultyVfs::new(), Path::new("/a/b"));
}

#[test]
fn only_what_was_synced_is_sure_to_survive() {
    let (vfs, path) = with_file(&[7; 2000]);
    assert_eq!(vfs.crash(CrashStyle::LoseAll).contents(&path), None);
    vfs.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(vfs.crash(CrashStyle::LoseAll).contents(&path), Some(vec![]));
    let mut file = vfs.open(&path, OpenMode::Write).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&[8; 2000], 0).unwrap();
    assert_eq!(vfs.crash(CrashStyle::LoseAll).contents(&path), Some(vec![7; 2000]));
    assert_eq!(vfs.crash(CrashStyle::KeepAll).contents(&path), Some(vec![8; 2000]));
    let states: BTreeSet<Vec<u8>> =
        (0..50).map(|seed| vfs.crash(CrashStyle::Seeded(seed)).contents(&path).unwrap()).collect();
    assert!(states.len() > 40, "{} states", states.len());
}

#[test]
fn renames_and_removals_wait_for_their_directory() {
    let (vfs, path) = with_file(b"x");
    let (dir, other) = (Path::new(DIR), Path::new(DIR).join("g"));
    vfs.sync_dir(dir).unwrap();
    vfs.rename(&path, &other).unwrap();
    let lost = vfs.crash(CrashStyle::LoseAll);
    assert!(lost.contents(&path).is_some() && lost.contents(&other).is_none());
    vfs.sync_dir(dir).unwrap();
    vfs.remove(&other).unwrap();
    assert!(vfs.crash(CrashStyle::LoseAll).contents(&other).is_some());
    assert!(vfs.crash(CrashStyle::KeepAll).contents(&other).is_none());
}

#[test]
fn the_call_that_is_told_to_fail_does() {
    let (vfs, path) = with_file(b"0123");
    let mut file = vfs.open(&path, OpenMode::Write).unwrap();
    vfs.fail_at(2, Fault::Full);
    file.write_all_at(b"a", 0).unwrap();
    assert_eq!(file.write_all_at(b"b", 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
    vfs.fail_at(1, Fault::Short);
    file.write_all_at(b"cdef", 0).unwrap_err();
    assert_eq!(vfs.contents(&path).unwrap(), b"cd23");
    vfs.fail_at(1, Fault::PowerOff);
    file.write_all_at(b"z", 3).unwrap_err();
    assert!(file.sync_data().is_err() && vfs.list(Path::new(DIR)).is_err());
    assert_eq!(vfs.crash(CrashStyle::KeepAll).contents(&path).unwrap(), b"cd2z");
}

/// After a failed sync, a later one succeeds and still makes nothing of it durable.
#[test]
fn a_failed_sync_is_never_made_good() {
    let (vfs, path) = with_file(b"old");
    vfs.sync_dir(Path::new(DIR)).unwrap();
    let mut file = vfs.open(&path, OpenMode::Write).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(b"new", 0).unwrap();
    vfs.fail_at(1, Fault::Short);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(vfs.contents(&path).unwrap(), b"new");
    assert_eq!(vfs.crash(CrashStyle::LoseAll).contents(&path).unwrap(), b"old");
}
