//! Workloads: what a node does to its log and its snapshots, as scripts and at random.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::life::Allowed;
use super::recorder::Recorder;
use crate::log::LogStorage;
use crate::log::wal::{Wal, WalOptions};
use crate::log::{LogBatch, SnapshotRecord};
use crate::testing::log_suite::random_batch;
use crate::testing::rng::Rng;
use crate::types::{
    ClusterId, Entry, HardState, Identity, Incarnation, Index, Position, RaftId, Term,
};

/// One thing that happens to a data directory.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The identity record, with this boot counter.
    Identify(u64),
    Append(Vec<LogBatch>),
    Compact(Position),
    /// A snapshot of the own Store: the file, then the log's record of it.
    Snapshot(Position),
    /// A snapshot from a peer: the file, then the record that resets the log to it.
    Receive(Position),
    /// Drops the snapshots below.
    Retain(Index),
    /// A clean shutdown and the next start.
    Close,
    /// A kill and the next start: the page cache survives.
    Reopen,
    /// The disk fills up but for so many bytes, until a call has failed.
    LeaveRoom(u64),
    /// The next sync fails.
    FailSync,
}

pub(crate) fn identity(boot: u64) -> Identity {
    Identity {
        node_id: 1,
        incarnation: Incarnation::from_u128(0xfeed_beef),
        cluster: Some((ClusterId::from_u128(9), 4)),
        boot,
    }
}

pub(crate) fn at(index: Index, term: Term) -> Position {
    Position { index, term }
}

pub(crate) fn entries(from: Index, to: Index, term: Term, size: usize) -> LogBatch {
    let data = |i: Index| Bytes::from(vec![(i as u8) ^ (term as u8); size]);
    let entries =
        (from..=to).map(|index| Entry { term, index, data: data(index), ..Entry::default() });
    LogBatch { entries: entries.collect(), ..LogBatch::default() }
}

pub(crate) fn vote(term: Term, vote: RaftId) -> LogBatch {
    let hard_state = Some(HardState { term, vote, commit: 0 });
    LogBatch { hard_state, ..LogBatch::default() }
}

fn membership(bytes: &'static [u8]) -> LogBatch {
    LogBatch { membership: Some(Bytes::from_static(bytes)), ..LogBatch::default() }
}

/// The record of a snapshot; a received one drops the log below it.
pub(super) fn record(position: Position, received: bool) -> LogBatch {
    let snapshot = Some(SnapshotRecord { position, installing: received });
    LogBatch { reset: received.then_some(position), snapshot, ..LogBatch::default() }
}

fn one(batch: LogBatch) -> Step {
    Step::Append(vec![batch])
}

/// The scripts, each with its name. Segments are of one or two KiB, so that all change segments.
pub(super) fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    let begin = [Step::Identify(1), one(vote(1, 1))];
    let all = [
        ("append and rotate", append_and_rotate()),
        ("overwrite", overwrite()),
        ("compact and use again", compact()),
        ("snapshots", snapshots()),
        ("records and votes", records()),
        ("fill the disk", fill()),
        ("a log within the log", log_within()),
    ];
    all.map(|(name, steps)| (name, begin.iter().cloned().chain(steps).collect())).into()
}

fn append_and_rotate() -> Vec<Step> {
    vec![
        one(entries(1, 3, 1, 60)),
        Step::Append(vec![entries(4, 5, 1, 150), entries(6, 6, 1, 30), vote(2, 0)]),
        one(entries(7, 7, 2, 500)),
        one(entries(8, 8, 2, 10)),
        Step::Reopen,
        one(entries(9, 11, 2, 200)),
        one(entries(12, 12, 2, 1800)),
        one(entries(13, 13, 2, 10)),
        Step::Close,
        one(entries(14, 14, 2, 10)),
    ]
}

fn overwrite() -> Vec<Step> {
    vec![
        one(entries(1, 9, 1, 40)),
        one(LogBatch { entries: entries(4, 5, 2, 300).entries, ..vote(2, 3) }),
        one(entries(5, 9, 2, 60)),
        Step::Reopen,
        one(entries(2, 2, 2, 40)),
        Step::Append(vec![entries(3, 6, 2, 100), entries(4, 4, 2, 100), vote(3, 1)]),
        Step::Close,
        one(entries(1, 1, 3, 40)),
    ]
}

fn compact() -> Vec<Step> {
    let mut steps = vec![one(entries(1, 4, 1, 150)), one(entries(5, 8, 1, 150))];
    for round in 1..5 {
        let last = 4 + 4 * round;
        steps.push(one(record(at(last - 1, 1), false)));
        steps.push(Step::Compact(at(last - 1, 1)));
        steps.push(one(entries(last + 1, last + 4, 1, 150)));
    }
    steps
}

