//! What holds without any fault: the conformance suite, segments, space.

use super::*;
use crate::log::wal::frame::{SEAL_FRAME, Salt};
use crate::log::wal::recovery::Recovery;
use crate::testing::log_suite;
use crate::vfs::{MemVfs, OpenMode, RealVfs};

fn segments(vfs: &dyn Vfs) -> Vec<(String, u64)> {
    let mut names = vfs.list(dir()).unwrap();
    names.retain(|name| name.starts_with("wal-"));
    names.sort();
    let length = |name: &String| vfs.open(&dir().join(name), OpenMode::Read).unwrap().len();
    names.into_iter().map(|name| (name.clone(), length(&name).unwrap())).collect()
}

fn size(vfs: &dyn Vfs) -> u64 {
    segments(vfs).iter().map(|(_, length)| length).sum()
}

#[test]
fn conforms_in_memory_with_segments_of_every_size() {
    for (seed, segment_size, prepare_ahead) in
        [(1, 1 << 10, false), (2, 2 << 10, true), (3, 16 << 10, false), (4, 256 << 10, true)]
    {
        let vfs = Arc::new(MemVfs::default());
        let options = WalOptions { segment_size, prepare_ahead };
        log_suite::run_with(log_suite::Options { seed, steps: 300 }, || {
            Box::new(Wal::open(vfs.clone(), dir(), options).unwrap())
        });
    }
}

#[test]
fn conforms_on_disk() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("new/data");
    log_suite::run_with(log_suite::Options { seed: 5, steps: 60 }, || {
        let options = WalOptions { segment_size: 4 << 10, prepare_ahead: true };
        Box::new(Wal::open(Arc::new(RealVfs), &path, options).unwrap())
    });
}

/// Performance: one write and one sync for a call, however many batches it has; two of each when
/// term or vote change.
#[test]
fn an_append_is_one_write_and_one_sync() {
    let vfs = FaultyVfs::new();
    let mut wal = Wal::open(Arc::new(vfs.clone()), dir(), options(1 << 16)).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    wal.append(&[vote(1, 1)]).unwrap();
    let before = vfs.calls();
    wal.append(&[entries(1, 4, 1, 10), entries(5, 9, 1, 10), membership("m")]).unwrap();
    assert_eq!(vfs.calls() - before, 2);
    wal.append(&[vote(2, 1)]).unwrap();
    assert_eq!(vfs.calls() - before, 6);
    let same = LogBatch {
        hard_state: Some(HardState { term: 2, vote: 1, commit: 5 }),
        ..LogBatch::default()
    };
    wal.append(&[same]).unwrap();
    assert_eq!(vfs.calls() - before, 8);
}

/// Changing to a file that was used before costs an open, and no fill.
#[test]
fn freed_segments_are_used_again_or_given_back() {
    let vfs = MemVfs::default();
    let mut wal = open_on(Arc::new(vfs.clone())).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    let mut largest = 0;
    for round in 0..40 {
        let first = round * 10 + 1;
        for i in first..first + 10 {
            wal.append(&[entries(i, i, 1, 400)]).unwrap();
        }
        wal.append(&[snapshot(at(first + 9, 1), false)]).unwrap();
        wal.compact(at(first + 9, 1)).unwrap();
        largest = largest.max(size(&vfs));
    }
    assert!(largest <= 9 * SEGMENT, "{largest} bytes");
    let highest = segments(&vfs).pop().unwrap().0;
    assert!(highest.as_str() < "wal-00000012.seg", "new files instead of old ones: {highest}");
    let recovered = reload(&vfs, wal);
    assert_eq!(recovered.compacted, at(400, 1));
}

fn reload(vfs: &MemVfs, wal: Wal) -> Recovered {
    drop(wal);
    open_on(Arc::new(vfs.clone())).unwrap().load().unwrap()
}

#[test]
fn a_reset_gives_the_space_of_the_old_log_back() {
    let vfs = MemVfs::default();
    let mut wal = open_on(Arc::new(vfs.clone())).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    for i in 1..100 {
        wal.append(&[entries(i, i, 1, 800)]).unwrap();
    }
    assert!(size(&vfs) > 30 * SEGMENT);
    wal.append(&[reset(at(50, 2))]).unwrap();
    assert!(size(&vfs) <= 6 * SEGMENT, "{} bytes", size(&vfs));
    assert_eq!(reload(&vfs, wal).compacted, at(50, 2));
}

