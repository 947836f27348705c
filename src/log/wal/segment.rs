//! Segments: the files that hold the frames, their header, and where new ones come from.
//!
//! A segment begins with a header that names its generation, links to the segment before it and
//! says where exactly that one ends. It is written with the segment's first frames, in one write;
//! so changing to a prepared file costs nothing, and a file whose content is no longer needed is
//! used again as it is: its old frames carry an old generation.
//!
//! Invariants:
//! - a file is zero-filled, synced and in its directory before the first frame goes into it;
//! - a file is used again, cut or removed only after the record that makes it unnecessary is
//!   durable (R10).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::frame::MAX_NUMBER;
use super::io_error;
use crate::error::StorageError;
use crate::types::Incarnation;
use crate::vfs::{OpenMode, Vfs, VfsFile};
use crate::zoo::{self, Bug};

/// Bytes of a segment's header; less than a sector, so that it is torn nowhere.
pub(super) const SEGMENT_HEADER: usize = 80;
const MAGIC: &[u8; 8] = b"RAFTLOG\0";
/// The version of everything the log writes.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Files kept for later use; more are removed. As many as a compaction frees under the default
/// sizes, so that a steady load never fills a file.
const MAX_SPARES: usize = 4;
const ZEROS: usize = 1 << 20;

/// Where a segment ends for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its generation; 0: there is none before.
    pub(super) generation: u64,
    pub(super) end: u64,
    /// The checksum of its last frame.
    pub(super) chain: u32,
}

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) incarnation: Incarnation,
    pub(super) generation: u64,
    /// The number of its first write.
    pub(super) write: u64,
    /// The oldest generation that is still needed, as of that write.
    pub(super) oldest: u64,
    /// The segment before it.
    pub(super) previous: Link,
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Header(SegmentHeader),
    /// A header of another format version, whole.
    Version(u32),
    /// None, or a damaged one.
    Nothing,
}

impl SegmentHeader {
    /// The header's bytes and its checksum, which the first frame chains to.
    pub(super) fn encode(&self) -> ([u8; SEGMENT_HEADER], u32) {
        let mut out = [0u8; SEGMENT_HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.incarnation.to_bytes());
        out[32..40].copy_from_slice(&self.generation.to_le_bytes());
        out[40..48].copy_from_slice(&self.write.to_le_bytes());
        out[48..56].copy_from_slice(&self.oldest.to_le_bytes());
        out[56..64].copy_from_slice(&self.previous.generation.to_le_bytes());
        out[64..72].copy_from_slice(&self.previous.end.to_le_bytes());
        out[72..76].copy_from_slice(&self.previous.chain.to_le_bytes());
        let checksum = crc32fast::hash(&out[..76]);
        out[76..].copy_from_slice(&checksum.to_le_bytes());
        (out, checksum)
    }

    /// Reads the first bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Start {
        Self::parse_whole(bytes).unwrap_or(Start::Nothing)
    }

    fn parse_whole(bytes: &[u8]) -> Option<Start> {
        let bytes = bytes.get(..SEGMENT_HEADER)?;
        let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if bytes.get(..8)? != MAGIC || crc32fast::hash(bytes.get(..76)?) != u32_at(76)? {
            return None;
        }
        let version = u32_at(8)?;
        if version != FORMAT_VERSION {
            return Some(Start::Version(version));
        }
        let (generation, write) = (u64_at(32)?, u64_at(40)?);
        if generation.max(write) > MAX_NUMBER {
            return None;
        }
        Some(Start::Header(Self {
            incarnation: Incarnation::from_slice(bytes.get(16..32)?)?,
            generation,
            write,
            oldest: u64_at(48)?,
            previous: Link { generation: u64_at(56)?, end: u64_at(64)?, chain: u32_at(72)? },
        }))
    }
}

/// The number in a segment's file name.
pub(super) fn slot_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// A file that is ready to become a segment.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn VfsFile>,
    pub(super) capacity: u64,
}

/// Where segments come from and where they go.
#[derive(Debug)]
pub(super) struct Pool {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    segment_size: u64,
    /// Whether a thread prepares the next file.
    ahead: bool,
    spares: Vec<PathBuf>,
    next_slot: u64,
    preparing: Option<JoinHandle<Result<Fresh, StorageError>>>,
}

impl Pool {
    pub(super) fn new(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        segment_size: u64,
        ahead: bool,
        next_slot: u64,
    ) -> Self {
        let dir = dir.to_path_buf();
        Self { vfs, dir, segment_size, ahead, spares: Vec::new(), next_slot, preparing: None }
    }

    fn next_path(&mut self) -> PathBuf {
        let path = self.dir.join(format!("wal-{:08}.seg", self.next_slot));
        // NB: at the end of the numbers the name exists already, which is an error of the file layer.
        self.next_slot = self.next_slot.saturating_add(1);
        path
    }

