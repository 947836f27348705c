//! The writing half: turns batches into one write and one sync, changes segments, frees them.
//!
//! It trusts its caller to stop after the first error (R5).
//!
//! Invariants:
//! - a write never spans two segments;
//! - every segment keeps room for a sealing frame, so that sealing a vote is one short write;
//! - a segment is freed only after the record that makes it unnecessary is synced (R10).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{Encoder, SEAL_FRAME, Salt};
use super::record::{Compaction, Frame, State};
use super::recovery::{Closed, Found};
use super::segment::{Fresh, Link, Pool, SEGMENT_HEADER, SegmentHeader};
use super::{WalOptions, contract, io_error};
use crate::error::StorageError;
use crate::log::LogBatch;
use crate::types::{Incarnation, Index, Position};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use crate::zoo::{self, Bug};

/// Bytes of the encoding buffer that are kept between writes.
const MAX_KEPT_BUFFER: usize = 8 << 20;

/// The segment that frames go into.
#[derive(Debug)]
struct Current {
    file: Box<dyn VfsFile>,
    path: PathBuf,
    generation: u64,
    length: u64,
    offset: u64,
    chain: u32,
    max: Index,
}

#[derive(Debug)]
pub(super) struct Writer {
    vfs: Arc<dyn Vfs>,
    incarnation: Incarnation,
    salt: Salt,
    pool: Pool,
    state: State,
    closed: VecDeque<Closed>,
    current: Option<Current>,
    /// A file for the first segment of a new log.
    first: Option<Fresh>,
    /// The newest closed segment, for the next one to link to.
    link: Link,
    next_write: u64,
    next_generation: u64,
    buf: Vec<u8>,
}

impl Writer {
    /// The writer of a directory without segments.
    pub(super) fn new(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: WalOptions,
        incarnation: Incarnation,
    ) -> Self {
        let pool = Pool::new(vfs.clone(), dir, options.segment_size, options.prepare_ahead, 1);
        Self {
            vfs,
            incarnation,
            salt: Salt::of(incarnation),
            pool,
            state: State::default(),
            closed: VecDeque::new(),
            current: None,
            first: None,
            link: Link::default(),
            next_write: 1,
            next_generation: 1,
            buf: Vec::new(),
        }
    }

    /// Continues a log in a new segment, which takes over the last write: nothing proves that it
    /// was synced, and an earlier sync of its file may have failed. It keeps that write's number,
    /// whatever of the old one a loss of power leaves. What recovery dropped can never come back
    /// from then on: the new segment says where the one before it ends.
    pub(super) fn resume(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: WalOptions,
        incarnation: Incarnation,
        next_slot: u64,
        found: Found,
        has_files: bool,
    ) -> Result<Self, StorageError> {
        let mut writer = Self::new(vfs, dir, options, incarnation);
        let (size, ahead) = (options.segment_size, options.prepare_ahead);
        writer.pool = Pool::new(writer.vfs.clone(), dir, size, ahead, next_slot);
        writer.state = found.state;
        writer.closed = found.closed.into();
        writer.link = found.link;
        writer.next_write = found.next_write;
        writer.next_generation = found.next_generation.max(1);
        if !has_files {
            return Ok(writer);
        }
        if let Some((path, end)) = found.cut.as_ref().filter(|_| zoo::has(Bug::CutFirst)) {
            writer.cut(path, *end)?;
        }
        if found.pending.iter().all(LogBatch::is_empty) {
            writer.write(&[], SEAL_FRAME)?;
        } else {
            writer.append(&found.pending)?;
        }
        if let Some((path, end)) = found.cut {
            writer.cut(&path, end)?;
        }
        for (path, length) in found.surplus {
            writer.pool.give(path, length)?;
        }
        Ok(writer)
    }

    /// Gives back the unused room of a segment that was left early.
    fn cut(&mut self, path: &Path, end: u64) -> Result<(), StorageError> {
        let Some(segment) = self.closed.iter_mut().find(|s| s.path == path) else { return Ok(()) };
        if segment.length > end {
            let mut file =
                self.vfs.open(path, OpenMode::Write).map_err(io_error("open segment", path))?;
            file.set_len(end).map_err(io_error("cut segment", path))?;
            segment.length = end;
        }
        Ok(())
    }

