//! The files of a log, and what a fuzzer does to them. The layout is the one that
//! `docs/wal-format.md` tells, written down here a second time on purpose.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use crc32fast::Hasher;

use super::{files, load, write};
use crate::log::{LogBatch, LogStorage, SnapshotRecord};
use crate::testing::fuzz::input::Input;
use crate::types::{
    ClusterId, Entry, HardState, Identity, Incarnation, Index, Position, RaftId, Term,
};
use crate::vfs::MemVfs;

const SEGMENT_HEADER: usize = 80;
const FRAME_HEADER: usize = 48;
const INCARNATION: u128 = 0xfeed_beef;
const MAX_CHANGES: usize = 32;
/// Bytes that all files may have.
const MAX_BYTES: usize = 64 << 10;

/// Files by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// One of the logs that were written before, or an empty directory with an identity.
    pub(super) fn choose(input: &mut Input<'_>) -> Self {
        static WRITTEN: OnceLock<Vec<Image>> = OnceLock::new();
        let written = WRITTEN.get_or_init(|| scripts().iter().map(|s| run(s)).collect());
        written.get(input.below(written.len() + 1)).cloned().unwrap_or_default()
    }

    pub(super) fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    pub(super) fn change(&mut self, input: &mut Input<'_>) {
        for _ in 0..MAX_CHANGES {
            if input.is_empty() {
                return;
            }
            self.change_once(input);
        }
    }

    fn change_once(&mut self, input: &mut Input<'_>) {
        let kind = input.below(14);
        let name = self.pick(input);
        let mut bytes = self.files.remove(&name).unwrap_or_default();
        let at = usize::from(input.u16()) % (bytes.len() + 1);
        match kind {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << (at % 8)),
            1 => overwrite(&mut bytes, at, input.blob()),
            2 => bytes.truncate(at),
            3 => {
                let more = input.blob();
                bytes.extend_from_slice(more);
            }
            4 => return,
            5 => {
                let copy = segment_name(input.byte());
                self.files.insert(copy, bytes.clone());
            }
            6 => {
                self.files.insert(segment_name(input.byte()), input.blob().to_vec());
            }
            7 => {
                let other = self.pick(input);
                if let Some(swapped) = self.files.insert(other, bytes.clone()) {
                    bytes = swapped;
                }
            }
            8 | 9 => number(&mut bytes, at / 8 * 8, input),
            10 => {
                let len = usize::from(input.byte()) * 8;
                let to = usize::from(input.u16()) % (bytes.len() + 1) / 8 * 8;
                let from = at / 8 * 8;
                let run: Vec<u8> = bytes.iter().skip(from).take(len).copied().collect();
                overwrite(&mut bytes, to, &run);
            }
            11 => {
                self.files.insert(format!("odd-{at}"), Vec::new());
            }
            _ => {
                self.files.insert(name, bytes);
                return self.sign();
            }
        }
        let total: usize = self.files.values().map(Vec::len).sum();
        bytes.truncate(MAX_BYTES.saturating_sub(total));
        self.files.insert(name, bytes);
    }

    fn pick(&self, input: &mut Input<'_>) -> String {
        let n = input.below(self.files.len().max(1));
        self.files.keys().nth(n).cloned().unwrap_or_else(|| segment_name(1))
    }

    /// Gives everything the checksums that it should have.
    fn sign(&mut self) {
        let mut salt = Hasher::new();
        match self.files.get_mut("identity") {
            Some(bytes) => {
                sign_identity(bytes);
                salt.update(bytes.get(24..40).unwrap_or_default());
            }
            None => salt.update(&INCARNATION.to_be_bytes()),
        }
        let salt = salt.finalize();
        let generation = |bytes: &[u8]| u64_at(bytes, 32).unwrap_or(0);
        let mut order: Vec<_> = self.files.iter_mut().filter(|(n, _)| *n != "identity").collect();
        order.sort_by_key(|(_, bytes)| generation(bytes));
        // The checksum at each place where a segment may end.
        let mut ends = BTreeMap::new();
        for (_, bytes) in order {
            let generation = generation(bytes);
            let link = (u64_at(bytes, 56).unwrap_or(0), u64_at(bytes, 64).unwrap_or(0));
            if let Some(chain) = ends.get(&link) {
                put(bytes, 72, *chain);
            }
            sign_segment(bytes, salt, |end, chain| {
                ends.insert((generation, end as u64), chain);
            });
        }
    }
}

fn segment_name(slot: u8) -> String {
    format!("wal-{slot:08}.seg")
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(b, w)| *b = *w);
}