/// A node in a crash loop must not fill the disk.
#[test]
fn restarts_do_not_pile_up_segments() {
    let vfs = MemVfs::default();
    let mut wal = open_on(Arc::new(vfs.clone())).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    wal.append(&[entries(1, 3, 1, 100), vote(1, 1)]).unwrap();
    for round in 0..30 {
        drop(wal);
        wal = open_on(Arc::new(vfs.clone())).unwrap();
        let recovered = wal.load().unwrap();
        assert_eq!((recovered.entries.len(), recovered.hard_state.vote), (3, 1));
        assert_eq!(recovered.dropped_tail, None);
        if round % 3 == 0 {
            wal.close().unwrap();
        }
    }
    assert!(segments(&vfs).len() <= 6, "{:?}", segments(&vfs));
}

#[test]
fn one_batch_may_be_larger_than_a_segment() {
    let vfs = MemVfs::default();
    let mut wal = open_on(Arc::new(vfs.clone())).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    let large = entries(1, 3, 1, 1 << 20);
    wal.append(std::slice::from_ref(&large)).unwrap();
    wal.append(&[vote(2, 2), entries(4, 4, 2, 10)]).unwrap();
    let recovered = reload(&vfs, wal);
    assert_eq!(recovered.entries[..3], large.entries);
    assert_eq!(recovered.entries.len(), 4);
}

/// The last segment's files differ from run to run of recovery, what it finds never does.
#[test]
fn recovery_only_reads() {
    let vfs = FaultyVfs::new();
    let mut wal = open(&vfs).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    wal.append(&[vote(1, 1), entries(1, 9, 1, 150)]).unwrap();
    wal.append(&[entries(7, 9, 1, 150)]).unwrap();
    let image = vfs.fork();
    let paths: Vec<_> = segments(&image).iter().map(|(name, _)| dir().join(name)).collect();
    let incarnation = identity(1).incarnation;
    let recovery = Recovery { vfs: &image, incarnation, salt: Salt::of(incarnation) };
    let before: Vec<_> = paths.iter().map(|p| image.contents(p)).collect();
    let (first, second) = (recovery.run(&paths).unwrap(), recovery.run(&paths).unwrap());
    assert_eq!(first, second);
    assert_eq!(before, paths.iter().map(|p| image.contents(p)).collect::<Vec<_>>());
    assert_eq!(first.pending, [entries(7, 9, 1, 150)]);
}

/// The thread that prepares segments is gone when the log is.
#[test]
fn nothing_is_written_after_the_log_is_dropped() {
    let vfs = FaultyVfs::new();
    for round in 0..20 {
        let options = WalOptions { segment_size: SEGMENT, prepare_ahead: true };
        let mut wal = Wal::open(Arc::new(vfs.clone()), dir(), options).unwrap();
        wal.load().unwrap();
        if round == 0 {
            wal.identify(&identity(1)).unwrap();
        }
        wal.append(&[entries(round + 1, round + 1, 1, 1200)]).unwrap();
        drop(wal);
        let calls = vfs.calls();
        assert!(vfs.lock(&dir().join("LOCK")).unwrap().is_some(), "the lock is free");
        assert_eq!(vfs.calls(), calls + 1);
    }
}

#[test]
fn calls_out_of_order_are_refused() {
    let vfs = FaultyVfs::new();
    let refused = |result: Result<(), StorageError>| {
        assert!(matches!(result, Err(StorageError::Contract(_))), "{result:?}");
    };
    let mut wal = open(&vfs).unwrap();
    refused(wal.append(&[vote(1, 1)]));
    refused(wal.identify(&identity(1)));
    wal.load().unwrap();
    refused(wal.load().map(drop));
    refused(wal.append(&[vote(1, 1)]));
    wal.identify(&identity(1)).unwrap();
    wal.append(&[vote(1, 1)]).unwrap();
    let other = Identity { incarnation: Incarnation::from_u128(1), ..identity(1) };
    refused(wal.identify(&other));
    wal.close().unwrap();
    refused(wal.append(&[vote(2, 1)]));
    wal.close().unwrap();
}

/// Where a segment is full to the last byte, the seal still fits.
#[test]
fn every_fill_of_a_segment_leaves_room_for_the_seal() {
    for size in (SEGMENT as usize - 3 * SEAL_FRAME - 300)..(SEGMENT as usize - 100) {
        let vfs = MemVfs::default();
        let mut wal = open_on(Arc::new(vfs.clone())).unwrap();
        wal.load().unwrap();
        wal.identify(&identity(1)).unwrap();
        wal.append(&[LogBatch { entries: entries(1, 1, 1, size).entries, ..vote(1, 1) }]).unwrap();
        wal.append(&[vote(2, 1)]).unwrap();
        let recovered = reload(&vfs, wal);
        assert_eq!(recovered.hard_state.term, 2, "size {size}");
        assert_eq!(recovered.entries.len(), 1);
    }
}
