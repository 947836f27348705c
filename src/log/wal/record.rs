//! Records: what the frames hold, to bytes and back.
//!
//! Decoding is total: hostile bytes give nothing, and allocate nothing that is not there.

use bytes::Bytes;

use super::contract;
use super::frame::{FRAME_HEADER, Kind, u32_at, u64_at};
use crate::error::StorageError;
use crate::log::{LogBatch, SnapshotRecord};
use crate::types::{Entry, EntryKind, HardState, Index, Position, Term};
use crate::zoo::{self, Bug};

/// Everything the log remembers beside its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) hard_state: HardState,
    pub(super) compacted: Position,
    /// Index of the last entry; that of `compacted` when there is none.
    pub(super) last: Index,
    pub(super) snapshot: Option<SnapshotRecord>,
    pub(super) membership: Option<Bytes>,
}

impl State {
    pub(super) fn adopt(
        &mut self,
        hard_state: Option<HardState>,
        membership: Option<Bytes>,
        snapshot: Option<SnapshotRecord>,
    ) {
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        self.membership = membership.or_else(|| self.membership.take());
        self.snapshot = snapshot.or(self.snapshot);
    }

    /// The state once these batches are appended; refuses what breaks the log's contract.
    pub(super) fn after(&self, batches: &[LogBatch]) -> Result<Self, StorageError> {
        let mut state = self.clone();
        for batch in batches {
            if let Some(position) = batch.reset {
                if position.index < state.compacted.index {
                    return Err(contract("it was reset to a place that is compacted"));
                }
                state.compacted = position;
                state.last = position.index;
            }
            if let Some(first) = batch.entries.first() {
                if first.index <= state.compacted.index || first.index - 1 > state.last {
                    return Err(contract("entries leave a gap, or replace compacted ones"));
                }
                state.last = first.index - 1;
            }
            for entry in &batch.entries {
                if Some(entry.index) != state.last.checked_add(1) {
                    return Err(contract("the entries of a batch are not contiguous"));
                }
                if u32::try_from(entry.data.len().max(entry.context.len())).is_err() {
                    return Err(contract("an entry is larger than 4 GiB"));
                }
                state.last = entry.index;
            }
            state.adopt(batch.hard_state, batch.membership.clone(), batch.snapshot);
        }
        Ok(state)
    }
}

/// A compaction: what it dropped, and the oldest segment that is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compaction {
    pub(super) through: Position,
    pub(super) oldest: u64,
}

/// A decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    State(State),
    Batch(LogBatch),
    Compact(Compaction),
    /// `clean` ends a log that was closed; else the write before it changed term or vote.
    Seal {
        clean: bool,
    },
}

/// A frame to be written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frame<'a> {
    State(&'a State),
    Batch(&'a LogBatch),
    Compact(Compaction),
    Seal { clean: bool },
}

const HAS_RESET: u8 = 1;
const HAS_HARD_STATE: u8 = 2;
const HAS_SNAPSHOT: u8 = 4;
const HAS_MEMBERSHIP: u8 = 8;
const HAS_ENTRIES: u8 = 16;
/// Bytes of an entry beside its data and context.
const ENTRY_OVERHEAD: usize = 8 + 1 + 4 + 4;

fn blob_size(blob: &Option<Bytes>) -> usize {
    blob.as_ref().map_or(0, |b| 8 + b.len())
}

impl Frame<'_> {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::State(_) => Kind::State,
            Self::Batch(_) => Kind::Batch,
            Self::Compact(_) => Kind::Compact,
            Self::Seal { .. } => Kind::Seal,
        }
    }

    pub(super) fn payload_size(&self) -> usize {
        match self {
            Self::State(s) => 1 + 24 + 24 + s.snapshot.map_or(0, |_| 17) + blob_size(&s.membership),
            Self::Batch(b) => {
                let entries: usize =
                    b.entries.iter().map(|e| ENTRY_OVERHEAD + e.data.len() + e.context.len()).sum();
                1 + b.reset.map_or(0, |_| 16)
                    + b.hard_state.map_or(0, |_| 24)
                    + b.snapshot.map_or(0, |_| 17)
                    + blob_size(&b.membership)
                    + if b.entries.is_empty() { 0 } else { 16 + entries }
            }
            Self::Compact(_) => 24,
            Self::Seal { .. } => 1,
        }
    }

    /// Bytes of the frame in the file.
    pub(super) fn size(&self) -> usize {
        FRAME_HEADER + self.payload_size().next_multiple_of(8)
    }

    pub(super) fn put(&self, buf: &mut Vec<u8>) {
        match self {
            Self::State(s) => put_state(buf, s),
            Self::Batch(b) => put_batch(buf, b),
            Self::Compact(c) => {
                put_position(buf, c.through);
                buf.extend(c.oldest.to_le_bytes());
            }
            Self::Seal { clean } => buf.push(u8::from(*clean)),
        }
    }
}

