//! Snapshot files: complete or absent, damaged or intact, nothing between.
#![expect(clippy::unwrap_used, reason = "tests")]

mod crash;

use std::sync::Arc;

use bytes::Bytes;

use super::dir::SnapshotDir;
use super::fake_disk::{Failing, FakeDisk};
use crate::error::StorageError;
use crate::types::{
    ClusterId, ConfState, Incarnation, Index, Member, Membership, Position, SnapshotMeta,
};

fn membership(index: Index) -> Membership {
    Membership {
        cluster_id: ClusterId::from_u128(7),
        index,
        conf_state: ConfState { voters: vec![1], ..ConfState::default() },
        members: vec![Member {
            node_id: 1,
            raft_id: 1,
            incarnation: Incarnation::from_u128(8),
            addr: "a:1".to_owned(),
            metadata: Bytes::new(),
            learner_only: false,
        }],
        next_raft_id: 2,
    }
}

fn at(index: Index) -> Position {
    Position { index, term: 3 }
}

fn open(disk: &FakeDisk) -> SnapshotDir {
    SnapshotDir::open(Arc::new(disk.clone()), "/snap").unwrap()
}

fn write(dir: &SnapshotDir, index: Index, body: &[u8]) -> SnapshotMeta {
    let mut writer = dir.create(at(index), membership(1)).unwrap();
    writer.write(body).unwrap();
    writer.finish().unwrap()
}

const NAME_9: &str = "snapshot-00000000000000000009-3.snap";

#[test]
fn what_is_written_is_read_back_in_chunks_and_whole() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    let body: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
    let mut writer = dir.create(at(9), membership(5)).unwrap();
    for part in body.chunks(777) {
        writer.write(part).unwrap();
    }
    let meta = writer.finish().unwrap();
    assert_eq!((meta.size, meta.crc32), (10_000, crc32fast::hash(&body)));
    assert_eq!(meta.membership, membership(5));
    assert_eq!(disk.names(), [NAME_9]);

    let dir = open(&disk);
    assert_eq!(dir.meta(at(9)).unwrap(), meta);
    assert_eq!(dir.latest().unwrap(), Some(meta.clone()));
    let mut reader = dir.open_snapshot(at(9)).unwrap();
    assert_eq!(reader.meta(), &meta);
    reader.verify().unwrap();
    let mut found = Vec::new();
    while let Some(chunk) = reader.next_chunk(4096).unwrap() {
        assert!(chunk.len() <= 4096);
        found.extend_from_slice(&chunk);
    }
    assert_eq!(found, body);
    assert_eq!(reader.next_chunk(1).unwrap(), None, "the end stays the end");
    assert_eq!(dir.open_snapshot(at(9)).unwrap().read_all().unwrap(), body);
}

/// What is written at once at the end would hold up the log, which is on the same disk, for as
/// long as that takes.
#[test]
fn a_large_state_is_synced_on_its_way() {
    let body = vec![7; 5 << 20];
    for part in [body.len(), 256 << 10, 3 << 20] {
        let disk = FakeDisk::default();
        let mut writer = open(&disk).create(at(9), membership(5)).unwrap();
        for part in body.chunks(part) {
            writer.write(part).unwrap();
        }
        let meta = writer.finish().unwrap();
        assert_eq!((meta.size, meta.crc32), (5 << 20, crc32fast::hash(&body)));
        let head = 1 << 10;
        assert!(disk.most_unsynced() <= (4 << 20) + head, "{} at once", disk.most_unsynced());
        open(&disk).open_snapshot(at(9)).unwrap().verify().unwrap();
    }
}

#[test]
fn an_empty_state_is_a_snapshot_too() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    let meta = write(&dir, 2, b"");
    assert_eq!(meta.size, 0);
    assert!(dir.open_snapshot(at(2)).unwrap().read_all().unwrap().is_empty());
}