    /// A file with room for `size` bytes.
    pub(super) fn take(&mut self, size: u64) -> Result<Fresh, StorageError> {
        if size > self.segment_size {
            let path = self.next_path();
            return create(&*self.vfs, &self.dir, path, 0).map(|f| Fresh { capacity: size, ..f });
        }
        if let Some(path) = self.spares.pop() {
            let file =
                self.vfs.open(&path, OpenMode::Write).map_err(io_error("open segment", &path))?;
            return Ok(Fresh { path, file, capacity: self.segment_size });
        }
        if let Some(fresh) = self.prepared() {
            return Ok(fresh);
        }
        let path = self.next_path();
        create(&*self.vfs, &self.dir, path, self.segment_size)
    }

    /// The file that a thread has prepared. If that failed, the caller tries again with another
    /// file: nothing depended on the failed one.
    fn prepared(&mut self) -> Option<Fresh> {
        self.preparing.take()?.join().ok()?.ok()
    }

    /// Starts to prepare a file for the next `take`, unless one is at hand.
    pub(super) fn prepare(&mut self) {
        if !self.ahead || self.preparing.is_some() || !self.spares.is_empty() {
            return;
        }
        let (vfs, dir, size) = (self.vfs.clone(), self.dir.clone(), self.segment_size);
        let path = self.next_path();
        let work = move || create(&*vfs, &dir, path, size);
        // NB: without the thread the file is made when it is needed.
        self.preparing =
            std::thread::Builder::new().name("raftline-segment".into()).spawn(work).ok();
    }

    /// Takes back a file that nothing needs, to keep or to remove.
    pub(super) fn give(&mut self, path: PathBuf, length: u64) -> Result<(), StorageError> {
        if length == self.segment_size && self.spares.len() < MAX_SPARES {
            self.spares.push(path);
            return Ok(());
        }
        // Not synced: if a crash brings it back, it is as unnecessary as it is now.
        self.vfs.remove(&path).map_err(io_error("remove segment", &path))
    }

    /// Waits for the thread, so that nothing writes into the directory any more.
    pub(super) fn settle(&mut self) {
        if let Some(fresh) = self.prepared() {
            self.spares.push(fresh.path);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Makes a zero-filled file, durably: data, length and name; or leaves none behind.
fn create(vfs: &dyn Vfs, dir: &Path, path: PathBuf, size: u64) -> Result<Fresh, StorageError> {
    let file = vfs.open(&path, OpenMode::Create).map_err(io_error("create segment", &path))?;
    let filled = fill(vfs, dir, file, path.clone(), size);
    if filled.is_err() {
        // A disk that is nearly full must not be filled with the remains of a file that nothing
        // is in. Best effort: what stays is removed at the next start.
        let _ = vfs.remove(&path);
    }
    filled
}

fn fill(
    vfs: &dyn Vfs,
    dir: &Path,
    mut file: Box<dyn VfsFile>,
    path: PathBuf,
    size: u64,
) -> Result<Fresh, StorageError> {
    let zeros = vec![0u8; ZEROS.min(usize::try_from(size).unwrap_or(ZEROS))];
    let mut at = 0;
    while at < size {
        let n = usize::try_from(size - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_all_at(&zeros[..n], at).map_err(io_error("fill segment", &path))?;
        at += n as u64;
    }
    file.sync_data().map_err(io_error("sync segment", &path))?;
    if !zoo::has(Bug::SegmentUnlisted) {
        vfs.sync_dir(dir).map_err(io_error("sync directory", dir))?;
    }
    Ok(Fresh { path, file, capacity: size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            incarnation: Incarnation::from_u128(5),
            generation: 9,
            write: 40,
            oldest: 7,
            previous: Link { generation: 8, end: 4096, chain: 77 },
        }
    }

    #[test]
    fn a_header_round_trips_and_any_flipped_bit_voids_it() {
        let (bytes, _) = header().encode();
        assert_eq!(SegmentHeader::parse(&bytes), Start::Header(header()));
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::parse(&damaged), Start::Nothing, "bit {bit}");
        }
        assert_eq!(SegmentHeader::parse(&bytes[..79]), Start::Nothing);
    }

    #[test]
    fn a_header_of_another_version_is_told_apart() {
        let (mut bytes, _) = header().encode();
        bytes[8] = 2;
        let checksum = crc32fast::hash(&bytes[..76]);
        bytes[76..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(SegmentHeader::parse(&bytes), Start::Version(2));
    }

    #[test]
    fn only_our_names_are_segments() {
        assert_eq!(slot_of("wal-00000012.seg"), Some(12));
        for name in ["wal-.seg", "wal-1", "wal-+1.seg", "wal-1.seg.bak", "identity"] {
            assert_eq!(slot_of(name), None, "{name}");
        }
    }
}