fn put_position(buf: &mut Vec<u8>, p: Position) {
    buf.extend(p.index.to_le_bytes());
    buf.extend(p.term.to_le_bytes());
}

fn put_hard_state(buf: &mut Vec<u8>, h: HardState) {
    buf.extend(h.term.to_le_bytes());
    buf.extend(h.vote.to_le_bytes());
    buf.extend(h.commit.to_le_bytes());
}

fn put_snapshot(buf: &mut Vec<u8>, s: SnapshotRecord) {
    put_position(buf, s.position);
    buf.push(u8::from(s.installing));
}

fn put_blob(buf: &mut Vec<u8>, blob: &[u8]) {
    buf.extend((blob.len() as u64).to_le_bytes());
    buf.extend_from_slice(blob);
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn put_state(buf: &mut Vec<u8>, s: &State) {
    buf.push(
        flag(s.snapshot.is_some(), HAS_SNAPSHOT) | flag(s.membership.is_some(), HAS_MEMBERSHIP),
    );
    let vote = if zoo::has(Bug::StateWithoutVote) { 0 } else { s.hard_state.vote };
    put_hard_state(buf, HardState { vote, ..s.hard_state });
    put_position(buf, s.compacted);
    buf.extend(s.last.to_le_bytes());
    if let Some(snapshot) = s.snapshot {
        put_snapshot(buf, snapshot);
    }
    if let Some(membership) = &s.membership {
        put_blob(buf, membership);
    }
}

fn put_batch(buf: &mut Vec<u8>, b: &LogBatch) {
    buf.push(
        flag(b.reset.is_some(), HAS_RESET)
            | flag(b.hard_state.is_some(), HAS_HARD_STATE)
            | flag(b.snapshot.is_some(), HAS_SNAPSHOT)
            | flag(b.membership.is_some(), HAS_MEMBERSHIP)
            | flag(!b.entries.is_empty(), HAS_ENTRIES),
    );
    if let Some(reset) = b.reset {
        put_position(buf, reset);
    }
    if let Some(hard_state) = b.hard_state {
        put_hard_state(buf, hard_state);
    }
    if let Some(snapshot) = b.snapshot {
        put_snapshot(buf, snapshot);
    }
    if let Some(membership) = &b.membership {
        put_blob(buf, membership);
    }
    if let Some(first) = b.entries.first() {
        buf.extend(first.index.to_le_bytes());
        buf.extend((b.entries.len() as u64).to_le_bytes());
    }
    for e in &b.entries {
        let kind = match e.kind {
            EntryKind::Normal => 0u8,
            EntryKind::ConfChange => 1,
            EntryKind::ConfChangeV2 => 2,
        };
        let mut head = [0u8; ENTRY_OVERHEAD];
        head[..8].copy_from_slice(&e.term.to_le_bytes());
        head[8] = kind;
        head[9..13].copy_from_slice(&(e.data.len() as u32).to_le_bytes());
        head[13..].copy_from_slice(&(e.context.len() as u32).to_le_bytes());
        buf.extend_from_slice(&head);
        buf.extend_from_slice(&e.data);
        buf.extend_from_slice(&e.context);
    }
}

struct Reader {
    bytes: Bytes,
}

impl Reader {
    fn take(&mut self, n: usize) -> Option<Bytes> {
        (n <= self.bytes.len()).then(|| self.bytes.split_to(n))
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        u32_at(&self.take(4)?, 0)
    }

    fn u64(&mut self) -> Option<u64> {
        u64_at(&self.take(8)?, 0)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position { index: self.u64()?, term: self.u64()? })
    }

    fn hard_state(&mut self) -> Option<HardState> {
        Some(HardState { term: self.u64()?, vote: self.u64()?, commit: self.u64()? })
    }

    fn snapshot(&mut self) -> Option<SnapshotRecord> {
        Some(SnapshotRecord { position: self.position()?, installing: self.bool()? })
    }

    fn blob(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.u64()?).ok()?;
        // The record outlives its segment by far: it must not keep the segment's bytes alive.
        self.take(length).map(|b| Bytes::copy_from_slice(&b))
    }

    fn entry(&mut self, index: Index) -> Option<Entry> {
        let term: Term = self.u64()?;
        let kind = match self.u8()? {
            0 => EntryKind::Normal,
            1 => EntryKind::ConfChange,
            2 => EntryKind::ConfChangeV2,
            _ => return None,
        };
        let (data, context) = (self.u32()? as usize, self.u32()? as usize);
        Some(Entry { term, index, kind, data: self.take(data)?, context: self.take(context)? })
    }

    fn entries(&mut self) -> Option<Vec<Entry>> {
        let first = self.u64()?;
        let count = usize::try_from(self.u64()?).ok()?;
        if count == 0 || count > self.bytes.len() / ENTRY_OVERHEAD {
            return None;
        }
        first.checked_add(count as u64)?;
        (0..count).map(|i| self.entry(first + i as u64)).collect()
    }

    fn batch(&mut self) -> Option<LogBatch> {
        let flags = self.u8()?;
        if flags >= HAS_ENTRIES * 2 {
            return None;
        }
        let mut batch = LogBatch::default();
        if flags & HAS_RESET != 0 {
            batch.reset = Some(self.position()?);
        }
        if flags & HAS_HARD_STATE != 0 {
            batch.hard_state = Some(self.hard_state()?);
        }
        if flags & HAS_SNAPSHOT != 0 {
            batch.snapshot = Some(self.snapshot()?);
        }
        if flags & HAS_MEMBERSHIP != 0 {
            batch.membership = Some(self.blob()?);
        }
        if flags & HAS_ENTRIES != 0 {
            batch.entries = self.entries()?;
        }
        Some(batch)
    }

    fn state(&mut self) -> Option<State> {
        let flags = self.u8()?;
        if flags & !(HAS_SNAPSHOT | HAS_MEMBERSHIP) != 0 {
            return None;
        }
        let mut state = State {
            hard_state: self.hard_state()?,
            compacted: self.position()?,
            last: self.u64()?,
            ..State::default()
        };
        if flags & HAS_SNAPSHOT != 0 {
            state.snapshot = Some(self.snapshot()?);
        }
        if flags & HAS_MEMBERSHIP != 0 {
            state.membership = Some(self.blob()?);
        }
        Some(state)
    }

    fn record(&mut self, kind: Kind) -> Option<Record> {
        Some(match kind {
            Kind::State => Record::State(self.state()?),
            Kind::Batch => Record::Batch(self.batch()?),
            Kind::Compact => {
                let through = self.position()?;
                Record::Compact(Compaction { through, oldest: self.u64()? })
            }
            Kind::Seal => Record::Seal { clean: self.bool()? },
        })
    }
}