    /// Makes sure that a new log has a file in its directory.
    pub(super) fn ready_file(&mut self) -> Result<(), StorageError> {
        if self.current.is_none() && self.first.is_none() {
            self.first = Some(self.pool.take(1)?);
        }
        Ok(())
    }

    pub(super) fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError> {
        let after = self.state.after(batches)?;
        if zoo::has(Bug::SplitBatch) && batches.iter().any(can_split) {
            return self.append(&batches.iter().flat_map(split).collect::<Vec<_>>());
        }
        let frames: Vec<Frame<'_>> =
            batches.iter().filter(|b| !b.is_empty()).map(Frame::Batch).collect();
        if frames.is_empty() {
            return Ok(());
        }
        let mut vote = (self.state.hard_state.term, self.state.hard_state.vote);
        let mut votes = false;
        for hard_state in batches.iter().filter_map(|b| b.hard_state) {
            votes |= vote != (hard_state.term, hard_state.vote);
            vote = (hard_state.term, hard_state.vote);
        }
        self.write(&frames, SEAL_FRAME)?;
        self.track(batches);
        self.state = after;
        if votes {
            self.write(&[Frame::Seal { clean: false }], 0)?;
        }
        if batches.iter().any(|b| b.reset.is_some()) {
            self.release(false)?;
        }
        if self.current.as_ref().is_some_and(|c| c.offset > c.length / 2) {
            self.pool.prepare();
        }
        Ok(())
    }

    pub(super) fn compact(&mut self, through: Position) -> Result<(), StorageError> {
        if through.index <= self.state.compacted.index {
            return Ok(());
        }
        if self.state.snapshot.is_none_or(|s| through.index > s.position.index) {
            return Err(contract("it was to be compacted above the newest snapshot"));
        }
        if through.index > self.state.last {
            return Err(contract("it was to be compacted above its last entry"));
        }
        self.state.compacted = through;
        self.release(true)
    }

    /// Records how far the log is compacted, then frees the segments that nothing needs any more.
    fn release(&mut self, always: bool) -> Result<(), StorageError> {
        let compacted = self.state.compacted;
        let dead = self.closed.iter().take_while(|s| s.max <= compacted.index).count();
        if dead == 0 && !always {
            return Ok(());
        }
        let current = self.current.as_ref().map_or(self.next_generation, |c| c.generation);
        let oldest = self.closed.get(dead).map_or(current, |s| s.generation);
        let early = if zoo::has(Bug::FreeFirst) { dead } else { 0 };
        self.free(early)?;
        self.write(&[Frame::Compact(Compaction { through: compacted, oldest })], SEAL_FRAME)?;
        self.free(dead - early)
    }

    /// Gives the oldest segments back.
    fn free(&mut self, count: usize) -> Result<(), StorageError> {
        for _ in 0..count {
            if let Some(segment) = self.closed.pop_front() {
                self.pool.give(segment.path, segment.length)?;
            }
        }
        Ok(())
    }

    /// Seals the log of a clean shutdown.
    pub(super) fn close(&mut self) -> Result<(), StorageError> {
        if self.current.is_some() && !zoo::has(Bug::CloseUnsealed) {
            self.write(&[Frame::Seal { clean: true }], 0)?;
        }
        self.pool.settle();
        Ok(())
    }

