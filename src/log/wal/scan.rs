//! Reading one segment: its frames in order, up to the first that is not right, and the search
//! for valid frames beyond.
//!
//! It never judges whether what is not right was acknowledged; that is recovery's.

use std::path::PathBuf;

use bytes::Bytes;

use super::frame::{FRAME_HEADER, FrameHeader, Salt};
use super::record::{Record, decode};
use super::segment::{SEGMENT_HEADER, SegmentHeader};
use super::{REMEDY, StorageError};
use crate::zoo::{self, Bug};

/// A file in the directory that may be a segment.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) path: PathBuf,
    pub(super) length: u64,
    /// Its header with the header's checksum, if that is right.
    pub(super) header: Option<(SegmentHeader, u32)>,
}

/// A frame and where it stands.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) offset: usize,
    pub(super) frame: FrameHeader,
    pub(super) record: Record,
}

/// The valid frames at the start of a segment.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    pub(super) frames: Vec<Scanned>,
    /// Where they end.
    pub(super) end: usize,
    /// The checksum of the last of them.
    pub(super) chain: u32,
}

impl Scan {
    /// Reads frames from `bytes`, which end where the segment is known to, or with the file.
    pub(super) fn read(
        path: PathBuf,
        bytes: &Bytes,
        header: SegmentHeader,
        checksum: u32,
        salt: Salt,
    ) -> Result<Self, StorageError> {
        let mut scan =
            Self { path, header, frames: Vec::new(), end: SEGMENT_HEADER, chain: checksum };
        while let Some((frame, payload)) = scan.next(bytes, salt) {
            let Some(record) = decode(frame.kind, payload.clone()) else {
                return Err(StorageError::Corrupt {
                    path: scan.path,
                    offset: scan.end as u64,
                    reason: "a record with a correct checksum cannot be decoded".to_owned(),
                    remedy: REMEDY,
                });
            };
            let offset = scan.end;
            scan.end += FRAME_HEADER + payload.len().next_multiple_of(8);
            scan.chain = frame.checksum;
            scan.frames.push(Scanned { offset, frame, record });
        }
        Ok(scan)
    }

    /// The frame at the end so far, if a valid one that continues the chain is there.
    fn next(&self, bytes: &Bytes, salt: Salt) -> Option<(FrameHeader, Bytes)> {
        let frame = FrameHeader::parse(salt, bytes.get(self.end..)?)?;
        let in_order = match self.frames.last().map(|last| last.frame) {
            None => frame.write == self.header.write,
            Some(last) if last.left > 0 => frame.write == last.write && frame.left == last.left - 1,
            Some(last) => Some(frame.write) == last.write.checked_add(1),
        };
        let continues = frame.generation == self.header.generation
            && frame.begins == (frame.write == self.header.write)
            && frame.previous == self.chain;
        if !(in_order && continues || zoo::has(Bug::OldFrames)) {
            return None;
        }
        let start = self.end.checked_add(FRAME_HEADER)?;
        let end = start.checked_add(usize::try_from(frame.length).ok()?)?;
        let payload = bytes.get(start..end)?;
        frame.payload_matches(salt, payload).then(|| (frame, bytes.slice(start..end)))
    }

    /// Whether the segment's first write, which carries its state, is whole.
    pub(super) fn has_begun(&self) -> bool {
        self.frames.iter().any(|f| f.frame.write == self.header.write && f.frame.left == 0)
    }

    /// The number of the write that is damaged, or would come next.
    pub(super) fn next_write(&self) -> u64 {
        match self.frames.last().map(|last| last.frame) {
            None => self.header.write,
            Some(last) if last.left > 0 => last.write,
            Some(last) => last.write.saturating_add(1),
        }
    }

    /// Whether the bytes behind the last valid frame look like the rest of an unfinished write.
    pub(super) fn is_torn(&self, bytes: &[u8]) -> bool {
        let unfinished = self.frames.last().is_none_or(|last| last.frame.left > 0);
        let rest = bytes.get(self.end..).unwrap_or_default();
        unfinished
            || FrameHeader::resembles(rest, self.header.generation, self.next_write(), self.chain)
    }
}

/// What valid frames out of their place tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strays {
    /// The first one that was written after the one asked for was synced: it is of a later write,
    /// or of one that was not the first of a newer segment.
    pub(super) later: Option<u64>,
    /// The newest generation among them.
    pub(super) generation: u64,
}

/// Looks at every 8-byte boundary for valid frames of segment `newest` (0: none) or a newer one.
pub(super) fn strays(bytes: &[u8], from: usize, salt: Salt, newest: u64, write: u64) -> Strays {
    let mut found = Strays::default();
    for at in (from.next_multiple_of(8)..bytes.len()).step_by(8) {
        let Some(frame) = bytes.get(at..).and_then(|rest| FrameHeader::parse(salt, rest)) else {
            continue;
        };
        if frame.generation < newest {
            continue;
        }
        found.generation = found.generation.max(frame.generation);
        // NB: a segment that takes over after an unclean end may repeat the number of the last
        // write before it; its own second write then proves the first.
        let proves = frame.write > write || (frame.generation > newest && !frame.begins);
        if proves && found.later.is_none() {
            found.later = Some(at as u64);
        }
    }
    found
}
