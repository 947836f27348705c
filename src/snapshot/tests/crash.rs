//! A snapshot after a crash or a fault at any call of the file system: whole or not there.

use super::*;
use crate::testing::vfs::{CrashStyle, Fault, FaultyVfs};
use crate::vfs::{RealVfs, Vfs};

const OLD: &[u8] = b"the old state";
const SEEDS: u64 = 40;

fn new_state() -> Vec<u8> {
    (0..3000u32).map(|i| (i % 251) as u8).collect()
}

/// How far the workload got.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    old: bool,
    new: bool,
    retaining: bool,
}

/// Writes one snapshot, then a newer one in pieces, then drops the first.
fn workload(vfs: &FaultyVfs, done: &mut Done) -> Result<(), StorageError> {
    let dir = SnapshotDir::open(Arc::new(vfs.clone()), "/snap")?;
    let mut writer = dir.create(at(5), membership(1))?;
    writer.write(OLD)?;
    writer.finish()?;
    done.old = true;
    let state = new_state();
    let mut writer = dir.receive(SnapshotMeta {
        position: at(9),
        membership: membership(1),
        size: state.len() as u64,
        crc32: crc32fast::hash(&state),
    })?;
    for piece in state.chunks(1000) {
        writer.write(piece)?;
    }
    writer.finish()?;
    done.new = true;
    done.retaining = true;
    dir.retain(9, |_| false)?;
    Ok(())
}

/// What is there after it is whole, and what was acknowledged is there.
fn check(vfs: &FaultyVfs, done: Done, what: &str) {
    let dir = SnapshotDir::open(Arc::new(vfs.clone()), "/snap").unwrap();
    let mut found = Vec::new();
    for meta in dir.metas().unwrap() {
        let meta = meta.unwrap_or_else(|e| panic!("{what}: {e}"));
        let reader = dir.open_snapshot(meta.position).unwrap();
        let body = reader.read_all().unwrap_or_else(|e| panic!("{what}: {e}"));
        let expected = if meta.position == at(5) { OLD.to_vec() } else { new_state() };
        assert_eq!(body, expected, "{what}");
        found.push(meta.position.index);
    }
    assert!(!done.new || found.contains(&9), "{what}: {done:?}, found {found:?}");
    assert!(!done.old || done.retaining || found.contains(&5), "{what}: {done:?}, {found:?}");
    let temps = Vfs::list(vfs, std::path::Path::new("/snap")).unwrap();
    assert_eq!(temps.len(), found.len(), "{what}: left over: {temps:?}");
}

fn calls_of_the_workload() -> u64 {
    let vfs = FaultyVfs::new();
    workload(&vfs, &mut Done::default()).unwrap();
    vfs.calls()
}

#[test]
fn after_a_loss_of_power_a_snapshot_is_whole_or_not_there() {
    for call in 1..=calls_of_the_workload() {
        let vfs = FaultyVfs::new();
        vfs.fail_at(call, Fault::PowerOff);
        let mut done = Done::default();
        let _ = workload(&vfs, &mut done);
        let seeds = (0..SEEDS).map(CrashStyle::Seeded);
        for style in [CrashStyle::KeepAll, CrashStyle::LoseAll].into_iter().chain(seeds) {
            check(&vfs.crash(style), done, &format!("power lost at call {call}, {style:?}"));
        }
    }
}

#[test]
fn after_a_fault_at_any_call_the_older_snapshot_is_intact() {
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        for call in 1..=calls_of_the_workload() {
            let vfs = FaultyVfs::new();
            vfs.fail_at(call, fault);
            let mut done = Done::default();
            let what = format!("{fault:?} at call {call}");
            let error = workload(&vfs, &mut done).unwrap_err();
            assert!(matches!(error, StorageError::Io { .. }), "{what}: {error}");
            assert!(error.to_string().contains("/snap"), "{what}: {error}");
            check(&vfs.fork(), done, &what);
        }
    }
}

#[test]
fn real_files_hold_what_was_written() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("node/snapshots");
    let dir = SnapshotDir::open(Arc::new(RealVfs), &path).unwrap();
    let old = write(&dir, 5, OLD);
    let new = write(&dir, 9, &new_state());
    std::fs::write(path.join("snapshot-00000000000000000010-3.snap.7.snap.tmp"), b"half").unwrap();
    let dir = SnapshotDir::open(Arc::new(RealVfs), &path).unwrap();
    let metas: Vec<_> = dir.metas().unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(metas, [new.clone(), old]);
    assert_eq!(dir.open_snapshot(new.position).unwrap().read_all().unwrap(), new_state());
    assert_eq!(dir.retain(9, |_| false).unwrap(), 1);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    // A write that is refused by the directory: the error names it, and nothing is left.
    drop(temp);
    let error = dir.create(at(11), membership(1)).unwrap_err();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
}
