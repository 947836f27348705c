//! One snapshot file: its head, and how it is read and checked.
//!
//! A file holds the Store's bytes beside the position and the membership that they belong to, one
//! cut of the log. `docs/snapshot-format.md` fixes it byte by byte. [`dir`] keeps many of them.
//!
//! Invariants:
//! - nothing that a file says is believed before its checksum is;
//! - a length is checked against what is there before anything is allocated for it;
//! - every byte of a file is covered: a flipped bit anywhere makes it damaged, never different.

pub(crate) mod dir;
#[cfg(test)]
pub(crate) mod fake_disk;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;

use crate::error::StorageError;
use crate::pb;
use crate::types::{Membership, Position, SnapshotMeta};
use crate::vfs::{VfsFile, read_full};

const MAGIC: [u8; 8] = *b"RAFTSNAP";
const VERSION: u32 = 1;
/// Magic, version, length of the head, length of the header.
const PREFIX: usize = 20;
/// The checksum that ends the head.
const CRC: usize = 4;
/// The largest head; the membership of thousands of members fits many times.
const MAX_HEAD: usize = 16 << 20;
/// Bytes read at a time by [`SnapshotReader::verify`].
const VERIFY_CHUNK: usize = 256 << 10;

const REMEDY: &str = "put back an intact copy of the file, or move the data directory away and \
    let this node join again with an empty one";

/// An error of the file system, with what was tried on which file.
pub(crate) fn io_error(op: &'static str, path: &Path, source: std::io::Error) -> StorageError {
    StorageError::Io { op, path: path.to_owned(), source }
}

fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: path.to_owned(), offset, reason: reason.into(), remedy: REMEDY }
}

/// Bytes that the head of a snapshot takes, whatever its body turns out to be: size and checksum
/// are varints, so the longest are reckoned with.
///
/// # Errors
/// `Contract` when the membership is newer than the snapshot, or too large to be true.
fn head_len(position: Position, membership: &Membership) -> Result<usize, StorageError> {
    if membership.index > position.index {
        return Err(StorageError::Contract(format!(
            "a snapshot at index {} with the membership of index {} would not be one cut",
            position.index, membership.index
        )));
    }
    let longest = pb::SnapshotHeader {
        index: position.index,
        term: position.term,
        membership: Some(membership.to_pb()),
        size: u64::MAX,
        crc32: u32::MAX,
    };
    let len = PREFIX + longest.encoded_len() + CRC;
    if len > MAX_HEAD {
        return Err(StorageError::Contract(format!(
            "a membership that takes {len} bytes is over the {MAX_HEAD} of a snapshot's head"
        )));
    }
    Ok(len)
}

/// The head of a snapshot, padded with zeros to `head_len`.
fn encode_head(meta: &SnapshotMeta, head_len: usize) -> Vec<u8> {
    let header = meta.to_pb().encode_to_vec();
    let mut head = Vec::with_capacity(head_len);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    for len in [head_len, header.len()] {
        let len = u32::try_from(len).expect("invariant: head_len is at most MAX_HEAD");
        head.extend_from_slice(&len.to_le_bytes());
    }
    head.extend_from_slice(&header);
    head.resize(head_len - CRC, 0);
    let crc = crc32fast::hash(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    head
}

/// A little-endian u32 at an offset; None beyond the end.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))
}

/// Reads one snapshot file from its beginning to its end, once, and checks it on the way.
#[derive(Debug)]
pub(crate) struct SnapshotReader {
    file: Box<dyn VfsFile>,
    path: PathBuf,
    meta: SnapshotMeta,
    /// Offset of the body.
    body: u64,
    /// Bytes of the body read so far, and their checksum.
    at: u64,
    hasher: crc32fast::Hasher,
}

impl SnapshotReader {
    /// Reads and checks the head, and that the file is as long as it says.
    ///
    /// # Errors
    /// `Corrupt` for damage, `Foreign` for a file of a newer release, `Io`.
    fn new(file: Box<dyn VfsFile>, path: PathBuf) -> Result<Self, StorageError> {
        let len = file.len().map_err(|e| io_error("measure", &path, e))?;
        let head = read_head(&*file, &path, len)?;
        let body = head.len() as u64;
        let meta = decode_head(&head, &path)?;
        if body.checked_add(meta.size) != Some(len) {
            let reason = format!("a body of {} bytes expected, {} found", meta.size, len - body);
            return Err(corrupt(&path, len, reason));
        }
        Ok(Self { file, path, meta, body, at: 0, hasher: crc32fast::Hasher::new() })
    }