/// Another number in a field.
fn number(bytes: &mut [u8], at: usize, input: &mut Input<'_>) {
    let there = u64_at(bytes, at).unwrap_or(0);
    let other = input.number(there);
    overwrite(bytes, at, &other.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    overwrite(bytes, at, &number.to_le_bytes());
}

pub(super) fn sign_identity(bytes: &mut Vec<u8>) {
    bytes.resize(80, 0);
    let checksum = crc32fast::hash(&bytes[..76]);
    put(bytes, 76, checksum);
}

/// Signs header and frames, as far as they hang together; tells the checksum at each end.
fn sign_segment(bytes: &mut [u8], salt: u32, mut end: impl FnMut(usize, u32)) {
    let Some(header) = bytes.get(..76) else { return };
    let mut chain = crc32fast::hash(header);
    put(bytes, 76, chain);
    let mut at = SEGMENT_HEADER;
    end(at, chain);
    while let Some(frame) = bytes.get_mut(at..).filter(|rest| rest.len() >= FRAME_HEADER) {
        let length = u64_at(frame, 32).and_then(|n| usize::try_from(n).ok());
        let payload = length
            .and_then(|n| FRAME_HEADER.checked_add(n))
            .and_then(|end| frame.get(FRAME_HEADER..end));
        let (Some(payload), 1..=4) = (payload, frame[4]) else { return };
        let (checksum, size) = (salted(salt, payload), payload.len());
        put(frame, 28, chain);
        put(frame, 40, checksum);
        chain = salted(salt, &frame[4..FRAME_HEADER]);
        put(frame, 0, chain);
        at += FRAME_HEADER + size.next_multiple_of(8);
        end(at, chain);
    }
}

fn salted(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

enum Step {
    Append(Vec<LogBatch>),
    Compact(Position),
    Close,
    Open,
}

fn entries(from: Index, to: Index, term: Term, size: usize) -> LogBatch {
    let data = |i: Index| Bytes::from(vec![i as u8; size]);
    let entries =
        (from..=to).map(|index| Entry { term, index, data: data(index), ..Entry::default() });
    LogBatch { entries: entries.collect(), ..LogBatch::default() }
}

fn vote(term: Term, vote: RaftId) -> LogBatch {
    let hard_state = Some(HardState { term, vote, commit: 0 });
    LogBatch { hard_state, ..LogBatch::default() }
}

fn snapshot(index: Index, term: Term, installing: bool) -> LogBatch {
    let position = Position { index, term };
    let reset = installing.then_some(position);
    let snapshot = Some(SnapshotRecord { position, installing });
    let membership = Some(Bytes::from_static(b"members"));
    LogBatch { reset, snapshot, membership, ..LogBatch::default() }
}

/// Logs as they are written: each kind of record, changes of segments, clean and unclean ends.
fn scripts() -> Vec<Vec<Step>> {
    let one = |batch| Step::Append(vec![batch]);
    let at = |index, term| Position { index, term };
    vec![
        vec![one(vote(1, 1)), one(entries(1, 3, 1, 20)), one(entries(2, 2, 2, 10))],
        vec![
            one(vote(1, 1)),
            one(entries(1, 5, 1, 100)),
            Step::Append(vec![entries(4, 6, 2, 90), vote(2, 3)]),
            one(entries(7, 9, 2, 100)),
            Step::Close,
        ],
        vec![
            one(entries(1, 6, 1, 100)),
            one(snapshot(5, 1, false)),
            Step::Compact(at(4, 1)),
            one(entries(7, 12, 1, 100)),
            Step::Open,
            one(entries(13, 14, 1, 10)),
            Step::Compact(at(5, 1)),
        ],
        vec![
            one(entries(1, 2, 1, 10)),
            Step::Append(vec![snapshot(40, 2, true), entries(41, 43, 2, 200)]),
            one(snapshot(40, 2, false)),
            Step::Open,
            one(vote(3, 2)),
            Step::Close,
            Step::Open,
        ],
    ]
}

fn run(script: &[Step]) -> Image {
    let vfs = MemVfs::default();
    write(&vfs, &BTreeMap::new());
    let identity = Identity {
        node_id: 1,
        incarnation: Incarnation::from_u128(INCARNATION),
        cluster: Some((ClusterId::from_u128(9), 4)),
        boot: 1,
    };
    let (mut wal, _) = load(&vfs).unwrap_or_else(|e| panic!("{e}"));
    wal.identify(&identity).unwrap_or_else(|e| panic!("{e}"));
    for step in script {
        match step {
            Step::Append(batches) => wal.append(batches),
            Step::Compact(position) => wal.compact(*position),
            Step::Close => wal.close(),
            Step::Open => {
                drop(wal);
                wal = load(&vfs).unwrap_or_else(|e| panic!("{e}")).0;
                Ok(())
            }
        }
        .unwrap_or_else(|e| panic!("{e}"));
    }
    drop(wal);
    Image { files: files(&vfs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_changes_nothing_that_is_right() {
        for (n, script) in scripts().iter().enumerate() {
            let image = run(script);
            let mut signed = image.clone();
            signed.sign();
            assert_eq!(signed.files, image.files, "script {n}");
        }
    }

    #[test]
    fn signed_damage_reaches_what_is_behind_the_checksums() {
        let image = run(&scripts()[0]);
        let mut changed = image.clone();
        let segment = changed.files.iter_mut().find(|(name, _)| *name != "identity");
        let (name, bytes) = segment.map(|(n, b)| (n.clone(), b)).unwrap_or_else(|| panic!());
        // The generation in the header of the segment: its frames say another one.
        bytes[32] ^= 8;
        let damaged = bytes.clone();
        changed.sign();
        assert_ne!(changed.files[&name], damaged);
        assert_eq!(changed.files[&name][32], damaged[32]);
    }
}
