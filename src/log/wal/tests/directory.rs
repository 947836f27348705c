//! Who may use a directory, and what is said to the others (R18).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::*;
use crate::log::wal::examine;
use crate::log::wal::frame::MAX_NUMBER;
use crate::log::wal::record::{Compaction, Frame};
use crate::log::wal::segment::{Link, SEGMENT_HEADER, SegmentHeader, Start};
use crate::testing::vfs::Fault;
use crate::vfs::{OpenMode, RealVfs, VfsFile, VfsLock};

fn with_log() -> FaultyVfs {
    let vfs = FaultyVfs::new();
    let (mut wal, ..) = load(&vfs).unwrap();
    wal.identify(&identity(1)).unwrap();
    wal.append(&[vote(1, 1), entries(1, 3, 1, 900)]).unwrap();
    wal.append(&[entries(4, 6, 1, 500)]).unwrap();
    wal.append(&[entries(7, 9, 1, 500)]).unwrap();
    vfs
}

fn refusal(vfs: &FaultyVfs) -> String {
    let error = load(vfs).unwrap_err();
    assert!(
        matches!(error, StorageError::Foreign { .. } | StorageError::Corrupt { .. }),
        "{error:?}"
    );
    error.to_string()
}

fn first_segment(vfs: &FaultyVfs) -> PathBuf {
    let mut names = vfs.list(dir()).unwrap();
    names.retain(|name| name.starts_with("wal-"));
    names.sort();
    dir().join(&names[0])
}

#[test]
fn a_second_opener_is_told_that_the_directory_is_locked() {
    let tmp = tempfile::tempdir().unwrap();
    let wal = Wal::open(Arc::new(RealVfs), tmp.path(), options(SEGMENT)).unwrap();
    let error = Wal::open(Arc::new(RealVfs), tmp.path(), options(SEGMENT)).unwrap_err();
    assert!(matches!(error, StorageError::Locked(_)), "{error:?}");
    assert!(error.to_string().contains("another process"), "{error}");
    drop(wal);
    Wal::open(Arc::new(RealVfs), tmp.path(), options(SEGMENT)).unwrap();
}

#[test]
fn a_directory_with_files_of_others_is_refused_and_left_alone() {
    let vfs = FaultyVfs::new();
    vfs.create_dir_all(dir()).unwrap();
    vfs.open(&dir().join("thesis.txt"), OpenMode::Create).unwrap();
    let error = refusal(&vfs);
    assert!(error.contains("thesis.txt") && error.contains("empty data directory"), "{error}");
    assert_eq!(vfs.list(dir()).unwrap(), ["thesis.txt"]);
}

#[test]
fn files_of_others_beside_an_identity_do_no_harm() {
    let vfs = with_log();
    vfs.open(&dir().join("notes.txt"), OpenMode::Create).unwrap();
    assert_eq!(load(&vfs).unwrap().1.entries.len(), 9);
}

#[test]
fn a_log_without_identity_is_refused() {
    let vfs = with_log();
    vfs.remove(&dir().join("identity")).unwrap();
    let error = refusal(&vfs);
    assert!(error.contains("identity file is missing") && error.contains("join again"), "{error}");
}

#[test]
fn an_identity_without_its_log_is_refused() {
    let vfs = with_log();
    for name in vfs.list(dir()).unwrap().iter().filter(|name| name.starts_with("wal-")) {
        vfs.remove(&dir().join(name)).unwrap();
    }
    let error = refusal(&vfs);
    assert!(error.contains("files of the log are missing") && error.contains("join"), "{error}");
}

#[test]
fn a_missing_segment_is_refused() {
    let vfs = with_log();
    vfs.remove(&first_segment(&vfs)).unwrap();
    let error = refusal(&vfs);
    assert!(error.contains("missing") && error.contains("offset 56"), "{error}");
}

#[test]
fn a_cut_segment_is_refused() {
    let vfs = with_log();
    let path = first_segment(&vfs);
    vfs.open(&path, OpenMode::Write).unwrap().set_len(700).unwrap();
    let error = refusal(&vfs);
    assert!(error.contains("wal-") && error.contains("acknowledged"), "{error}");
}

#[test]
fn a_copied_segment_is_refused() {
    let vfs = with_log();
    let bytes = vfs.contents(&first_segment(&vfs)).unwrap();
    vfs.set_contents(&dir().join("wal-00000099.seg"), bytes);
    assert!(refusal(&vfs).contains("the same place in the log"));
}

#[test]
fn a_segment_of_another_directory_is_refused() {
    let vfs = with_log();
    let header = SegmentHeader {
        incarnation: Incarnation::from_u128(1),
        generation: 50,
        write: 90,
        oldest: 50,
        previous: Link::default(),
    };
    vfs.set_contents(&dir().join("wal-00000099.seg"), header.encode().0.to_vec());
    let error = refusal(&vfs);
    assert!(error.contains("another data directory"), "{error}");
}