    /// What the file says about itself.
    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The next bytes of the body, at most `max`; None after the last.
    ///
    /// # Errors
    /// `Corrupt` instead of the None when the body does not match its checksum, `Io`.
    pub(crate) fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StorageError> {
        let left = usize::try_from(self.meta.size - self.at).unwrap_or(usize::MAX);
        if left == 0 {
            return self.check().map(|()| None);
        }
        let mut chunk = vec![0; left.min(max.max(1))];
        self.fill(&mut chunk)?;
        Ok(Some(chunk.into()))
    }

    /// Checks the whole body, then starts again at its beginning.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn verify(&mut self) -> Result<(), StorageError> {
        self.rewind();
        while self.next_chunk(VERIFY_CHUNK)?.is_some() {}
        self.rewind();
        Ok(())
    }

    /// The whole body, checked.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn read_all(mut self) -> Result<Vec<u8>, StorageError> {
        self.rewind();
        let size = usize::try_from(self.meta.size).map_err(|_| {
            corrupt(&self.path, self.body, "the body is larger than this machine can address")
        })?;
        let mut body = vec![0; size];
        self.fill(&mut body)?;
        self.check()?;
        Ok(body)
    }

    fn rewind(&mut self) {
        self.at = 0;
        self.hasher = crc32fast::Hasher::new();
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), StorageError> {
        let offset = self.body + self.at;
        let n = read_full(&*self.file, buf, offset).map_err(|e| io_error("read", &self.path, e))?;
        if n < buf.len() {
            return Err(corrupt(&self.path, offset + n as u64, "the file became shorter"));
        }
        self.hasher.update(buf);
        self.at += n as u64;
        Ok(())
    }

    fn check(&self) -> Result<(), StorageError> {
        let found = self.hasher.clone().finalize();
        if found == self.meta.crc32 {
            return Ok(());
        }
        let reason = format!("checksum of the body is {found:08x}, not {:08x}", self.meta.crc32);
        Err(corrupt(&self.path, self.body, reason))
    }
}

fn read_head(file: &dyn VfsFile, path: &Path, len: u64) -> Result<Vec<u8>, StorageError> {
    let mut prefix = [0; PREFIX];
    let n = read_full(file, &mut prefix, 0).map_err(|e| io_error("read", path, e))?;
    if n < PREFIX || !prefix.starts_with(&MAGIC) {
        return Err(corrupt(path, 0, "it does not begin as a snapshot does"));
    }
    let head_len = u32_at(&prefix, 12).unwrap_or(0) as usize;
    if !(PREFIX + CRC..=MAX_HEAD).contains(&head_len) || head_len as u64 > len {
        let reason = format!("a head of {head_len} bytes in a file of {len}");
        return Err(corrupt(path, 12, reason));
    }
    let mut head = vec![0; head_len];
    let n = read_full(file, &mut head, 0).map_err(|e| io_error("read", path, e))?;
    if n < head_len {
        return Err(corrupt(path, n as u64, "the file became shorter"));
    }
    Ok(head)
}

/// The meta in a head whose lengths are within bounds.
fn decode_head(head: &[u8], path: &Path) -> Result<SnapshotMeta, StorageError> {
    let end = head.len() - CRC;
    let (covered, crc) = head.split_at(end);
    let found = crc32fast::hash(covered);
    if u32_at(crc, 0) != Some(found) {
        return Err(corrupt(path, end as u64, "checksum of the head does not match"));
    }
    let version = u32_at(head, 8).unwrap_or(0);
    if version != VERSION {
        return Err(StorageError::Foreign {
            path: path.to_owned(),
            reason: format!(
                "snapshot format {version}, this release reads {VERSION}; run the release that \
                 wrote it, or a newer one"
            ),
        });
    }
    let header_len = u32_at(head, 16).unwrap_or(u32::MAX) as usize;
    let header = covered
        .get(PREFIX..)
        .and_then(|rest| rest.get(..header_len))
        .ok_or_else(|| corrupt(path, 16, "the header is longer than the head"))?;
    let header = pb::SnapshotHeader::decode(header)
        .map_err(|e| corrupt(path, PREFIX as u64, format!("header: {e}")))?;
    SnapshotMeta::from_pb(header)
        .map_err(|reason| corrupt(path, PREFIX as u64, format!("header: {reason}")))
}
