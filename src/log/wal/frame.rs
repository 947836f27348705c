//! Frames: how one record of the log stands in a segment.
//!
//! Every frame starts on an 8-byte boundary with a header that carries its own checksum, salted
//! with the directory's incarnation: it can be told from old, foreign and user-made bytes without
//! its payload and without the frames before it.
//!
//! Invariants:
//! - the header's checksum covers the payload's, and that of the frame before it: a chain;
//! - the number of the write never falls, and is the same for all frames of one write.

use super::record::Frame;
use crate::types::Incarnation;
use crate::zoo::{self, Bug};

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER: usize = 48;
/// Bytes of a sealing frame.
pub(super) const SEAL_FRAME: usize = FRAME_HEADER + 8;
/// The largest number of a write or a generation that is read. No log reaches it, nor half of it,
/// from where on a log is not opened: what it would write next must be read again.
pub(super) const MAX_NUMBER: u64 = 1 << 62;
const MAGIC: u16 = 0x4652;

/// What the checksums of a directory start from, so that no byte of a user, and no frame of
/// another directory, can pass for one of its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(pub(super) u32);

impl Salt {
    pub(super) fn of(incarnation: Incarnation) -> Self {
        Self(crc32fast::hash(&incarnation.to_bytes()))
    }

    fn checksum(self, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Everything but the entries: the first frame of each segment.
    State = 1,
    Batch = 2,
    Compact = 3,
    Seal = 4,
}

impl Kind {
    pub(super) fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::State,
            2 => Self::Batch,
            3 => Self::Compact,
            4 => Self::Seal,
            _ => return None,
        })
    }
}

/// A frame's header whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) checksum: u32,
    pub(super) kind: Kind,
    /// Whether it belongs to the first write of its segment.
    pub(super) begins: bool,
    pub(super) generation: u64,
    /// The number of the write that the frame belongs to.
    pub(super) write: u64,
    /// How many frames of the same write follow it.
    pub(super) left: u32,
    /// The checksum of the frame, or segment header, before it.
    pub(super) previous: u32,
    pub(super) length: u64,
    pub(super) payload_checksum: u32,
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

impl FrameHeader {
    /// The header at the start of `bytes`, if a whole valid one is there.
    pub(super) fn parse(salt: Salt, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        if bytes.get(6..8)? != MAGIC.to_le_bytes() {
            return None;
        }
        let checksum = u32_at(bytes, 0)?;
        if salt.checksum(bytes.get(4..)?) != checksum {
            return None;
        }
        let (generation, write) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
        if generation.max(write) > MAX_NUMBER {
            return None;
        }
        Some(Self {
            checksum,
            kind: Kind::from_u8(*bytes.get(4)?)?,
            begins: match bytes.get(5)? {
                0 => false,
                1 => true,
                _ => return None,
            },
            generation,
            write,
            left: u32_at(bytes, 24)?,
            previous: u32_at(bytes, 28)?,
            length: u64_at(bytes, 32)?,
            payload_checksum: u32_at(bytes, 40)?,
        })
    }

    /// Whether bytes that are no valid header are most likely a damaged one of this place in the
    /// log, rather than what an older use of the file left: two of its four marks are right.
    pub(super) fn resembles(bytes: &[u8], generation: u64, write: u64, previous: u32) -> bool {
        let marks = [
            bytes.get(6..8) == Some(&MAGIC.to_le_bytes()),
            u64_at(bytes, 8) == Some(generation),
            u64_at(bytes, 16) == Some(write),
            u32_at(bytes, 28) == Some(previous),
        ];
        marks.iter().filter(|right| **right).count() >= 2
    }

    pub(super) fn payload_matches(&self, salt: Salt, payload: &[u8]) -> bool {
        salt.checksum(payload) == self.payload_checksum || zoo::has(Bug::PayloadUnchecked)
    }
}

/// Appends the frames of one write to a buffer, chaining each to the one before.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    pub(super) buf: &'a mut Vec<u8>,
    pub(super) salt: Salt,
    pub(super) generation: u64,
    /// Whether this is the first write of the segment.
    pub(super) begins: bool,
    pub(super) write: u64,
    /// The checksum that the next frame chains to.
    pub(super) chain: u32,
}

impl Encoder<'_> {
    /// One frame, with `left` more of this write to come.
    pub(super) fn put(&mut self, frame: Frame<'_>, left: usize) {
        let start = self.buf.len();
        self.buf.resize(start + FRAME_HEADER, 0);
        frame.put(self.buf);
        let payload = &self.buf[start + FRAME_HEADER..];
        let length = payload.len();
        debug_assert_eq!(length, frame.payload_size());
        let payload_checksum = self.salt.checksum(payload);
        let mut header = [0u8; FRAME_HEADER];
        header[4] = frame.kind() as u8;
        header[5] = u8::from(self.begins);
        header[6..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&self.generation.to_le_bytes());
        header[16..24].copy_from_slice(&self.write.to_le_bytes());
        header[24..28].copy_from_slice(&(left as u32).to_le_bytes());
        header[28..32].copy_from_slice(&self.chain.to_le_bytes());
        header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
        header[40..44].copy_from_slice(&payload_checksum.to_le_bytes());
        self.chain = self.salt.checksum(&header[4..]);
        header[..4].copy_from_slice(&self.chain.to_le_bytes());
        self.buf[start..start + FRAME_HEADER].copy_from_slice(&header);
        self.buf.resize(start + FRAME_HEADER + length.next_multiple_of(8), 0);
    }
}
