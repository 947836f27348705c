//! Every call of the file layer failing in turn: fail-stop, and nothing acknowledged is lost (R5).

use super::*;
use crate::testing::vfs::Fault;

#[test]
fn after_any_failed_call_the_log_stops_and_loses_nothing() {
    for (name, steps) in scripts() {
        for fault in [Fault::Io, Fault::Full, Fault::Short] {
            let mut call = 1;
            while fails_cleanly(name, &steps, call, fault) {
                call += 1;
            }
            assert!(call > 30, "{name}: only {call} calls");
        }
    }
}

/// Whether the workload met the fault.
fn fails_cleanly(name: &str, steps: &[Step], call: u64, fault: Fault) -> bool {
    let what = format!("{name}: {fault:?} at call {call}");
    let vfs = FaultyVfs::new();
    vfs.fail_at(call, fault);
    let mut acknowledged = Recovered::default();
    let mut allowed = vec![acknowledged.clone()];
    let Ok(mut wal) = open(&vfs) else { return true };
    if let Err(error) = wal.load() {
        require_poisoned(&mut wal, &vfs, &error, &what);
        return true;
    }
    let mut failed = false;
    for step in steps {
        let states = step.states(&acknowledged);
        if let Err(error) = step.run(&mut wal) {
            require_poisoned(&mut wal, &vfs, &error, &what);
            allowed.extend(states);
            failed = true;
            break;
        }
        acknowledged.clone_from(states.last().unwrap());
        allowed = vec![acknowledged.clone()];
    }
    drop(wal);
    let (_, found, _) = load(&vfs.fork()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(allowed.contains(&found), "{what}: found {found:?}, allowed {allowed:?}");
    failed
}

fn require_poisoned(wal: &mut Wal, vfs: &FaultyVfs, error: &StorageError, what: &str) {
    assert!(matches!(error, StorageError::Io { .. }), "{what}: {error}");
    assert!(error.to_string().contains("/data/log"), "{what}: {error}");
    let calls = vfs.calls();
    let results = [
        wal.append(&[vote(9, 9)]),
        wal.compact(at(1, 1)),
        wal.identify(&identity(9)),
        wal.close(),
        wal.load().map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(StorageError::Poisoned)), "{what}: {result:?}");
    }
    assert_eq!(vfs.calls(), calls, "{what}: the files were touched after the failure");
}

/// A failure in the thread that prepares segments is met again by the log, or not at all.
#[test]
fn a_failed_preparation_is_tried_again_with_another_file() {
    let vfs = FaultyVfs::new();
    let options = WalOptions { segment_size: SEGMENT, prepare_ahead: true };
    let mut wal = Wal::open(Arc::new(vfs.clone()), dir(), options).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    wal.append(&[entries(1, 1, 1, 100)]).unwrap();
    // Write and sync of this append, then the creation of the file prepared ahead.
    vfs.fail_at(3, Fault::Full);
    wal.append(&[entries(2, 2, 1, 1200)]).unwrap();
    wal.append(&[entries(3, 3, 1, 1200)]).unwrap();
    drop(wal);
    assert_eq!(load(&vfs).unwrap().1.entries.len(), 3);
}

/// A disk that is nearly full must not be filled by what is left of files that were never used,
/// start after start.
#[test]
fn a_segment_that_could_not_be_made_leaves_nothing_behind() {
    let names = |vfs: &FaultyVfs| {
        let mut names = vfs.list(dir()).unwrap();
        names.sort();
        names
    };
    // Creation, filling, sync and sync of the directory, in this order.
    for call in 1..=4 {
        let vfs = FaultyVfs::new();
        let (mut wal, ..) = load(&vfs).unwrap();
        wal.identify(&identity(1)).unwrap();
        wal.append(&[entries(1, 1, 1, 1200)]).unwrap();
        let before = names(&vfs);
        vfs.fail_at(call, Fault::Full);
        let error = wal.append(&[entries(2, 2, 1, 1200)]).unwrap_err();
        assert!(error.to_string().contains("wal-00000002.seg") || call == 4, "{call}: {error}");
        drop(wal);
        assert_eq!(names(&vfs), before, "call {call}");
    }
}