    /// One write and one sync; in a new segment unless the current one has room for the frames
    /// and `reserve` bytes more.
    pub(super) fn write(
        &mut self,
        frames: &[Frame<'_>],
        reserve: usize,
    ) -> Result<(), StorageError> {
        let size: usize = frames.iter().map(Frame::size).sum();
        self.buf.clear();
        // Once: a buffer that grows step by step copies a large write again and again.
        self.buf.reserve(size);
        match &self.current {
            Some(c) if c.offset + (size + reserve) as u64 <= c.length => self.extend(frames)?,
            Some(_) | None => self.begin(frames, size)?,
        }
        self.next_write += 1;
        if self.buf.capacity() > MAX_KEPT_BUFFER {
            self.buf = Vec::new();
        }
        Ok(())
    }

    fn extend(&mut self, frames: &[Frame<'_>]) -> Result<(), StorageError> {
        let Some(current) = &mut self.current else { return Err(contract("it has no segment")) };
        let mut encoder = Encoder {
            buf: &mut self.buf,
            salt: self.salt,
            generation: current.generation,
            begins: false,
            write: self.next_write,
            chain: current.chain,
        };
        for (i, frame) in frames.iter().enumerate() {
            encoder.put(*frame, frames.len() - 1 - i);
        }
        current.chain = encoder.chain;
        current.write(&self.buf)
    }

    /// Starts a segment with its header, the state so far and these frames, in one write.
    fn begin(&mut self, frames: &[Frame<'_>], size: usize) -> Result<(), StorageError> {
        let state = Frame::State(&self.state);
        let need = (SEGMENT_HEADER + state.size() + size + SEAL_FRAME) as u64;
        let fresh = match self.first.take() {
            Some(first) if need <= first.capacity => first,
            Some(first) => {
                self.pool.give(first.path, first.capacity)?;
                self.pool.take(need)?
            }
            None => self.pool.take(need)?,
        };
        let previous = self.current.as_ref().map_or(self.link, |c| Link {
            generation: c.generation,
            end: c.offset,
            chain: c.chain,
        });
        let generation = self.next_generation;
        let below = self.current.as_ref().map_or(generation, |c| c.generation);
        let header = SegmentHeader {
            incarnation: self.incarnation,
            generation,
            write: self.next_write,
            oldest: self.closed.front().map_or(below, |s| s.generation),
            previous,
        };
        let (bytes, chain) = header.encode();
        self.buf.extend_from_slice(&bytes);
        let (salt, write) = (self.salt, self.next_write);
        let mut encoder =
            Encoder { buf: &mut self.buf, salt, generation, begins: true, write, chain };
        encoder.put(state, frames.len());
        for (i, frame) in frames.iter().enumerate() {
            encoder.put(*frame, frames.len() - 1 - i);
        }
        let chain = encoder.chain;
        let Fresh { path, file, capacity: length } = fresh;
        let mut next = Current { file, path, generation, length, offset: 0, chain, max: 0 };
        next.write(&self.buf)?;
        self.next_generation += 1;
        self.link = previous;
        if let Some(old) = self.current.replace(next) {
            let Current { path, generation, length, max, .. } = old;
            self.closed.push_back(Closed { generation, path, length, max });
        }
        Ok(())
    }

    /// Keeps count of which segment holds entries that are still needed.
    fn track(&mut self, batches: &[LogBatch]) {
        for batch in batches {
            if let Some(position) = batch.reset {
                self.limit(position.index);
            }
            if let (Some(first), Some(last)) = (batch.entries.first(), batch.entries.last()) {
                self.limit(first.index.saturating_sub(1));
                if let Some(current) = &mut self.current {
                    current.max = last.index;
                }
            }
        }
    }

    fn limit(&mut self, last: Index) {
        for segment in &mut self.closed {
            segment.max = segment.max.min(last);
        }
        if let Some(current) = &mut self.current {
            current.max = current.max.min(last);
        }
    }
}

/// For the zoo: whether a batch has entries, and something beside them.
fn can_split(batch: &LogBatch) -> bool {
    !batch.entries.is_empty() && (batch.reset.is_some() || batch.hard_state.is_some())
}

/// For the zoo: a batch as two, which a crash tears apart.
fn split(batch: &LogBatch) -> [LogBatch; 2] {
    let rest = LogBatch { entries: Vec::new(), ..batch.clone() };
    [rest, LogBatch { entries: batch.entries.clone(), ..LogBatch::default() }]
}

impl Current {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let path = &self.path;
        self.file.write_all_at(bytes, self.offset).map_err(io_error("write segment", path))?;
        let unsynced = zoo::has(Bug::SealUnsynced) && bytes.len() == SEAL_FRAME;
        if !(unsynced || zoo::has(Bug::SkipSync)) {
            self.file.sync_data().map_err(io_error("sync segment", path))?;
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