/// The format of release 1: these bytes must be readable for ever.
#[test]
fn the_format_is_fixed() {
    let disk = FakeDisk::default();
    write(&open(&disk), 9, b"hello");
    let mut expected = b"RAFTSNAP".to_vec();
    expected.extend_from_slice(&[1, 0, 0, 0, 103, 0, 0, 0, 70, 0, 0, 0]);
    expected.extend_from_slice(&[8, 9, 16, 3, 26, 56]);
    expected.extend_from_slice(&[10, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    expected.extend_from_slice(&[16, 1, 26, 3, 10, 1, 1, 34, 27, 8, 1, 16, 1, 26, 16]);
    expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    expected.extend_from_slice(&[34, 3, 97, 58, 49, 40, 2]);
    expected.extend_from_slice(&[32, 5, 40, 134, 205, 194, 176, 3]);
    expected.extend_from_slice(&[0; 9]);
    expected.extend_from_slice(&[112, 209, 81, 77]);
    expected.extend_from_slice(b"hello");
    let found = disk.bytes(NAME_9);
    assert_eq!(found, expected, "{found:?}");
}

#[test]
fn every_flipped_bit_every_cut_and_every_added_byte_is_detected() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    write(&dir, 9, b"some state");
    let path = format!("/snap/{NAME_9}");
    let image = disk.bytes(NAME_9);
    let read = || dir.open_snapshot(at(9)).and_then(|mut r| r.verify());
    read().unwrap();
    let whole = || dir.open_snapshot(at(9)).and_then(super::SnapshotReader::read_all);
    for bit in 0..image.len() * 8 {
        let mut damaged = image.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        disk.put(&path, damaged);
        for error in [read().unwrap_err(), whole().unwrap_err()] {
            assert!(matches!(error, StorageError::Corrupt { .. }), "bit {bit}: {error}");
        }
    }
    for len in 0..image.len() {
        disk.put(&path, image[..len].to_vec());
        assert!(matches!(read().unwrap_err(), StorageError::Corrupt { .. }), "cut at {len}");
    }
    disk.put(&path, [&image[..], b"x"].concat());
    assert!(matches!(read().unwrap_err(), StorageError::Corrupt { .. }));
}

#[test]
fn a_newer_format_is_refused_in_words() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    write(&dir, 9, b"some state");
    let mut image = disk.bytes(NAME_9);
    image[8] = 2;
    let end = image.len() - b"some state".len() - 4;
    let crc = crc32fast::hash(&image[..end]);
    image[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    disk.put(format!("/snap/{NAME_9}"), image);
    let error = dir.meta(at(9)).unwrap_err();
    assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[test]
fn snapshots_are_listed_newest_first_and_damage_is_told() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    for index in [5, 20, 9] {
        write(&dir, index, b"state");
    }
    disk.put("/snap/snapshot-00000000000000000020-3.snap", b"garbage".to_vec());
    disk.put("/snap/snapshot-9-3.snap", b"odd name".to_vec());
    disk.put("/snap/notes.txt", b"a person's".to_vec());
    let metas = dir.metas().unwrap();
    let found: Vec<_> =
        metas.iter().map(|m| m.as_ref().map(|m| m.position.index).map_err(drop)).collect();
    assert_eq!(found, [Err(()), Ok(9), Ok(5), Err(())]);
    assert_eq!(dir.latest().unwrap().map(|m| m.position), Some(at(9)));
    let error = dir.open_snapshot(at(20)).unwrap_err();
    assert!(error.to_string().contains("snapshot-00000000000000000020-3.snap"), "{error}");
}

#[test]
fn a_file_under_another_ones_name_is_refused() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    write(&dir, 9, b"state");
    disk.put("/snap/snapshot-00000000000000000010-3.snap", disk.bytes(NAME_9));
    assert!(matches!(dir.meta(at(10)).unwrap_err(), StorageError::Foreign { .. }));
    assert!(
        matches!(dir.open_snapshot(at(11)).unwrap_err(), StorageError::Io { .. }),
        "none there"
    );
}