#[test]
fn another_format_version_is_refused_with_both_versions() {
    let vfs = with_log();
    let path = dir().join("identity");
    let mut bytes = vfs.contents(&path).unwrap();
    bytes[8] = 2;
    vfs.set_contents(&path, bytes);
    let error = refusal(&vfs);
    assert!(error.contains("version 2") && error.contains("version 1"), "{error}");

    let vfs = with_log();
    let path = first_segment(&vfs);
    let mut bytes = vfs.contents(&path).unwrap();
    bytes[8] = 3;
    let checksum = crc32fast::hash(&bytes[..76]);
    bytes[76..80].copy_from_slice(&checksum.to_le_bytes());
    vfs.set_contents(&path, bytes);
    let error = refusal(&vfs);
    assert!(error.contains("version 3") && error.contains("version 1"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_says_what_to_do() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Wal::open(Arc::new(RealVfs), &path, options(SEGMENT)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("must be a directory"), "{text}");
    }
}

/// As root no mode forbids anything, so the file layer says it.
#[test]
fn an_unwritable_directory_says_what_to_do() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
        let text = super::super::explain(kind.into()).to_string();
        assert!(text.contains("make the data directory writable"), "{text}");
    }
    let vfs = FaultyVfs::new();
    vfs.fail_at(1, Fault::Full);
    let text = open(&vfs).unwrap_err().to_string();
    assert!(text.contains("create data directory /data/log"), "{text}");
    assert!(text.contains("free some space"), "{text}");
}

#[test]
fn the_identity_can_be_read_without_opening() {
    let vfs = FaultyVfs::new();
    assert_eq!(Wal::peek(&vfs, dir()).unwrap(), None);
    let (mut wal, ..) = load(&vfs).unwrap();
    assert_eq!(wal.identity(), None);
    wal.identify(&identity(4)).unwrap();
    assert_eq!(wal.identity(), Some(identity(4)));
    assert_eq!(Wal::peek(&vfs, dir()).unwrap(), Some(identity(4)));
}

/// A segment that had not begun when the power went, whose number is right by its checksum.
fn with_segment(generation: u64) -> FaultyVfs {
    let vfs = with_log();
    let incarnation = identity(1).incarnation;
    let header =
        SegmentHeader { incarnation, generation, write: 1, oldest: 1, previous: Link::default() };
    let mut file = vfs.open(&dir().join("wal-00000077.seg"), OpenMode::Create).unwrap();
    file.write_all_at(&header.encode().0, 0).unwrap();
    vfs
}

#[test]
fn numbers_that_leave_no_room_to_count_on_are_refused() {
    let error = refusal(&with_segment(MAX_NUMBER / 2));
    assert!(error.contains("no log has ever come"), "{error}");
    // Below it, what is appended is read again.
    let vfs = with_segment(MAX_NUMBER / 2 - 9);
    let (mut wal, found, _) = load(&vfs).unwrap();
    wal.append(&[entries(10, 12, 1, 900)]).unwrap();
    drop(wal);
    let (_, again, _) = load(&vfs).unwrap();
    assert_eq!((found.entries.len(), again.entries.len()), (9, 12));
}

/// A header with a right checksum that contradicts itself: what it needs would be gone once the next
/// segment repeats it.
#[test]
fn a_segment_that_needs_what_is_no_older_is_refused() {
    let changed = |change: fn(&mut SegmentHeader)| {
        let vfs = with_log();
        let path = first_segment(&vfs);
        let mut bytes = vfs.contents(&path).unwrap();
        let Start::Header(mut header) = SegmentHeader::parse(&bytes) else { panic!("a header") };
        change(&mut header);
        bytes[..SEGMENT_HEADER].copy_from_slice(&header.encode().0);
        vfs.set_contents(&path, bytes);
        refusal(&vfs)
    };
    for (error, offset) in [
        (changed(|header| header.oldest = header.generation + 1), "offset 48"),
        (changed(|header| header.previous.generation = header.generation), "offset 56"),
    ] {
        assert!(error.contains(offset) && error.contains("no older than itself"), "{error}");
    }
}

#[test]
fn a_compaction_that_drops_its_own_segment_is_refused() {
    for (ahead, refused) in [(0, false), (1, true)] {
        let vfs = with_log();
        let (mut wal, ..) = load(&vfs).unwrap();
        let compaction =
            Compaction { through: Position::default(), oldest: newest_generation(&vfs) + ahead };
        wal.writer().unwrap().write(&[Frame::Compact(compaction)], 0).unwrap();
        drop(wal);
        // Entries that nobody has compacted are missing in any case.
        let error = refusal(&vfs);
        assert_eq!(error.contains("not even its own segment is needed"), refused, "{error}");
    }
}

/// That of the segment with the highest one.
fn newest_generation(vfs: &FaultyVfs) -> u64 {
    let files = vfs.list(dir()).unwrap();
    let generations = files.iter().filter_map(|name| {
        match SegmentHeader::parse(&vfs.contents(&dir().join(name))?) {
            Start::Header(header) => Some(header.generation),
            Start::Nothing | Start::Version(_) => None,
        }
    });
    generations.max().unwrap()
}

/// Somebody else's files, which may be read and not locked.
#[derive(Debug)]
struct Foreign(FaultyVfs, ErrorKind);

impl Vfs for Foreign {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        self.0.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        Err(self.1.into())
    }
}

#[test]
fn files_of_somebody_else_are_not_looked_at_without_their_lock() {
    let forbidden = Foreign(with_log(), ErrorKind::PermissionDenied);
    let text = examine::lock(&forbidden, dir()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("/data/log/LOCK"), "{text}");
    assert!(text.contains("look as the user that runs the node"), "{text}");
    // Where nobody can write, no node runs.
    let read_only = Foreign(with_log(), ErrorKind::ReadOnlyFilesystem);
    assert!(examine::lock(&read_only, dir()).unwrap().is_none());
}