/// The record in a payload; None when it is malformed. Entry data stays a slice of it.
pub(super) fn decode(kind: Kind, payload: Bytes) -> Option<Record> {
    let mut reader = Reader { bytes: payload };
    let record = reader.record(kind)?;
    reader.bytes.is_empty().then_some(record)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{Encoder, FrameHeader, SEAL_FRAME, Salt};
    use super::*;
    use crate::types::Incarnation;

    const SALT: Salt = Salt(77);

    fn encode(frame: Frame<'_>) -> Vec<u8> {
        let mut buf = Vec::new();
        Encoder { buf: &mut buf, salt: SALT, generation: 3, begins: true, write: 9, chain: 5 }
            .put(frame, 2);
        assert_eq!(buf.len(), frame.size());
        buf
    }

    fn parse(bytes: &[u8]) -> Option<(FrameHeader, Option<Record>)> {
        let header = FrameHeader::parse(SALT, bytes)?;
        let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + header.length as usize)?;
        let whole = header.payload_matches(SALT, payload);
        Some((header, whole.then(|| decode(header.kind, Bytes::copy_from_slice(payload)).unwrap())))
    }

    fn blob() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    prop_compose! {
        fn snapshot()(index: u64, term: u64, installing: bool) -> SnapshotRecord {
            SnapshotRecord { position: Position { index, term }, installing }
        }
    }

    prop_compose! {
        fn batch()(
            reset in proptest::option::of((any::<u64>(), any::<u64>())),
            hard_state in proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>())),
            snapshot in proptest::option::of(snapshot()),
            membership in proptest::option::of(blob()),
            first in 0u64..u64::MAX / 2,
            entries in proptest::collection::vec((any::<u64>(), 0u8..3, blob(), blob()), 0..5),
        ) -> LogBatch {
            let kinds = [EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2];
            let entries = entries.into_iter().zip(first..).map(|((term, k, data, context), index)|
                Entry { term, index, kind: kinds[k as usize], data, context });
            LogBatch {
                reset: reset.map(|(index, term)| Position { index, term }),
                hard_state: hard_state.map(|(term, vote, commit)| HardState { term, vote, commit }),
                entries: entries.collect(),
                snapshot,
                membership,
            }
        }
    }

    proptest! {
        #[test]
        fn batches_round_trip(batch in batch()) {
            let (header, record) = parse(&encode(Frame::Batch(&batch))).unwrap();
            prop_assert_eq!((header.generation, header.write), (3, 9));
            prop_assert_eq!((header.left, header.previous, header.begins), (2, 5, true));
            prop_assert_eq!(record, Some(Record::Batch(batch)));
        }

        #[test]
        fn any_flipped_bit_of_a_frame_is_seen_except_in_its_padding(
            batch in batch(), place: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut bytes = encode(Frame::Batch(&batch));
            let (header, _) = parse(&bytes).unwrap();
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let padding = at >= FRAME_HEADER + header.length as usize;
            let whole = matches!(parse(&bytes), Some((_, Some(_))));
            prop_assert_eq!(whole, padding);
        }

        #[test]
        fn arbitrary_payloads_never_panic(kind in 1u8..5, payload in blob()) {
            let kind = Kind::from_u8(kind).unwrap();
            if let Some(Record::Batch(batch)) = decode(kind, payload.clone()) {
                let mut again = Vec::new();
                Frame::Batch(&batch).put(&mut again);
                prop_assert_eq!(again, payload);
            }
        }
    }

    #[test]
    fn the_other_frames_round_trip() {
        let position = Position { index: 7, term: 2 };
        let state = State {
            hard_state: HardState { term: 4, vote: 1, commit: 9 },
            compacted: position,
            last: 12,
            snapshot: Some(SnapshotRecord { position, installing: true }),
            membership: Some(Bytes::from_static(b"members")),
        };
        let compaction = Compaction { through: position, oldest: 6 };
        let cases = [
            (Frame::State(&state), Record::State(state.clone())),
            (Frame::Compact(compaction), Record::Compact(compaction)),
            (Frame::Seal { clean: true }, Record::Seal { clean: true }),
            (Frame::Seal { clean: false }, Record::Seal { clean: false }),
        ];
        for (frame, record) in cases {
            assert_eq!(parse(&encode(frame)).unwrap().1, Some(record));
        }
        assert_eq!(encode(Frame::Seal { clean: true }).len(), SEAL_FRAME);
    }

    #[test]
    fn another_directory_salts_its_frames_differently() {
        let bytes = encode(Frame::Seal { clean: true });
        let other = Salt::of(Incarnation::from_u128(1));
        assert_eq!(FrameHeader::parse(other, &bytes), None);
    }

    #[test]
    fn lengths_that_lie_allocate_nothing() {
        let mut payload = vec![HAS_ENTRIES];
        payload.extend(1u64.to_le_bytes());
        payload.extend(u64::MAX.to_le_bytes());
        assert_eq!(decode(Kind::Batch, payload.into()), None);
        let mut payload = vec![HAS_MEMBERSHIP];
        payload.extend(u64::MAX.to_le_bytes());
        assert_eq!(decode(Kind::Batch, payload.into()), None);
    }
}