fn snapshots() -> Vec<Step> {
    vec![
        one(entries(1, 4, 1, 100)),
        Step::Snapshot(at(3, 1)),
        Step::Compact(at(2, 1)),
        one(entries(5, 9, 1, 100)),
        Step::Snapshot(at(8, 1)),
        Step::Compact(at(8, 1)),
        Step::Retain(8),
        Step::Receive(at(40, 2)),
        one(entries(41, 43, 2, 100)),
        Step::Reopen,
        one(record(at(40, 2), false)),
        Step::Retain(40),
    ]
}

fn records() -> Vec<Step> {
    vec![
        one(membership(b"one")),
        one(entries(1, 3, 1, 100)),
        one(vote(2, 3)),
        one(vote(2, 3)),
        one(membership(&[7; 600])),
        Step::Identify(2),
        Step::Append(vec![vote(3, 0), vote(3, 2), entries(3, 6, 3, 100)]),
        Step::Reopen,
        one(vote(4, 4)),
        Step::Close,
        one(vote(5, 1)),
    ]
}

fn fill() -> Vec<Step> {
    vec![
        one(entries(1, 2, 1, 200)),
        Step::LeaveRoom(600),
        one(entries(3, 6, 1, 200)),
        one(entries(3, 4, 1, 200)),
        Step::FailSync,
        one(entries(3, 5, 2, 250)),
        one(vote(3, 2)),
        Step::LeaveRoom(100),
        Step::Snapshot(at(2, 1)),
        one(entries(3, 3, 3, 60)),
    ]
}

/// Frames of the log of another directory, of later segments and writes than ours ever get to.
#[expect(clippy::expect_used, reason = "a log on a disk without faults")]
fn foreign_frames() -> Bytes {
    let (vfs, dir) = (Recorder::default(), Path::new("/foreign"));
    for boot in 1..=20 {
        let options = WalOptions { segment_size: 1024, prepare_ahead: false };
        let mut wal = Wal::open(Arc::new(vfs.clone()), dir, options).expect("it opens");
        wal.load().expect("it loads");
        let incarnation = Incarnation::from_u128(0xbad);
        wal.identify(&Identity { incarnation, ..identity(boot) }).expect("it is identified");
        wal.append(&[vote(boot, 1)]).expect("it takes a vote");
    }
    let disk = vfs.disk();
    let newest = disk.paths().filter(|p| p.extension().is_some()).max().expect("a segment");
    let file = disk.find(newest).expect("it is there");
    Bytes::copy_from_slice(&disk.bytes(file)[..480])
}

/// What a user writes may look like anything, such as frames of a log. They must not be taken for
/// later writes when the write that they stand in is torn.
fn log_within() -> Vec<Step> {
    let frames = foreign_frames();
    // Behind six bytes they stand on a boundary of eight.
    let data: Bytes = [&[0; 6], &*frames].concat().into();
    let entry = |index| Entry { term: 1, index, data: data.clone(), ..Entry::default() };
    let batch = |index| LogBatch { entries: vec![entry(index)], ..LogBatch::default() };
    vec![
        one(batch(1)),
        one(batch(2)),
        Step::Append(vec![batch(3), LogBatch { membership: Some(frames), ..vote(2, 1) }]),
        Step::Reopen,
        one(batch(4)),
        one(record(at(3, 1), false)),
        Step::Compact(at(3, 1)),
        one(batch(5)),
    ]
}

/// A step that a node might take next.
pub(super) fn random_step(rng: &mut Rng, allowed: &Allowed) -> Step {
    let log = allowed.log();
    let Some(identity) = log.identity else { return Step::Identify(1) };
    let (compacted, last) = (log.compacted.index, log.compacted.index + log.entries.len() as u64);
    let within = |rng: &mut Rng, top: Index| {
        let above = top.checked_sub(compacted).filter(|n| *n > 0)?;
        let offset = rng.below(above);
        let entry = log.entries.get(usize::try_from(offset).unwrap_or(usize::MAX));
        entry.map(|e| at(e.index, e.term))
    };
    let choice = match rng.below(26) {
        0 => Some(Step::Identify(identity.boot + 1)),
        1 | 2 => within(rng, last).map(Step::Snapshot),
        3..=6 => {
            let top = log.snapshot.map_or(0, |s| s.position.index).min(last);
            within(rng, top).map(Step::Compact)
        }
        7 => allowed.kept.iter().map(|p| p.index).max().map(Step::Retain),
        8 => Some(Step::Close),
        9 => Some(Step::Reopen),
        10 => Some(Step::LeaveRoom(rng.below(3000))),
        11 => Some(Step::FailSync),
        12 => Some(Step::Receive(at(last + 1 + rng.below(9), log.hard_state.term.max(1)))),
        _ => None,
    };
    choice.unwrap_or_else(|| {
        let mut after = log.clone();
        let batches = (0..=rng.below(3)).map(|_| {
            let batch = random_batch(rng, &after, 900);
            crate::testing::log_suite::apply(&mut after, &batch);
            batch
        });
        Step::Append(batches.collect())
    })
}