#[test]
fn a_received_snapshot_must_be_what_was_announced() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    let meta = SnapshotMeta {
        position: at(9),
        membership: membership(5),
        size: 5,
        crc32: crc32fast::hash(b"hello"),
    };
    let mut long = dir.receive(meta.clone()).unwrap();
    long.write(b"hell").unwrap();
    assert!(matches!(long.write(b"oo").unwrap_err(), StorageError::Corrupt { .. }));
    assert!(matches!(long.write(b"o").unwrap_err(), StorageError::Contract(_)));
    drop(long);
    for wrong in [&b"hell"[..], b"hellO"] {
        let mut writer = dir.receive(meta.clone()).unwrap();
        writer.write(wrong).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(error.to_string().contains("not what was announced"), "{error}");
    }
    assert!(disk.names().is_empty(), "a mismatch leaves nothing behind");
    let mut right = dir.receive(meta.clone()).unwrap();
    right.write(b"hello").unwrap();
    assert_eq!(right.finish().unwrap(), meta);
    assert_eq!(dir.metas().unwrap().len(), 1);
}

#[test]
fn a_membership_from_after_the_snapshot_is_refused() {
    let disk = FakeDisk::default();
    let error = open(&disk).create(at(9), membership(10)).unwrap_err();
    assert!(matches!(error, StorageError::Contract(_)), "{error}");
    assert!(disk.names().is_empty());
}

/// A fault at each call of the file system: an error that names the file, and nothing left.
#[test]
fn a_failing_disk_leaves_nothing_and_says_where() {
    for failing in [Failing::Open, Failing::Write, Failing::Sync, Failing::Rename] {
        let disk = FakeDisk::default();
        let dir = open(&disk);
        write(&dir, 5, b"older");
        disk.fail(Some(failing));
        let result = dir.create(at(9), membership(1)).and_then(|mut w| {
            w.write(b"state")?;
            w.finish()
        });
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }), "{failing:?}: {error}");
        assert!(error.to_string().contains("snapshot-00000000000000000009-3"), "{error}");
        disk.fail(None);
        assert_eq!(dir.latest().unwrap().map(|m| m.position), Some(at(5)), "{failing:?}");
        assert_eq!(disk.names().len(), 1, "{failing:?} left something: {:?}", disk.names());
    }
    let disk = FakeDisk::default();
    let dir = open(&disk);
    disk.fail(Some(Failing::SyncDir));
    let result = dir.create(at(9), membership(1)).and_then(super::dir::SnapshotWriter::finish);
    assert!(matches!(result.unwrap_err(), StorageError::Io { .. }));
}

#[test]
fn an_unfinished_file_is_removed_by_its_writer_or_at_the_next_open() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    let mut writer = dir.create(at(9), membership(1)).unwrap();
    writer.write(b"half").unwrap();
    assert_eq!(disk.names().len(), 1);
    drop(writer);
    assert!(disk.names().is_empty());
    disk.put("/snap/snapshot-00000000000000000009-3.snap.0.snap.tmp", b"crashed".to_vec());
    disk.put("/snap/notes.txt", b"kept".to_vec());
    open(&disk);
    assert_eq!(disk.names(), ["notes.txt"]);
}

#[test]
fn retain_removes_older_ones_but_for_those_in_use() {
    let disk = FakeDisk::default();
    let dir = open(&disk);
    for index in [5, 9, 20, 30] {
        write(&dir, index, b"state");
    }
    assert_eq!(dir.retain(20, |index| index == 5).unwrap(), 1);
    let left: Vec<_> =
        dir.metas().unwrap().into_iter().map(|m| m.unwrap().position.index).collect();
    assert_eq!(left, [30, 20, 5]);
    assert_eq!(dir.retain(20, |_| false).unwrap(), 1);
    assert_eq!(dir.retain(20, |_| false).unwrap(), 0);
}
